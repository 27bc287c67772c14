// Scales by additions. On AVX-512 the exact dot products of int8 and every multiplication of floats want the same two of
// four pipes; adding integers and floats they leave to the others. An activation's scale has 5 bits of mantissa, so that it
// is a sum of three powers of two, with signs: a weight's scale times it is the sum of three numbers whose exponents,
// and signs, were added to as integers. Exact, so the bits are those of the multiplication. A loop of nothing but 96 dot
// products and 12 times (scale * scale, fused multiply-add) takes Zen 4 120 cycles with multiplications, 109 so.
#pragma once

#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

#if defined(__AVX512F__)
constexpr bool kAddsScales = true;
#else
constexpr bool kAddsScales = false;
#endif

constexpr int kMantissaBits = 23;
// Scales, of weights and of activations, whose exponents are between these: no sum of two leaves the normal numbers. The
// others are multiplied, 0 among them.
constexpr int kSmallestExponent = -59, kLargestExponent = 59;
constexpr uint32_t kScaleMultiplied = 0x80000000;  // the first term of a row of activations that has others

// (16 + m) / 16 as the sum of sign * 2^power.
struct PowerOfTwo {
  int sign, power;
};
constexpr PowerOfTwo kPowers[16][3] = {
    {{1, -1}, {1, -2}, {1, -2}},    // 16 = 8 + 4 + 4
    {{1, -1}, {1, -1}, {1, -4}},    // 17 = 8 + 8 + 1
    {{1, -1}, {1, -1}, {1, -3}},    // 18 = 8 + 8 + 2
    {{1, 0}, {1, -3}, {1, -4}},     // 19 = 16 + 2 + 1
    {{1, 0}, {1, -3}, {1, -3}},     // 20 = 16 + 2 + 2
    {{1, 0}, {1, -2}, {1, -4}},     // 21 = 16 + 4 + 1
    {{1, 0}, {1, -2}, {1, -3}},     // 22 = 16 + 4 + 2
    {{1, 0}, {1, -1}, {-1, -4}},    // 23 = 16 + 8 - 1
    {{1, 0}, {1, -2}, {1, -2}},     // 24 = 16 + 4 + 4
    {{1, 0}, {1, -1}, {1, -4}},     // 25 = 16 + 8 + 1
    {{1, 0}, {1, -1}, {1, -3}},     // 26 = 16 + 8 + 2
    {{1, 1}, {-1, -2}, {-1, -4}},   // 27 = 32 - 4 - 1
    {{1, 0}, {1, -1}, {1, -2}},     // 28 = 16 + 8 + 4
    {{1, 1}, {-1, -3}, {-1, -4}},   // 29 = 32 - 2 - 1
    {{1, 1}, {-1, -4}, {-1, -4}},   // 30 = 32 - 1 - 1
    {{1, 0}, {1, 0}, {-1, -4}},     // 31 = 16 + 16 - 1
};

// What is added to the bits of a weight's scale, for an activation's scale in [1, 2).
struct TermsOfMantissa {
  uint32_t terms[16][3];
};
constexpr TermsOfMantissa terms_of_mantissas() {
  TermsOfMantissa all{};
  for (int m = 0; m < 16; ++m)
    for (int i = 0; i < 3; ++i) {
      const PowerOfTwo p = kPowers[m][i];
      all.terms[m][i] = (static_cast<uint32_t>(p.power) << kMantissaBits) + (p.sign < 0 ? 0x80000000u : 0u);
    }
  return all;
}
inline constexpr TermsOfMantissa kTerms = terms_of_mantissas();

constexpr uint32_t kOneBits = 127u << kMantissaBits;
constexpr uint32_t kSmallestBits = kOneBits + (static_cast<uint32_t>(kSmallestExponent) << kMantissaBits);
constexpr uint32_t kEndBits = kOneBits + (static_cast<uint32_t>(kLargestExponent + 1) << kMantissaBits);

static void scale_terms(ScaledGroup* to, const float* scales, const int32_t* sums, int64_t n) {
  bool all = true;
  for (int64_t g = 0; g < n; ++g) {
    const uint32_t bits = float_to_bits(scales[g]);
    all &= bits >= kSmallestBits && bits < kEndBits;
    const uint32_t* terms = kTerms.terms[bits >> (kMantissaBits - 4) & 15];
    for (int i = 0; i < 3; ++i) to[g].terms[i] = terms[i] + (bits >> kMantissaBits << kMantissaBits) - kOneBits;
    to[g].start = -kQuadOffset * sums[g];
  }
  if (!all) to->terms[0] = kScaleMultiplied;
}

// Whether all of these rows of activations have scales that can be added.
static inline bool rows_add(const QuantizedRows& rows, int64_t first, int64_t count) {
  bool all = true;
  for (int64_t m = first; m < first + count; ++m)
    all &= rows.scaled[m * rows.groups_stride].terms[0] != kScaleMultiplied;
  return all;
}

// Whether these groups of weights, bytes apart, have: each begins with kPanel bfloat16 scales.
static inline bool weights_add(const char* panel, int64_t groups, int64_t bytes) {
  typedef uint16_t shorts __attribute__((vector_size(2 * kPanel), aligned(2), may_alias));
  constexpr uint16_t smallest = kSmallestBits >> 16, end = kEndBits >> 16;
  shorts beyond{};
  for (int64_t g = 0; g < groups; ++g, panel += bytes)
    beyond |= reinterpret_cast<shorts>(*reinterpret_cast<const shorts*>(panel) - smallest >= end - smallest);
  uint64_t words[2 * kPanel / 8], any = 0;
  std::memcpy(words, &beyond, sizeof words);
  for (uint64_t word : words) any |= word;
  return any == 0;
}

// weight_scale times the activation's scale.
static inline vreg scaled(vreg weight_scale, const uint32_t* terms) {
  typedef uint32_t ureg __attribute__((vector_size(4 * kWidth)));
  const ureg bits = reinterpret_cast<ureg>(weight_scale);
  return reinterpret_cast<vreg>(bits + terms[0]) + reinterpret_cast<vreg>(bits + terms[1]) +
         reinterpret_cast<vreg>(bits + terms[2]);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
