"""A checkpoint as the file of ggml's GPT-J (the "ggml" container, before GGUF), which ctransformers reads.

CodeGen's block is GPT-J's once q, k and v are put straight. Layouts are ggml's: q8_0 takes blocks of 32 along a row,
a float16 scale and 32 int8; q4_0 a float16 scale and 16 bytes, the low halves first. Values are rounded as ggml does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.cpu.formats.source import Source

_MAGIC = 0x67676D6C
_BLOCK = 32
_FLOAT32 = 0
_QUANTIZATION_VERSION = 2  # blocks with float16 scales; times 1000 in the file's type
# kind -> (type of the file, type of a tensor)
_TYPES = {"float16": (1, 1), "q4_0": (2, 2), "q8_0": (7, 8)}


def write(source: Source, path: Path, kind: str) -> None:
    """kind: float16, q8_0 or q4_0, of all matrices."""
    dims = source.dims
    file_type, tensor_type = _TYPES[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<I7i", _MAGIC, dims.vocab, dims.n_positions, dims.n_embd, dims.n_head, dims.n_layer,
                               dims.rotary_dim, file_type + 1000 * _QUANTIZATION_VERSION))  # fmt: skip
        file.write(struct.pack("<i", dims.vocab))
        for token in range(dims.vocab):
            text = str(token).encode()
            file.write(struct.pack("<I", len(text)) + text)
        for name, values in _tensors(source):
            encoded, number = (
                (values.astype("<f4"), _FLOAT32) if values.ndim == 1 else (_encode(values, kind), tensor_type)
            )
            raw = name.encode()
            file.write(struct.pack("<3i", values.ndim, len(raw), number))
            file.write(struct.pack(f"<{values.ndim}i", *values.shape[::-1]) + raw)
            encoded.tofile(file)


def _tensors(source: Source) -> Iterator[tuple[str, np.ndarray]]:
    for name in ("transformer.wte.weight", "transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight",
                 "lm_head.bias"):  # fmt: skip
        yield name, source.get(name)
    for index in range(source.dims.n_layer):
        prefix = f"transformer.h.{index}"
        for letter, values in zip("qkv", source.qkv(index), strict=True):
            yield f"{prefix}.attn.{letter}_proj.weight", values
        for name in ("ln_1.weight", "ln_1.bias", "attn.out_proj.weight", "mlp.fc_in.weight", "mlp.fc_in.bias",
                     "mlp.fc_out.weight", "mlp.fc_out.bias"):  # fmt: skip
            yield f"{prefix}.{name}", source.layer(index, name)


def _encode(matrix: np.ndarray, kind: str) -> np.ndarray:
    if kind == "float16":
        return matrix.astype("<f2")
    return encode_blocks(matrix, kind)


def encode_blocks(matrix: np.ndarray, kind: str) -> np.ndarray:
    """(blocks, bytes of a block) uint8 of a float32 matrix whose rows are multiples of 32."""
    blocks = matrix.astype(np.float32).reshape(-1, _BLOCK)
    if kind == "q8_0":
        scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
        codes = np.rint(blocks * _inverse(scale)).astype(np.int8)
        return np.concatenate((scale.astype("<f2").view(np.uint8), codes.view(np.uint8)), axis=1)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)  # with its sign
    scale = largest / -8
    codes = np.minimum(15, (blocks * _inverse(scale) + 8.5).astype(np.int8)).astype(np.uint8)
    packed = codes[:, : _BLOCK // 2] | codes[:, _BLOCK // 2 :] << 4
    return np.concatenate((scale.astype("<f2").view(np.uint8), packed), axis=1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
