// How a group of values becomes int8: one rule for weights (pack.cu) and activations (prefill_rows.cu).
//   scale = amax / 127, q = round_half_even(v * (127 / amax)), both in float32; q is 0 where 127 / amax is no float32.
#pragma once

#include "intrinsics.h"
#include "layout.h"

namespace codegen_fast::cuda {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// The bits of a magnitude order as the magnitudes do; infinity and NaN are the largest.
CODEGEN_FAST_DEVICE uint32_t magnitude_bits(float v) { return float_to_bits(v) & 0x7fffffffu; }

CODEGEN_FAST_DEVICE uint32_t largest_in_warp(uint32_t largest) {
  for (int mask = kWarp / 2; mask; mask /= 2) largest = max(largest, shuffle_xor(largest, mask));
  return largest;
}

struct Quantizer {
  float scale;    // NaN for a group that holds NaN or infinity
  float inverse;
};

CODEGEN_FAST_DEVICE Quantizer quantizer_of(uint32_t largest) {
  if (largest >= kInfinityBits) return {bits_to_float(0x7fc00000u), 0.0f};
  const float amax = bits_to_float(largest), inverse = divide(127.0f, amax);
  return {divide(amax, 127.0f), float_to_bits(inverse) < kInfinityBits ? inverse : 0.0f};
}

CODEGEN_FAST_DEVICE uint32_t quantize(float v, float inverse) {
  return static_cast<uint32_t>(round_to_int(v * inverse)) & 0xffu;
}

// 16 columns, the first eight and the others, as they lie in a core, in the order of byte_of().
CODEGEN_FAST_DEVICE Bytes16 quantize_core(const float (&low)[8], const float (&high)[8], float inverse) {
  Bytes16 core;
  for (int t = 0; t < 4; ++t)
    core.v[t] = quantize(low[2 * t], inverse) | quantize(low[2 * t + 1], inverse) << 8 |
                quantize(high[2 * t], inverse) << 16 | quantize(high[2 * t + 1], inverse) << 24;
  return core;
}

}  // namespace codegen_fast::cuda
