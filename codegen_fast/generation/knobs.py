"""Every knob of transformers' `generate` (5.23), what it does here, and the check of its value.

A knob is in one of four states:
    done   it acts as in transformers
    hint   it cannot change tokens; any value is accepted and nothing happens
    later  known and not done yet; a value that would act is a NotImplementedError
    never  known and refused for good; the NotImplementedError says what to do instead
`KNOBS` is the one list: `generate`, `GenerationConfig`, the tests and the documentation read it.
"""
from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Knob:
    """One knob. `default` is transformers' default; for "later" and "never", None and `default` mean "off"."""

    name: str
    state: str
    default: Any = None
    check: Callable[[str, Any], Any] | None = None  # "done" only: (name, value) -> normalised value, or ValueError
    instead: str = ""  # "never" and some "later": what to do instead


def _refuse(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name}={value!r} is not allowed: expected {allowed}")


def integer(low: int, high: int | None = None, more: str = "") -> Callable[[str, Any], int]:
    """A check for an int (numpy's and 0-dim integer tensors too; no bool) in [low, high]."""
    allowed = f"an int of {low} or more" if high is None else f"an int from {low} to {high}"

    def check(name: str, value: Any) -> int:
        number = as_int(value)
        if number is None or number < low or (high is not None and number > high):
            raise _refuse(name, value, allowed + more)
        return number

    return check


def as_int(value: Any) -> int | None:
    """The value as a Python int, or None where it is not an integer (a bool isn't)."""
    if isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, "bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_number(value: Any) -> float:
    """The value as a float, NaN where it is not a real number."""
    return math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _refuse(name, value, "True or False")


# The kernels hold knobs in float32.
_FLOAT32_MAX, _FLOAT32_MIN = 3.4028234e38, 1.1754944e-38


def _temperature(name: str, value: Any) -> float:
    # Zero and the sampling mode are looked at together later: greedy programs often pass temperature=0.
    number = _as_number(value)
    if not 0 <= number <= _FLOAT32_MAX:
        raise _refuse(name, value, "a finite number above 0")
    return max(number, _FLOAT32_MIN) if number else 0.0  # tiny is not zero: as a float32 it must not become greedy


