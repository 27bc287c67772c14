// AVX2 with FMA and F16C, and with AVX-VNNI where the flags have it; see simd.h.
#pragma once

#include <immintrin.h>

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

static inline vreg fma(vreg a, vreg b, vreg c) {
  return reinterpret_cast<vreg>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                reinterpret_cast<__m256>(c)));
}

static inline vreg max(vreg a, vreg b) {
  return reinterpret_cast<vreg>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
static inline vreg min(vreg a, vreg b) {
  return reinterpret_cast<vreg>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
static inline vreg nearest(vreg y) {
  return reinterpret_cast<vreg>(_mm256_round_ps(reinterpret_cast<__m256>(y), _MM_FROUND_TO_NEAREST_INT));
}
static inline vreg off_nearest(vreg y) { return y - nearest(y); }

static inline float to_float(half x) { return _cvtsh_ss(x.bits); }
template <> inline half from_float<half>(float x) {
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
}

static inline vreg load(const bfloat* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<vreg>(_mm256_slli_epi32(wide, 16));
}
static inline vreg load(const half* p) {
  return reinterpret_cast<vreg>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline void store(half* p, vreg v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}

static inline uint32_t lane_mask(ireg lanes) {
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
}

template <class F>
static inline int32_t fold_lanes(ireg v, F f) {
  const __m256i all = reinterpret_cast<__m256i>(v);
  __m128i lanes = f(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  lanes = f(lanes, _mm_shuffle_epi32(lanes, 0x4e));
  return _mm_cvtsi128_si32(f(lanes, _mm_shuffle_epi32(lanes, 0xb1)));
}
static inline int32_t largest_lane(ireg v) {
  return fold_lanes(v, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
}
static inline int32_t sum_of_lanes(ireg v) {
  return fold_lanes(v, [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); });
}

#if defined(__AVXVNNI__)

// The instruction multiplies unsigned by signed bytes.
inline constexpr int32_t kQuadOffset = 128;
using Quads = __m256i;
static inline Quads load_quads(const int8_t* p) {
  return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi8(-128));
}
static inline void load_nibbles(Quads& low, Quads& high, const uint8_t* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), low_half = _mm256_set1_epi8(15);
  low = _mm256_and_si256(both, low_half);
  high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
}
static inline ireg dot(ireg sums, Quads w, ireg x) {
  return reinterpret_cast<ireg>(
      _mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums), w, reinterpret_cast<__m256i>(x)));
}

#else

// maddubs multiplies unsigned by signed: |w| * (x with w's sign). Both stay within 127, so a pair's sum stays within
// 32258 and cannot saturate.
inline constexpr int32_t kQuadOffset = 0;
struct Quads {
  __m256i w, magnitude;
};
static inline Quads load_quads(const int8_t* p) {
  const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {w, _mm256_abs_epi8(w)};
}
static inline ireg dot(ireg sums, const Quads& w, ireg x) {
  const __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(reinterpret_cast<__m256i>(x), w.w));
  return sums + reinterpret_cast<ireg>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#endif

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
