"""generate() against transformers', knob by knob and in combinations, while transformers cannot be imported.

The expected results come from another process (parity/worker.py), which draws every case's knobs until they change the
result. Sampling knobs are compared by distribution elsewhere.
"""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from parity import recipes
from parity.callbacks import arguments

from codegen_fast import AutoModelForCausalLM, AutoTokenizer

CHECKPOINTS = {
    "four heads": {"model": dict(vocab_size=338, n_layer=2, n_embd=64, n_head=4, rotary_dim=8, seed=1),
                   "tokenizer": dict(kind="code", size=300)},
    "eight heads": {"model": dict(vocab_size=290, n_layer=3, n_embd=96, n_head=8, rotary_dim=12, seed=2),
                    "tokenizer": dict(kind="nl", size=290)},
    "wide": {"model": dict(vocab_size=308, n_layer=1, n_embd=192, n_head=4, rotary_dim=32, n_inner=256, seed=3),
             "tokenizer": dict(kind="code", size=270)},
}
NUM_COMBINATIONS = 30


def _orders() -> list[dict]:
    recipe_seeds = [(recipe, 0) for recipe in (*recipes.ALONE, *recipes.NEUTRAL)]
    recipe_seeds += [("combination", seed) for seed in range(NUM_COMBINATIONS)]
    return [{"checkpoint": checkpoint, "recipe": recipe, "ragged": ragged, "seed": seed}
            for recipe, seed in recipe_seeds for checkpoint in CHECKPOINTS for ragged in (False, True)
            if recipe not in (recipes.ONLY_ONE if ragged else recipes.ONLY_RAGGED)]


ORDERS = _orders()


def _id(order: dict) -> str:
    seed = f" {order['seed']}" if order["recipe"] == "combination" else ""
    return f"{order['recipe']}{seed}, {order['checkpoint']}, {'ragged' if order['ragged'] else 'one'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def cases(folder):
    """What transformers gives for every order; it also writes the checkpoints."""
    orders, results = folder / "orders.json", folder / "results.json"
    orders.write_text(json.dumps({"checkpoints": CHECKPOINTS, "cases": ORDERS}))
    worker = Path(__file__).parent / "parity" / "worker.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, worker, orders, results, folder], env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {_id(case): case for case in json.loads(results.read_text())}


@pytest.fixture(scope="module")
def ours(cases, folder):
    """(model, tokenizer) of every checkpoint."""
    return {name: (AutoModelForCausalLM.from_pretrained(folder / name), AutoTokenizer.from_pretrained(folder / name))
            for name in CHECKPOINTS}


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def run(ours, case, **more):
    model, tokenizer = ours[case["checkpoint"]]
    prompts = {name: torch.tensor(rows) for name, rows in case["prompts"].items()}
    knobs = {**case["base"], **case["knobs"], **more}
    return model.generate(**prompts, **arguments(knobs, model.config.vocab_size, tokenizer))


LOGITS_ERROR = 2e-5  # of a row of float32 logits, relative to its norm; as in test_generate.py


def assert_close(got: torch.Tensor, expected: torch.Tensor, what: str, raw: torch.Tensor | None = None) -> None:
    """Rows (..., n) within the error of logits, infinities alike.

    raw: what expected was edited from. A factor on one element is one on its error too, and log_softmax moves all by
    the error of their sum.
    """
    finite = expected.abs() < 1e30
    assert torch.equal(got.isfinite(), expected.isfinite()) and torch.equal(got[~finite], expected[~finite]), what
    error = torch.where(finite, got - expected, 0.0).abs()
    if raw is None:
        error = error.norm(dim=-1, keepdim=True)
        allowed = LOGITS_ERROR * torch.where(finite, expected, 0.0).norm(dim=-1, keepdim=True)
    else:
        factor = torch.where(finite, expected / raw, 1.0).abs().clamp(min=1)
        allowed = 2 * LOGITS_ERROR * raw.norm(dim=-1, keepdim=True) * factor
    assert (error <= allowed).all(), f"{what}: {float((error / allowed).max())} of what is allowed"


