"""How the knobs of a case are drawn, from what a model writes without them. No transformers in here.

A recipe takes a Draw and returns (base, knobs): the plain run has the knobs of `base`, the case both.
"""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STEPS = 12
Knobs = dict[str, Any]


@dataclass
class Draw:
    """What recipes draw from."""

    chance: random.Random
    vocab_size: int
    columns: int           # of the prompts
    free: list[list[int]]  # new tokens of every row, STEPS of them, that no eos token ends
    texts: list[str]       # of every token of the vocabulary
    eos: int

    def token(self, low: int = 0, high: int = STEPS) -> int:
        """One that a row wrote."""
        return self.chance.choice(self.chance.choice(self.free)[low:high])

    def pair(self) -> list[int]:
        """Two that a row wrote one after the other."""
        row, at = self.chance.choice(self.free), self.chance.randrange(STEPS - 1)
        return row[at:at + 2]

    def plain(self, **knobs: Any) -> Knobs:
        return {"max_new_tokens": STEPS, "eos_token_id": [self.eos], "pad_token_id": self.eos, **knobs}

    def ending(self, **knobs: Any) -> Knobs:
        """A base whose rows end early, at tokens that they wrote."""
        return self.plain(eos_token_id=[self.eos, *(row[self.chance.randrange(1, 5)] for row in self.free)], **knobs)

    def beams(self, **knobs: Any) -> Knobs:
        return self.ending(num_beams=3, **knobs)

    def with_dict(self, **knobs: Any) -> Knobs:
        return self.plain(return_dict_in_generate=True, **knobs)

    def stop_text(self) -> str:
        """Letters that a row wrote, often across or inside tokens."""
        row = self.chance.choice(self.free)
        text = "".join(self.texts[token] for token in row)
        text = "".join(c if c.isascii() and c.isprintable() else "\0" for c in text)
        size = self.chance.randrange(1, 4)
        found = [text[i:i + size] for i in range(len(text) - size + 1) if "\0" not in text[i:i + size]]
        return self.chance.choice(found) if found else "the"


# ---- Edits of logits: what random combinations are made of ---------------------------------------

