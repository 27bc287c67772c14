"""Every knob of transformers' `generate` (5.23), what it does here, and the check of its value.

A knob is in one of three states:
    done   it acts as in transformers
    hint   it cannot change tokens; any value is accepted and nothing happens
    never  known and refused; the NotImplementedError says what to do instead
`KNOBS` and `ARGUMENTS` are the one list: `generate`, `GenerationConfig`, the tests and docs/knobs.md read it.
"""
from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import checks
from .checks import as_int, as_scalar, integer, number

__all__ = ["ARGUMENTS", "KNOBS", "Knob", "as_int", "nearest", "require_known", "require_off"]


@dataclass(frozen=True)
class Knob:
    """One knob. `default` is transformers' default; for "never", None and `default` mean "off"."""

    name: str
    state: str
    default: Any = None
    check: Callable[[str, Any], Any] | None = None  # of a knob of GenerationConfig that is "done"
    does: str = ""  # "done" and "hint": what it does here, for the documentation
    instead: str = ""  # "never": what to do instead


_KEEP_BEST = "use num_beams, or sampling with num_return_sequences"
_OWN_TOKENIZER = "only a draft model with the same tokenizer makes sense here"
_NO_GUIDANCE = "guidance is not offered, it needs a second run of the model; say it in the prompt"

_AT_LEAST = integer(0, negative=0)
_PROBABILITY = number("a number from 0 to 1 (1 keeps every token)", lambda p: 0 <= p <= 1)
_TYPICAL = number("a number above 0 and at most 1 (1 keeps every token)", lambda p: 0 < p <= 1)
_CUTOFF = number("a number of 0 or more and below 1 (0 keeps every token)", lambda p: 0 <= p < 1)
# A length to its power is a number for every context that a model may have.
_EXPONENT = number("a number from -32 to 32", lambda x: abs(x) <= 32)

