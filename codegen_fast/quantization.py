"""The quantisations that a model can have: their names, what they make of its weights, how a checkpoint names them.

int8: on the CPU a scale for every 32 columns of a row, on CUDA one for the whole row; "int8-row": that on the CPU as well,
which is 6% smaller, coarser, and what a model saved on CUDA is. int4: a scale for every 32 columns ("int4"), or for 64 or
128 ("int4-g64", "int4-g128"), which is smaller and coarser; lm_head, whose errors go straight into the logits, is int8.
"""

from __future__ import annotations

from typing import Any, Mapping

import torch

from . import ops

QUANTIZATIONS = ("int8", "int8-row", *ops.INT4_GROUPS)
_SAME = {f"int4-g{ops.INT4_GROUPS['int4']}": "int4", "int8-g32": "int8"}  # the defaults' long names
_METHOD = {"quant_method": "codegen_fast"}


def parse_quantization(quantization: Any) -> str | None:
    """One of QUANTIZATIONS, or None. ValueError for another name."""
    name = _SAME.get(quantization, quantization) if isinstance(quantization, str) else quantization
    if name is not None and name not in QUANTIZATIONS:
        raise ValueError(f"quantization={quantization!r} is not allowed: expected None or {names()}")
    return name


def names() -> str:
    """The names, for a message."""
    *first, last = map(repr, QUANTIZATIONS)
    return f"{', '.join(first)} or {last}"


def packed_kinds(dtype: torch.dtype, quantization: str | None, device: torch.device | str = "cpu") -> dict[str, str]:
    """The kind (ops.WEIGHT_KINDS) of the packed weights w_in and w_out of every layer, and of lm_head."""
    on_gpu = torch.device(device).type == "cuda" or ops.backend(device) == "cuda"
    int8 = "int8" if on_gpu else "int8-g32"
    kind = {None: str(dtype).removeprefix("torch."), "int8": int8, "int8-row": "int8"}.get(quantization, quantization)
    return {"w_in": kind, "w_out": kind, "lm_head": int8 if kind in ops.INT4_GROUPS else kind}


def require_backend(quantization: str | None, device: torch.device | str) -> None:
    """NotImplementedError for what the device's kernels do not have."""
    if quantization in ops.INT4_GROUPS and ops.backend(device) != "cpu":
        raise NotImplementedError(f"quantization={quantization!r} runs on the CPU only: use quantization='int8' on "
                                  f"{device}, or device='cpu'")


def require_stored(quantization: str | None, device: torch.device | str) -> None:
    """NotImplementedError if codes that are stored so cannot be taken as they are by the device's kernels."""
    require_backend(quantization, device)
    if quantization == "int8" and ops.backend(device) != "cpu":
        raise NotImplementedError(f"int8 weights that were quantised on a CPU have scales for every 32 columns, which run "
                                  f"there only: load the original with quantization='int8' on {device}, or quantise with "
                                  f"quantization='int8-row', which runs on both")


def stored_quantization(quantization: str, kind: str) -> str:
    """The name of a model's quantisation in a file; kind is that of its layers' packed weights."""
    return "int8-row" if kind == "int8" else quantization


def to_config(quantization: str) -> dict[str, Any]:
    """config.json's quantization_config of a quantised checkpoint."""
    if quantization == "int8-row":
        return {**_METHOD, "weights": "int8"}
    if quantization == "int8":
        return {**_METHOD, "weights": "int8", "bits": 8, "group_size": ops.INT8_GROUPS["int8-g32"], "zero_point": False}
    return {**_METHOD, "weights": "int4", "bits": 4, "group_size": ops.INT4_GROUPS[quantization], "zero_point": False,
            "lm_head": "int8-g32"}


def from_config(values: Mapping[str, Any] | None) -> str | None:
    """The quantisation that to_config() wrote; None for no quantization_config. ValueError for any other."""
    if values is None:
        return None
    packed = packed_from_config(values)
    plain = {key: value for key, value in values.items() if key != "packed"} if isinstance(values, dict) else values
    for name in QUANTIZATIONS:
        if plain == to_config(name):
            return name
    if packed is not None and any(plain == float_config(kind) for kind in ops.FLOAT_KINDS):
        return None
    raise ValueError(f"quantization_config is {values!r:.200}; of quantised checkpoints only this package's own are read, "
                     f"{to_config('int8')!r} or {to_config('int4')!r} (group_size 32, 64 or 128)")


# ---- Packed checkpoints: products as the kernels have them, so that loading is reading ---------------


def float_config(kind: str) -> dict[str, Any]:
    """quantization_config of a packed checkpoint that is not quantised: it says that only this package reads it."""
    return {**_METHOD, "weights": kind}


def packed_config(layouts: Mapping[str, str], version: str) -> dict[str, Any]:
    """What stands as "packed" in quantization_config: the layout of each kind of weight, and what wrote them."""
    return {"layout": dict(layouts), "version": version}


def packed_from_config(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What packed_config() wrote; None for a checkpoint in plain rows. ValueError for anything else."""
    packed = values.get("packed") if isinstance(values, dict) else None
    if packed is None:
        return None
    known = isinstance(packed, dict) and set(packed) == {"layout", "version"} and isinstance(packed["layout"], dict)
    if not known or not all(isinstance(text, str) for text in (*packed["layout"].values(), packed["version"])):
        raise ValueError(f"quantization_config has packed={packed!r:.200}; expected the layout of each kind of weight and the "
                         f"version that wrote them, as in {packed_config({'int8-g32': '0123456789ab'}, '0.1.0')!r}")
    return packed
