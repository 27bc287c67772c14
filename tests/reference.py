"""The reference: every op and the whole model, slow and obvious, written from the model's description alone.

It knows nothing of the kernels, of packing or of pages. Everything is computed in ``dtype`` (float64 unless asked
otherwise) on the CPU; weights that a kernel holds in a narrower type are rounded to that type first (``rounded``, and quantised.py), so what is
left between a kernel and this file is the order of float32 additions and, where activations are narrow, the rounding of
what an op returns.

Where codes must match exactly (int8, int4), the arithmetic is the float32 arithmetic that the contract names. Backends
differ in how they multiply int8 weights and in what they round: ``Arithmetic`` says it.
Sequences are a Python list: one tensor a sequence, no padding and no batch.

Symbols: d = n_embd, H = n_head, D = d / H, R = rotary_dim, F = n_inner or 4d, V = vocab_size, n = tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as List
from dataclasses import dataclass

import torch
from quantised import (
    INT4_GROUPS,
    INT8_GROUP,
    dequantized_int4,
    multiplied_out,
    quantize_activations,
    quantize_int8,
    quantize_rows,
    quantize_with_offsets,
)
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """How a product takes its operands.

    mode: exact   the values as they are
          w8a16   W quantised to int8, x as it is
          w8a8    W quantised to int8, x rounded to float32 and quantised in groups of columns
          w4a8    W quantised to int4 in groups of ``weight_group`` columns, x as in w8a8
          grouped W quantised to int8 in groups of ``group`` columns, x less an offset in the same groups
    group: columns that share one activation scale in w8a8 and w4a8; None: all of a segment
    act: the type of activations that a normalised row is rounded to before it is multiplied; None: it is not
    """

    mode: str = "exact"
    group: int | None = 64
    act: torch.dtype | None = None
    weight_group: int = 32


EXACT = Arithmetic()


# ---- Elementwise pieces ------------------------------------------------------------------------


def embed(ids: Tensor, wte: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of wte (V, d) for ids (n,); an id outside the vocabulary gives a row of NaN."""
    x = torch.full((len(ids), wte.shape[1]), math.nan, dtype=dtype)
    for t, token in enumerate(ids.tolist()):
        if 0 <= token < wte.shape[0]:
            x[t] = wte[token].to(dtype)
    return x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension, with the biased variance."""
    x = x.to(dtype)
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * weight.to(dtype) + bias.to(dtype)


def gelu_new(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in x's dtype."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def rotary_table(n_positions: int, rotary_dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(P, R): R/2 cosines, then R/2 sines, of position * 10000^(-2i/R), each step computed in dtype.

    In float32 it is the table of transformers, whose frequencies carry a relative rounding of 2^-24 and whose
    angles are therefore off by up to P * 2^-24.
    """
    frequency = 1.0 / (10000.0 ** (torch.arange(0, rotary_dim, 2).to(dtype) / rotary_dim))
    angle = torch.arange(n_positions).to(dtype)[:, None] * frequency
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def rotary(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Rotates pairs (2i, 2i+1) of the first R dims of every head: x (n, H, D), positions (n,), table (P, R)."""
    half = table.shape[1] // 2
    cosine = table[positions, :half].to(x.dtype)[:, None, :]
    sine = table[positions, half:].to(x.dtype)[:, None, :]
    even, odd = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    out = x.clone()
    out[..., 0 : 2 * half : 2] = even * cosine - odd * sine
    out[..., 1 : 2 * half : 2] = odd * cosine + even * sine
    return out


# ---- Weights -----------------------------------------------------------------------------------


def rounded(w: Tensor, kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """w as the type ``kind`` holds it, as dtype; w is one segment. See quantize_rows, quantize_int8, quantize_int4."""
    if kind == "int8":
        codes, scale = quantize_rows(w)
        return codes.to(dtype) * scale.to(dtype)[:, None]
    if kind == "int8-g32":
        return multiplied_out(*quantize_int8(w), INT8_GROUP, dtype)
    if kind.startswith("int4"):
        return dequantized_int4(w, INT4_GROUPS[kind], dtype)
    return w.to(getattr(torch, kind)).to(dtype)


# ---- Products ----------------------------------------------------------------------------------


def product(x: Tensor, w: Tensor, how: Arithmetic = EXACT, dtype: torch.dtype = torch.float64) -> Tensor:
    """y (n, rows) = W x for x (n, cols) and one segment W (rows, cols)."""
    if how.mode == "exact":
        return x.to(dtype) @ w.to(dtype).T
    if how.mode == "w4a8":
        return quantized_rows(x, how.group, dtype) @ dequantized_int4(w, how.weight_group, dtype).T
    if how.mode == "grouped":
        return offset_rows(x, dtype) @ rounded(w, "int8-g32", dtype).T
    codes, scale = quantize_rows(w)
    if how.mode == "w8a16":
        return (x.to(dtype) @ codes.to(dtype).T) * scale.to(dtype)
    if how.mode != "w8a8":
        raise ValueError(f"mode is {how.mode!r}; expected 'exact', 'w8a16', 'w8a8', 'w4a8' or 'grouped'")
    return (quantized_rows(x, how.group, dtype) @ codes.to(dtype).T) * scale.to(dtype)


def quantized_rows(x: Tensor, group: int | None, dtype: torch.dtype) -> Tensor:
    """x (n, cols) as the integer products take it: quantised in groups of columns, and multiplied out again."""
    columns = x.shape[1]
    codes, scales = quantize_activations(x, (columns,), group)
    return multiplied_out(codes[:, :columns], scales, group or columns, dtype)


def offset_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (n, cols) as quantize_with_offsets() takes it, and multiplied out again."""
    codes, scales, offset = quantize_with_offsets(x, (x.shape[1],))
    return multiplied_out(codes[:, : x.shape[1]], scales, INT8_GROUP, dtype) + offset.to(dtype)


def normalised(x: Tensor, norm: tuple[Tensor, Tensor, float], how: Arithmetic, dtype: torch.dtype) -> Tensor:
    """layer_norm(x) as the products that follow it take it."""
    h = layer_norm(x, *norm, dtype=dtype)
    return h if how.act is None else h.to(how.act).to(dtype)


@dataclass
class Projected:
    """What input_product makes of n tokens: q, k, v (n, H, D) and act (n, F)."""

    q: Tensor
    k: Tensor
    v: Tensor
    act: Tensor


def input_product(
    x: Tensor,  # (n, K)
    norm: tuple[Tensor, Tensor, float],  # weight (K,), bias (K,), eps
    sections: tuple[Tensor, Tensor, Tensor, Tensor],  # q, k, v (H D, K) and fc_in (F, K)
    bias_in: Tensor,  # (F,)
    table: Tensor,  # rotary (P, R)
    n_head: int,
    positions: Tensor,  # (n,)
    how: Arithmetic = EXACT,
    dtype: torch.dtype = torch.float64,
) -> Projected:
    """LayerNorm, the four products, rotary on q and k, bias and gelu on the fourth."""
    h = normalised(x, norm, how, dtype)
    q, k, v, m = (product(h, w, how, dtype) for w in sections)
    q, k, v = (y.reshape(len(x), n_head, -1) for y in (q, k, v))
    return Projected(
        rotary(q, positions, table), rotary(k, positions, table), v, gelu_new(m + bias_in.to(dtype))
    )


def attention(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Causal attention of every sequence for its last tokens: out[b] (n_b, H, D).

    q[b] (n_b, H, D) are the queries of the last n_b positions; k[b], v[b] (length_b, H, D) hold every position.
    """
    outputs = []
    for q_b, k_b, v_b in zip(q, k, v, strict=True):
        new, heads, width = q_b.shape
        length = k_b.shape[0]
        out = torch.empty(new, heads, width, dtype=dtype)
        visible = torch.arange(length)[None, :] <= torch.arange(length - new, length)[:, None]
        for head in range(heads):
            scores = q_b[:, head].to(dtype) @ k_b[:, head].to(dtype).T / math.sqrt(width)
            scores = scores.masked_fill(~visible, -math.inf)
            out[:, head] = torch.softmax(scores, dim=-1) @ v_b[:, head].to(dtype)
        outputs.append(out)
    return outputs


def output_product(
    x: Tensor,  # (n, rows)
    act: Tensor,  # (n, sum of columns)
    segments: tuple[Tensor, ...],  # (rows, columns of the segment) each
    bias_out: Tensor,  # (rows,)
    how: Arithmetic = EXACT,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """x + W act + bias; the columns of W come in segments, each quantised on its own."""
    y = x.to(dtype) + bias_out.to(dtype)
    for part, w in zip(act.split([w.shape[1] for w in segments], dim=1), segments, strict=True):
        y = y + product(part, w, how, dtype)
    return y


def lm_head(
    x: Tensor,  # (n, K)
    rows: Tensor,  # (M,)
    norm: tuple[Tensor, Tensor, float],
    w: Tensor,  # (V, K)
    bias: Tensor,  # (V,)
    how: Arithmetic = EXACT,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Logits (M, V) of the chosen rows; a row outside of x gives NaN."""
    inside = (rows >= 0) & (rows < len(x))
    h = normalised(x[rows.clamp(0, len(x) - 1).long()], norm, how, dtype)
    logits = product(h, w, how, dtype) + bias.to(dtype)
    if how.mode == "grouped":  # in two parts: what the codes leave is multiplied as well
        logits = logits + product(h - offset_rows(h, dtype), w, how, dtype)
    return torch.where(inside[:, None], logits, torch.tensor(math.nan, dtype=dtype))


# ---- Sampling ----------------------------------------------------------------------------------


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 (Salmon et al., SC 2011, section 3.3), on Python integers."""
    word = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & word, (left >> 32) ^ c3 ^ k1, left & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c0, c1, c2, c3


def uniform(seed: int, sample_index: int, position: int) -> float:
    """The draw in [0, 1) of a token: 53 bits of Philox with the seed as key and (position, sample) as counter."""
    seed &= 0xFFFFFFFFFFFFFFFF
    words = philox4x32_10((position & 0xFFFFFFFF, sample_index & 0xFFFFFFFF, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    return ((words[1] << 32 | words[0]) >> 11) * 2.0**-53


def filtered(
    logits: Tensor,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    *,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
    min_tokens_to_keep: int = 1,
) -> Tensor:
    """logits (V,) / temperature in float64, minus infinity for what the filters drop; the defaults keep all.

    temperature > 0. Every filter looks at the probabilities of what those before it have left.
    """
    z = logits.to(torch.float64) / temperature
    at_least = min(min_tokens_to_keep, len(z))

    def largest(n: int) -> Tensor:
        return z >= torch.sort(z, descending=True).values[n - 1]

    def keep(kept: Tensor) -> Tensor:
        return torch.where(kept, z, -math.inf)

    def entropy(p: Tensor) -> Tensor:
        return -torch.where(p > 0, p * torch.log(p), 0.0).sum()

    if 0 < top_k < len(z):
        z = keep(largest(max(top_k, at_least)))
    if top_p < 1:
        p, values, before = torch.softmax(z, dim=0).tolist(), z.tolist(), 0.0
        kept = torch.zeros(len(z), dtype=torch.bool)
        for rank, token in enumerate(sorted(range(len(z)), key=lambda token: (-values[token], token))):
            kept[token] = rank < at_least or before < top_p
            before += p[token]
        z = keep(kept)
    if min_p > 0:
        p = torch.softmax(z, dim=0)
        z = keep((p >= min_p * p.max()) | largest(at_least))
    if typical_p < 1:
        p = torch.softmax(z, dim=0)
        distance = torch.where(z > -math.inf, (-torch.log(p) - entropy(p)).abs(), math.inf)
        order = torch.sort(distance).indices
        reached = int((torch.cumsum(p[order], dim=0) < typical_p).sum())
        z = keep(distance <= distance[order[min(max(reached, at_least - 1), len(z) - 1)]])
    if epsilon_cutoff > 0:
        z = keep((torch.softmax(z, dim=0) >= epsilon_cutoff) | largest(at_least))
    if eta_cutoff > 0:
        p = torch.softmax(z, dim=0)
        z = keep((p >= min(eta_cutoff, math.sqrt(eta_cutoff) * math.exp(-entropy(p)))) | largest(at_least))
    return z


def distribution(logits: Tensor, temperature: float, top_k: int, top_p: float, **filters) -> Tensor:
    """Probabilities (V,) float64 that a row of logits (V,) is sampled with; 0 for what a filter drops (filtered)."""
    return torch.softmax(filtered(logits, temperature, top_k, top_p, **filters), dim=0)


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    sample_index: int,
    position: int,
    **filters,
) -> tuple[int, float]:
    """The token of one row (V,), and how far u was from the draw that gives another token (inf for the argmax).

    -1 for a row that holds a NaN or no finite logit.
    """
    if torch.isnan(logits).any() or not torch.isfinite(logits).any():
        return -1, math.inf
    if temperature == 0:
        return logits.tolist().index(logits.max().item()), math.inf
    p = distribution(logits, temperature, top_k, top_p, **filters)
    u = uniform(seed, sample_index, position)
    kept = torch.nonzero(p).flatten()
    mass = torch.cumsum(p[kept], dim=0)
    token = min(int((mass <= u).sum()), len(kept) - 1)
    # The last edge is at 1, where u never comes.
    margin = min((abs(edge - u) for edge in mass[:-1].tolist()), default=math.inf)
    return int(kept[token]), margin


# ---- Rules -------------------------------------------------------------------------------------


def edit_logits(
    logits: Tensor,
    history: List[int],
    prompt_len: int,
    *,
    bias: List[tuple[List[int], float]] = (),
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    banned: List[List[int]] = (),
    eos: List[int] = (),
    min_new_tokens: int = 0,
    forced_eos: List[int] = (),
    forced_eos_after: int = -1,
    remove_invalid_values: bool = False,
    decay_start: int = -1,
    decay_factor: float = 1.0,
    suppressed: List[int] = (),
    suppressed_at_begin: List[int] = (),
) -> Tensor:
    """A row of logits (V,) float32 after the rules of csrc/ops.h, each in float32: every operation is rounded once.

    history: the row's tokens. bias: sequences and what they add.
    """
    logits = logits.clone()
    history, vocab, new = list(history), range(len(logits)), len(history) - prompt_len

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32)

    def matches(sequence: List[int]) -> bool:
        past = list(sequence[:-1])
        return sequence[-1] in vocab and history[len(history) - len(past) :] == past

    def put(tokens, value: float) -> None:
        for token in tokens:
            if token in vocab:
                logits[token] = value

    sums = {}
    for sequence, value in bias:
        if matches(sequence):
            sums[sequence[-1]] = sums.get(sequence[-1], number(0.0)) + number(value)
    for token, value in sums.items():
        logits[token] += value
    for token in set(history) & set(vocab) if repetition_penalty != 1 else ():
        penalty = number(repetition_penalty)
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    size = no_repeat_ngram_size
    if size > 0:
        ngrams = [history[i : i + size] for i in range(len(history) - size + 1)]
        put((ngram[-1] for ngram in ngrams if matches(ngram)), -math.inf)
    put((sequence[-1] for sequence in banned if matches(sequence)), -math.inf)
    if new < min_new_tokens:
        put(eos, -math.inf)
    if forced_eos and new == forced_eos_after >= 0:
        logits[:] = -math.inf
        put(forced_eos, 0.0)
    if remove_invalid_values:
        largest = torch.finfo(torch.float32).max
        logits = torch.nan_to_num(logits, nan=0.0, posinf=largest, neginf=-largest)
    if 0 <= decay_start < new:
        factor = number(decay_factor ** (new - decay_start) - 1)
        for token in set(eos) & set(vocab):
            if torch.isfinite(logits[token]):
                logits[token] += logits[token].abs() * factor
    put(suppressed, -math.inf)
    if new == 0:
        put(suppressed_at_begin, -math.inf)
    return logits


# ---- The model ---------------------------------------------------------------------------------


@dataclass
class Output:
    """logits (n, V); hidden_states: the input of every layer, then the input of lm_head, each (n, d)."""

    logits: Tensor
    hidden_states: list[Tensor]


def split_qkv(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (d, d) of a stored qkv_proj (3d, d): four blocks [q | v | k] of d/4 rows each, heads in order."""
    blocks = w.reshape(4, 3, -1, w.shape[1])  # block, (q, v, k), row in the block, column
    q, v, k = (blocks[:, part].reshape(-1, w.shape[1]) for part in range(3))
    return q, k, v


def forward(
    config,
    tensors: dict[str, Tensor],
    ids: Tensor,
    *,
    how: Arithmetic = EXACT,
    cache_dtype: torch.dtype | None = None,
    table: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Output:
    """Logits and hidden states of one sequence ids (n,), from tensors under their checkpoint names.

    config: an object with n_head, n_layer, n_embd, rotary_dim, layer_norm_epsilon, as transformers' has.
    how: of every product. cache_dtype: k and v are rounded to it. table: another rotary table
    than the exact one, such as transformers' in float32. GPT-J's separate q, k and v projections are known too.
    """
    if table is None:
        table = rotary_table(len(ids), config.rotary_dim, dtype)
    positions = torch.arange(len(ids))
    x = embed(ids, tensors["transformer.wte.weight"], dtype)
    hidden_states = []
    for i in range(config.n_layer):
        hidden_states.append(x)
        layer = {name.removeprefix(f"transformer.h.{i}."): t for name, t in tensors.items() if f".h.{i}." in name}
        if "attn.qkv_proj.weight" in layer:
            q, k, v = split_qkv(layer["attn.qkv_proj.weight"])
        else:
            q, k, v = (layer[f"attn.{part}_proj.weight"] for part in "qkv")
        norm = (layer["ln_1.weight"], layer["ln_1.bias"], config.layer_norm_epsilon)
        sections = (q, k, v, layer["mlp.fc_in.weight"])
        made = input_product(x, norm, sections, layer["mlp.fc_in.bias"], table, config.n_head, positions, how, dtype)
        if cache_dtype is not None:
            made.k, made.v = made.k.to(cache_dtype).to(dtype), made.v.to(cache_dtype).to(dtype)
        attended = attention([made.q], [made.k], [made.v], dtype)[0].reshape(len(ids), -1)
        w_out = (layer["attn.out_proj.weight"], layer["mlp.fc_out.weight"])
        x = output_product(x, torch.cat([attended, made.act], 1), w_out, layer["mlp.fc_out.bias"], how, dtype)
    norm = (tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"], config.layer_norm_epsilon)
    hidden_states.append(layer_norm(x, *norm, dtype=dtype))
    w, bias = tensors["lm_head.weight"], tensors["lm_head.bias"]
    return Output(lm_head(x, positions, norm, w, bias, how, dtype), hidden_states)
