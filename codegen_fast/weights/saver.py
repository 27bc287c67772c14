"""Writes a loaded model as a checkpoint folder with Hugging Face's names and layout."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator

import torch

from .. import ops
from ..config import CodeGenConfig
from ..memory import gigabytes
from ..quantization import stored_quantization, to_config
from . import hub, layout
from .decoder_weights import DecoderWeights
from .loader import CHUNK_BYTES
from .safetensors_writer import Entry, index_json, shard, write_safetensors

_ARCHITECTURES = {"codegen": "CodeGenForCausalLM", "gptj": "GPTJForCausalLM"}


def save_checkpoint(folder: str | Path, config: CodeGenConfig, weights: DecoderWeights,
                    generation_config: dict[str, Any] | None = None, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes config.json, generation_config.json (unless None) and model.safetensors or its shards into the folder.

    Unquantised folders load in transformers. Quantised: each matrix as its codes, with <name>.scale
    (layout.quantized_specs), read back bit for bit by load_weights(). Memory taken is a chunk of a tensor. Files are
    written into a folder beside their place and renamed when all are whole; on an error (OSError: no room, no
    permission) nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is a file; expected a folder to save the model in")
    config = _config_of(config, weights)
    entries = list(_entries(config, weights))
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, sum(entry.nbytes for entry in entries))
        beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            names = _write(beside, shard(entries, max_shard_bytes))
            names += _write_json(beside, "generation_config.json", generation_config)
            names += _write_json(beside, "config.json", config.to_dict())
            for name in names:
                os.replace(beside / name, folder / name)
            _remove_stale(folder, names)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise OSError(f"the model was not saved in {folder}: {error.strerror or error}") from error
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _config_of(config: CodeGenConfig, weights: DecoderWeights) -> CodeGenConfig:
    """The config as it is written: with the type that the weights have now."""
    extra = {key: value for key, value in config.extra.items() if key != "quantization_config"}
    extra["architectures"] = [_ARCHITECTURES[config.model_type]]
    if weights.quantization is not None:
        extra["quantization_config"] = to_config(_stored(weights))
    return dataclasses.replace(config, dtype=weights.dtype, extra=extra)


def _stored(weights: DecoderWeights) -> str:
    return stored_quantization(weights.quantization, weights.layers[0].w_in.kind)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {gigabytes(needed)} and {gigabytes(free)} are free on that disk")


def _write(beside: Path, shards: list[list[Entry]]) -> list[str]:
    """Writes the weights; returns the files' names, in the order in which they are to be moved."""
    if len(shards) == 1:
        write_safetensors(beside / "model.safetensors", shards[0])
        return ["model.safetensors"]
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, entries in zip(files, shards, strict=True):
        write_safetensors(beside / file, entries)
    index = "model.safetensors.index.json"
    (beside / index).write_text(index_json(shards, files))
    return [*files, index]


def _write_json(beside: Path, name: str, values: dict[str, Any] | None) -> list[str]:
    if values is None:
        return []
    (beside / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    return [name]


def _remove_stale(folder: Path, names: list[str]) -> None:
    """Weights of an earlier save: a reader would take them for part of this one."""
    for pattern in hub.SAFETENSORS_PATTERNS:
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink()


def _entries(config: CodeGenConfig, weights: DecoderWeights) -> Iterator[Entry]:
    """Every tensor of the file, in the order of layout.expected_tensors()."""
    yield Entry(layout.EMBEDDING, weights.dtype, tuple(weights.embedding.shape),
                lambda: weights.embedding.split(max(1, CHUNK_BYTES // (4 * config.n_embd))))
    for index, layer in enumerate(weights.layers):
        plan = layout.layer_layout(config, index)
        yield from _norm(plan.norm, layer.norm, weights.dtype)
        for matrix in plan.w_in:
            yield from _matrix(matrix, layer.w_in, weights)
        for matrix in plan.w_out:
            yield from _matrix(matrix, layer.w_out, weights)
        yield _vector(plan.bias_in, layer.bias_in, weights.dtype)
        yield _vector(plan.bias_out, layer.bias_out, weights.dtype)
    yield from _norm(layout.FINAL_NORM, weights.final_norm, weights.dtype)
    # Tied and unquantised, lm_head is the embedding; quantised, it is not to be had from it bit for bit.
    if not config.tie_word_embeddings or weights.quantization is not None:
        yield from _matrix(layout.lm_head_layout(config), weights.lm_head, weights)
    yield _vector(layout.LM_HEAD_BIAS, weights.lm_head_bias, weights.dtype)


def _norm(names: tuple[str, str], norm: ops.Norm, dtype: torch.dtype) -> list[Entry]:
    return [_vector(name, values, dtype) for name, values in zip(names, (norm.weight, norm.bias), strict=True)]


def _vector(name: str, values: torch.Tensor, dtype: torch.dtype) -> Entry:
    """In the model's type where that loses nothing, else in the float32 that they are computed in."""
    if not torch.equal(values.to(dtype).float(), values):
        dtype = torch.float32
    return Entry(name, dtype, tuple(values.shape), lambda: [values.to(dtype)])


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
