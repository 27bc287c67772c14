// Quantisation of weights to int4: a lane is a row, so that nothing is summed across lanes and every instruction set
// does the same float operations in the same order.
#pragma once

#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// v rounded to bfloat16, finite.
static inline vreg to_bfloat(vreg v) {
  const ireg bits = reinterpret_cast<ireg>(v);
  return reinterpret_cast<vreg>((bits + 0x7fff + (bits >> 16 & 1)) & static_cast<int32_t>(0xffff0000));
}

// round_half_even(y) in [-8, 7], for |y| below 2^21
static inline vreg int4_of(vreg y) { return min(max(nearest(y), set1(-8.0f)), set1(7.0f)); }

static void quantize_i4(int8_t* q, uint16_t* scales, const float* w, int64_t n) {
  for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
    const float* v = w + lane;
    vreg largest{}, size{};
    for (int64_t i = 0; i < n; ++i) {
      const vreg x = load(v + i * kPanel);
      const vreg magnitude = reinterpret_cast<vreg>(reinterpret_cast<ireg>(x) & 0x7fffffff);
      largest = magnitude > size ? x : largest;
      size = max(magnitude, size);
    }
    vreg best{}, inverse_of_best{}, least = set1(__builtin_inff());
    for (int step = 0; step < 16; ++step) {
      const vreg s = to_bfloat(largest * set1(-(18.0f - 0.5f * static_cast<float>(step)) / 128.0f));
      vreg inverse = 1.0f / s;
      const vreg inverse_size = reinterpret_cast<vreg>(reinterpret_cast<ireg>(inverse) & 0x7fffffff);
      inverse = inverse_size <= 3.402823466e38f ? inverse : vreg{};
      vreg error{};
      for (int64_t i = 0; i < n; ++i) {
        const vreg y = load(v + i * kPanel) * inverse, d = y - int4_of(y);
        error += d * d;
      }
      vreg ratio = s / largest;
      error = ratio * ratio * error;
      const ireg better = step == 0 ? ireg{} - 1 : error < least;
      best = better ? s : best;
      inverse_of_best = better ? inverse : inverse_of_best;
      least = better ? error : least;
    }
    for (int64_t i = 0; i < n; ++i) {
      const vreg code = int4_of(load(v + i * kPanel) * inverse_of_best);
      store_bytes(q + i * kPanel + lane, __builtin_convertvector(code, ireg));
    }
    for (int i = 0; i < kWidth; ++i) scales[lane + i] = static_cast<uint16_t>(float_to_bits(best[i]) >> 16);
  }
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
