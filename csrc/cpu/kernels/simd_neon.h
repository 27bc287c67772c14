// NEON of aarch64, and with the dot products of Armv8.2 where the flags have them; see simd.h.
#pragma once

#include <arm_neon.h>

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

static inline vreg fma(vreg a, vreg b, vreg c) {
  return reinterpret_cast<vreg>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                          reinterpret_cast<float32x4_t>(b)));
}

static inline vreg max(vreg a, vreg b) { return a > b ? a : b; }
static inline vreg min(vreg a, vreg b) { return a < b ? a : b; }
static inline vreg nearest(vreg y) { return reinterpret_cast<vreg>(vrndnq_f32(reinterpret_cast<float32x4_t>(y))); }
static inline vreg off_nearest(vreg y) { return y - nearest(y); }

static inline float to_float(half x) {
  __fp16 value;
  std::memcpy(&value, &x.bits, 2);
  return value;
}
template <> inline half from_float<half>(float x) {
  const __fp16 value = static_cast<__fp16>(x);
  half h;
  std::memcpy(&h.bits, &value, 2);
  return h;
}

static inline vreg load(const bfloat* p) {
  return reinterpret_cast<vreg>(vshll_n_u16(vld1_u16(&p->bits), 16));
}
static inline vreg load(const half* p) {
  return reinterpret_cast<vreg>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))));
}
static inline void store(half* p, vreg v) {
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))));
}

static inline uint32_t lane_mask(ireg lanes) {
  const int32x4_t places = {0, 1, 2, 3};
  return vaddvq_u32(vshlq_u32(vshrq_n_u32(reinterpret_cast<uint32x4_t>(lanes), 31), places));
}

static inline int32_t largest_lane(ireg v) { return vmaxvq_s32(reinterpret_cast<int32x4_t>(v)); }
static inline int32_t sum_of_lanes(ireg v) { return vaddvq_s32(reinterpret_cast<int32x4_t>(v)); }

inline constexpr int32_t kQuadOffset = 0;
using Quads = int8x16_t;
static inline Quads load_quads(const int8_t* p) { return vld1q_s8(p); }
static inline void load_nibbles(Quads& low, Quads& high, const uint8_t* p) {
  const uint8x16_t both = vld1q_u8(p);
  low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
  high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
}
static inline ireg dot(ireg sums, Quads w, ireg x) {
  const int8x16_t v = reinterpret_cast<int8x16_t>(x);
#if defined(__ARM_FEATURE_DOTPROD)
  return reinterpret_cast<ireg>(vdotq_s32(reinterpret_cast<int32x4_t>(sums), w, v));
#else
  // A product is at most 127 * 127, so a pair of them still fits 16 bits.
  const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(v)), vmull_high_s8(w, v));
  return reinterpret_cast<ireg>(vpadalq_s16(reinterpret_cast<int32x4_t>(sums), pairs));
#endif
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
