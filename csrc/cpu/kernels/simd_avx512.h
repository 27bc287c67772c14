// AVX-512 (F, BW, DQ, VL) with VNNI; see simd.h.
#pragma once

#include <immintrin.h>

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

static inline vreg fma(vreg a, vreg b, vreg c) {
  return reinterpret_cast<vreg>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                reinterpret_cast<__m512>(c)));
}

// Of some instructions GCC 12 has the forms without a mask begin with undefined lanes, and warns of them.
inline constexpr __mmask16 kAll = 0xffff;
static inline vreg max(vreg a, vreg b) {
  return reinterpret_cast<vreg>(_mm512_maskz_max_ps(kAll, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
static inline vreg min(vreg a, vreg b) {
  return reinterpret_cast<vreg>(_mm512_maskz_min_ps(kAll, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
static inline vreg nearest(vreg y) {
  return reinterpret_cast<vreg>(_mm512_maskz_roundscale_ps(kAll, reinterpret_cast<__m512>(y), _MM_FROUND_TO_NEAREST_INT));
}
static inline vreg off_nearest(vreg y) {
  return reinterpret_cast<vreg>(_mm512_maskz_reduce_ps(kAll, reinterpret_cast<__m512>(y), _MM_FROUND_TO_NEAREST_INT));
}

static inline vreg times_two_to(vreg p, vreg n) {
  return reinterpret_cast<vreg>(_mm512_maskz_scalef_ps(kAll, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
}

static inline float to_float(half x) { return _cvtsh_ss(x.bits); }
template <> inline half from_float<half>(float x) {
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
}

static inline vreg load(const bfloat* p) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<vreg>(_mm512_maskz_slli_epi32(kAll, wide, 16));
}
static inline vreg load(const half* p) {
  return reinterpret_cast<vreg>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
static inline void store(half* p, vreg v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}

static inline uint32_t lane_mask(ireg lanes) { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes)); }

static inline int32_t largest_lane(ireg v) { return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(v)); }
static inline int32_t sum_of_lanes(ireg v) { return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v)); }

// The instruction multiplies unsigned by signed bytes.
inline constexpr int32_t kQuadOffset = 128;
using Quads = __m512i;
static inline Quads load_quads(const int8_t* p) {
  return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
}
static inline void load_nibbles(Quads& low, Quads& high, const uint8_t* p) {
  const __m512i both = _mm512_loadu_si512(p), low_half = _mm512_set1_epi8(15);
  low = _mm512_and_si512(both, low_half);
  high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
}
static inline ireg dot(ireg sums, Quads w, ireg x) {
  return reinterpret_cast<ireg>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), w, reinterpret_cast<__m512i>(x)));
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
