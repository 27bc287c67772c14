"""Where each tensor of a checkpoint lands in the packed weights, for the names of CodeGen and of GPT-J.

CodeGen was trained on 4 cores and stores its qkv_proj as 4 blocks, each `[q | v | k]` of d/4 rows; here, and only
here, that is put straight (loading) and back (saving).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator

import torch

from .. import ops
from ..config import CodeGenConfig
from ..quantization import packed_kinds

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EMBEDDING = "transformer.wte.weight"
LM_HEAD = "lm_head.weight"
LM_HEAD_BIAS = "lm_head.bias"
FINAL_NORM = ("transformer.ln_f.weight", "transformer.ln_f.bias")
SCALE_SUFFIX = ".scale"  # of a quantised or packed checkpoint: beside each matrix that has scales

# Buffers that old versions of transformers saved: masks and rotary tables, recomputed and never read.
_BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(causal_mask|bias|masked_bias|embed_positions|rotary_emb\.inv_freq)")
_NUM_BLOCKS = 4


@dataclass(frozen=True)
class Rows:
    """Rows start .. start+count of a checkpoint's matrix are rows row .. row+count of a packed weight's section."""

    start: int
    count: int
    section: int
    row: int


@dataclass(frozen=True)
class Matrix:
    """One matrix of the checkpoint, (rows, cols), and where in which packed weight it lands."""

    name: str
    shape: tuple[int, int]
    weight: str  # w_in, w_out or lm_head
    segment: int
    parts: tuple[Rows, ...]  # in order of `start`, covering all rows


@dataclass(frozen=True)
class Layer:
    """The tensors of one decoder layer: matrices of its two packed weights, names of its vectors."""

    w_in: tuple[Matrix, ...]
    w_out: tuple[Matrix, ...]
    norm: tuple[str, str]  # weight, bias (d,)
    bias_in: str  # (F,)
    bias_out: str  # (d,)


@dataclass(frozen=True)
class TensorSpec:
    """What the checkpoint must hold under a name."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]


def is_buffer(name: str) -> bool:
    """Whether a tensor of the file is one of the buffers that are knowingly skipped."""
    return _BUFFERS.fullmatch(name) is not None


def layer_layout(config: CodeGenConfig, index: int) -> Layer:
    d, inner = config.n_embd, config.inner
    prefix = f"transformer.h.{index}"
    if config.model_type == "codegen":
        projections = (Matrix(f"{prefix}.attn.qkv_proj.weight", (3 * d, d), "w_in", 0, _qkv_blocks(d)),)
    else:
        projections = tuple(_whole(f"{prefix}.attn.{name}_proj.weight", (d, d), "w_in", section=section)
                            for section, name in enumerate("qkv"))
    return Layer(
        w_in=(*projections, _whole(f"{prefix}.mlp.fc_in.weight", (inner, d), "w_in", section=3)),
        w_out=(_whole(f"{prefix}.attn.out_proj.weight", (d, d), "w_out", segment=0),
               _whole(f"{prefix}.mlp.fc_out.weight", (d, inner), "w_out", segment=1)),
        norm=(f"{prefix}.ln_1.weight", f"{prefix}.ln_1.bias"),
        bias_in=f"{prefix}.mlp.fc_in.bias",
        bias_out=f"{prefix}.mlp.fc_out.bias",
    )


def lm_head_layout(config: CodeGenConfig, name: str = LM_HEAD) -> Matrix:
    """`name` is the embedding where the two are tied."""
    return _whole(name, (config.vocab_size, config.n_embd), "lm_head")