KNOBS: dict[str, Knob] = {knob.name: knob for knob in (
    # How long
    Knob("max_length", "done", 20, integer(1, whole=True),
         "columns of a row at most, its prompt's (padding too) included; where nothing is set, 20 new tokens"),
    Knob("max_new_tokens", "done", None, integer(1, whole=True),
         "new tokens of a row at most; goes before max_length"),
    Knob("min_length", "done", 0, _AT_LEAST, "no eos token before a row has so many columns; below 0 means 0"),
    Knob("min_new_tokens", "done", None, _AT_LEAST,
         "no eos token before so many new ones; goes before min_length; below 0 means 0"),
    Knob("max_time", "done", None, number("a number of seconds of 0 or more", lambda s: s >= 0),
         "seconds after which the rows that still run end with their next token"),
    Knob("stop_strings", "done", None, checks.strings,
         "a row ends with the token that completes one of these texts, also inside a token; needs the tokenizer"),
    Knob("early_stopping", "done", False, checks.early_stopping,
         "when beams are done: True at num_beams results, False by an estimate, \"never\" only when none can improve"),

    # How tokens are chosen
    Knob("do_sample", "done", False, checks.flag, "draws tokens; otherwise the likeliest is taken"),
    Knob("num_beams", "done", 1, integer(1), "beams a prompt; with do_sample they are drawn"),
    Knob("num_return_sequences", "done", 1, integer(1),
         "rows a prompt: samples of it, computed once, or its best beams"),
    Knob("length_penalty", "done", 1.0, _EXPONENT, "beams are ranked by their log-probability / length to this power"),
    Knob("temperature", "done", 1.0, checks.temperature, "divides the logits before a draw"),
    Knob("top_k", "done", 50, integer(0, " (0 or None keeps every token)"), "draws among the k likeliest"),
    Knob("top_p", "done", 1.0, _PROBABILITY, "draws among the likeliest that together have this probability"),
    Knob("min_p", "done", None, number("a number from 0 to 1 (0 keeps every token)", lambda p: 0 <= p <= 1),
         "draws among those at least this times as likely as the likeliest"),
    Knob("typical_p", "done", 1.0, _TYPICAL,
         "draws among the tokens of most typical surprise that together have this probability"),
    Knob("epsilon_cutoff", "done", 0.0, _CUTOFF, "draws among those at least this likely"),
    Knob("eta_cutoff", "done", 0.0, _CUTOFF, "epsilon_cutoff that falls with the entropy"),

    # What changes logits
    Knob("sequence_bias", "done", None, checks.biased_sequences, "added to the logit that would complete a sequence"),
    Knob("repetition_penalty", "done", 1.0, checks.penalty,
         "divides (or multiplies, below 0) the logits of a row's own tokens; padding is none of them"),
    Knob("no_repeat_ngram_size", "done", 0, _AT_LEAST,
         "no n-gram of this size comes twice; padding is part of none; 0 and less: off"),
    Knob("bad_words_ids", "done", None, checks.token_sequences, "sequences that never come"),
    Knob("forced_eos_token_id", "done", None, checks.token_ids, "the token at max_length"),
    Knob("remove_invalid_values", "done", False, checks.flag, "NaN becomes 0, infinity the largest finite number"),
    Knob("exponential_decay_length_penalty", "done", None, checks.decay,
         "(start, factor): raises the logit of eos more and more after `start` new tokens"),
    Knob("suppress_tokens", "done", None, checks.token_set, "tokens that never come"),
    Knob("begin_suppress_tokens", "done", None, checks.token_set, "tokens that are not the first new one"),
    Knob("renormalize_logits", "done", False, checks.flag, "scores are log-probabilities after all edits"),
    Knob("token_healing", "done", False, checks.flag,
         "takes the prompt's last token back where a longer one fits the text; needs the tokenizer"),

    # What comes back
    Knob("return_dict_in_generate", "done", False, checks.flag, "a GenerateOutput instead of a tensor"),
    Knob("output_scores", "done", False, checks.flag, "the logits of every step as tokens were chosen from them"),
    Knob("output_logits", "done", None, checks.flag, "the logits of every step as the model gave them"),
    Knob("output_hidden_states", "done", None, checks.flag, "the hidden states of every step"),

    # Which tokens mean what
    Knob("pad_token_id", "done", None, checks.token_id,
         "pads rows that have ended; without it, or below 0, the first eos token does"),
    Knob("bos_token_id", "done", None, checks.token_id, "the prompt where none is given; below 0: not set"),
    Knob("eos_token_id", "done", None, checks.eos_ids, "a row ends with any of these; those below 0 are none"),

    # How it is computed
    Knob("use_cache", "done", True, checks.flag,
         "False returns no past_key_values; the computation always uses one, the tokens are the same"),
    Knob("prompt_lookup_num_tokens", "done", None, integer(1),
         "drafts of at most so many tokens from the row's own text"),
    Knob("max_matching_ngram_size", "done", None, integer(1),
         "prompt lookup looks for at most so many last tokens; 10 unless set"),
    Knob("num_assistant_tokens", "done", 20, integer(0, whole=True),
         "drafts of assistant_model are no longer than this, if it is set; 0: as if it were not"),
    Knob("num_assistant_tokens_schedule", "done", "constant",
         checks.one_of("constant", "heuristic", "heuristic_transient"),
         "where the call or a configuration sets it to \"constant\", every draft is as long as it may be, whether that "
         "pays or not; where nothing is set (the default is not) or another word, as long as it pays"),
    Knob("assistant_confidence_threshold", "done", 0.4, checks.confidence,
         "where it is set, a draft ends before a token that assistant_model finds less likely"),

    Knob("cache_implementation", "hint", does="there is one cache, in pages"),
    Knob("cache_config", "hint", does="there is one cache, in pages"),
    Knob("max_cache_len", "hint", does="the cache grows as needed"),
    Knob("compile_config", "hint", does="nothing is compiled at run time"),
    Knob("disable_compile", "hint", does="nothing is compiled at run time"),
    Knob("prefill_chunk_size", "hint", does="prompts go through in chunks of a size that fits the kernels"),
    Knob("low_memory", "hint", does="rows run in waves that fit the memory"),
    Knob("continuous_batching_config", "hint", does="rows that end are replaced by waiting ones anyway"),
    Knob("assistant_lookbehind", "hint", 10, does="acts only with assistant_tokenizer, which is refused"),
    Knob("target_lookbehind", "hint", 10, does="acts only with assistant_tokenizer, which is refused"),

    Knob("top_h", "never", instead="use top_p or min_p"),
    Knob("penalty_alpha", "never", instead="contrastive search is not offered; use do_sample=True with top_k"),
    Knob("dola_layers", "never", instead="DoLa is not offered; use greedy decoding or sampling"),
    Knob("num_beam_groups", "never", 1, instead="group beam search is not offered; " + _KEEP_BEST),
    Knob("diversity_penalty", "never", 0.0, instead="group beam search is not offered; " + _KEEP_BEST),
    Knob("constraints", "never", instead="constrained beam search is not offered; use prefix_allowed_tokens_fn"),
    Knob("force_words_ids", "never", instead="constrained beam search is not offered; use prefix_allowed_tokens_fn, or "
                                             "filter samples afterwards"),
    Knob("guidance_scale", "never", 1, instead=_NO_GUIDANCE),
    Knob("watermarking_config", "never", instead="watermarks are not offered; leave it out"),
    Knob("output_attentions", "never", False, instead="the fused kernels never hold attention maps; use transformers"),
    Knob("encoder_repetition_penalty", "never", 1.0, instead="CodeGen has no encoder; use repetition_penalty"),
    Knob("encoder_no_repeat_ngram_size", "never", 0, instead="CodeGen has no encoder; use no_repeat_ngram_size"),
    Knob("decoder_start_token_id", "never", instead="CodeGen has no encoder; begin the prompt with the token"),
    Knob("forced_bos_token_id", "never", instead="put the token at the end of the prompt"),
    Knob("is_assistant", "never", False, instead="it is internal to transformers; leave it out"),
    Knob("use_mtp", "never", False, instead="CodeGen has no heads for further tokens; leave it out"),
    Knob("assistant_early_exit", "never", instead="CodeGen was not trained to exit early; leave it out"),
    Knob("assistant_ensemble_weight", "never", instead="drafts never change the tokens here; leave it out (that of a "
                                                       "configuration is ignored)"),
    Knob("speculation_type", "never", instead="use assistant_model or prompt_lookup_num_tokens"),
)}

