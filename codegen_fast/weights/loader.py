"""Streams a checkpoint into the packed weights, tensor by tensor in bounded chunks of rows.

Peak memory (anonymous + shared) is the final model plus at most one tensor: rows go from two chunks' buffers through
ops.pack() into their final place and type; those of a packed checkpoint are read into it. The loader is strict: every tensor
of the file is read or knowingly skipped, every element of the model is filled, or an error names the tensor.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Iterator

import torch

from .. import ops
from ..config import CodeGenConfig
from ..memory import check_fits, packed_kind
from ..progress import ProgressBar
from ..quantization import packed_kinds, parse_quantization, require_backend, require_stored
from ..side_thread import SideThread
from ..strangers import one_line
from . import layout
from .checkpoint import TensorSource
from .decoder_weights import DecoderWeights, LayerWeights
from .repack import CHUNK_BYTES, packed_layout, repack

PROGRESS_AFTER_SECONDS = 1


def load_weights(config: CodeGenConfig, source: TensorSource, *, dtype: torch.dtype, quantization: str | None = None,
                 device: torch.device | str = "cpu", progress: bool = True) -> DecoderWeights:
    """The model's weights in `dtype` (float32, float16, bfloat16), its products' as `quantization` says.

    A checkpoint that is quantised itself stays so, bit for bit. One that is packed is only read where type and device are
    those that it was packed for, else converted; of the values in it none is looked at but scales. progress: a bar on
    standard error, where that is a terminal, if it takes over 1 s.
    Raises ValueError naming the tensor that is missing, unknown, of the wrong shape or type, not finite, or beyond
    the range of `dtype`, and where a checkpoint was packed by a build with another layout; NotImplementedError for a
    quantisation that the device does not have; OSError if the model is larger than the free memory.
    """
    if dtype not in layout.FLOAT_DTYPES:
        raise ValueError(f"dtype is {dtype}; expected torch.float32, torch.float16 or torch.bfloat16")
    quantization = parse_quantization(quantization) or config.quantization
    if (quantization, config.quantization) == ("int8", "int8-row"):
        quantization = "int8-row"  # it is int8
    if config.quantization not in (None, quantization):
        raise ValueError(f"quantization={quantization!r} was asked for, and {source.describe()} holds a model in "
                         f"{config.quantization}: load it as it is, or quantise the original")
    device = torch.device(device)
    require_backend(quantization, device)
    require_stored(config.quantization, device)
    _require_layout(config, source)
    tied = _is_tied(config, source)
    total = _check_tensors(config, source, lm_head=not tied)
    check_fits(config, dtype, quantization, device=device, scratch=2 * CHUNK_BYTES, where=source.describe())
    ops.set_num_threads(torch.get_num_threads())
    with ProgressBar(total=total, desc="Loading weights", unit="B", unit_scale=True, leave=False,
                     delay=PROGRESS_AFTER_SECONDS, disable=None if progress else True) as bar:
        with SideThread("codegen_fast-load") as reader:
            loader = _Loader(config, source, dtype, quantization, device, bar, reader)
            return loader.load(lm_head=layout.EMBEDDING if tied else layout.LM_HEAD)


class _Loader:
    def __init__(self, config: CodeGenConfig, source: TensorSource, dtype: torch.dtype, quantization: str | None,
                 device: torch.device, bar: ProgressBar, reader: SideThread) -> None:
        self._config = config
        self._source = source
        self._dtype = dtype
        self._quantization = quantization
        self._kinds = packed_kinds(dtype, quantization, device)
        self._device = device
        self._bar = bar
        self._reader = reader

    def load(self, lm_head: str) -> DecoderWeights:
        """lm_head: the tensor that lm_head is packed from."""
        config = self._config
        if config.tie_word_embeddings and lm_head == layout.LM_HEAD and not (config.quantization or config.packed):
            self._check_equal(layout.EMBEDDING, layout.LM_HEAD)
        shapes = config.packed_shapes()
        embedding = self._embedding()
        layers = []
        for index in range(config.n_layer):
            plan = layout.layer_layout(config, index)
            layers.append(LayerWeights(
                norm=self._norm(plan.norm),
                w_in=self._pack(plan.w_in, *shapes["w_in"]),
                bias_in=self._vector(plan.bias_in),
                w_out=self._pack(plan.w_out, *shapes["w_out"]),
                bias_out=self._vector(plan.bias_out),
            ))
        return DecoderWeights(
            embedding=embedding,
            layers=layers,
            final_norm=self._norm(layout.FINAL_NORM),
            lm_head=self._pack((layout.lm_head_layout(config, lm_head),), *shapes["lm_head"]),
            lm_head_bias=self._vector(layout.LM_HEAD_BIAS),
            dtype=self._dtype,
            quantization=self._quantization,
        )

    def _embedding(self) -> torch.Tensor:
        """(V, d) of the model's dtype."""
        name = layout.EMBEDDING
        out = torch.empty(self._source.shape(name), dtype=self._dtype, device=self._device)
        for row, rows in self._chunks(name):
            part = out[row:row + rows.shape[0]]
            part.copy_(rows)
            if not all_finite(part):
                self._refuse(name, bad=_count_not_finite(rows), overflowed=_count_not_finite(part))
        return out

    def _vector(self, name: str) -> torch.Tensor:
        """A norm's weight or a bias, float32."""
        out = self._source.get(name).to(device=self._device, dtype=torch.float32, copy=True)
        if not all_finite(out):
            self._refuse(name, bad=_count_not_finite(out))
        self._bar.update(out.numel() * self._source.dtype(name).itemsize)
        return out

    def _norm(self, names: tuple[str, str]) -> ops.Norm:
        weight, bias = (self._vector(name) for name in names)
        return ops.Norm(weight, bias, self._config.layer_norm_epsilon)

    def _pack(self, matrices: tuple[layout.Matrix, ...], sections: tuple[int, ...],
              segments: tuple[int, ...]) -> ops.PackedWeight:
        if self._config.packed is not None:
            return self._read_packed(matrices, sections, segments)
        packed = ops.new_packed_weight(self._kinds[matrices[0].weight], sections, segments, self._device)
        for matrix in matrices:
            if self._config.quantization is None:
                self._pack_matrix(packed, matrix)
            else:
                self._pack_stored(packed, matrix)
        return packed

    def _pack_matrix(self, packed: ops.PackedWeight, matrix: layout.Matrix) -> None:
        status = ops.new_pack_status(self._device)
        for part in matrix.parts:
            for row, rows in self._chunks(matrix.name, part.start, part.count):
                ops.pack(packed, rows, status, section=part.section, row=part.row + row, segment=matrix.segment)
        bad, overflowed = status.tolist()
        if bad or overflowed:
            self._refuse(matrix.name, bad=bad, overflowed=overflowed)

    def _pack_stored(self, packed: ops.PackedWeight, matrix: layout.Matrix) -> None:
        """A matrix of a quantised checkpoint, bit for bit."""
        is_int4 = packed.kind in ops.INT4_GROUPS
        scale_name = matrix.name + layout.SCALE_SUFFIX
        scales = self._vector(scale_name)
        if not is_int4 and scales.numel() and float(scales.min()) < 0:
            raise ValueError(f"{self._where(scale_name)} holds a negative scale; int8 has positive ones")
        for part in matrix.parts:
            for row, rows in self._chunks(matrix.name, part.start, part.count):
                if is_int4:
                    rows = layout.codes_of(rows, matrix.shape[1])
                elif rows.numel() and int(rows.min()) < -127:
                    raise ValueError(f"{self._where(matrix.name)} holds -128; expected int8 values from -127 to 127")
                first = part.start + row
                ops.pack_quantized(packed, rows, scales[first:first + rows.shape[0]], section=part.section,
                                   row=part.row + row, segment=matrix.segment)

    def _read_packed(self, matrices: tuple[layout.Matrix, ...], sections: tuple[int, ...],
                     segments: tuple[int, ...]) -> ops.PackedWeight:
        """A packed weight of a packed checkpoint, byte for byte where this device's kernels take it so."""
        name, weight = layout.packed_name(matrices), matrices[0].weight
        stored = ops.new_packed_weight(layout.packed_kind_of(self._config, weight), sections, segments, clear=False)
        self._read_into(stored.data, name)
        if stored.scales is not None:
            self._read_into(stored.scales, name + layout.SCALE_SUFFIX)
            if not all_finite(stored.scales):
                self._refuse(name + layout.SCALE_SUFFIX, bad=_count_not_finite(stored.scales))
        kind = self._kinds[weight]
        if kind == stored.kind and ops.backend(self._device) == "cpu":
            return stored
        try:
            return repack(stored, kind, self._device)
        except ValueError as error:
            raise ValueError(f"{self._where(name)}: {error}") from None

    def _read_into(self, out: torch.Tensor, name: str) -> None:
        """The bytes of a tensor, which has as many as `out`: on two threads, as most of it is first touches of memory."""
        parts = out.view(-1).view(torch.uint8).split(CHUNK_BYTES)
        places = [(part, start * CHUNK_BYTES) for start, part in enumerate(parts)]
        for here, there in zip_longest(places[::2], places[1::2]):
            beside = self._reader.submit(self._source.read_into, name, *there) if there else None
            self._source.read_into(name, *here)
            self._bar.update(here[0].numel())
            if beside:
                beside()
                self._bar.update(there[0].numel())

    def _chunks(self, name: str, start: int = 0, count: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """(row, rows) over rows start .. start+count of a matrix, on the device; row counts from `start`."""
        *_, height, width = self._source.shape(name)
        count = height if count is None else count
        row_bytes = width * self._source.dtype(name).itemsize
        step = max(1, CHUNK_BYTES // row_bytes)
        coming = self._reader.submit(self._source.rows, name, start, min(step, count))
        for row in range(0, count, step):
            rows, following = coming(), row + step
            if following < count:  # read while this chunk is packed
                coming = self._reader.submit(self._source.rows, name, start + following, min(step, count - following))
            # The ops take strided rows of contiguous, aligned elements; some sources have neither.
            if rows.stride(1) != 1 or rows.data_ptr() % rows.element_size():
                rows = rows.clone(memory_format=torch.contiguous_format)
            yield row, rows.to(self._device)
            self._bar.update(rows.shape[0] * row_bytes)

    def _check_equal(self, first: str, second: str) -> None:
        """Tied embeddings with an lm_head of its own: one of the two would be ignored."""
        height, width = self._source.shape(first)
        step = max(1, CHUNK_BYTES // (4 * width))
        # Whole: a turned matrix, of which a file keeps one, would be read for each chunk. The model takes more, and comes later.
        pair = self._source.get(first), self._source.get(second)
        for parts in zip(*(matrix.split(step) for matrix in pair)):
            if not torch.equal(*(part.float() for part in parts)):
                raise ValueError(f"the config says tie_word_embeddings, and {self._where(second)} differs from "
                                 f"{first}; set tie_word_embeddings to false, or remove one of the two")

    def _refuse(self, name: str, *, bad: int, overflowed: int = 0) -> None:
        if bad:
            raise ValueError(f"{self._where(name)} holds {bad} values that are NaN or infinite; the checkpoint is "
                             f"broken")
        raise ValueError(f"{self._where(name)} holds {overflowed} values beyond the range of "
                         f"{packed_kind(self._dtype, None)}; load it with dtype='bfloat16' or dtype='float32'")

    def _where(self, name: str) -> str:
        return f"tensor {name!r} of {self._source.describe(name)}"


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. aminmax carries NaN through and, unlike isfinite, needs no scratch."""
    return values.numel() == 0 or all(math.isfinite(bound) for bound in torch.aminmax(values))


def _count_not_finite(values: torch.Tensor) -> int:
    return int((~torch.isfinite(values)).sum())


def _is_tied(config: CodeGenConfig, source: TensorSource) -> bool:
    """Whether lm_head is packed from the embedding. Quantised and packed files hold it even where it is tied."""
    return (config.tie_word_embeddings and config.quantization is None and config.packed is None
            and layout.LM_HEAD not in source.names())


def _require_layout(config: CodeGenConfig, source: TensorSource) -> None:
    """ValueError unless a packed checkpoint's order of elements is this build's."""
    if config.packed is None:
        return
    stored, version = config.packed["layout"], config.packed["version"]
    for weight in config.packed_shapes():
        kind = layout.packed_kind_of(config, weight)
        own = packed_layout(kind)
        if stored.get(kind) != own:
            raise ValueError(f"{source.describe()} holds {kind} weights packed in layout {stored.get(kind)!r:.80}, and the CPU "
                             f"kernels here have {own!r}: load it with codegen_fast {one_line(version, 40)}, which wrote it, and "
                             f"save it with save_pretrained(folder, packed=False), or quantise the original again")


def _check_tensors(config: CodeGenConfig, source: TensorSource, *, lm_head: bool) -> int:
    """ValueError unless the source holds the model's tensors, all of them, and no others. Returns their bytes."""
    names = set(source.names())
    known = set()
    total = 0
    for spec in layout.expected_tensors(config, lm_head=lm_head):
        if spec.name not in names:
            raise ValueError(f"{source.describe()} lacks tensor {spec.name!r} of shape {spec.shape}, which the config "
                             f"asks for; the files are incomplete or of another model")
        where = f"tensor {spec.name!r} of {source.describe(spec.name)}"
        if source.shape(spec.name) != spec.shape:
            raise ValueError(f"{where} has shape {source.shape(spec.name)!r:.80}; expected {spec.shape} by the config")
        dtype = source.dtype(spec.name)
        if dtype not in spec.dtypes:
            expected = " or ".join(packed_kind(d, None) for d in spec.dtypes)
            raise ValueError(f"{where} is {one_line(dtype, 40).removeprefix('torch.')}; expected {expected}")
        known.add(spec.name)
        total += math.prod(spec.shape) * dtype.itemsize
    extra = sorted(name for name in names - known if not layout.is_buffer(name))
    if extra:
        others = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise ValueError(f"{source.describe(extra[0])} holds tensor {extra[0]!r:.80}{others}, which a "
                         f"{config.model_type} model of this config does not have; the files are of another model")
    return total
