// Quantisation to int8 in groups of kFineGroup columns, of weights and of the activations that meet them. Floats are never
// added up across lanes, so every instruction set gives the same codes.
#pragma once

#include <utility>

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

// Floats as integers in the same order, -0 before 0; its own inverse. NaN comes before -infinity or behind infinity.
static inline ireg ordered(vreg v) {
  const ireg bits = reinterpret_cast<ireg>(v);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
static inline vreg from_ordered(ireg i) { return reinterpret_cast<vreg>(i ^ (i >> 31 & 0x7fffffff)); }
constexpr int32_t kInfinity = 0x7f800000;  // ordered(); that of -infinity is ~kInfinity

static inline ireg larger(ireg a, ireg b) { return a > b ? a : b; }
static inline ireg smaller(ireg a, ireg b) { return a < b ? a : b; }

// The lower (or upper) halves of blocks of Size lanes, those of x and y in turn.
template <int Size, int Upper, int... I>
static inline ireg halves(ireg x, ireg y, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(x, y, ireg{(2 * I / Size % 2 * kWidth + I / Size * Size + I % (Size / 2) + Upper * Size / 2)...});
}

// Lane i of v[0] <- op over the lanes of v[i]. The lanes of Size vectors, each of kWidth / Size results in blocks of Size
// lanes, are put together by twos.
template <class Op, int Size = kWidth>
static inline void reduce_each(ireg* v, Op op) {
  constexpr std::make_integer_sequence<int, kWidth> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < Size / 2; ++i)
    v[i] = op(halves<Size, 0>(v[i], v[i + Size / 2], lanes), halves<Size, 1>(v[i], v[i + Size / 2], lanes));
  if constexpr (Size > 2) reduce_each<Op, Size / 2>(v, op);
}

// What quantize_fine() takes at a time: as many groups as a vector has lanes.
constexpr int kGroupsTogether = kWidth, kPartsOfGroup = kFineGroup / kWidth;

// The smallest and largest, ordered(), of each of kGroupsTogether groups.
static inline void ranges_of_groups(const float* x, ireg& low, ireg& high) {
  ireg least[kWidth], most[kWidth];
  for (int g = 0; g < kGroupsTogether; ++g, x += kFineGroup) {
    least[g] = most[g] = ordered(load(x));
    for (int p = 1; p < kPartsOfGroup; ++p) {
      const ireg v = ordered(load(x + p * kWidth));
      least[g] = smaller(v, least[g]);
      most[g] = larger(v, most[g]);
    }
  }
  reduce_each(least, [](ireg a, ireg b) { return smaller(a, b); });
  reduce_each(most, [](ireg a, ireg b) { return larger(a, b); });
  low = least[0];
  high = most[0];
}

// The same of a group of `count` columns, in every lane.
static inline void range_of_group(const float* x, int64_t count, ireg& low, ireg& high) {
  low = high = ordered(set1(x[0]));
  for (int64_t i = 1; i < count; ++i) {
    const ireg v = ordered(set1(x[i]));
    low = smaller(v, low);
    high = larger(v, high);
  }
}

static void quantize_fine(int8_t* q, float* scales, int32_t* sums, float* offset, const float* x, int64_t n) {
  const int64_t groups = (n + kFineGroup - 1) / kFineGroup, padded = (n + kQuad - 1) / kQuad * kQuad;
  const int64_t together = n / (kGroupsTogether * kFineGroup) * kGroupsTogether;  // groups that have company
  auto count_of = [n](int64_t g) { return n - g * kFineGroup < kFineGroup ? n - g * kFineGroup : int64_t{kFineGroup}; };

  // The smallest of a group rests in its scale, the largest where its codes will be, with those of its company.
  auto high_at = [q](int64_t g) { return q + g / kGroupsTogether * kGroupsTogether * kFineGroup + g % kGroupsTogether * 4; };
  ireg least = ireg{} + kInfinity, most = ireg{} + ~kInfinity, low, high;
  for (int64_t g = 0; g < groups;) {
    if (g < together) ranges_of_groups(x + g * kFineGroup, low, high);
    else range_of_group(x + g * kFineGroup, count_of(g), low, high);
    least = smaller(low, least);
    most = larger(high, most);
    const vreg low_values = from_ordered(low), high_values = from_ordered(high);
    const int64_t held = g < together ? kGroupsTogether : 1;
    std::memcpy(scales + g, &low_values, held * 4);
    std::memcpy(high_at(g), &high_values, held * 4);
    g += held;
  }
  if (largest_lane(most) >= kInfinity || largest_lane(~least) >= kInfinity) {  // through the scales a NaN reaches every output
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
    float largest;
    std::memcpy(&largest, high_at(g), 4);
    lows += scales[g];
    highs += largest;
  }
  const float middle = (highs + lows) * (0.5f / static_cast<float>(groups));
  *offset = middle;

  for (int64_t g = 0; g < groups; g += kGroupsTogether) {
    const int64_t held = groups - g < kGroupsTogether ? groups - g : kGroupsTogether;
    vreg lowest{}, highest{};
    std::memcpy(&lowest, scales + g, held * 4);
    std::memcpy(&highest, high_at(g), held * 4);
    const vreg amax = max(highest - middle, middle - lowest);
    const vreg scale = reinterpret_cast<vreg>((reinterpret_cast<ireg>(amax / 127.0f) + 0x7ffff) & ~0x7ffff);  // scale_terms.h
    const vreg inverse = 1.0f / scale;
    std::memcpy(scales + g, &scale, held * 4);
    // Groups that are as good as zero, or too large for a float once the middle is taken away, get codes of 0.
    const uint32_t coded = lane_mask((inverse > 0.0f) & (inverse <= kLargestFloat));
    ireg totals[kWidth];
    for (int64_t i = 0; i < held; ++i) {
      int8_t* const to = q + (g + i) * kFineGroup;
      const float* const from = x + (g + i) * kFineGroup;
      const int64_t count = count_of(g + i);
      if (!(coded >> i & 1)) {
        std::memset(to, 0, count);
        totals[i] = ireg{};
      } else if (count == kFineGroup) {
        totals[i] = ireg{};
        for (int p = 0; p < kPartsOfGroup; ++p)
          totals[i] += quantize_vector(to + p * kWidth, load(from + p * kWidth), middle, set1(inverse[i]));
      } else {
        totals[i] = ireg{quantize_part(to, from, middle, inverse[i], count)};
      }
    }
    if (!sums) continue;
    for (int64_t i = held; i < kGroupsTogether; ++i) totals[i] = ireg{};
    reduce_each(totals, [](ireg a, ireg b) { return a + b; });
    std::memcpy(sums + g, &totals[0], held * 4);
  }
  for (int64_t i = n; i < padded; ++i) q[i] = 0;
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
