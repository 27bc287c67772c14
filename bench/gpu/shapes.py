"""What is measured of every kernel: a case is one op at one shape, with our calls and torch's that do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import cases
import torch
import torch.nn.functional as F

from bench.gpu import operands as o
from bench.gpu.clock import copies
from codegen_fast import ops

Calls = Sequence[Callable[[], object]]


@dataclass
class Prepared:
    """``check`` runs ours once and gives its error against float32, and the bound it must keep."""

    ours: Calls
    peers: dict[str, Calls]
    check: Callable[[], tuple[float, float]]


@dataclass
class Case:
    """nbytes: what must be read and written; operations: multiplications and additions, by type ``arithmetic``."""

    dims: cases.Dims
    op: str
    phase: str
    kind: str
    tokens: int
    length: int
    nbytes: int
    operations: int
    prepare: Callable[[torch.device, int], Prepared]
    arithmetic: str = field(init=False)

    def __post_init__(self) -> None:
        self.arithmetic = "int8" if self.kind == "int8" and self.phase == "prefill" else str(
            o.act_dtype(self.kind)).removeprefix("torch.")  # fmt: skip

    @property
    def name(self) -> str:
        length = f" of {self.length}" if self.op == "attention" and self.phase == "decode" else ""
        return f"{self.dims.name:>5} {self.op:<15}{self.phase:<8}{self.kind:<9}{self.tokens:>5}{length}"


def weight_bytes(kind: str, rows: int, segments: Sequence[int]) -> int:
    """Values and scales, without padding."""
    size = 1 if kind == "int8" else 2
    return rows * sum(segments) * size + (4 * rows * len(segments) if kind == "int8" else 0)


def _rotated(weight: ops.PackedWeight, count: int) -> list[ops.PackedWeight]:
    return [weight] + [o.copy_of(weight) for _ in range(count - 1)]


def _int_mm(x: torch.Tensor, weight: torch.Tensor, count: int) -> Calls:
    """torch's int8 product of rows already quantised: without LayerNorm, scales, bias and what follows."""
    q = torch.randint(-127, 128, x.shape, dtype=torch.int8, device=x.device)
    rows = torch.randint(-127, 128, weight.shape, dtype=torch.int8, device=x.device)
    return [partial(torch._int_mm, q, w.t()) for w in [rows] + [rows.clone() for _ in range(count - 1)]]


def input_product(dims: cases.Dims, phase: str, kind: str, tokens: int) -> Case:
    d, inner = dims.n_embd, dims.inner
    rows = 3 * d + inner

    def prepare(device: torch.device, l2: int) -> Prepared:
        dtype = o.act_dtype(kind)
        weight = o.random_weight(kind, (d, d, d, inner), (d,), device)
        weights = _rotated(weight, copies(weight.nbytes, l2))
        norm, bias, table = o.new_norm(d, device), torch.randn(inner, device=device), o.rotary_table(dims, device)
        batch, num_pages = o.batch_of(phase, tokens, 1, device)
        pages = o.new_pages(num_pages, d, dtype, device)
        x = torch.randn(tokens, d, device=device, dtype=dtype)
        q, act = torch.empty_like(x), torch.empty(tokens, d + inner, device=device, dtype=dtype)
        scratch = o.workspace(ops.input_product_workspace(tokens, weight), device)
        ours = [partial(ops.input_product, q, act, pages, x, norm, w, bias, table, dims.n_head, batch,
                        phase == "decode", scratch) for w in weights]  # fmt: skip
        at = table[:tokens] if phase == "prefill" else table[:1].expand(tokens, -1)

        def check() -> tuple[float, float]:
            o.poisoned(ours[0], q, act)
            wanted = o.input_in_torch(x.float(), norm, o.plain(weight, torch.float32), bias, at, dims)
            return max(o.error(q, wanted[0]), o.error(act[:, d:], wanted[3])), o.bound(kind, phase)

        matrix = o.plain(weight, dtype)
        matrices = [matrix] + [matrix.clone() for _ in range(copies(matrix.nbytes, l2) - 1)]
        peers = {
            "torch, composed": [partial(o.input_in_torch, x, norm, m, bias, at, dims) for m in matrices],
            "cuBLASLt, product alone": [partial(F.linear, x, m) for m in matrices],
        }
        if kind == "int8" and phase == "prefill":
            peers["torch._int_mm, product alone"] = _int_mm(x, matrix, len(matrices))
        return Prepared(ours, peers, check)

    nbytes = weight_bytes(kind, rows, (d,)) + 2 * tokens * (d + rows)
    return Case(dims, "input_product", phase, kind, tokens, tokens, nbytes, 2 * tokens * rows * d, prepare)


