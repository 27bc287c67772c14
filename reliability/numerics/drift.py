"""Whether errors grow with the position: logits of texts of 2000 tokens, one step through the cache after the other.

Teacher-forced, against float64 (tests/reference.py) with the weights as the type holds them, and for the quantised kinds
also against the reference that quantises in the same way. The rotary table is transformers', which is float32: models
were trained with it. An error at a position is that of its row of logits relative to the row's length, as the root of the
mean square over the positions of a window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench  # noqa: F401 (tests/ is on the path now)
import checkpoints
import reference
import torch
import transformers
from devices import CPU, Types
from torch import Tensor

import codegen_fast
from codegen_fast.demo import demo_model_path
from codegen_fast.quantization import packed_kinds

TOKENS = 2000
WINDOW = 100
# The error of the worst window over that of the first: nothing that adds up along the text may stay within it.
GROWTH = 2.0
# (type, quantisation) and what the error may be: DESIGN's bound of float32; of the narrow types none but transformers'
# own error times 1.25; of quantised ones what the demo model is held to, which is trained (see KL).
KINDS = (("float32", None), ("float16", None), ("bfloat16", None), ("float32", "int8"), ("float32", "int8-row"),
         ("float32", "int4"))  # fmt: skip
FLOAT32_BOUND = 2e-5
NO_WORSE = 1.25
# Of int8 against the reference that quantises in the same way: a code that lies on a boundary may fall to either side.
SAME_CODES = 0.5  # of the error that the quantisation itself makes
# Nats a token on the demo model, against float64. int8: DESIGN's bound. int4: the bound of tests/test_demo_model.py and a
# half, for the text is another.
KL = {"float32": 1e-9, "float16": 1e-5, "bfloat16": 1e-3, "int8": 5e-3, "int8-row": 5e-3, "int4": 0.075}
SHAPE = dict(n_embd=256, n_head=4, rotary_dim=32, n_layer=4, vocab_size=512, n_positions=2048, n_ctx=2048, seed=11)


def label(dtype: str, quantization: str | None) -> str:
    return quantization or dtype


def by_steps(fast: Any, ids: Tensor) -> Tensor:
    """Logits (n, V) of ids (n,), a step for every token."""
    decoder = fast._decoder
    cache = decoder.new_cache()
    batch = decoder.start(cache, [cache.new_sequence()], len(ids))
    try:
        return torch.cat([batch.step(token).clone() for token in ids.split(1)])
    finally:
        batch.close()


def exact(model: torch.nn.Module, ids: Tensor, dtype: str, table: Tensor | None = None) -> Tensor:
    """Logits (n, V) in float64 of the weights rounded to dtype."""
    tensors = {name: reference.rounded(tensor, dtype) for name, tensor in model.state_dict().items()}
    return reference.forward(model.config, tensors, ids, table=table).logits


def quantised_alike(model: torch.nn.Module, ids: Tensor, quantization: str, table: Tensor) -> Tensor:
    """Logits (n, V) of the reference with the arithmetic that the quantisation's products have; lm_head has its own."""
    kinds = packed_kinds(torch.float32, quantization, "cpu")
    of = {name: CPU.arithmetic(Types(torch.float32, kind), "decode") for name, kind in kinds.items()}
    tensors = model.state_dict()
    h = reference.forward(model.config, tensors, ids, how=of["w_in"], table=table).hidden_states[-1]
    w, bias = tensors["lm_head.weight"], tensors["lm_head.bias"].double()
    logits = reference.product(h, w, of["lm_head"]) + bias
    if of["lm_head"].mode == "grouped":  # in two parts, as lm_head of tests/reference.py
        logits = logits + reference.product(h - reference.offset_rows(h, torch.float64), w, of["lm_head"])
    return logits


