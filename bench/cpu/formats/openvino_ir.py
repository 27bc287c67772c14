"""A checkpoint as OpenVINO's graph (IR), with the inputs, the output and the cache that OpenVINO GenAI expects.

The weights are compressed as its own tools (nncf, optimum-intel) do by default: int8 with a scale and a zero point
a row; int4 symmetric in groups of 128 columns, with the embedding and lm_head in int8. The cache is the graph's own
state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo

from bench.cpu.formats.source import Source

GROUP = 128  # columns of an int4 weight that share a scale


def write(source: Source, folder: Path, kind: str) -> None:
    """kind: float32, float16 (OpenVINO then keeps float16 in memory, and computes in float32), int8 or int4."""
    folder.mkdir(parents=True)
    model = _Graph(source, kind).model()
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=kind == "float16")
    dims = source.dims
    (folder / "config.json").write_text(
        '{"model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "vocab_size": %d, "num_hidden_layers": %d, '
        '"n_positions": %d}' % (dims.vocab, dims.n_layer, dims.n_positions)
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": 50256, "bos_token_id": 1}')


class _Graph:
    def __init__(self, source: Source, kind: str) -> None:
        self._source, self._kind, self._dims = source, kind, source.dims
        self._sinks = []

    def model(self) -> ov.Model:
        dims = self._dims
        self._ids = op.parameter([-1, -1], np.int64, name="input_ids")
        mask = op.parameter([-1, -1], np.int64, name="attention_mask")
        positions = op.parameter([-1, -1], np.int64, name="position_ids")
        self._beams = op.parameter([-1], np.int32, name="beam_idx")
        for node in (self._ids, mask, positions, self._beams):
            node.output(0).tensor.set_names({node.friendly_name})
        self._batch = op.gather(op.shape_of(self._ids), _ints(0), _ints(0))
        self._mask = self._causal(mask)
        angles = self._source_angles()
        table = op.gather(_floats(angles), op.convert(positions, np.int32), _ints(0))  # (B, L, R/2)
        table = op.unsqueeze(table, _ints([2, 4]))  # (B, L, 1, R/2, 1)
        self._cos, self._sin = op.cos(table), op.sin(table)
        embedding = self._weight("transformer.wte.weight", "int8" if self._kind == "int4" else self._kind)
        x = op.gather(embedding, op.convert(self._ids, np.int32), _ints(0))
        for index in range(dims.n_layer):
            x = self._layer(index, x)
        x = self._norm(x, "transformer.ln_f")
        logits = self._linear(x, "lm_head", "int8" if self._kind == "int4" else self._kind, bias=True)
        result = op.result(logits)
        result.output(0).tensor.set_names({"logits"})
        return ov.Model([result], self._sinks, [self._ids, mask, positions, self._beams], "codegen")

    def _source_angles(self) -> np.ndarray:
        dims = self._dims
        inverse = 1 / 10000 ** (np.arange(0, dims.rotary_dim, 2, dtype=np.float32) / dims.rotary_dim)
        return np.arange(dims.n_positions, dtype=np.float32)[:, None] * inverse[None, :]

    def _causal(self, mask):
        """(B, 1, L, S) float: 0 where a token may look, the least float where not."""
        new = op.gather(op.shape_of(self._ids), _ints(1), _ints(0))
        whole = op.gather(op.shape_of(mask), _ints(1), _ints(0))
        columns = op.range(_ints(0), whole, _ints(1), output_type="i64")
        rows = op.range(op.subtract(whole, new), whole, _ints(1), output_type="i64")
        allowed = op.less_equal(op.unsqueeze(columns, _ints(0)), op.unsqueeze(rows, _ints(1)))  # (L, S)
        given = op.unsqueeze(op.convert(mask, np.bool_), _ints([1, 2]))  # (B, 1, 1, S)
        both = op.logical_and(op.unsqueeze(allowed, _ints([0, 1])), given)
        return op.select(both, _floats(0.0), _floats(np.finfo(np.float32).min))

    def _layer(self, index: int, x):
        dims, prefix = self._dims, f"transformer.h.{index}"
        h = self._norm(x, f"{prefix}.ln_1")
        q, k, v = (
            op.reshape(op.matmul(h, self._compressed(w, self._kind), False, True),
                       _ints([0, 0, dims.n_head, dims.head_dim]), True)
            for w in self._source.qkv(index)
        )  # fmt: skip
        q, k, v = (op.transpose(part, _ints([0, 2, 1, 3])) for part in (self._rotary(q), self._rotary(k), v))
        k, v = self._cached(k, f"past_key_values.{index}.key"), self._cached(v, f"past_key_values.{index}.value")
        a = op.scaled_dot_product_attention(q, k, v, self._mask)
        a = op.reshape(op.transpose(a, _ints([0, 2, 1, 3])), _ints([0, 0, dims.n_embd]), True)
        a = self._linear(a, f"{prefix}.attn.out_proj", self._kind)
        m = op.gelu(self._linear(h, f"{prefix}.mlp.fc_in", self._kind, bias=True), "tanh")
        m = self._linear(m, f"{prefix}.mlp.fc_out", self._kind, bias=True)
        return op.add(op.add(a, m), x)

    def _rotary(self, x):
        """(B, L, H, D): the first R dims of every head turned, in pairs (2i, 2i+1)."""
        dims = self._dims
        half = dims.rotary_dim // 2
        turned, rest = (
            op.variadic_split(x, _ints(3), _ints([dims.rotary_dim, -1])).outputs()
            if dims.rotary_dim < dims.head_dim
            else (x, None)
        )
        pairs = op.reshape(turned, _ints([0, 0, 0, half, 2]), True)
        first, second = op.split(pairs, _ints(4), 2).outputs()
        first, second = (
            op.subtract(op.multiply(first, self._cos), op.multiply(second, self._sin)),
            op.add(op.multiply(second, self._cos), op.multiply(first, self._sin)),
        )
        turned = op.reshape(op.concat([first, second], 4), _ints([0, 0, 0, dims.rotary_dim]), True)
        return turned if rest is None else op.concat([turned, rest], 3)

    def _cached(self, new, name: str):
        """(B, H, S, D): what the state holds, with the new tokens behind it."""
        dims = self._dims
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, dims.n_head, -1, dims.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        shape = op.concat([op.unsqueeze(self._batch, _ints(0)), _ints([dims.n_head, 0, dims.head_dim])], 0)
        empty = op.broadcast(_floats(0.0), shape)
        past = op.gather(op.read_value(empty, variable), self._beams, _ints(0))
        whole = op.concat([past, new], 2)
        self._sinks.append(op.assign(whole, variable))
        return whole

    def _norm(self, x, name: str):
        normal = op.mvn(x, _ints([-1]), True, self._dims.eps, "inside_sqrt")
        weight, bias = (_floats(self._source.get(f"{name}.{part}")) for part in ("weight", "bias"))
        return op.add(op.multiply(normal, weight), bias)

    def _linear(self, x, name: str, kind: str, bias: bool = False):
        y = op.matmul(x, self._weight(f"{name}.weight", kind), False, True)
        return op.add(y, _floats(self._source.get(f"{name}.bias"))) if bias else y

    def _weight(self, name: str, kind: str):
        return self._compressed(self._source.get(name), kind)

    def _compressed(self, w: np.ndarray, kind: str):
        """A constant (rows, columns), and what makes floats of it."""
        if kind in ("float32", "float16"):
            return _floats(w)
        if kind == "int8":
            low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
            scale = np.maximum((high - low) / 255, 1e-12)
            zero = np.clip(np.rint(-low / scale), 0, 255)
            codes = op.constant(np.clip(np.rint(w / scale) + zero, 0, 255).astype(np.uint8))
            shifted = op.subtract(
                op.convert(codes, np.float16), op.convert(op.constant(zero.astype(np.uint8)), np.float16)
            )
            return op.convert(op.multiply(shifted, op.constant(scale.astype(np.float16))), np.float32)
        groups = w.reshape(len(w), -1, GROUP if w.shape[1] % GROUP == 0 else w.shape[1])
        furthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)
        scale = np.where(furthest == 0, 1, furthest / -8)  # as nncf: the largest in magnitude becomes -8
        codes = np.clip(np.rint(groups / scale), -8, 7).astype(np.int8)
        nibbles = codes.astype(np.uint8).reshape(-1, 2) & 15
        packed = ov.Tensor((nibbles[:, 0] | nibbles[:, 1] << 4).reshape(-1), ov.Shape(list(codes.shape)), ov.Type.i4)
        values = op.convert(op.constant(packed, shared_memory=False), np.float16)
        values = op.multiply(values, op.constant(scale.astype(np.float16)))
        return op.convert(op.reshape(values, _ints(list(w.shape)), False), np.float32)


def _ints(values):
    return op.constant(np.array(values, dtype=np.int64))


def _floats(values):
    return op.constant(np.ascontiguousarray(values, dtype=np.float32))