def output_product(dims: cases.Dims, phase: str, kind: str, tokens: int) -> Case:
    d, inner = dims.n_embd, dims.inner

    def prepare(device: torch.device, l2: int) -> Prepared:
        dtype = o.act_dtype(kind)
        weight = o.random_weight(kind, (d,), (d, inner), device)
        weights = _rotated(weight, copies(weight.nbytes, l2))
        bias = torch.randn(d, device=device)
        before = torch.randn(tokens, d, device=device, dtype=dtype)
        x, act = before.clone(), torch.randn(tokens, d + inner, device=device, dtype=dtype)
        scratch = o.workspace(ops.output_product_workspace(tokens, weight), device)
        ours = [partial(ops.output_product, x, act, w, bias, phase == "decode", scratch) for w in weights]

        def check() -> tuple[float, float]:
            ours[0]()
            wanted = o.output_in_torch(before.float(), act.float(), o.plain(weight, torch.float32), bias)
            return o.error(x, wanted), o.bound(kind, phase)

        matrix = o.plain(weight, dtype)
        matrices = [matrix] + [matrix.clone() for _ in range(copies(matrix.nbytes, l2) - 1)]
        peers = {
            "torch, composed": [partial(o.output_in_torch, before, act, m, bias) for m in matrices],
            "cuBLASLt, product alone": [partial(F.linear, act, m) for m in matrices],
        }
        if kind == "int8" and phase == "prefill":
            peers["torch._int_mm, product alone"] = _int_mm(act, matrix, len(matrices))
        return Prepared(ours, peers, check)

    nbytes = weight_bytes(kind, d, (d, inner)) + 2 * tokens * (3 * d + inner)
    return Case(dims, "output_product", phase, kind, tokens, tokens, nbytes, 2 * tokens * d * (d + inner), prepare)


def lm_head(dims: cases.Dims, phase: str, kind: str, tokens: int) -> Case:
    d, vocab = dims.n_embd, dims.vocab

    def prepare(device: torch.device, l2: int) -> Prepared:
        dtype = o.act_dtype(kind)
        weight = o.random_weight(kind, (vocab,), (d,), device)
        weights = _rotated(weight, copies(weight.nbytes, l2, at_least=2))
        norm, bias = o.new_norm(d, device), torch.randn(vocab, device=device)
        x = torch.randn(tokens, d, device=device, dtype=dtype)
        rows = torch.arange(tokens, dtype=torch.int32, device=device)
        logits = torch.empty(tokens, vocab, device=device)
        scratch = o.workspace(ops.lm_head_workspace(tokens, weight), device)
        ours = [partial(ops.lm_head, logits, x, rows, norm, w, bias, phase == "decode", scratch) for w in weights]

        def check() -> tuple[float, float]:
            o.poisoned(ours[0], logits)
            wanted = o.lm_head_in_torch(x.float(), norm, o.plain(weight, torch.float32), bias)
            return o.error(logits, wanted), o.bound(kind, phase)

        matrix = o.plain(weight, dtype)
        matrices = [matrix] + [matrix.clone() for _ in range(copies(matrix.nbytes, l2, at_least=2) - 1)]
        peers = {
            "torch, composed": [partial(o.lm_head_in_torch, x, norm, m, bias) for m in matrices],
            "cuBLASLt, product alone": [partial(F.linear, x, m) for m in matrices],
        }
        return Prepared(ours, peers, check)

    nbytes = weight_bytes(kind, vocab, (d,)) + tokens * (2 * d + 4 * vocab)
    return Case(dims, "lm_head", phase, kind, tokens, tokens, nbytes, 2 * tokens * vocab * d, prepare)


