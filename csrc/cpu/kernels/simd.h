// Vectors of float for one instruction set. This file and everything in kernels/ is compiled once per instruction
// set, each time into a namespace of its own (CODEGEN_FAST_ISA), with that set's compiler flags.
//
// Nothing here may have external linkage outside that namespace: the linker would keep one copy of an inline
// function, perhaps the one with instructions that the running machine lacks.
//
// What an instruction set does in its own way stands in a simd_*.h, which defines
//   fma(a, b, c)     a * b + c. Rounded once (fused) everywhere but in the portable build, where it is rounded twice
//   max(a, b), min(a, b)
//                    NaN in either argument, or zeros: b (the second), as x86 has it. GCC compares and blends otherwise
//   nearest(y)       the nearest integer, half to even; for |y| below 2^21
//   off_nearest(y)   y - nearest(y), without its rounding error; the sign of a zero may differ
//   times_two_to(p, n)
//                    p * 2^n for whole n from -126 to 128 and p about 1 (AVX-512 alone has an instruction for it)
//   load(p), store(p, v), to_float(x), from_float<half>(x)
//                    half and bfloat; conversions round to nearest even
//   lane_mask(v)     a bit a lane of a comparison's result, lane 0 the lowest
//   largest_lane(v), sum_of_lanes(v)
//                    of integers; quantize() is 1.75 times as fast with them as with loops over AVX-512
//   Quads, load_quads(p), dot(sums, w, x)
//                    integers: lane i of the result is sums[i] + w[4i] x[4i] + ... + w[4i+3] x[4i+3], exact for bytes
//                    within [-127, 127]
//   kQuadOffset      what load_quads() adds to every byte: sums begin with that much times the sum of x less
//   load_nibbles(low, high, p)
//                    the same from the halves of bytes, [0, 15], with nothing added (plain AVX2 has a loop of its own)
// and the rest of kernels/ is written with these and the compiler's vectors. So integers are the same on every
// instruction set. Floats differ by rounding: where a row is added up, by the number of lanes that share the work; and
// in the portable build by the unfused fma.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifndef CODEGEN_FAST_ISA
#error "compile kernels/ with -DCODEGEN_FAST_ISA=<name>"
#endif

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

struct half { uint16_t bits; };
struct bfloat { uint16_t bits; };

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX2__)
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

// The lowest bytes of the lanes.
static inline void store_bytes(int8_t* p, ireg v) {
  typedef int8_t bytes __attribute__((vector_size(kWidth), aligned(1), may_alias));
  *reinterpret_cast<bytes*>(p) = __builtin_convertvector(v, bytes);
}

static inline float bits_to_float(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
static inline uint32_t float_to_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

static inline float to_float(float x) { return x; }
static inline float to_float(bfloat x) { return bits_to_float(uint32_t{x.bits} << 16); }

template <class T> static inline T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bfloat from_float<bfloat>(float x) {
  const uint32_t u = float_to_bits(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(u >> 16 | 0x40)};  // keep a NaN a NaN
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

static inline void store(bfloat* p, vreg v) {
  typedef uint32_t ureg __attribute__((vector_size(4 * kWidth)));
  typedef uint16_t shorts __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));
  const ureg u = reinterpret_cast<ureg>(v);
  const ureg rounded = v == v ? u + 0x7fff + (u >> 16 & 1) : u | 0x400000;
  *reinterpret_cast<shorts*>(p) = __builtin_convertvector(rounded >> 16, shorts);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(CODEGEN_FAST_NEON)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// v with its lanes turned by N places.
template <int N, int... I>
static inline vreg turned(vreg v, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(v, ireg{(I + N) % kWidth...});
}

// Lane 0 of what op makes of all lanes, in a fixed order: halves onto each other.
template <class Op, int N = kWidth / 2>
static inline float fold_lanes(vreg v, Op op) {
  if constexpr (N == 0) return v[0];
  else return fold_lanes<Op, N / 2>(op(v, turned<N>(v, std::make_integer_sequence<int, kWidth>{})), op);
}

static inline float sum_lanes(vreg v) {
  return fold_lanes(v, [](vreg a, vreg b) { return a + b; });
}

// Of lanes without a NaN.
static inline float max_lanes(vreg v) {
  return fold_lanes(v, [](vreg a, vreg b) { return max(a, b); });
}

#if !defined(__AVX512F__)
static inline vreg times_two_to(vreg p, vreg n) {
  // In two factors, so that n = 128 does not overflow before the product does.
  const ireg exponent = __builtin_convertvector(n, ireg), first = exponent >> 1, second = exponent - first;
  return p * reinterpret_cast<vreg>((first + 127) << 23) * reinterpret_cast<vreg>((second + 127) << 23);
}
#endif

// exp(x), relative error below 2 units in the last place; 0 below about -87.3, infinity above about 88.7, NaN for NaN.
// Cody-Waite reduction by ln 2 in two parts and the degree-5 polynomial of Cephes' expf (Moshier).
static inline vreg exp(vreg x) {
  const vreg log2e = set1(1.44269504088896341f), ln2_high = set1(0.693359375f), ln2_low = set1(-2.12194440e-4f);
  const vreg magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  // Subnormals cost a hundred cycles; a NaN stays one.
  const vreg clamped = min(set1(89.0f), max(set1(-87.33654f), x));
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
  return x < -87.33654f ? set1(0.0f) : times_two_to(p, n);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
