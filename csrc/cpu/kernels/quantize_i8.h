// Quantisation to int8 in groups of kFineGroup columns, of weights and of the activations that meet them. Floats are never
// added up across lanes, so every instruction set gives the same codes.
#pragma once

#include "quantize_i4.h"
#include "rows.h"
#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

constexpr float kLargestFloat = 3.402823466e38f;

// round_half_even(y) in [-127, 127], for |y| below 2^21
static inline vreg int8_of(vreg y) { return min(max(nearest(y), set1(-127.0f)), set1(127.0f)); }

// A lane is a row, as in quantize_i4(). Codes leave as the products read them: neighbouring columns in a lane's bytes.
static void quantize_i8(int8_t* quads, uint16_t* scales, int32_t* sums, const float* w, int64_t n) {
  for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
    const float* v = w + lane;
    vreg amax{};
    for (int64_t i = 0; i < n; ++i)
      amax = max(reinterpret_cast<vreg>(reinterpret_cast<ireg>(load(v + i * kPanel)) & 0x7fffffff), amax);
    // The smallest bfloat16 from amax / 127.5 on.
    const ireg first = (reinterpret_cast<ireg>(amax * set1(1.0f / 127.5f)) + 0xffff) & static_cast<int32_t>(0xffff0000);
    vreg scale[kScalesTried], inverse[kScalesTried], error[kScalesTried];
    for (int step = 0; step < kScalesTried; ++step) {
      scale[step] = reinterpret_cast<vreg>(first + (step << 16));
      const vreg exact = 1.0f / scale[step];
      inverse[step] = exact <= kLargestFloat ? exact : vreg{};
      error[step] = vreg{};
    }
    // All scales at once: eight sums that do not wait for each other.
    for (int64_t i = 0; i < n; ++i) {
      const vreg x = load(v + i * kPanel), y = x * inverse[0], d = y - int8_of(y);
      error[0] += d * d;
      for (int step = 1; step < kScalesTried; ++step) {
        const vreg off = off_nearest(x * inverse[step]);  // only the smallest scale takes a value beyond 127
        error[step] += off * off;
      }
    }
    vreg best{}, inverse_of_best{}, least = set1(__builtin_inff());
    for (int step = 0; step < kScalesTried; ++step) {
      const vreg ratio = scale[step] / amax, weighted = ratio * ratio * error[step];
      const ireg better = step == 0 ? ireg{} - 1 : weighted < least;
      best = better ? scale[step] : best;
      inverse_of_best = better ? inverse[step] : inverse_of_best;
      least = better ? weighted : least;
    }
    ireg sum{};
    for (int64_t first_column = 0; first_column < n; first_column += kQuad) {
      ireg quad{};
      for (int64_t i = first_column; i < n && i < first_column + kQuad; ++i) {
        const ireg code = __builtin_convertvector(int8_of(load(v + i * kPanel) * inverse_of_best), ireg);
        quad |= (code & 255) << static_cast<int>(8 * (i - first_column));
        sum += code;
      }
      *reinterpret_cast<vint*>(quads + first_column * kPanel + lane * kQuad) = quad;
    }
    *reinterpret_cast<vint*>(sums + lane) = sum;
    for (int i = 0; i < kWidth; ++i) scales[lane + i] = static_cast<uint16_t>(float_to_bits(best[i]) >> 16);
  }
}

// Floats as integers in the same order, -0 before 0; its own inverse. NaN has no place: ask before.
static inline ireg ordered(vreg v) {
  const ireg bits = reinterpret_cast<ireg>(v);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
static inline float from_ordered(int32_t i) { return bits_to_float(static_cast<uint32_t>(i ^ (i >> 31 & 0x7fffffff))); }

// The smallest and largest of x[count], count at least 1.
static inline void range_of(const float* x, int64_t count, float& low, float& high) {
  const int32_t first = ordered(set1(x[0]))[0];
  ireg most = ireg{} + first, least = ireg{} + ~first;  // ~ turns the order around
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const ireg v = ordered(load(x + i));
    most = v > most ? v : most;
    least = ~v > least ? ~v : least;
  }
  int32_t high_bits = largest_lane(most), low_bits = ~largest_lane(least);
  for (; i < count; ++i) {
    const int32_t v = ordered(set1(x[i]))[0];
    high_bits = v > high_bits ? v : high_bits;
    low_bits = v < low_bits ? v : low_bits;
  }
  low = from_ordered(low_bits);
  high = from_ordered(high_bits);
}

static void quantize_fine(int8_t* q, float* scales, int32_t* sums, float* offset, const float* x, int64_t n) {
  const int64_t groups = (n + kFineGroup - 1) / kFineGroup, padded = (n + kQuad - 1) / kQuad * kQuad;
  auto count_of = [n](int64_t g) { return n - g * kFineGroup < kFineGroup ? n - g * kFineGroup : int64_t{kFineGroup}; };
  if (largest_magnitude(x, n) >= 0x7f800000) {  // through the scales a NaN reaches every output of the row
    for (int64_t g = 0; g < groups; ++g) {
      scales[g] = __builtin_nanf("");
      if (sums) sums[g] = 0;
    }
    *offset = __builtin_nanf("");
    std::memset(q, 0, padded);
    return;
  }
  float lows = 0.0f, highs = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    float low, high;
    range_of(x + g * kFineGroup, count_of(g), low, high);
    scales[g] = low;  // they rest where they are overwritten once they have been used
    std::memcpy(q + g * kFineGroup, &high, 4);
    lows += low;
    highs += high;
  }
  const float middle = (highs + lows) * (0.5f / static_cast<float>(groups));
  *offset = middle;
  for (int64_t g = 0; g < groups; ++g) {
    int8_t* to = q + g * kFineGroup;
    float high;
    std::memcpy(&high, to, 4);
    const float above = high - middle, below = middle - scales[g];
    const float amax = above > below ? above : below, inverse = 127.0f / amax;
    const int64_t count = count_of(g);
    scales[g] = amax / 127.0f;
    int32_t total = 0;
    if (!(inverse > 0.0f && inverse <= kLargestFloat)) {  // as good as zero, or x - middle is too large for a float
      std::memset(to, 0, count);
    } else {
      total = quantize_part(to, x + g * kFineGroup, middle, inverse, count);
    }
    if (sums) sums[g] = total;
  }
  for (int64_t i = n; i < padded; ++i) q[i] = 0;
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