def _top_p(name: str, value: Any) -> float:
    number = _as_number(value)
    if not 0 <= number <= 1:
        raise _refuse(name, value, "a number from 0 to 1 (1 keeps every token)")
    return number


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One id or a sequence of them (list, tuple, tensor, array) -> a tuple, in the given order."""
    allowed = "a token id (an int of 0 or more) or a list of them; None for no such token"
    single = as_int(value)
    if single is None and (isinstance(value, str) or not isinstance(value, Iterable)):
        raise _refuse(name, value, allowed)
    ids = [single] if single is not None else [as_int(item) for item in value]
    if not ids or any(item is None or item < 0 for item in ids):
        raise _refuse(name, value, allowed)
    return tuple(ids)


_token_id = integer(0, more=" (a token id), or None")

_BEAMS = "use sampling with num_return_sequences and keep the best row"

KNOBS: dict[str, Knob] = {knob.name: knob for knob in (
    Knob("max_length", "done", 20, integer(1)),
    Knob("max_new_tokens", "done", None, integer(1)),
    Knob("do_sample", "done", False, _flag),
    Knob("temperature", "done", 1.0, _temperature),
    Knob("top_k", "done", 50, integer(0, more=" (0 or None keeps every token)")),
    Knob("top_p", "done", 1.0, _top_p),
    Knob("num_return_sequences", "done", 1, integer(1)),
    Knob("pad_token_id", "done", None, _token_id),
    Knob("bos_token_id", "done", None, _token_id),
    Knob("eos_token_id", "done", None, _token_ids),

    Knob("cache_implementation", "hint"),
    Knob("cache_config", "hint"),
    Knob("max_cache_len", "hint"),
    Knob("compile_config", "hint"),
    Knob("disable_compile", "hint"),
    Knob("prefill_chunk_size", "hint"),
    Knob("low_memory", "hint"),
    Knob("continuous_batching_config", "hint"),

    Knob("use_cache", "later", True),
    Knob("min_length", "later", 0),
    Knob("min_new_tokens", "later"),
    Knob("max_time", "later"),
    Knob("stop_strings", "later"),
    Knob("min_p", "later"),
    Knob("typical_p", "later", 1.0),
    Knob("epsilon_cutoff", "later", 0.0),
    Knob("eta_cutoff", "later", 0.0),
    Knob("repetition_penalty", "later", 1.0),
    Knob("no_repeat_ngram_size", "later", 0),
    Knob("bad_words_ids", "later"),
    Knob("suppress_tokens", "later"),
    Knob("begin_suppress_tokens", "later"),
    Knob("sequence_bias", "later"),
    Knob("forced_eos_token_id", "later"),
    Knob("exponential_decay_length_penalty", "later"),
    Knob("renormalize_logits", "later", False),
    Knob("remove_invalid_values", "later", False),
    Knob("num_beams", "later", 1, instead=_BEAMS),
    Knob("early_stopping", "later", False, instead=_BEAMS),
    Knob("length_penalty", "later", 1.0, instead=_BEAMS),
    Knob("return_dict_in_generate", "later", False),
    Knob("output_scores", "later", False),
    Knob("output_logits", "later", False),
    Knob("output_hidden_states", "later", False, instead="model(input_ids, output_hidden_states=True) gives them"),
    Knob("token_healing", "later", False),
    Knob("prompt_lookup_num_tokens", "later"),
    Knob("max_matching_ngram_size", "later"),
    Knob("num_assistant_tokens", "later", 20),
    Knob("num_assistant_tokens_schedule", "later", "constant"),
    Knob("assistant_confidence_threshold", "later", 0.4),

    Knob("top_h", "never", instead="use top_p"),
    Knob("penalty_alpha", "never", instead="contrastive search is not offered; use do_sample=True with top_k"),
    Knob("dola_layers", "never", instead="DoLa is not offered; use greedy decoding or sampling"),
    Knob("num_beam_groups", "never", 1, instead="group beam search is not offered; " + _BEAMS),
    Knob("diversity_penalty", "never", 0.0, instead="group beam search is not offered; " + _BEAMS),
    Knob("constraints", "never", instead="constrained beam search is not offered; filter the samples afterwards"),
    Knob("force_words_ids", "never", instead="constrained beam search is not offered; filter the samples afterwards"),
    Knob("guidance_scale", "never", 1, instead="guidance needs a second model run; put the guidance in the prompt"),
    Knob("watermarking_config", "never", instead="watermarks are not offered; leave it out"),
    Knob("output_attentions", "never", False, instead="the fused kernels never hold attention maps; use transformers"),
    Knob("encoder_repetition_penalty", "never", 1.0, instead="CodeGen has no encoder; leave it out"),
    Knob("encoder_no_repeat_ngram_size", "never", 0, instead="CodeGen has no encoder; leave it out"),
    Knob("decoder_start_token_id", "never", instead="CodeGen has no encoder; begin the prompt with the token"),
    Knob("forced_bos_token_id", "never", instead="put the token at the end of the prompt"),
    Knob("is_assistant", "never", False, instead="it is internal to transformers; leave it out"),
    Knob("use_mtp", "never", False, instead="CodeGen has no heads for further tokens; leave it out"),
    Knob("assistant_early_exit", "never", instead="CodeGen was not trained to exit early; leave it out"),
    Knob("assistant_lookbehind", "never", 10, instead="only a draft model with the same tokenizer makes sense here"),
    Knob("target_lookbehind", "never", 10, instead="only a draft model with the same tokenizer makes sense here"),
    Knob("assistant_ensemble_weight", "never", instead="drafts never change the tokens here; leave it out"),
    Knob("speculation_type", "never", instead="leave it out"),
)}

# Arguments of transformers' `generate` that are not fields of its GenerationConfig. `seed` and `sample_offset` are
# ours; the "done" ones are read by the model, with their own checks.
ARGUMENTS: dict[str, Knob] = {knob.name: knob for knob in (
    Knob("input_ids", "done"),
    Knob("inputs", "done"),
    Knob("attention_mask", "done"),
    Knob("generation_config", "done"),
    Knob("streamer", "done"),
    Knob("seed", "done"),
    Knob("sample_offset", "done"),
    Knob("position_ids", "done"),

    Knob("tokenizer", "hint"),
    Knob("trust_remote_code", "hint"),

    Knob("synced_gpus", "later", False),
    Knob("stopping_criteria", "later", ()),
    Knob("logits_processor", "later", ()),
    Knob("prefix_allowed_tokens_fn", "later"),
    Knob("assistant_model", "later"),
    Knob("past_key_values", "later"),

    Knob("assistant_tokenizer", "never", instead="only a draft model with the same tokenizer makes sense here"),
    Knob("custom_generate", "never", instead="call your function yourself"),
    Knob("negative_prompt_ids", "never", instead="guidance is not offered"),
    Knob("negative_prompt_attention_mask", "never", instead="guidance is not offered"),
    Knob("inputs_embeds", "never", instead="pass input_ids"),
    Knob("token_type_ids", "never", instead="CodeGen would add the embeddings of those ids to the prompt; leave it "
                                            "out (tokenizer(..., return_token_type_ids=False))"),
    Knob("output_router_logits", "never", False, instead="CodeGen has no experts; leave it out"),
)}


def nearest(name: str, known: Iterable[str]) -> str:
    """"; did you mean 'x'?" with the known name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def require_known(names: Iterable[str], where: str) -> None:
    """TypeError for the first name that is no knob and no argument of `generate`."""
    for name in names:
        if name not in KNOBS and name not in ARGUMENTS:
            raise TypeError(f"{where} got an unknown knob {name!r}{nearest(name, [*KNOBS, *ARGUMENTS])}")


def is_off(knob: Knob, value: Any) -> bool:
    """Whether a "later" or "never" knob's value leaves it without effect."""
    if value is None:
        return True
    if isinstance(knob.default, tuple):  # lists of callbacks: empty ones do nothing
        return isinstance(value, (list, tuple)) and len(value) == 0
    return isinstance(value, (bool, int, float, str)) and value == knob.default


def require_off(knob: Knob, value: Any, origin: str = "") -> None:
    """NotImplementedError where a "later" or "never" knob would act; `origin` is put after the value."""
    if knob.state in ("later", "never") and not is_off(knob, value):
        text = repr(value)
        shown = text if len(text) <= 60 else f"<{type(value).__name__}>"
        state = "is not implemented yet" if knob.state == "later" else "is not supported"
        raise NotImplementedError(f"{knob.name}={shown}{origin} {state} in codegen_fast"
                                  + (f": {knob.instead}" if knob.instead else f"; leave {knob.name} out"))
