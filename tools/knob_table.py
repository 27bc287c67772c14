"""docs/knobs.md, from the one list of knobs: `python -m tools.knob_table > docs/knobs.md`."""
from __future__ import annotations

from collections.abc import Iterable

from codegen_fast.generation.knobs import ARGUMENTS, KNOBS, Knob

_HEAD = """\
# The knobs of `generate`

Every field of transformers' `GenerationConfig` (5.23) and every argument of its `generate`, and what each does here.
Names, defaults, precedence (call, then `generation_config`, then `model.generation_config`) and the order in which
logits are edited are those of transformers:

sequence_bias, repetition_penalty, no_repeat_ngram_size, bad_words_ids, min_length, min_new_tokens,
prefix_allowed_tokens_fn, forced_eos_token_id, remove_invalid_values, exponential_decay_length_penalty, suppress_tokens,
begin_suppress_tokens, logits_processor, temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff,
renormalize_logits.

Two things differ on purpose: padding is never part of a row's text (no penalty or n-gram sees it), so that a row gets
the same tokens in a batch as alone; and a value that could only be a mistake (`top_p=1.5`, `epsilon_cutoff=-1`) is an
error where transformers ignores it. A processor in `logits_processor` acts beside the knob of the same kind; in
transformers it replaces it.

Errors and warnings: an unknown knob is a TypeError here and a ValueError there; an unknown field of a configuration
object of transformers is ignored with a warning. `forced_eos_token_id`, and tokens that `prefix_allowed_tokens_fn`
returns, are a ValueError when they stand outside the vocabulary. What transformers logs is a Python warning
(UserWarning) here.

Flags also take 1, 0 and the bools of numpy and torch (`early_stopping=1` means True; transformers counts it as False),
numbers also scalars of numpy and torch, and the knobs for which transformers takes a float, such as `max_new_tokens`,
floats without a fraction.

This page is written by `python -m tools.knob_table` from `codegen_fast/generation/knobs.py`."""


def page() -> str:
    """The page, with its last newline."""
    knobs, arguments = KNOBS.values(), ARGUMENTS.values()
    parts = [
        _HEAD,
        "## Knobs that act", _table(_in_state(knobs, "done"), defaults=True),
        "## Hints", "Accepted with any value; they change neither tokens nor speed.", _table(_in_state(knobs, "hint")),
        "## Refused", "A NotImplementedError that says what to do instead, unless the value is None or the default.",
        _table(_in_state(knobs, "never")),
        "## Arguments of `generate` besides knobs", _table(_in_state(arguments, "done")),
        "Hints:", _table(_in_state(arguments, "hint")),
        "Refused:", _table(_in_state(arguments, "never")),
    ]
    return "\n\n".join(parts) + "\n"


def _in_state(knobs: Iterable[Knob], state: str) -> list[Knob]:
    return [knob for knob in knobs if knob.state == state]


def _table(knobs: list[Knob], *, defaults: bool = False) -> str:
    columns = ("name", "default", "what it does here") if defaults else \
        ("name", "instead" if knobs[0].state == "never" else "what it does here")
    rows = [(f"`{knob.name}`", f"`{knob.default!r}`", knob.does) if defaults else
            (f"`{knob.name}`", knob.does or knob.instead) for knob in knobs]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ("---",) * len(columns), *rows))


if __name__ == "__main__":
    print(page(), end="")