def attention(dims: cases.Dims, phase: str, kind: str, tokens: int, length: int) -> Case:
    """Decode: ``tokens`` sequences of ``length`` keys; prefill: one sequence of ``tokens``."""
    d = dims.n_embd
    sequences, length = (tokens, length) if phase == "decode" else (1, tokens)
    cache_bytes = sequences * length * 2 * d * 2

    def prepare(device: torch.device, l2: int) -> Prepared:
        dtype = o.act_dtype(kind)
        batch, num_pages = o.batch_of(phase, tokens, length, device)
        pages = o.new_pages(num_pages, d, dtype, device)
        caches = [pages] + [pages.clone() for _ in range(copies(pages.nbytes, l2) - 1)]
        q = torch.randn(tokens, d, device=device, dtype=dtype)
        act = torch.empty(tokens, d + dims.inner, device=device, dtype=dtype)
        scratch = o.workspace(
            ops.attention_workspace(tokens, dims.n_head, dims.head_dim, length, device.type), device
        )
        ours = [partial(ops.attention, act, q, p, dims.n_head, batch, phase == "decode", scratch) for p in caches]
        heads = q.view(sequences, -1, dims.n_head, dims.head_dim).transpose(1, 2)
        sdpa = partial(F.scaled_dot_product_attention, is_causal=phase == "prefill")
        plain = [o.keys_and_values(p, dims, sequences, length).contiguous() for p in caches]

        def check() -> tuple[float, float]:
            o.poisoned(ours[0], act)
            # A few sequences at a time: the reference's scores would take more memory than the rest
            k, v = plain[0]
            error = 0.0
            for b in range(0, sequences, 8):
                some = slice(b, b + 8)
                wanted = sdpa(heads[some].float(), k[some].float(), v[some].float()).transpose(1, 2).reshape(-1, d)
                got = act[:, :d].view(sequences, -1, d)[some].reshape(-1, d)
                error = max(error, o.error(got, wanted))
            return error, o.bound("float16" if kind == "int8" else kind, phase)

        return Prepared(ours, {"SDPA": [partial(sdpa, heads.contiguous(), k, v) for k, v in plain]}, check)

    pairs = length if phase == "decode" else (length + 1) / 2
    operations = int(4 * tokens * pairs * d)
    case = Case(dims, "attention", phase, kind, tokens, length, cache_bytes + 4 * tokens * d, operations, prepare)
    case.arithmetic = str(o.act_dtype(kind)).removeprefix("torch.")  # scores and sums are never int8
    return case


def embed(dims: cases.Dims, kind: str, tokens: int) -> Case:
    def prepare(device: torch.device, l2: int) -> Prepared:
        dtype = o.act_dtype(kind)
        wte = torch.randn(dims.vocab, dims.n_embd, device=device, dtype=dtype)
        many = [torch.randint(dims.vocab, (tokens,), device=device) for _ in range(32)]
        x = torch.empty(tokens, dims.n_embd, device=device, dtype=dtype)

        def check() -> tuple[float, float]:
            o.poisoned(ours[0], x)
            return o.error(x, F.embedding(many[0], wte).float()), 0.0

        ours = [partial(ops.embed, x, ids, wte) for ids in many]
        return Prepared(ours, {"torch": [partial(F.embedding, ids, wte) for ids in many]}, check)

    return Case(dims, "embed", "decode", kind, tokens, 1, 4 * tokens * dims.n_embd, 0, prepare)


def layer_norm(dims: cases.Dims, kind: str, tokens: int) -> Case:
    d = dims.n_embd

    def prepare(device: torch.device, l2: int) -> Prepared:
        dtype = o.act_dtype(kind)
        x, norm = torch.randn(tokens, d, device=device, dtype=dtype), o.new_norm(d, device)
        out, count = torch.empty_like(x), copies(2 * x.nbytes, l2, at_least=32, at_most=64)
        inputs = [x] + [x.clone() for _ in range(count - 1)]
        in_type = norm.weight.to(dtype), norm.bias.to(dtype)

        def check() -> tuple[float, float]:
            o.poisoned(ours[0], out)
            return o.error(out, F.layer_norm(x.float(), (d,), norm.weight, norm.bias, o.EPS)), o.bound(kind, "decode")

        ours = [partial(ops.layer_norm, out, x, norm) for x in inputs]
        return Prepared(ours, {"torch": [partial(F.layer_norm, x, (d,), *in_type, o.EPS) for x in inputs]}, check)

    return Case(dims, "layer_norm", "decode", kind, tokens, 1, 4 * tokens * d, 0, prepare)


