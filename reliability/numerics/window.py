"""A context that is filled to its last position: by a prompt, by a generation, by steps; and one token more.

Random models of 64 and 2048 positions, against transformers in float32.
"""

from __future__ import annotations

import warnings
from typing import Any, Callable

import bench  # noqa: F401 (tests/ is on the path now)
import checkpoints
import torch

import codegen_fast

SIZES = (64, 2048)
BOUND = 2e-5  # of float32 logits against transformers', as everywhere
_SHAPE = dict(n_embd=64, n_head=4, rotary_dim=8, n_layer=2, vocab_size=101, eos_token_id=None)
_GREEDY = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
# A generation begins so many positions before the end: transformers' steps take milliseconds each.
_GENERATED = 40


def raises(call: Callable[[], Any]) -> str:
    """The type and the text of what the call raises."""
    try:
        call()
    except Exception as raised:  # transformers' is an IndexError
        return f"{type(raised).__name__}: {raised}"
    raise AssertionError("no error where the context ends")


def measure_size(positions: int) -> dict[str, Any]:
    model = checkpoints.make_model(n_positions=positions, n_ctx=positions, **_SHAPE)
    fast = codegen_fast.accelerate(model)
    generator = torch.Generator().manual_seed(positions)
    ids = torch.randint(3, 101, (1, positions), generator=generator)
    begin = ids[:, : positions - _GENERATED]

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = model(ids).logits[0].double()
        expected = model.generate(begin, max_length=positions, **_GREEDY)
        batch = torch.cat([begin, begin.flip(1)])
        mask = torch.ones_like(batch)
        mask[1, :7] = 0  # padded on the left: the longer row is the one that reaches the end
        of_batch = model.generate(batch, attention_mask=mask, max_length=positions, **_GREEDY)
        beams = model.generate(begin, max_length=positions, num_beams=3, **_GREEDY)
        theirs = raises(lambda: model(torch.cat([ids, ids[:, :1]], 1)))
    whole = fast(ids).logits[0]
    past = fast(ids[:, :-1], use_cache=True).past_key_values
    last = fast(ids[:, -1:], past_key_values=past).logits[0, 0]
    error = float((whole.double() - wanted).norm() / wanted.norm())
    last_error = float((last.double() - wanted[-1]).norm() / wanted[-1].norm())
    assert error <= BOUND and last_error <= BOUND, f"{positions}: prompt {error:.1e}, last position {last_error:.1e}"

    ways = {
        "greedy": lambda: fast.generate(begin, max_length=positions, **_GREEDY),
        "drafts from the prompt": lambda: fast.generate(begin, max_length=positions, prompt_lookup_num_tokens=8, **_GREEDY),
        "in a session": lambda: fast.session().generate(begin, max_length=positions, **_GREEDY),
        "in a padded batch": lambda: fast.generate(batch, attention_mask=mask, max_length=positions, **_GREEDY)[:1],
    }
    for name, way in ways.items():
        assert torch.equal(way(), expected), f"{positions}: {name}: other tokens than transformers"
    assert torch.equal(fast.generate(batch, attention_mask=mask, max_length=positions, **_GREEDY), of_batch)
    assert torch.equal(fast.generate(begin, max_length=positions, num_beams=3, **_GREEDY), beams)

    longer = torch.cat([ids, ids[:, :1]], 1)
    ours = {
        "a longer prompt": raises(lambda: fast(longer)),
        "a step more": raises(lambda: fast(ids[:, :1], past_key_values=fast(ids, use_cache=True).past_key_values)),
        "a token more": raises(lambda: fast.generate(begin, max_length=positions + 1, **_GREEDY)),
        "a prompt that leaves no room": raises(lambda: fast.generate(ids, max_new_tokens=1, **_GREEDY)),
    }
    for what, text in ours.items():
        assert text.startswith("ValueError: ") and str(positions) in text, f"{what}: {text}"
    # and the model works on
    assert torch.equal(fast.generate(begin, max_length=positions, **_GREEDY), expected)
    return {"positions": positions, "prompt_error": error, "last_error": last_error, "ways": [*ways, "beams"],
            "theirs": theirs, "ours": ours}


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """AssertionError where tokens or logits differ from transformers', or where there is no clear error past the end."""
    return {"sizes": [measure_size(positions) for positions in sizes], "bound": BOUND, "generated": _GENERATED}


def lines(found: dict[str, Any]) -> str:
    sizes = found["sizes"]
    rows = ["| positions | a prompt of that length | the last position, by a step | one token more, in transformers |",
            "|---|---|---|---|"]
    for size in sizes:
        rows.append(f"| {size['positions']} | {size['prompt_error']:.1e} | {size['last_error']:.1e} | {size['theirs']} |")
    told = [f"- {what}: `{text}`" for what, text in sizes[-1]["ours"].items()]
    return f"""\
**A context filled to its last position** (`window.py`). Error of float32 logits against transformers in float32, at most
{found['bound']:.0e}:

{chr(10).join(rows)}

Generations over the last {found['generated']} positions give transformers' tokens: {", ".join(sizes[-1]["ways"])}. One token more
is an error before anything is computed:

{chr(10).join(told)}

transformers would give the one token that follows the last position (no position is needed to predict it) and then
fail; here a text has at most as many tokens as the context.
"""
