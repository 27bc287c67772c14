// Kernels over one row: LayerNorm, quantisation of activations, bias + gelu, rotary, conversions.
#pragma once

#include <cmath>
#include <utility>

#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// Sum of f(v) over x[n], f applied to vectors: four running vectors, then the tail, always in the same order.
template <class F>
static inline float sum_row(const float* x, int64_t n, F f) {
  vreg sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j) sums[j] += f(load(x + i + j * kWidth));
  for (; i + kWidth <= n; i += kWidth) sums[0] += f(load(x + i));
  float total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) total += f(set1(x[i]))[0];
  return total;
}

static void layer_norm(float* out, const float* x, const float* weight, const float* bias, float eps, int64_t d) {
  const float mean = sum_row(x, d, [](vreg v) { return v; }) / static_cast<float>(d);
  const float square = sum_row(x, d, [mean](vreg v) { return (v - mean) * (v - mean); });
  const float inverse = 1.0f / std::sqrt(square / static_cast<float>(d) + eps);
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth)
    store(out + i, fma((load(x + i) - mean) * inverse, load(weight + i), load(bias + i)));
  for (; i < d; ++i) out[i] = fma((set1(x[i]) - mean) * inverse, set1(weight[i]), set1(bias[i]))[0];
}

constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest even integer

// q[kWidth] <- codes of (x - middle) * inverse, which it returns.
static inline ireg quantize_vector(int8_t* q, vreg x, float middle, vreg inverse) {
  const ireg codes = reinterpret_cast<ireg>((x - middle) * inverse + kRounding) - 0x4B400000;
  store_bytes(q, codes);
  return codes;
}

// Codes of (x[count] - middle) * inverse, count at most kSumColumns, and their sum.
static inline int32_t quantize_part(int8_t* q, const float* x, float middle, float inverse, int64_t count) {
  ireg sums{};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sums += quantize_vector(q + i, load(x + i), middle, set1(inverse));
  int32_t sum = sum_of_lanes(sums);
  for (; i < count; ++i) {
    const int32_t code = static_cast<int32_t>(float_to_bits((x[i] - middle) * inverse + kRounding) - 0x4B400000u);
    q[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

// The largest magnitude of x[n] as float bits, which order as magnitudes do: from 0x7f800000 on there is an infinity or a
// NaN among them.
static inline int32_t largest_magnitude(const float* x, int64_t n) {
  ireg largest{};
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const ireg bits = reinterpret_cast<ireg>(load(x + i)) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  int32_t most = largest_lane(largest);
  for (; i < n; ++i) {
    const int32_t bits = static_cast<int32_t>(float_to_bits(x[i]) & 0x7fffffff);
    most = bits > most ? bits : most;
  }
  return most;
}

static void quantize(int8_t* q, float* scales, int32_t* sums, const float* x, int64_t n) {
  for (int64_t first = 0; first < n; first += kGroup, ++scales, sums += kGroup / kSumColumns) {
    const int64_t count = n - first < kGroup ? n - first : kGroup;
    const float* v = x + first;
    const int32_t most = largest_magnitude(v, count);
    const bool finite = most < 0x7f800000;
    const float amax = bits_to_float(static_cast<uint32_t>(most));
    const float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
    // A NaN or an infinity must stay visible: through the scale it reaches every output of the row.
    *scales = finite ? amax / 127.0f : __builtin_nanf("");
    // amax below about 3.7e-37 overflows the inverse: the group is as good as zero
    const bool zeros = !finite || !(inverse <= 3.402823466e38f);
    for (int64_t part = 0; part < kGroup / kSumColumns; ++part) {
      const int64_t begin = part * kSumColumns;
      const int64_t here = count - begin < kSumColumns ? count - begin : kSumColumns;
      sums[part] = 0;
      if (here <= 0) continue;
      if (zeros) std::memset(q + first + begin, 0, here);
      else sums[part] = quantize_part(q + first + begin, v + begin, 0.0f, inverse, here);
    }
  }
  for (int64_t i = n; i % kQuad; ++i) q[i] = 0;
}

// gelu_new(x) = x / 2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))),
// which needs no tanh and loses nothing near zero.
static inline vreg gelu_new(vreg x) {
  const vreg inner = x * fma(x * x, set1(0.044715f), set1(1.0f));
  return x / (1.0f + exp(inner * set1(-1.5957691216057308f)));
}

static void bias_gelu(float* out, const float* x, const float* bias, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, gelu_new(load(x + i) + load(bias + i)));
  for (; i < n; ++i) out[i] = gelu_new(set1(x[i]) + set1(bias[i]))[0];
}

static void add_bias(float* out, const float* x, const float* bias, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, load(out + i) + (load(x + i) + load(bias + i)));
  for (; i < n; ++i) out[i] += x[i] + bias[i];
}

// Every lane of the lower (or upper) half of v, twice.
template <int Upper, int... I>
static inline vreg doubled(vreg v, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(v, ireg{(I / 2 + Upper * kWidth / 2)...});
}

// Neighbouring lanes change places.
template <int... I>
static inline vreg swapped(vreg v, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(v, ireg{(I ^ 1)...});
}

template <int... I>
static inline vreg negative_in_even_lanes(vreg v, std::integer_sequence<int, I...>) {
  return reinterpret_cast<vreg>(reinterpret_cast<ireg>(v) ^ ireg{(I % 2 ? 0 : INT32_MIN)...});
}

static void rotate(float* x, const float* cosines, const float* sines, int64_t n) {
  constexpr std::make_integer_sequence<int, kWidth> lanes;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const vreg c = load(cosines + i), s = load(sines + i);
    auto turn = [&](float* at, vreg c, vreg s) {
      const vreg v = load(at);
      store(at, v * c + swapped(v, lanes) * negative_in_even_lanes(s, lanes));
    };
    turn(x + 2 * i, doubled<0>(c, lanes), doubled<0>(s, lanes));
    turn(x + 2 * i + kWidth, doubled<1>(c, lanes), doubled<1>(s, lanes));
  }
  for (; i < n; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    x[2 * i] = even * cosines[i] - odd * sines[i];
    x[2 * i + 1] = odd * cosines[i] + even * sines[i];
  }
}

