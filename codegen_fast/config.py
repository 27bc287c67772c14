"""The model's configuration: Hugging Face's config.json, read strictly.

Missing keys take transformers' defaults, keys that this package has no use for are kept and written back, and a
config that contradicts itself is refused with the name and the value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import torch

from .quantization import from_config, packed_from_config
from .strangers import is_there, read_json_object

MODEL_TYPES = ("codegen", "gptj")
WEIGHT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_ALIASES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
# Beyond this a product of two sizes and an element's bytes leaves 63 bits.
_LARGEST_SIZE = 2**24
_LARGEST_HEAD = 1024  # what attention holds on the stack
_LARGEST_EPSILON = 3.4e38
_LARGEST_ID = 2**31  # of a token
# Of n_positions * rotary_dim, whose table no file backs: 17 MB, 32 times that of the largest CodeGen.
_LARGEST_ROTARY_TABLE = 2**22
# Weights and cache are laid out by these; the others (token ids, use_cache) programs do set on a loaded model.
_FIXED = frozenset(_SIZES) | {
    "rotary_dim", "layer_norm_epsilon", "activation_function", "tie_word_embeddings", "model_type"
}


@dataclass
class CodeGenConfig:
    """Sizes and constants of one model. Raises ValueError, with the name and the value, where they cannot be.

    What weights are laid out by is fixed once set (AttributeError on assignment); token ids may be assigned.
    """

    vocab_size: int = 50400
    n_positions: int = 2048
    n_ctx: int | None = 2048  # nothing reads it, here or in transformers
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64
    n_inner: int | None = None  # None means 4 * n_embd; read .inner
    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    dtype: torch.dtype | None = None  # the type that the checkpoint says it is in
    model_type: str = "codegen"
    extra: dict[str, Any] = field(default_factory=dict)  # every other key of config.json

    def __post_init__(self) -> None:
        _check(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(f"config.{name} is {self.__dict__[name]!r} and cannot be changed: the weights are "
                                 f"laid out by it")
        object.__setattr__(self, name, value)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """Rows of fc_in: n_inner, or 4 * n_embd where that is None."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def packed_shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """(sections, segments) of the packed weights w_in and w_out of a layer, and of lm_head (csrc/ops.h)."""
        d = self.n_embd
        return {
            "w_in": ((d, d, d, self.inner), (d,)),  # rows of q, k, v, fc_in
            "w_out": ((d,), (d, self.inner)),  # columns of out_proj, fc_out
            "lm_head": ((self.vocab_size,), (d,)),
        }

    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def num_attention_heads(self) -> int:
        return self.n_head

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layer

    @property
    def max_position_embeddings(self) -> int:
        return self.n_positions

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return self.dtype

    @property
    def quantization(self) -> str | None:
        """How the checkpoint's own weights are stored: None, or the quantisation that save_pretrained() wrote."""
        return from_config(self.extra.get("quantization_config"))

    @property
    def packed(self) -> dict[str, Any] | None:
        """Of a checkpoint that holds its products packed (quantization.packed_config): their layouts. None for others."""
        return packed_from_config(self.extra.get("quantization_config"))

    def get_text_config(self, *_: Any, **__: Any) -> CodeGenConfig:
        """Itself: transformers' pipelines ask for the part of a configuration that is about text."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The keys and values of config.json."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("extra", "dtype")}
        values.update(self.extra)
        if self.dtype is not None:
            values["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "the config") -> CodeGenConfig:
        """Builds it from config.json's keys. `where` begins every error."""
        values = dict(values)
        model_type = values.pop("model_type", None)
        if model_type not in MODEL_TYPES:
            raise ValueError(f"{where}: model_type is {model_type!r:.80}, so this is not a CodeGen model; "
                             f"expected 'codegen' or 'gptj'")
        for alias, name in _ALIASES.items():
            if alias in values:
                value = values.pop(alias)
                if values.setdefault(name, value) != value:
                    raise ValueError(f"{where}: {alias} is {value!r:.80} and {name} is {values[name]!r:.80}; they are "
                                     f"two names of one size and must agree")
        old_dtype = values.pop("torch_dtype", None)
        new_dtype = values.pop("dtype", None)
        names = {f.name for f in dataclasses.fields(cls)} - {"extra", "dtype", "model_type"}
        known = {name: values.pop(name) for name in names if name in values}
        try:
            return cls(**known, model_type=model_type, extra=values,
                       dtype=_parse_dtype(new_dtype if new_dtype is not None else old_dtype))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def from_folder(cls, folder: str | Path) -> CodeGenConfig:
        """Reads <folder>/config.json. OSError without one, ValueError where it is broken or not CodeGen's."""
        path = Path(folder) / "config.json"
        if not is_there(path):
            raise OSError(f"{folder} has no config.json; a folder of a CodeGen checkpoint holds one")
        return cls.from_dict(read_json_object(path), where=str(path))


