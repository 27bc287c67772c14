"""GenerationConfig, and how the knobs of a call are put together from it: the precedence of transformers 5.23."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..strangers import is_there, read_json_object
from .knobs import KNOBS, nearest, require_known, require_off

MOST_STORED_ROWS = 1024  # beams or samples of a prompt, that a checkpoint's own file may ask for


class GenerationConfig:
    """Knobs of `generate`, by the names of transformers' class. None means "not set here".

    Attributes are checked when `generate` reads them; an unknown name is a TypeError (constructor) or an
    AttributeError (assignment) at once. `extra` keeps what a file held besides knobs, so that it can be written back;
    `unknown` names the entries of it that came with an object, about which `generate` warns.
    """

    def __init__(self, **knobs: Any):
        require_known_knobs(knobs, "GenerationConfig()")
        self.__dict__.update(extra={}, unknown=())
        for name in KNOBS:
            self.__dict__[name] = knobs.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError(f"GenerationConfig has no knob {name!r}{nearest(name, KNOBS)}")
        self.__dict__[name] = value

    def __repr__(self) -> str:
        return "GenerationConfig(" + ", ".join(f"{k}={v!r}" for k, v in self.set_knobs().items()) + ")"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # mutable

    def set_knobs(self) -> dict[str, Any]:
        """The knobs that are not None."""
        return {name: self.__dict__[name] for name in KNOBS if self.__dict__[name] is not None}

    def to_dict(self) -> dict[str, Any]:
        """What generation_config.json holds: the knobs that are set, and `extra`."""
        return {**self.extra, **self.set_knobs()}

    to_diff_dict = to_dict  # transformers' pipelines read a configuration by this name

    def update(self, **values: Any) -> dict[str, Any]:
        """Sets the knobs among the values; returns the rest."""
        for name in values.keys() & KNOBS.keys():
            setattr(self, name, values[name])
        return {name: value for name, value in values.items() if name not in KNOBS}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationConfig:
        """From the contents of a generation_config.json; names that are no knobs are kept in `extra`."""
        config = cls(**{name: value for name, value in values.items() if name in KNOBS})
        config.extra.update({name: value for name, value in values.items() if name not in KNOBS})
        return config

    @classmethod
    def from_folder(cls, folder: str | os.PathLike, model_config: dict[str, Any]) -> GenerationConfig:
        """A checkpoint's own configuration.

        Without a generation_config.json the knobs are those that stand in config.json (`model_config`), as in
        transformers.
        Raises OSError where the file cannot be read, ValueError where it is not a JSON object or asks for rows by
        thousands.
        """
        path = Path(folder) / "generation_config.json"
        if not is_there(path):
            _require_few_rows(model_config, str(Path(folder) / "config.json"))
            return cls.from_model_config(model_config)
        values = read_json_object(path)
        _require_few_rows(values, str(path))
        return cls.from_dict(values)

    @classmethod
    def from_model_config(cls, model_config: dict[str, Any]) -> GenerationConfig:
        """From the contents of a config.json: its knobs, without its other entries."""
        forward_only = ("output_hidden_states", "output_attentions")
        names = KNOBS.keys() - set(forward_only)
        return cls(**{name: value for name, value in model_config.items() if name in names})


def _require_few_rows(values: dict[str, Any], where: str) -> None:
    """A call may ask for as many rows as it has memory for; a file that came with weights may not."""
    for name in ("num_beams", "num_return_sequences"):
        if isinstance(values.get(name), int) and values[name] > MOST_STORED_ROWS:
            raise ValueError(f"{where}: {name} is {values[name]!r:.80}; expected at most {MOST_STORED_ROWS}, "
                             f"more only in the call")


def require_known_knobs(knobs: dict[str, Any], where: str) -> None:
    """TypeError for a name that GenerationConfig does not have."""
    for name in knobs:
        if name not in KNOBS:
            require_known([name], where)
            raise TypeError(f"{where} got {name!r}, which is an argument of generate(), not a knob")


def as_generation_config(value: Any, where: str = "generation_config") -> GenerationConfig:
    """A GenerationConfig from ours, a dict, or an object with to_dict() such as transformers' own.

    Entries that are None count as not set, whatever their name (a newer transformers may have more fields).
    Unknown names go to `extra` where they are an object's, which may have fields of the user's own.
    Raises TypeError for anything else and for unknown names in a dict.
    """
    if value is None or isinstance(value, GenerationConfig):
        return value if value is not None else GenerationConfig()
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{where} got {value!r}: pass a GenerationConfig or a dict, not a path")
    is_object = not isinstance(value, dict)
    if is_object:
        if not callable(getattr(value, "to_dict", None)):
            raise TypeError(f"{where} must be a GenerationConfig (ours or transformers') or a dict, "
                            f"got {type(value).__name__}")
        value = value.to_dict()
    metadata = ("transformers_version", "_from_model_config")
    knobs = {name: entry for name, entry in value.items() if entry is not None and name not in metadata}
    if not is_object:
        require_known_knobs(knobs, where)
    config = GenerationConfig.from_dict(knobs)
    config.__dict__["unknown"] = tuple(config.extra)
    return config


@dataclass(frozen=True)
class Settings:
    """The knobs of one call of `generate`, checked; what nobody asked for, or what is neutral, has its default here."""

    max_length: int | None = None      # of prompt + new tokens; None: 20 new tokens (nobody set a length)
    max_new_tokens: int | None = None  # goes before max_length
    min_length: int = 0                # of prompt + new tokens; 0 where min_new_tokens was set
    min_new_tokens: int = 0
    max_time: float | None = None      # seconds
    stop_strings: tuple[str, ...] = ()

    do_sample: bool = False
    temperature: float = 0.0           # 0 exactly where do_sample is False
    top_k: int = 0                     # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False # or "never"

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # without those that are nothing but an eos token
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_eos_token_ids: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None  # (start, factor)
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    token_healing: bool = False

    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_hidden_states: bool = False
    use_cache: bool = True

    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int | None = None           # None, and so the next two: nobody set it
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None

    pad_token_id: int | None = None    # falls back to the first eos
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_is_set: bool = False           # whether somebody named pad_token_id

    def require_vocabulary(self, vocab_size: int) -> None:
        """ValueError for tokens that are to be biased, banned or forced and do not exist, as in transformers."""
        for name, ids in (("sequence_bias", [i for sequence, _ in self.sequence_bias for i in sequence]),
                          ("bad_words_ids", [i for sequence in self.bad_words_ids for i in sequence]),
                          ("forced_eos_token_id", self.forced_eos_token_ids)):
            outside = [i for i in ids if i >= vocab_size]
            if outside:
                raise ValueError(f"{name} names token {outside[0]!r:.40}, outside the vocabulary: ids are 0 to "
                                 f"{vocab_size - 1}")

    def length_warnings(self, columns: int, steps: int) -> list[str]:
        """A warning where a least length is out of reach of prompts of `columns` columns and `steps` new tokens."""
        for name, least in (("min_new_tokens", self.min_new_tokens), ("min_length", self.min_length - columns)):
            if least > steps:
                return [f"{name}={getattr(self, name)} cannot be reached: rows end after {steps} new tokens; lower it, "
                        "or raise max_new_tokens"]
        return []


# Their defaults in transformers hold for programs that set nothing; here "not set" means something else.
_NO_DEFAULT = ("max_length", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")


# Refused in the call. A configuration may be shared with other programs, and say it for calls with an assistant.
_ONLY_OF_ASSISTANTS = ("assistant_ensemble_weight",)


def resolve(call: dict[str, Any], given: GenerationConfig, stored: GenerationConfig) -> tuple[Settings, list[str]]:
    """Settings of a call, and the warnings that transformers would print.

    call: knobs passed to generate() by name, which win even where they are None; then `given`, the call's
    generation_config; then `stored`, the model's; then transformers' defaults.
    Raises ValueError or TypeError for values out of range and for combinations that transformers refuses,
    NotImplementedError for knobs that are refused.
    """
    asked = {**given.set_knobs(), **call}
    values: dict[str, Any] = {}
    for name, knob in KNOBS.items():
        value = asked[name] if name in asked else getattr(stored, name)
        if knob.check is None:
            if name in _ONLY_OF_ASSISTANTS and name not in call:
                continue
            require_off(knob, value, "" if name in asked else " (from the model's generation_config)")
            continue
        if name == "use_cache" and name not in asked:
            value = True  # a checkpoint saved after training often says False; that is no wish about generation
        if value is None and name not in call and name not in _NO_DEFAULT:
            value = knob.default
        values[name] = None if value is None else knob.check(name, value)

    eos, pad = values["eos_token_id"] or (), values["pad_token_id"]
    renamed = {"eos_token_id": "eos_token_ids", "forced_eos_token_id": "forced_eos_token_ids"}
    settings = Settings(**{
        **{renamed.get(name, name): value for name, value in values.items() if value is not None},
        # As transformers: min_new_tokens is what counts, also where it is 0.
        "min_length": 0 if values["min_new_tokens"] is not None else values["min_length"] or 0,
        "temperature": _temperature(values),
        "bad_words_ids": tuple(word for word in values["bad_words_ids"] or ()
                               if len(word) > 1 or word[0] not in eos),
        "pad_token_id": pad if pad is not None or not eos else eos[0],
        "pad_is_set": pad is not None,
    })
    _require_consistent(settings)
    unknown = "".join(f", {name}{nearest(name, KNOBS)}" for name in dict.fromkeys(given.unknown + stored.unknown))
    return settings, [*([f"generation_config has fields that are no knobs and do nothing: {unknown[2:]}"] if unknown
                        else []), *_warnings(asked, values)]


def _temperature(values: dict[str, Any]) -> float:
    if not values["do_sample"]:
        return 0.0
    if values["temperature"] == 0:
        raise ValueError("temperature=0 is not allowed when do_sample=True: expected a number above 0; for greedy "
                         "decoding set do_sample=False")
    return 1.0 if values["temperature"] is None else values["temperature"]


def _require_consistent(settings: Settings) -> None:
    """ValueError for knobs that contradict each other."""
    rows, beams = settings.num_return_sequences, settings.num_beams
    if beams == 1 and rows > 1 and not settings.do_sample:
        raise ValueError(f"num_return_sequences={rows} needs do_sample=True or num_beams: greedy decoding would give "
                         "the same row again and again")
    if 1 < beams < rows:
        raise ValueError(f"num_return_sequences={rows} is more than num_beams={beams}, which is how many results there "
                         "are: raise num_beams")
    forced = settings.forced_eos_token_ids
    if forced and set(forced) <= set(settings.suppress_tokens):
        raise ValueError(f"forced_eos_token_id={list(forced)!r:.80} is also in suppress_tokens, so that no token would be "
                         "left at the end: take it out of one of them")
    if settings.exponential_decay_length_penalty is not None and not settings.eos_token_ids:
        raise ValueError("exponential_decay_length_penalty needs eos_token_id, the token whose logit it raises")


def _warnings(asked: dict[str, Any], values: dict[str, Any]) -> list[str]:
    def ignored(names: tuple[str, ...], mode: str) -> str:
        # As transformers: a checkpoint's own temperature is no fault of somebody who asks for do_sample=False.
        return ", ".join(f"{name}={values[name]}" for name in names
                         if values[name] not in (None, KNOBS[name].default) and (name in asked or mode not in asked))

    messages = []
    sampling = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    if not values["do_sample"] and (names := ignored(sampling, "do_sample")):
        messages.append(f"do_sample is not True, so {names} has no effect: set do_sample=True, or leave it out")
    if values["num_beams"] in (None, 1) and (names := ignored(("early_stopping", "length_penalty"), "num_beams")):
        messages.append(f"num_beams is 1, so {names} has no effect: set num_beams, or leave it out")
    outputs = ("output_scores", "output_logits", "output_hidden_states")
    if not values["return_dict_in_generate"] and (names := ", ".join(name for name in outputs if values[name])):
        messages.append(f"return_dict_in_generate is not True, so {names} has no effect: set "
                        "return_dict_in_generate=True")
    for name, other in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if values[name] is not None and values[other] not in (None, 0):
            messages.append(f"both {name}={values[name]} and {other}={values[other]} are set: {name} counts")
    return messages