EDITS: dict[str, Callable[[Draw], Knobs]] = {
    "repetition_penalty": lambda d: {"repetition_penalty": d.chance.choice([0.6, 1.7, 3.0])},
    "no_repeat_ngram_size": lambda d: {"no_repeat_ngram_size": d.chance.choice([2, 3])},
    "bad_words_ids": lambda d: {"bad_words_ids": [[d.token()], d.pair(), d.pair(), [d.eos]]},
    "suppress_tokens": lambda d: {"suppress_tokens": [d.token(), d.token(), d.vocab_size + 5]},
    "begin_suppress_tokens": lambda d: {"begin_suppress_tokens": [row[0] for row in d.free]},
    "sequence_bias": lambda d: {"sequence_bias": _biases(d)},
    "sequence_bias as a dict": lambda d: {"bias_dict": _biases(d)},
    "forced_eos_token_id": lambda d: {"forced_eos_token_id": d.chance.choice([d.eos, [d.vocab_size // 2, d.eos]])},
    "exponential_decay_length_penalty": lambda d: {"exponential_decay_length_penalty": [d.chance.randrange(4), 2.5]},
    "min_length": lambda d: {"min_length": d.columns + d.chance.randrange(5, STEPS)},
    "min_new_tokens": lambda d: {"min_new_tokens": d.chance.randrange(5, STEPS)},
    "prefix_allowed_tokens_fn": lambda d: {"prefix_allowed_tokens_fn": "third"},
    "logits_processor": lambda d: {"logits_processor": d.chance.sample(["favour", "halve", "ban"], 2)},
    "renormalize_logits": lambda d: {"renormalize_logits": True},
    "remove_invalid_values": lambda d: {"remove_invalid_values": True},
    "stopping_criteria": lambda d: {"stopping_criteria": ["multiples", d.columns + STEPS - 2]},
    "stop_strings": lambda d: {"stop_strings": [d.stop_text(), d.stop_text()]},
}


def _biases(d: Draw) -> list:
    target = d.chance.randrange(d.vocab_size)
    biases = {(d.token(),): -8.0, tuple(d.pair()): -4.5, (d.token(), target): 7.25, (target,): 1.5}
    return [[list(ids), bias] for ids, bias in biases.items()]


# ---- One knob at a time --------------------------------------------------------------------------

_BASES: dict[str, Callable[[Draw], Knobs]] = {
    "no_repeat_ngram_size": lambda d: d.plain(repetition_penalty=0.4),  # a row must repeat itself first
    "min_length": Draw.ending,
    "min_new_tokens": Draw.ending,
    "renormalize_logits": lambda d: d.with_dict(output_scores=True),
    "remove_invalid_values": lambda d: d.with_dict(output_scores=True, suppress_tokens=[3],
                                                   bad_words_ids=[[d.token()], d.pair()]),
}

ALONE: dict[str, Callable[[Draw], tuple[Knobs, Knobs]]] = {
    **{name: lambda d, name=name: (_BASES.get(name, Draw.plain)(d), EDITS[name](d)) for name in EDITS},
    "max_length": lambda d: (d.plain(), {"max_new_tokens": None, "max_length": d.columns + d.chance.randrange(3, 9)}),
    "max_new_tokens": lambda d: (d.plain(), {"max_new_tokens": d.chance.randrange(1, 9)}),
    "max_time": lambda d: (d.plain(), {"max_time": 1e-9}),
    "eos_token_id": lambda d: (d.plain(), {"eos_token_id": d.chance.choice([d.token(), [d.token(), d.token()]])}),
    "pad_token_id": lambda d: (d.ending(), {"pad_token_id": 7}),
    "return_dict_in_generate": lambda d: (d.plain(), {"return_dict_in_generate": True}),
    "output_scores": lambda d: (d.with_dict(repetition_penalty=2.0), {"output_scores": True}),
    "output_logits": lambda d: (d.with_dict(repetition_penalty=2.0), {"output_logits": True}),
    "output_hidden_states": lambda d: (d.with_dict(), {"output_hidden_states": True}),
    "num_beams": lambda d: (d.ending(), {"num_beams": d.chance.choice([2, 4])}),
    "num_return_sequences": lambda d: (d.beams(), {"num_return_sequences": 3}),
    "length_penalty": lambda d: (d.beams(), {"length_penalty": d.chance.choice([-3.0, 4.0])}),
    "early_stopping": lambda d: (d.beams(length_penalty=d.chance.choice([0.5, 2.0])),
                                 {"early_stopping": d.chance.choice([True, "never"])}),
}

# These change no token, and other tests show what they do change.
NEUTRAL: dict[str, Callable[[Draw], tuple[Knobs, Knobs]]] = {
    "nothing": lambda d: (d.plain(), {}),
    "use_cache": lambda d: (d.plain(), {"use_cache": False}),
    "cache_implementation": lambda d: (d.plain(), {"cache_implementation": "dynamic"}),
    "sampling knobs without do_sample": lambda d: (d.plain(), {"top_k": 3, "top_p": 0.5, "temperature": 0.7,
                                                               "min_p": 0.2, "typical_p": 0.5, "eta_cutoff": 0.1}),
    "prompt_lookup_num_tokens": lambda d: (d.plain(), {"prompt_lookup_num_tokens": 3}),
}

# Rows of one column each cannot be padded; transformers drafts for one row only.
ONLY_RAGGED = ("pad_token_id",)
ONLY_ONE = ("prompt_lookup_num_tokens",)


# ---- Combinations --------------------------------------------------------------------------------


def combination(d: Draw) -> tuple[Knobs, Knobs]:
    """Three to six knobs at once, a third of the time over beams."""
    chance = d.chance
    names = chance.sample(sorted(EDITS), chance.randrange(3, 7))
    knobs: Knobs = {}
    for name in names:
        if name == "sequence_bias as a dict" and "sequence_bias" in knobs:
            continue
        if name == "sequence_bias" and "bias_dict" in knobs:
            continue
        # An eos token that is the lowest finite number, times a power, is an infinity that only argmax survives.
        if {name, *knobs} >= {"exponential_decay_length_penalty", "remove_invalid_values"}:
            continue
        knobs.update(EDITS[name](d))
    base = chance.choice([Draw.plain, Draw.ending])(d)
    if chance.randrange(3) == 0:
        knobs.update(num_beams=3, num_return_sequences=chance.choice([1, 2]), length_penalty=chance.choice([0.5, 1.5]),
                     early_stopping=chance.choice([False, True, "never"]))
    elif chance.randrange(2):
        knobs.update(return_dict_in_generate=True, output_scores=True, output_logits=True)
        base["return_dict_in_generate"] = True
    return base, knobs