def _parse_dtype(value: Any) -> torch.dtype | None:
    if value is None or value == "auto":
        return None
    dtype = WEIGHT_DTYPES.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise ValueError(f"torch_dtype is {value!r:.80}; expected {', '.join(WEIGHT_DTYPES)}")
    return dtype


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(config: CodeGenConfig) -> None:
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"model_type is {config.model_type!r:.80}; expected 'codegen' or 'gptj'")
    for name in _SIZES:
        value = getattr(config, name)
        if name == "n_inner" and value is None:
            continue
        if not _is_int(value):
            raise ValueError(f"{name} is {value!r:.80} ({type(value).__name__}); expected an integer")
        if not 1 <= value <= _LARGEST_SIZE:
            raise ValueError(f"{name} is {value!r:.80}; expected 1 to {_LARGEST_SIZE}")
    if config.n_embd % config.n_head:
        raise ValueError(f"n_embd is {config.n_embd} and n_head is {config.n_head}; n_embd must be divisible by n_head")
    if config.head_dim > _LARGEST_HEAD or config.head_dim % 2:
        raise ValueError(f"n_embd is {config.n_embd} and n_head is {config.n_head}: heads of {config.head_dim} "
                         f"dimensions; expected an even number of at most {_LARGEST_HEAD}")
    if config.model_type == "codegen" and config.n_head % 4:
        raise ValueError(f"n_head is {config.n_head}; CodeGen stores its heads in 4 blocks, so it must be a "
                         f"multiple of 4")
    if not _is_int(config.rotary_dim):
        raise ValueError(f"rotary_dim is {config.rotary_dim!r:.80}; expected an even integer from 2 to the head's "
                         f"{config.head_dim} (a model without rotary_dim is not supported)")
    if not 0 < config.rotary_dim <= config.head_dim or config.rotary_dim % 2:
        raise ValueError(f"rotary_dim is {config.rotary_dim!r:.80}; expected an even number from 2 to the head's "
                         f"{config.head_dim} (n_embd / n_head)")
    if config.n_positions * config.rotary_dim > _LARGEST_ROTARY_TABLE:
        raise ValueError(f"n_positions is {config.n_positions} and rotary_dim is {config.rotary_dim}; expected a "
                         f"product of at most {_LARGEST_ROTARY_TABLE}")
    eps = config.layer_norm_epsilon
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps <= _LARGEST_EPSILON:
        raise ValueError(f"layer_norm_epsilon is {eps!r:.80}; expected a positive number of float32's range")
    if config.activation_function != "gelu_new":
        raise ValueError(f"activation_function is {config.activation_function!r:.80}; CodeGen's kernels compute "
                         f"'gelu_new' only")
    for name in ("tie_word_embeddings", "use_cache"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} is {getattr(config, name)!r:.80}; expected true or false")
    _check_token_ids(config)
    from_config(config.extra.get("quantization_config"))


def _check_token_ids(config: CodeGenConfig) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        is_list = name == "eos_token_id" and isinstance(value, list) and len(value) > 0
        ids = value if is_list else [value]
        if value is not None and not all(_is_int(i) and abs(i) < _LARGEST_ID for i in ids):
            kinds = "an integer, a list of integers or null" if name == "eos_token_id" else "an integer or null"
            raise ValueError(f"{name} is {value!r:.80}; expected {kinds}")
