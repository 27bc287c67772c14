// Any processor, with nothing but the compiler's vectors; see simd.h.
#pragma once

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

static inline vreg fma(vreg a, vreg b, vreg c) { return a * b + c; }

static inline vreg max(vreg a, vreg b) { return a > b ? a : b; }
static inline vreg min(vreg a, vreg b) { return a < b ? a : b; }
static inline vreg nearest(vreg y) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest even integer
  return (y + magic) - magic;
}
static inline vreg off_nearest(vreg y) { return y - nearest(y); }

static inline float to_float(half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The exponent is rebiased by a multiplication, which normalises subnormals as well.
  const float magnitude = bits_to_float(rest << 13) * bits_to_float(0x77800000);  // 2^112
  return bits_to_float(float_to_bits(magnitude) | sign);
}

template <> inline half from_float<half>(float x) {
  const uint32_t u = float_to_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 puts the last kept bit at the last mantissa bit
    const float f = bits_to_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_to_bits(f) - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13)};
}

template <class T>
static inline vreg load_lanes(const T* p) {
  vreg v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
}
static inline vreg load(const bfloat* p) { return load_lanes(p); }
static inline vreg load(const half* p) { return load_lanes(p); }
static inline void store(half* p, vreg v) {
  for (int i = 0; i < kWidth; ++i) p[i] = from_float<half>(v[i]);
}

static inline uint32_t lane_mask(ireg lanes) {
  uint32_t mask = 0;
  for (int i = 0; i < kWidth; ++i) mask |= static_cast<uint32_t>(lanes[i] & 1) << i;
  return mask;
}

static inline int32_t largest_lane(ireg v) {
  int32_t most = v[0];
  for (int lane = 1; lane < kWidth; ++lane) most = v[lane] > most ? v[lane] : most;
  return most;
}
static inline int32_t sum_of_lanes(ireg v) {
  int32_t sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) sum += v[lane];
  return sum;
}

// Products of bytes within 127 are at most 16129: two of them still fit 16 bits.
inline constexpr int32_t kQuadOffset = 0;
typedef int16_t pairs_reg __attribute__((vector_size(4 * kWidth)));
struct Quads {
  pairs_reg even, odd;
};
static inline Quads split_pairs(ireg bytes) {
  const pairs_reg v = reinterpret_cast<pairs_reg>(bytes);
  return {(v << 8) >> 8, v >> 8};
}
static inline Quads load_quads(const int8_t* p) {
  ireg w;
  std::memcpy(&w, p, sizeof w);
  return split_pairs(w);
}
static inline void load_nibbles(Quads& low, Quads& high, const uint8_t* p) {
  ireg both;
  std::memcpy(&both, p, sizeof both);
  low = split_pairs(both & 0x0f0f0f0f);
  high = split_pairs(both >> 4 & 0x0f0f0f0f);
}
static inline ireg dot(ireg sums, const Quads& w, ireg x) {
  const Quads v = split_pairs(x);
  const ireg pairs = reinterpret_cast<ireg>(w.even * v.even + w.odd * v.odd);
  return sums + ((pairs << 16) >> 16) + (pairs >> 16);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