def windows(got: Tensor, wanted: Tensor, size: int = WINDOW) -> list[float]:
    """The relative error of every window of positions, the last one whole."""
    relative = (got.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    return [float(part.square().mean().sqrt()) for part in relative.split(size) if len(part) == size]


def nats(got: Tensor, wanted: Tensor, size: int = WINDOW) -> list[float]:
    """KL(wanted, got) of every window, in nats a token."""
    p = wanted.log_softmax(1)
    kl = (p.exp() * (p - got.double().log_softmax(1))).sum(1)
    return [float(part.mean()) for part in kl.split(size) if len(part) == size]


def growth(values: list[float]) -> float:
    return max(values) / values[0]


def random_model(tokens: int, kinds: tuple[tuple[str, str | None], ...]) -> list[dict[str, Any]]:
    model = checkpoints.make_model(**SHAPE)
    ids = torch.randint(3, SHAPE["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(4))
    table = reference.rotary_table(SHAPE["n_positions"], SHAPE["rotary_dim"], torch.float32)
    size = min(WINDOW, tokens // 5)
    truth = exact(model, ids, "float32", table)
    found = [{"kind": "transformers' rotary table", "errors": windows(truth, exact(model, ids, "float32"), size)}]
    for dtype, quantization in kinds:
        name = label(dtype, quantization)
        narrow = checkpoints.make_model(**SHAPE).to(getattr(torch, dtype))
        got = by_steps(codegen_fast.accelerate(narrow, quantization=quantization), ids)
        wanted = truth if dtype == "float32" else exact(model, ids, dtype, table)
        row: dict[str, Any] = {"kind": name, "errors": windows(got, wanted, size)}
        if dtype != "float32":
            with torch.no_grad():
                theirs = narrow(ids[None]).logits[0].float()
            row["transformers"] = windows(theirs, wanted, size)
            pairs = zip(row["errors"], row["transformers"])
            assert all(ours <= NO_WORSE * other for ours, other in pairs), f"{name}: worse than transformers: {row}"
        elif quantization is None:
            assert max(row["errors"]) <= FLOAT32_BOUND, f"{name}: {row['errors']}"
        else:
            row["same_codes"] = windows(got, quantised_alike(model, ids, quantization, table), size)
            pairs = zip(row["same_codes"], row["errors"])
            what = f"{name}: other codes than the reference: {row}"
            assert all(alike <= SAME_CODES * error for alike, error in pairs), what
        row["growth"] = growth(row["errors"])
        assert row["growth"] <= GROWTH, f"{name}: the error grows by {row['growth']:.2f}: {row['errors']}"
        found.append(row)
    return found


def demo_model(tokens: int, kinds: tuple[tuple[str, str | None], ...]) -> list[dict[str, Any]]:
    """The trained one, on this package's own source; its context ends at 1024."""
    folder = demo_model_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = Path(codegen_fast.__file__).with_name("model.py").read_text()
    ids = codegen_fast.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0, :tokens]
    table = reference.rotary_table(model.config.n_positions, model.config.rotary_dim, torch.float32)
    truth = exact(model, ids, "float32", table)
    size = min(WINDOW, len(ids) // 5)
    found = []
    for dtype, quantization in kinds:
        name = label(dtype, quantization)
        fast = codegen_fast.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization=quantization)
        kl = nats(by_steps(fast, ids), truth, size)
        found.append({"kind": name, "nats": kl, "mean": sum(kl) / len(kl), "allowed": KL[name]})
        assert found[-1]["mean"] <= KL[name], f"{name}: {found[-1]['mean']:.1e} nats a token, at most {KL[name]:g}"
    return found


def measure(tokens: int = TOKENS, kinds: tuple[tuple[str, str | None], ...] = KINDS) -> dict[str, Any]:
    """AssertionError where an error is above its bound at any position, or grows along the text."""
    demo = demo_model(min(tokens, 1000), kinds)
    return {"tokens": tokens, "window": min(WINDOW, tokens // 5), "model": SHAPE, "random": random_model(tokens, kinds),
            "demo": demo, "growth_allowed": GROWTH, "float32_allowed": FLOAT32_BOUND, "of_transformers_allowed": NO_WORSE,
            "same_codes_allowed": SAME_CODES}


def lines(found: dict[str, Any]) -> str:
    window = found["window"]
    ends = [end for end in (100, 300, 500, 1000, 1500, 2000) if end % window == 0 and end <= found["tokens"]]
    head = " | ".join(f"…{end}" for end in ends)
    rows = [f"| positions | {head} | worst / first |", "|---" * (len(ends) + 2) + "|"]

    def add(name: str, values: list[float]) -> None:
        cells = " | ".join(f"{values[end // window - 1]:.1e}" for end in ends)
        rows.append(f"| {name} | {cells} | {growth(values):.2f} |")

    for row in found["random"]:
        if "growth" not in row:
            continue
        add(row["kind"], row["errors"])
        if "transformers" in row:
            add(f"{row['kind']} in transformers", row["transformers"])
        if "same_codes" in row:
            add(f"{row['kind']}, against the reference that quantises alike", row["same_codes"])
    add("transformers' rotary table, in float64", found["random"][0]["errors"])
    ends_demo = [end for end in ends if end <= 1000]
    demo_head = " | ".join(f"…{end}" for end in ends_demo)
    demo = [f"| nats a token | {demo_head} | mean | allowed |", "|---" * (len(ends_demo) + 3) + "|"]
    for row in found["demo"]:
        cells = " | ".join(f"{row['nats'][end // window - 1]:.1e}" for end in ends_demo)
        demo.append(f"| {row['kind']} | {cells} | {row['mean']:.1e} | {row['allowed']:.0e} |")
    model = found["model"]
    return f"""\
**Drift with the position** (`drift.py`): {found['tokens']} steps through the cache, logits against float64, relative, in windows of
{window} positions (a random model of {model['n_layer']} layers and {model['n_embd']} columns with {model['n_positions']} positions, whose
attention is sharp):

{chr(10).join(rows)}

Against float64 no window may be worse than the first by more than {found['growth_allowed']:g}; float32 may err by {found['float32_allowed']:.0e}, the
narrow types by {found['of_transformers_allowed']:g} times what transformers errs by in them, in every window. Two things do grow. One is the distance to
the reference that quantises alike: a value between two codes may fall to either side once anything before it has rounded
differently (allowed: {found['same_codes_allowed']:.0%} of the quantisation's own error). The other is the last row: how far the float32 table of
angles, which transformers has and models were trained with, is from an exact one. On the trained demo model the kinds
cost, in nats a token (KL to float64):

{chr(10).join(demo)}
"""