def quantized_specs(matrix: Matrix, quantization: str) -> tuple[TensorSpec, TensorSpec]:
    """The two tensors of a quantised file that hold a matrix: its codes, and under SCALE_SUFFIX their scales.

    Codes of int8 are (1, rows, cols) int8; of int4 two are a byte (nibbles()), (1, rows, half of cols rounded up) uint8.
    Scales are (rows,) float32, or in groups (rows, groups of columns) bfloat16. The leading dimension of 1 stops programs
    that do not know the scales (transformers) from loading the codes as if they were weights.
    """
    rows, cols = matrix.shape
    kind = packed_kinds(torch.float32, quantization)[matrix.weight]
    if kind in ops.INT4_GROUPS:
        codes = TensorSpec(matrix.name, (1, rows, -(-cols // 2)), (torch.uint8,))
    else:
        codes = TensorSpec(matrix.name, (1, rows, cols), (torch.int8,))
    scale = matrix.name + SCALE_SUFFIX
    if kind not in ops.GROUPS:
        return codes, TensorSpec(scale, (rows,), (torch.float32,))
    return codes, TensorSpec(scale, (rows, -(-cols // ops.GROUPS[kind])), (torch.bfloat16,))


def packed_specs(config: CodeGenConfig, name: str, weight: str) -> tuple[TensorSpec, ...]:
    """The tensors of a packed file that hold the packed weight w_in, w_out or lm_head (`weight`) as the kernels have it.

    Its bytes stand, as one row of uint8, under the name of the weight's last matrix (packed_name()), where programs that
    do not know them (transformers) stop at the shape; under SCALE_SUFFIX its scales, where it has any.
    """
    data, scales = ops.packed_weight_sizes(packed_kind_of(config, weight), *config.packed_shapes()[weight])
    specs = (TensorSpec(name, (data,), (torch.uint8,)),)
    return specs if not scales else (*specs, TensorSpec(name + SCALE_SUFFIX, (scales,), (torch.float32,)))


def packed_kind_of(config: CodeGenConfig, weight: str) -> str:
    """The kind of a packed weight of a packed checkpoint."""
    if config.quantization is not None:
        return packed_kinds(torch.float32, config.quantization)[weight]
    return config.extra["quantization_config"]["weights"]


def packed_name(matrices: tuple[Matrix, ...]) -> str:
    """The name under which the packed weight of these matrices stands in a packed file."""
    return matrices[-1].name


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    """(n, half of cols rounded up) uint8 from codes (n, cols) int8 in [-8, 7].

    Even columns plus 8 are the low halves of the bytes, odd ones the high.
    """
    codes = (codes + 8).view(torch.uint8)
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, ::2] | codes[:, 1::2] << 4


def codes_of(nibbles: torch.Tensor, cols: int) -> torch.Tensor:
    """The (n, cols) int8 that nibbles() packed."""
    codes = torch.empty(nibbles.shape[0], nibbles.shape[1], 2, dtype=torch.int8)
    codes[..., 0] = nibbles & 15
    codes[..., 1] = nibbles >> 4
    codes = codes.sub_(8).flatten(1)
    return codes if codes.shape[1] == cols else codes[:, :cols].contiguous()


def expected_tensors(config: CodeGenConfig, *, lm_head: bool = True) -> Iterator[TensorSpec]:
    """Every tensor that the model is made of, in the order in which a checkpoint is written.

    lm_head: whether the file has an lm_head.weight of its own (False for tied embeddings without one).
    """
    d = config.n_embd
    yield TensorSpec(EMBEDDING, (config.vocab_size, d), FLOAT_DTYPES)
    for index in range(config.n_layer):
        layer = layer_layout(config, index)
        for name in layer.norm:
            yield TensorSpec(name, (d,), FLOAT_DTYPES)
        for matrices in (layer.w_in, layer.w_out):
            yield from _matrices_specs(config, matrices)
        yield TensorSpec(layer.bias_in, (config.inner,), FLOAT_DTYPES)
        yield TensorSpec(layer.bias_out, (d,), FLOAT_DTYPES)
    for name in FINAL_NORM:
        yield TensorSpec(name, (d,), FLOAT_DTYPES)
    if lm_head:
        yield from _matrices_specs(config, (lm_head_layout(config),))
    yield TensorSpec(LM_HEAD_BIAS, (config.vocab_size,), FLOAT_DTYPES)


def _matrices_specs(config: CodeGenConfig, matrices: tuple[Matrix, ...]) -> Iterator[TensorSpec]:
    """Of the matrices of one packed weight."""
    if config.packed is not None:
        yield from packed_specs(config, packed_name(matrices), matrices[0].weight)
        return
    for matrix in matrices:
        if config.quantization is None:
            yield TensorSpec(matrix.name, matrix.shape, FLOAT_DTYPES)
        else:
            yield from quantized_specs(matrix, config.quantization)


def _whole(name: str, shape: tuple[int, int], weight: str, *, section: int = 0, segment: int = 0) -> Matrix:
    return Matrix(name, shape, weight, segment, (Rows(start=0, count=shape[0], section=section, row=0),))


def _qkv_blocks(d: int) -> tuple[Rows, ...]:
    rows = d // _NUM_BLOCKS
    parts = []
    for block in range(_NUM_BLOCKS):
        for place, section in enumerate((0, 2, 1)):  # the file's order is q, v, k; the sections' is q, k, v
            parts.append(Rows(start=(3 * block + place) * rows, count=rows, section=section, row=block * rows))
    return tuple(parts)