def ends(case, reasons=None) -> list[int]:
    """New tokens of every row, those that pad it not counted. reasons: why rows ended, of "eos" where it is None."""
    columns = len(case["prompts"]["input_ids"][0])
    eos = {**case["base"], **case["knobs"]}["eos_token_id"]
    eos = [eos] if isinstance(eos, int) else eos
    lengths = []
    for index, row in enumerate(case["expected"]["sequences"]):
        new = row[columns:]
        first = next((i for i, token in enumerate(new) if token in eos), len(new))
        # Where something else ended the row, the first eos token is padding.
        lengths.append(min(len(new), first + (reasons is None or reasons[index] == "eos")))
    return lengths


@pytest.mark.parametrize("order", ORDERS, ids=_id)
def test_the_result_is_that_of_transformers(order, cases, ours):
    case = cases[_id(order)]
    expected = case["expected"]
    assert order["recipe"] in recipes.NEUTRAL or expected != case["plain"]  # the knobs matter
    output = run(ours, case)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    assert sequences.tolist() == expected["sequences"], f"{case['knobs']} over {case['base']}, plain: {case['plain']}"
    if "fields" not in expected:
        assert isinstance(output, torch.Tensor)
        return
    assert [name for name in output if name in expected["fields"]] == expected["fields"]
    assert output[0] is output["sequences"] is output.sequences
    rows = ends(case, output.finish_reasons)
    for name in ("scores", "logits"):
        assert name not in expected or len(output[name]) == len(expected[name])
        for step, values in enumerate(expected.get(name, ())):
            running = [row for row, end in enumerate(rows) if step < end]
            raw = torch.tensor(expected["logits"][step])[running] if name == "scores" and "logits" in expected else None
            assert_close(output[name][step][running], torch.tensor(values)[running], f"{name} of step {step}", raw)
    if "sequences_scores" in expected:
        got = output.sequences_scores.tolist()
        assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(got, expected["sequences_scores"], strict=True))
    mask = torch.tensor(case["prompts"]["attention_mask"]).bool()
    for step, layers in enumerate(expected.get("hidden_states", ())):
        for layer, values in enumerate(layers):
            got, values = output.hidden_states[step][layer], torch.tensor(values)
            assert got.shape == values.shape
            seen = mask if step == 0 else torch.tensor([[step < end] for end in rows])
            assert_close(got[seen], values[seen], f"hidden state {layer} of step {step}")


def test_no_test_here_can_import_transformers():
    with pytest.raises(ImportError):
        import transformers  # noqa: F401


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("batch", ["one", "ragged"])
def test_use_cache_decides_whether_the_cache_comes_back(cases, ours, checkpoint, batch):
    case = cases[f"nothing, {checkpoint}, {batch}"]
    with_cache = run(ours, case, return_dict_in_generate=True)
    without = run(ours, case, return_dict_in_generate=True, use_cache=False)
    assert with_cache.past_key_values is not None and without.past_key_values is None
    assert with_cache.sequences.tolist() == without.sequences.tolist() == case["expected"]["sequences"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("batch", ["one", "ragged"])
def test_a_generation_that_is_continued_is_that_in_one_go(cases, ours, checkpoint, batch):
    """With the returned cache; transformers' result in one go is the expected one."""
    case = cases[f"nothing, {checkpoint}, {batch}"]
    assert set(ends(case)) == {recipes.STEPS}, "draw another seed: a row ends early"
    first = run(ours, case, max_new_tokens=5, return_dict_in_generate=True)
    mask = torch.tensor(case["prompts"]["attention_mask"])
    mask = torch.cat([mask, torch.ones(len(mask), 5, dtype=mask.dtype)], 1)
    model, _ = ours[checkpoint]
    second = model.generate(first.sequences, mask, past_key_values=first.past_key_values, **{
        **case["base"], "max_new_tokens": recipes.STEPS - 5})
    assert second.tolist() == case["expected"]["sequences"]


def test_every_knob_has_a_case():
    """But those that say how tokens are drawn or drafted, which have tests of their own."""
    from codegen_fast.generation.knobs import KNOBS
    elsewhere = {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
                 "token_healing", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
                 "assistant_confidence_threshold", "bos_token_id"}
    done = {name for name, knob in KNOBS.items() if knob.state == "done"}
    assert done - elsewhere <= {*recipes.ALONE, *recipes.NEUTRAL}
