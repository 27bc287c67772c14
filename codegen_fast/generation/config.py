"""GenerationConfig, and how the knobs of a call are put together from it: the precedence of transformers 5.23."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import read_json
from .knobs import KNOBS, nearest, require_known, require_off


class GenerationConfig:
    """Knobs of `generate`, by the names of transformers' class. None means "not set here".

    Attributes are checked when `generate` reads them; an unknown name is a TypeError (constructor) or an
    AttributeError (assignment) at once. `extra` keeps what a file held besides knobs, so that it can be written back.
    """

    def __init__(self, **knobs: Any):
        require_known_knobs(knobs, "GenerationConfig()")
        self.__dict__["extra"] = {}
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
        Raises ValueError where the file is not a JSON object.
        """
        path = Path(folder) / "generation_config.json"
        if not path.exists():
            return cls.from_model_config(model_config)
        return cls.from_dict(read_json(path, what="it is optional"))

    @classmethod
    def from_model_config(cls, model_config: dict[str, Any]) -> GenerationConfig:
        """From the contents of a config.json: its knobs, without its other entries."""
        forward_only = ("output_hidden_states", "output_attentions")
        names = KNOBS.keys() - set(forward_only)
        return cls(**{name: value for name, value in model_config.items() if name in names})


def require_known_knobs(knobs: dict[str, Any], where: str) -> None:
    """TypeError for a name that GenerationConfig does not have."""
    for name in knobs:
        if name not in KNOBS:
            require_known([name], where)
            raise TypeError(f"{where} got {name!r}, which is an argument of generate(), not a knob")


def as_generation_config(value: Any, where: str = "generation_config") -> GenerationConfig:
    """A GenerationConfig from ours, a dict, or an object with to_dict() such as transformers' own.

    Entries that are None count as not set, whatever their name (a newer transformers may have more fields).
    Raises TypeError for anything else and for unknown names.
    """
    if value is None or isinstance(value, GenerationConfig):
        return value if value is not None else GenerationConfig()
    if isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{where} got {value!r}: pass a GenerationConfig or a dict, not a path")
    if not isinstance(value, dict):
        if not callable(getattr(value, "to_dict", None)):
            raise TypeError(f"{where} must be a GenerationConfig (ours or transformers') or a dict, "
                            f"got {type(value).__name__}")
        value = value.to_dict()
    metadata = ("transformers_version", "_from_model_config")
    knobs = {name: entry for name, entry in value.items() if entry is not None and name not in metadata}
    require_known_knobs(knobs, where)
    return GenerationConfig(**knobs)


@dataclass(frozen=True)
class Settings:
    """The knobs of one call of `generate`, checked, with every default filled in."""

    max_length: int | None     # of prompt + new tokens; None: 20 new tokens (nobody set a length)
    max_new_tokens: int | None # goes before max_length
    do_sample: bool
    temperature: float         # 0.0 in greedy mode
    top_k: int                 # 0: off
    top_p: float               # 1.0: off
    num_return_sequences: int
    pad_token_id: int | None   # falls back to the first eos
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_is_set: bool           # whether somebody named pad_token_id


def resolve(call: dict[str, Any], given: GenerationConfig, stored: GenerationConfig) -> tuple[Settings, list[str]]:
    """Settings of a call, and the warnings that transformers would print.

    call: knobs passed to generate() by name, which win even where they are None; then `given`, the call's
    generation_config; then `stored`, the model's; then transformers' defaults.
    Raises ValueError for values out of range and NotImplementedError for knobs that are known and not done.
    """
    asked = {**given.set_knobs(), **call}
    values: dict[str, Any] = {}
    for name, knob in KNOBS.items():
        value = asked[name] if name in asked else getattr(stored, name)
        if knob.check is None:
            # A checkpoint saved after training often says use_cache=false; that is no wish about generation.
            if name in asked or name != "use_cache":
                require_off(knob, value, "" if name in asked else " (from the model's generation_config)")
            continue
        if value is None and name not in call and name != "max_length":
            value = knob.default
        values[name] = None if value is None else knob.check(name, value)

    do_sample = bool(values["do_sample"])
    temperature = 1.0 if values["temperature"] is None else values["temperature"]
    samples = values["num_return_sequences"] or 1
    if do_sample and temperature == 0:
        raise ValueError("temperature=0 is not allowed when do_sample=True: expected a number above 0; for greedy "
                         "decoding set do_sample=False")
    if samples > 1 and not do_sample:
        raise ValueError(f"num_return_sequences={samples} needs do_sample=True: greedy decoding would give "
                         "the same row again and again")
    eos = values["eos_token_id"] or ()
    pad = values["pad_token_id"]
    settings = Settings(
        max_length=values["max_length"],
        max_new_tokens=values["max_new_tokens"],
        do_sample=do_sample,
        temperature=temperature if do_sample else 0.0,
        top_k=values["top_k"] or 0,
        top_p=1.0 if values["top_p"] is None else values["top_p"],
        num_return_sequences=samples,
        pad_token_id=pad if pad is not None or not eos else eos[0],
        bos_token_id=values["bos_token_id"],
        eos_token_ids=eos,
        pad_is_set=pad is not None,
    )
    return settings, _warnings(asked, values, do_sample)


def _warnings(asked: dict[str, Any], values: dict[str, Any], do_sample: bool) -> list[str]:
    messages = []
    if not do_sample:
        # As transformers: a checkpoint's own temperature is no fault of somebody who asks for do_sample=False.
        ignored = [f"{name}={values[name]}" for name in ("temperature", "top_k", "top_p")
                   if values[name] not in (None, KNOBS[name].default) and (name in asked or "do_sample" not in asked)]
        if ignored:
            messages.append(f"do_sample is not True, so {', '.join(ignored)} has no effect: set do_sample=True, or "
                            "leave it out")
    if values["max_new_tokens"] is not None and values["max_length"] is not None:
        messages.append(f"both max_new_tokens={values['max_new_tokens']} and max_length={values['max_length']} are "
                        "set: max_new_tokens counts")
    return messages
