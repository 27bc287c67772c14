"""Writes a loaded model as a checkpoint folder with Hugging Face's names and layout."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Iterator

import torch

from .. import __version__, ops
from ..config import CodeGenConfig
from ..memory import gigabytes
from ..quantization import float_config, packed_config, stored_quantization, to_config
from . import hub, layout
from .decoder_weights import DecoderWeights
from .repack import CHUNK_BYTES, packed_layout
from .replacement import replaced_files
from .safetensors_writer import Entry, index_json, shard, write_safetensors

_ARCHITECTURES = {"codegen": "CodeGenForCausalLM", "gptj": "GPTJForCausalLM"}


def save_checkpoint(folder: str | Path, config: CodeGenConfig, weights: DecoderWeights,
                    generation_config: dict[str, Any] | None = None, *, max_shard_bytes: int = 5_000_000_000,
                    packed: bool | None = None) -> None:
    """Writes config.json, generation_config.json (unless None) and model.safetensors or its shards into the folder.

    Plain (packed=False): unquantised folders load in transformers; quantised, each matrix as its codes, with <name>.scale
    (layout.quantized_specs). Packed: each packed weight as it lies in memory, with the layout's name in config.json
    (layout.packed_specs), so that the CPU kernels of the same layout load it by reading alone. Both come back bit for bit.
    packed=None: quantised weights of the CPU packed, others plain. Memory taken is a chunk of a tensor.

    All files change at one moment (replacement.replaced_files): a kill leaves the old ones or the new. Where two folders cannot
    exchange their names (the working directory, a mount point, a parent that may not be written, a system other than Linux)
    a kill within the milliseconds of the renaming leaves a folder without config.json, never a mixture. On an error (OSError:
    no room, no permission; PermissionError where the folder is write-protected) the old ones stay and nothing is left behind.
    ValueError for packed=True of weights on a GPU.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is a file; expected a folder to save the model in")
    on_cpu = ops.backend(weights.embedding.device) == "cpu"
    if packed and not on_cpu:
        raise ValueError(f"packed=True stores the CPU kernels' layout, and the model lies on {weights.embedding.device}; "
                         f"save it with packed=False, or from the CPU")
    packed = on_cpu and weights.quantization is not None if packed is None else packed
    config = _config_of(config, weights, packed)
    entries = list(_entries(config, weights, packed))
    try:
        with replaced_files(folder, _is_ours) as beside:
            _check_room(beside, sum(entry.nbytes for entry in entries))
            _write(beside, shard(entries, max_shard_bytes))
            _write_json(beside / "generation_config.json", generation_config)
            _write_json(beside / "config.json", config.to_dict())
    except OSError as error:
        raise type(error)(f"the model was not saved in {folder}: {error.strerror or error}") from error


def _is_ours(name: str) -> bool:
    """Whether a file is part of a save: of an earlier one, a reader would take it for part of this."""
    return any(fnmatch(name, pattern) for pattern in hub.CONFIG_PATTERNS + hub.SAFETENSORS_PATTERNS)


def _config_of(config: CodeGenConfig, weights: DecoderWeights, packed: bool) -> CodeGenConfig:
    """The config as it is written: with the type that the weights have now, and how they are stored."""
    extra = {key: value for key, value in config.extra.items() if key != "quantization_config"}
    extra["architectures"] = [_ARCHITECTURES[config.model_type]]
    if weights.quantization is not None:
        extra["quantization_config"] = to_config(_stored(weights))
    elif packed:
        extra["quantization_config"] = float_config(weights.lm_head.kind)
    if packed:
        kinds = {weight.kind for weight in (weights.layers[0].w_in, weights.layers[0].w_out, weights.lm_head)}
        extra["quantization_config"]["packed"] = packed_config({kind: packed_layout(kind) for kind in sorted(kinds)},
                                                               __version__)
    return dataclasses.replace(config, dtype=weights.dtype, extra=extra)


def _stored(weights: DecoderWeights) -> str:
    return stored_quantization(weights.quantization, weights.layers[0].w_in.kind)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {gigabytes(needed)} and {gigabytes(free)} are free on that disk")


