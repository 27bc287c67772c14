"""Runs cases of parity in transformers: python worker.py ORDERS.json RESULTS.json FOLDER

ORDERS: {"checkpoints": {name: {"model": options of make_model, "tokenizer": options of write_tokenizer}},
         "cases": [{"checkpoint", "recipe", "ragged", "seed"}]}.
Checkpoints are written to FOLDER/name. RESULTS: one record a case: the prompts, base, knobs, and what the plain run and
the run with the knobs gave. Knobs are drawn until the two differ.
"""
from __future__ import annotations

import json
import random
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402
from checkpoints import make_checkpoint  # noqa: E402
from parity import recipes  # noqa: E402
from parity.callbacks import arguments  # noqa: E402
from parity.recipes import Draw  # noqa: E402
from tokenizers_small import write_tokenizer  # noqa: E402

_DRAWS = 60


class Side:
    """A checkpoint in transformers' hands."""

    def __init__(self, folder: Path, options: dict):
        self.model = make_checkpoint(folder, **options["model"])
        write_tokenizer(folder, **options["tokenizer"])
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.vocab_size = self.model.config.vocab_size
        backend = self.tokenizer.backend_tokenizer
        self.texts = [backend.decode([token]) for token in range(self.vocab_size)]
        self.eos = self.tokenizer.eos_token_id
        self._results: dict[str, dict] = {}  # recipes share prompts and plain runs

    def run(self, prompts: dict, knobs: dict) -> dict:
        """The result in lists."""
        key = json.dumps([prompts, knobs])
        if key not in self._results:
            self._results[key] = self._run(prompts, knobs)
        return self._results[key]

    def _run(self, prompts: dict, knobs: dict) -> dict:
        tensors = {name: torch.tensor(rows) for name, rows in prompts.items()}
        with torch.no_grad():
            output = self.model.generate(**tensors, **arguments(knobs, self.vocab_size, self.tokenizer))
        return as_lists(output)


def as_lists(output) -> dict:
    if isinstance(output, torch.Tensor):
        return {"sequences": output.tolist()}
    record = {"sequences": output.sequences.tolist(), "fields": list(output)}
    for name in ("scores", "logits"):
        if output.get(name) is not None:
            record[name] = [step.tolist() for step in output[name]]
    if output.get("hidden_states") is not None:
        record["hidden_states"] = [[layer.tolist() for layer in step] for step in output["hidden_states"]]
    if output.get("sequences_scores") is not None:
        record["sequences_scores"] = output["sequences_scores"].tolist()
    return record


def draw_prompts(chance: random.Random, side: Side, ragged: bool) -> dict:
    sizes = [chance.randrange(2, 9) for _ in range(3)] if ragged else [chance.randrange(2, 9)]
    width = max(sizes)
    tokens = [token for token in range(side.vocab_size) if token != side.eos]
    ids = [[side.eos] * (width - n) + chance.choices(tokens, k=n) for n in sizes]
    return {"input_ids": ids, "attention_mask": [[0] * (width - n) + [1] * n for n in sizes]}


def make_case(side: Side, order: dict) -> dict:
    recipe = {**recipes.ALONE, **recipes.NEUTRAL, "combination": recipes.combination}[order["recipe"]]
    chance = random.Random(f"{order['checkpoint']} {order['recipe']} {order['ragged']} {order['seed']}")
    for attempt in range(_DRAWS):
        prompts = draw_prompts(random.Random(f"{order['checkpoint']} {order['seed']} {attempt}"), side, order["ragged"])
        columns = len(prompts["input_ids"][0])
        free = side.run(prompts, {"max_new_tokens": recipes.STEPS, "eos_token_id": None, "pad_token_id": side.eos})
        written = [row[columns:] for row in free["sequences"]]
        draw = Draw(chance, side.vocab_size, columns, written, side.texts, side.eos)
        base, knobs = recipe(draw)
        plain, expected = side.run(prompts, base), side.run(prompts, {**base, **knobs})
        matters = plain["sequences"] != expected["sequences"] if order["recipe"] == "combination" else plain != expected
        if matters or order["recipe"] in recipes.NEUTRAL:
            return {**order, "prompts": prompts, "base": base, "knobs": knobs, "plain": plain, "expected": expected}
    raise ValueError(f"{order}: no draw of {_DRAWS} changed the result")


def main(orders_path: str, results_path: str, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    orders = json.loads(Path(orders_path).read_text())
    sides = {name: Side(Path(folder) / name, options) for name, options in orders["checkpoints"].items()}
    results = [make_case(sides[order["checkpoint"]], order) for order in orders["cases"]]
    Path(results_path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