static void exponentials(float* out, const float* z, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, exp(load(z + i)));
  for (; i < n; ++i) out[i] = exp(set1(z[i]))[0];
}

static int64_t argmax(const float* x, int64_t n) {
  vreg largest[4] = {set1(x[0]), set1(x[0]), set1(x[0]), set1(x[0])};
  ireg numbers[4] = {ireg{} - 1, ireg{} - 1, ireg{} - 1, ireg{} - 1};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j) {
      const vreg v = load(x + i + j * kWidth);
      largest[j] = max(v, largest[j]);
      numbers[j] &= v == v;
    }
  float best = max_lanes(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
  bool no_nan = lane_mask((numbers[0] & numbers[1]) & (numbers[2] & numbers[3])) == (1u << kWidth) - 1;
  for (; i < n; ++i) {
    best = x[i] > best ? x[i] : best;
    no_nan = no_nan && x[i] == x[i];
  }
  if (!no_nan) return -1;
  for (i = 0; i + kWidth <= n && lane_mask(load(x + i) == best) == 0;) i += kWidth;
  while (x[i] != best) ++i;
  return i;
}

static int64_t keep_from(int32_t* ids, float* z, float* p, const float* of, float bound, int64_t n) {
  int64_t kept = 0, i = 0;
  auto keep = [&](int64_t from) {
    ids[kept] = ids[from];
    z[kept] = z[from];
    p[kept++] = p[from];
  };
  for (; i + kWidth <= n; i += kWidth) {
    uint32_t mask = lane_mask(load(of + i) >= bound);
    if (mask == (1u << kWidth) - 1) {
      const vint id = *reinterpret_cast<const vint*>(ids + i);
      const vreg of_z = load(z + i), of_p = load(p + i);
      *reinterpret_cast<vint*>(ids + kept) = id;
      store(z + kept, of_z);
      store(p + kept, of_p);
      kept += kWidth;
      continue;
    }
    for (; mask != 0; mask &= mask - 1) keep(i + __builtin_ctz(mask));
  }
  for (; i < n; ++i)
    if (of[i] >= bound) keep(i);
  return kept;
}

static float read(const float* x, int64_t n) {
  vreg sums[8] = {};
  for (int64_t i = 0; i < n; i += 8 * kWidth) {
    for (int b = 0; b < 8 * kWidth; b += 16) __builtin_prefetch(x + i + b + 512);
    for (int j = 0; j < 8; ++j) sums[j] += load(x + i + j * kWidth);
  }
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  return sum_lanes(sums[0]);
}

template <class T>
static void widen(float* out, const void* in, int64_t n) {
  const T* p = static_cast<const T*>(in);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, load(p + i));
  for (; i < n; ++i) out[i] = to_float(p[i]);
}

template <class T>
static void narrow(void* out, const float* in, int64_t n) {
  T* p = static_cast<T*>(out);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(p + i, load(in + i));
  for (; i < n; ++i) p[i] = from_float<T>(in[i]);
}

static void to_f32(float* out, const void* in, DType type, int64_t n) {
  if (type == DType::f32) widen<float>(out, in, n);
  else if (type == DType::f16) widen<half>(out, in, n);
  else widen<bfloat>(out, in, n);
}

static void from_f32(void* out, const float* in, DType type, int64_t n) {
  if (type == DType::f32) narrow<float>(out, in, n);
  else if (type == DType::f16) narrow<half>(out, in, n);
  else narrow<bfloat>(out, in, n);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