def sample(dims: cases.Dims, knobs: tuple[float, int, float], tokens: int) -> Case:
    temperature, top_k, top_p = knobs

    def prepare(device: torch.device, l2: int) -> Prepared:
        many = [3 * torch.randn(tokens, dims.vocab, device=device) for _ in range(16)]
        full = partial(torch.full, (tokens,), device=device)
        index = torch.arange(tokens, dtype=torch.int32, device=device)
        params = ops.SamplingParams(full(temperature), full(top_k, dtype=torch.int32), full(top_p),
                                    full(7, dtype=torch.int64), index, index)  # fmt: skip
        out = torch.empty(tokens, dtype=torch.int64, device=device)
        scratch = o.workspace(ops.sample_workspace(tokens, dims.vocab, device.type), device)

        def in_torch(logits: torch.Tensor) -> torch.Tensor:
            if temperature == 0:
                return logits.argmax(-1)
            logits = logits / temperature
            if top_k:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            if top_p < 1:
                values, order = logits.sort(descending=True)
                p = values.softmax(-1)
                values = values.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
                logits = torch.full_like(logits, -torch.inf).scatter(1, order, values)
            p = logits.softmax(-1)
            return (p / torch.empty_like(p).exponential_()).argmax(-1)  # multinomial() without its wait for the GPU

        def check() -> tuple[float, float]:
            out.fill_(-2)
            ours[0]()
            if temperature == 0:
                return float((out != many[0].argmax(-1)).sum()), 0.0
            return float(((out < 0) | (out >= dims.vocab)).sum()), 0.0

        ours = [partial(ops.sample, out, logits, params, scratch) for logits in many]
        return Prepared(ours, {"torch": [partial(in_torch, logits) for logits in many]}, check)

    detail = f"t {temperature}, k {top_k}, p {top_p}"
    return Case(dims, f"sample {detail}", "decode", "float32", tokens, 1, 4 * tokens * dims.vocab, 0, prepare)


KNOBS = ((0.0, 0, 1.0), (0.2, 0, 0.95), (1.0, 50, 1.0))


def all_cases(models: Sequence[cases.Dims], longest: int = 2048) -> Iterator[Case]:
    """Most important first: decode at batch 1, attention of large caches, prefill, then the rest.

    longest: cuts numbers of tokens and keys, for rehearsals.
    """
    kinds = ("float16", "int8")
    products = (input_product, output_product, lm_head)
    for dims in models:
        for kind in kinds:
            for product in products:
                yield product(dims, "decode", kind, 1)
        yield attention(dims, "decode", "float16", 1, min(512, longest))
    for dims in models:
        for tokens, length in ((64, 512), (64, 2000), (8, 2000), (1, 2000)):
            yield attention(dims, "decode", "float16", min(tokens, longest), min(length, longest))
    for dims in models:
        for tokens in sorted({min(n, longest) for n in (128, 512, 2000)}, reverse=True):
            for kind in kinds:
                for product in products[:2]:
                    yield product(dims, "prefill", kind, tokens)
            yield attention(dims, "prefill", "float16", tokens, tokens)
        for kind in kinds:
            yield lm_head(dims, "prefill", kind, 1)
    for dims in models:
        for tokens in (8, min(64, longest)):
            for kind in kinds:
                for product in products:
                    yield product(dims, "decode", kind, tokens)
        for tokens in (1, min(64, longest)):
            yield embed(dims, "float16", tokens)
            yield layer_norm(dims, "float16", tokens)
    for tokens in (1, min(64, longest)):
        for knobs in KNOBS:
            yield sample(models[0], knobs, tokens)
    for dims in models:
        for product in products:
            yield product(dims, "decode", "bfloat16", 1)