# Arguments of `generate` that are not fields of transformers' GenerationConfig; the "done" ones are checked where they
# are read.
ARGUMENTS: dict[str, Knob] = {knob.name: knob for knob in (
    Knob("input_ids", "done", does="the prompts: a tensor, an array, or a list of lists, which need no padding"),
    Knob("inputs", "done", does="another name of input_ids"),
    Knob("attention_mask", "done", does="0 at left padding"),
    Knob("position_ids", "done", does="accepted where they say what happens anyway"),
    Knob("generation_config", "done", does="a GenerationConfig, ours or transformers', or a dict"),
    Knob("streamer", "done", does="gets the prompts, then the tokens of each step: transformers' streamers work"),
    Knob("stopping_criteria", "done", does="functions (input_ids, scores) that say which rows end"),
    Knob("logits_processor", "done", does="functions (input_ids, scores) that return edited scores"),
    Knob("prefix_allowed_tokens_fn", "done", does="(batch_id, input_ids) -> the tokens that may follow"),
    Knob("assistant_model", "done", does="a smaller CodeGen that drafts; the tokens are those of plain decoding"),
    Knob("past_key_values", "done", does="continues a generation: the cache that an earlier call returned"),
    Knob("tokenizer", "done", does="for stop_strings, stop and token_healing; the checkpoint's own where it has one"),

    # Ours
    Knob("stop", "done",
         does="\"function\", \"statement\", \"line\", \"truncation\" or regular expressions: where code ends"),
    Knob("return_logprobs", "done", does="k: log-probabilities of every token and of the k likeliest beside it"),
    Knob("session", "done", does="a cache kept across calls, see model.session"),
    Knob("max_batch_size", "done", does="rows that run at once; the result does not depend on it"),
    Knob("seed", "done", does="an int, or one a prompt; the same seed gives the same tokens"),
    Knob("sample_offset", "done", does="the index of the first sample, or one a prompt"),

    Knob("synced_gpus", "hint", does="one process runs the model"),
    Knob("trust_remote_code", "hint", does="no remote code is run"),
    Knob("logits_to_keep", "hint", does="logits are computed only where a token is chosen"),

    Knob("assistant_tokenizer", "never", instead=_OWN_TOKENIZER),
    Knob("custom_generate", "never", instead="call your function yourself"),
    Knob("negative_prompt_ids", "never", instead=_NO_GUIDANCE),
    Knob("negative_prompt_attention_mask", "never", instead=_NO_GUIDANCE),
    Knob("inputs_embeds", "never", instead="pass input_ids"),
    Knob("token_type_ids", "never", instead="CodeGen would add the embeddings of those ids to the prompt; leave it "
                                            "out (tokenizer(..., return_token_type_ids=False))"),
    Knob("labels", "never", instead="generate computes no loss; use model(input_ids, labels=...)"),
    Knob("cache_position", "never", instead="positions follow from attention_mask; leave it out"),
    Knob("return_dict", "never", instead="use return_dict_in_generate"),
    Knob("output_router_logits", "never", False, instead="CodeGen has no experts; leave it out"),
)}


def nearest(name: str, known: Iterable[str]) -> str:
    """"; did you mean 'x'?" with the known name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def require_known(names: Iterable[str], where: str) -> None:
    """TypeError for the first name that is no knob and no argument of `generate`."""
    for name in names:
        if name not in KNOBS and name not in ARGUMENTS:
            raise TypeError(f"{where} got an unknown knob {name!r}{nearest(name, [*KNOBS, *ARGUMENTS])}")


def require_off(knob: Knob, value: Any, origin: str = "") -> None:
    """NotImplementedError where a "never" knob would act; `origin` is put after the value."""
    if knob.state != "never" or value is None:
        return
    plain = as_scalar(value)
    if isinstance(plain, (bool, int, float, str)) and plain == knob.default:
        return
    text = repr(value)
    shown = text if len(text) <= 60 else f"<{type(value).__name__}>"
    raise NotImplementedError(f"{knob.name}={shown}{origin} is not supported in codegen_fast: {knob.instead}")