def _write(beside: Path, shards: list[list[Entry]]) -> None:
    """Writes the weights."""
    if len(shards) == 1:
        write_safetensors(beside / "model.safetensors", shards[0])
        return
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, entries in zip(files, shards, strict=True):
        write_safetensors(beside / file, entries)
    _write_text(beside / "model.safetensors.index.json", index_json(shards, files))


def _write_json(path: Path, values: dict[str, Any] | None) -> None:
    if values is not None:
        _write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # no power failure leaves a name without its content


def _entries(config: CodeGenConfig, weights: DecoderWeights, packed: bool) -> Iterator[Entry]:
    """Every tensor of the file, in the order of layout.expected_tensors()."""
    yield Entry(layout.EMBEDDING, weights.dtype, tuple(weights.embedding.shape),
                lambda: weights.embedding.split(max(1, CHUNK_BYTES // (4 * config.n_embd))))
    for index, layer in enumerate(weights.layers):
        plan = layout.layer_layout(config, index)
        yield from _norm(plan.norm, layer.norm, weights.dtype)
        yield from _product(plan.w_in, layer.w_in, weights, packed)
        yield from _product(plan.w_out, layer.w_out, weights, packed)
        yield _vector(plan.bias_in, layer.bias_in, weights.dtype)
        yield _vector(plan.bias_out, layer.bias_out, weights.dtype)
    yield from _norm(layout.FINAL_NORM, weights.final_norm, weights.dtype)
    # Tied and as it is, lm_head is the embedding; quantised or packed, it is not to be had from it bit for bit.
    if not config.tie_word_embeddings or weights.quantization is not None or packed:
        yield from _product((layout.lm_head_layout(config),), weights.lm_head, weights, packed)
    yield _vector(layout.LM_HEAD_BIAS, weights.lm_head_bias, weights.dtype)


def _norm(names: tuple[str, str], norm: ops.Norm, dtype: torch.dtype) -> list[Entry]:
    return [_vector(name, values, dtype) for name, values in zip(names, (norm.weight, norm.bias), strict=True)]


def _vector(name: str, values: torch.Tensor, dtype: torch.dtype) -> Entry:
    """In the model's type where that loses nothing, else in the float32 that they are computed in."""
    if not torch.equal(values.to(dtype).float(), values):
        dtype = torch.float32
    return Entry(name, dtype, tuple(values.shape), lambda: [values.to(dtype)])


def _product(matrices: tuple[layout.Matrix, ...], weight: ops.PackedWeight, weights: DecoderWeights,
             packed: bool) -> Iterator[Entry]:
    """The matrices of one packed weight, or itself."""
    if not packed:
        for matrix in matrices:
            yield from _matrix(matrix, weight, weights)
        return
    name = layout.packed_name(matrices)
    yield Entry(name, torch.uint8, tuple(weight.data.shape), lambda: weight.data.split(CHUNK_BYTES))
    if weight.scales is not None:
        yield Entry(name + layout.SCALE_SUFFIX, torch.float32, tuple(weight.scales.shape), lambda: [weight.scales])


def _matrix(matrix: layout.Matrix, packed: ops.PackedWeight, weights: DecoderWeights) -> Iterator[Entry]:
    def places() -> Iterator[tuple[int, dict[str, int]]]:
        step = max(1, CHUNK_BYTES // (4 * matrix.shape[1]))
        for part in matrix.parts:
            for row in range(0, part.count, step):
                place = {"section": part.section, "row": part.row + row, "segment": matrix.segment}
                yield min(step, part.count - row), place

    if weights.quantization is None:
        yield Entry(matrix.name, weights.dtype, matrix.shape,
                    lambda: (ops.unpack(packed, n, weights.dtype, **place) for n, place in places()))
        return

    def quantized() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (ops.unpack_quantized(packed, n, **place) for n, place in places())

    codes, scales = layout.quantized_specs(matrix, _stored(weights))
    as_stored = layout.nibbles if codes.dtypes[0] == torch.uint8 else lambda values: values
    yield Entry(codes.name, codes.dtypes[0], codes.shape, lambda: (as_stored(values) for values, _ in quantized()))
    yield Entry(scales.name, scales.dtypes[0], scales.shape,
                lambda: (values.to(scales.dtypes[0]) for _, values in quantized()))
