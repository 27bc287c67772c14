// Vectors of float for one instruction set. This file and everything in kernels/ is compiled once per instruction
// set, each time into a namespace of its own (CODEGEN_FAST_ISA), with that set's compiler flags.
//
// Nothing here may have external linkage outside that namespace: the linker would keep one copy of an inline
// function, perhaps the one with instructions that the running machine lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef CODEGEN_FAST_ISA
#error "compile kernels/ with -DCODEGEN_FAST_ISA=<name>"
#endif

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

struct half { uint16_t bits; };
struct bfloat { uint16_t bits; };

#if defined(__AVX2__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef int32_t vint __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef float vreg __attribute__((vector_size(4 * kWidth)));  // the same as a value: naturally aligned
typedef int32_t ireg __attribute__((vector_size(4 * kWidth)));

static inline vreg set1(float x) { return x - vreg{}; }
static inline vreg load(const float* p) { return *reinterpret_cast<const vfloat*>(p); }
static inline void store(float* p, vreg v) { *reinterpret_cast<vfloat*>(p) = v; }

// a * b + c. Fused where the instruction set has it; the build forbids the compiler to contract on its own, so that
// every instance of a template rounds alike.
static inline vreg fma(vreg a, vreg b, vreg c) {
#if defined(__AVX2__)
  return reinterpret_cast<vreg>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// NaN in either argument: b (the second), as x86's max does.
static inline vreg max(vreg a, vreg b) { return a > b ? a : b; }
static inline vreg min(vreg a, vreg b) { return a < b ? a : b; }

static inline float bits_to_float(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
static inline uint32_t float_to_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

static inline float to_float(float x) { return x; }
static inline float to_float(bfloat x) { return bits_to_float(uint32_t{x.bits} << 16); }
static inline float to_float(half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The exponent is rebiased by a multiplication, which normalises subnormals as well.
  const float magnitude = bits_to_float(rest << 13) * bits_to_float(0x77800000);  // 2^112
  return bits_to_float(float_to_bits(magnitude) | sign);
#endif
}

template <class T> static inline T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bfloat from_float<bfloat>(float x) {
  const uint32_t u = float_to_bits(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(u >> 16 | 0x40)};  // keep a NaN a NaN
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <> inline half from_float<half>(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t u = float_to_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 puts the last kept bit at the last mantissa bit
    const float f = bits_to_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_to_bits(f) - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13)};
#endif
}

static inline vreg load(const bfloat* p) {
#if defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<vreg>(_mm256_slli_epi32(wide, 16));
#else
  vreg v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

static inline vreg load(const half* p) {
#if defined(__AVX2__)
  return reinterpret_cast<vreg>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  vreg v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// A bit a lane of a comparison's result, lane 0 the lowest.
static inline uint32_t lane_mask(ireg lanes) {
#if defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kWidth; ++i) mask |= static_cast<uint32_t>(lanes[i] & 1) << i;
  return mask;
#endif
}

// Sums lanes in a fixed order (halves onto each other).
static inline float sum_lanes(vreg v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int n = kWidth / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}

static inline float max_lanes(vreg v) {
  float lanes[kWidth];
  store(lanes, v);
  float m = lanes[0];
  for (int i = 1; i < kWidth; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

// exp(x), relative error below 2 units in the last place; 0 below about -87.3, infinity above about 88.7, NaN for NaN.
// Cody-Waite reduction by ln 2 in two parts and the degree-5 polynomial of Cephes' expf (Moshier).
static inline vreg exp(vreg x) {
  const vreg log2e = set1(1.44269504088896341f), ln2_high = set1(0.693359375f), ln2_low = set1(-2.12194440e-4f);
  const vreg magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const vreg clamped = min(max(x, set1(-87.33654f)), set1(89.0f));  // subnormals cost a hundred cycles
  const vreg shifted = fma(clamped, log2e, magic);
  const vreg n = shifted - magic;
  vreg r = fma(n, -ln2_high, clamped);
  r = fma(n, -ln2_low, r);
  vreg p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // 2^n in two factors, so that n = 128 does not overflow before the product does.
  const ireg exponent = reinterpret_cast<ireg>(shifted) - 0x4B400000;
  const ireg first = exponent >> 1, second = exponent - first;
  vreg y = p * reinterpret_cast<vreg>((first + 127) << 23) * reinterpret_cast<vreg>((second + 127) << 23);
  y = x < -87.33654f ? set1(0.0f) : y;
  y = x > 88.72283f ? set1(__builtin_inff()) : y;
  return x == x ? y : x;
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
