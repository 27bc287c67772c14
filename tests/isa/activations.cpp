// Quantisation of activations, whose codes are integers: every float of its formulas is rounded once, and nothing may
// differ.
#include "checks.h"

namespace isa_test {
namespace {

void quantize(const Kernels& k) {
  Numbers numbers(2);
  for (int64_t n : kSizes)
    for (int kind = 0; kind < 7; ++kind) {
      std::vector<float> values = numbers.floats(n, -3, 3);
      const int64_t at = numbers.below(n);
      if (kind == 1) values[at] = kNan;
      if (kind == 2) values[at] = -kInf;
      if (kind == 3) for (float& v : values) v *= 1e-38f;
      if (kind == 4) for (float& v : values) v = 0.0f;
      if (kind == 5) for (float& v : values) v = std::nearbyint(v * 8) / 2;  // many ties
      if (kind == 6) for (float& v : values) v *= 1e38f;
      const Fenced<float> x(values);
      const int64_t groups = (n + cpu::kGroup - 1) / cpu::kGroup, parts = cpu::kGroup / cpu::kSumColumns;
      const int64_t padded = (n + cpu::kQuad - 1) / cpu::kQuad * cpu::kQuad;
      Fenced<int8_t> q(padded);
      Fenced<float> scales(groups);
      Fenced<int32_t> sums(groups * parts);
      k.quantize(q, scales, sums, x, n);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * cpu::kGroup, end = std::min(n, first + cpu::kGroup);
        float amax = 0;
        bool finite = true;
        for (int64_t i = first; i < end; ++i) {
          amax = std::max(amax, std::fabs(x[i]));
          finite = finite && std::isfinite(x[i]);
        }
        const float inverse = amax > 0 ? 127.0f / amax : 0.0f;
        EXPECT(same_bits(scales[g], finite ? amax / 127.0f : kNan), "n %ld, kind %d: scale %g", long(n), kind, scales[g]);
        for (int64_t part = 0; part < parts; ++part) {
          int32_t sum = 0;
          for (int64_t i = first + part * cpu::kSumColumns; i < std::min(end, first + (part + 1) * cpu::kSumColumns); ++i) {
            const float code = finite && std::isfinite(inverse) ? std::nearbyint(x[i] * inverse) : 0.0f;
            EXPECT(q[i] == code, "n %ld, kind %d, i %ld: %d, expected %g", long(n), kind, long(i), q[i], code);
            sum += q[i];
          }
          EXPECT(sums[g * parts + part] == sum, "n %ld, kind %d: sum %d", long(n), kind, sums[g * parts + part]);
        }
      }
      for (int64_t i = n; i < padded; ++i) EXPECT(q[i] == 0, "n %ld: padding %d", long(n), q[i]);
    }
}

constexpr int kFineKinds = 14;

// A segment of n columns.
std::vector<float> segment_of(int kind, int64_t n, Numbers& numbers) {
  std::vector<float> values = numbers.floats(n, -3, 3);
  for (int64_t i = 0; i < n; ++i) {
    float& v = values[i];
    const int64_t group = i / cpu::kFineGroup;
    if (kind == 1) v *= 1e-38f;
    if (kind == 2) v *= 1e-36f;                               // about where 127 / amax overflows
    if (kind == 3) v *= 1e38f;                                // sums of groups overflow, or what is left of their middle
    if (kind == 4) v = std::copysign(3.4e38f, group % 2 ? -1.0f : 1.0f);
    if (kind == 5) v = 0.0f;
    if (kind == 6) v = -0.0f;
    if (kind == 7) v = std::copysign(0.0f, v);
    if (kind == 8) v = std::nearbyint(v * 8) / 2;             // many ties
    if (kind == 9) v = v < 0 ? v / 18 : v;                    // as after gelu
    if (kind == 10) v = 2.7f;                                 // nothing is left of it
    if (kind == 11) v = std::ldexp(v, static_cast<int>(group % 5 * 60) - 148);  // tiny groups beside large ones
    if (kind == 12) v = 1000 + v;
    if (kind == 13) v = std::copysign(1e-45f, v) * (i % 4 ? 1.0f : 0.0f);
  }
  return values;
}

struct Segment {
  float offset;
  std::vector<float> scales;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
};

// Rounded up to 5 bits of mantissa, by arithmetic.
float in_five_bits(float x) {
  if (x == 0 || std::isinf(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int unit = std::max(exponent - 5, -126 - 4);  // below the smallest normal number the unit stays the same
  return static_cast<float>(std::ldexp(std::ceil(std::ldexp(static_cast<double>(x), -unit)), unit));
}

// As quantize_activations in csrc/ops.h says for int8 weights in groups.
Segment quantized(const std::vector<float>& x) {
  const int64_t n = static_cast<int64_t>(x.size()), groups = (n + cpu::kFineGroup - 1) / cpu::kFineGroup;
  Segment s{kNan, std::vector<float>(groups, kNan), std::vector<int8_t>(n), std::vector<int32_t>(groups)};
  for (float v : x) if (!std::isfinite(v)) return s;
  auto begin = [&](int64_t g) { return x.begin() + g * cpu::kFineGroup; };
  auto end = [&](int64_t g) { return x.begin() + std::min(n, (g + 1) * cpu::kFineGroup); };
  float lows = 0, highs = 0;
  for (int64_t g = 0; g < groups; ++g) {
    lows = lows + *std::min_element(begin(g), end(g));
    highs = highs + *std::max_element(begin(g), end(g));
  }
  s.offset = (highs + lows) * (0.5f / static_cast<float>(groups));
  for (int64_t g = 0; g < groups; ++g) {
    float amax = std::isnan(s.offset) ? kNan : 0.0f;
    for (auto v = begin(g); v != end(g); ++v) amax = std::max(amax, std::fabs(*v - s.offset));
    s.scales[g] = amax / 127.0f;
    if (amax >= 0) s.scales[g] = in_five_bits(s.scales[g]);
    const float inverse = 1.0f / s.scales[g];
    if (!std::isfinite(inverse) || amax == kInf) continue;
    for (auto v = begin(g); v != end(g); ++v) {
      const float code = std::nearbyint((*v - s.offset) * inverse);
      s.codes[v - x.begin()] = static_cast<int8_t>(code);
      s.sums[g] += static_cast<int32_t>(code);
    }
  }
  return s;
}

void compare_fine(const Kernels& k, const std::vector<float>& values, const char* what, int kind) {
  const Segment expected = quantized(values);
  const Fenced<float> x(values);
  const int64_t n = x.size(), groups = static_cast<int64_t>(expected.scales.size());
  const int64_t padded = (n + cpu::kQuad - 1) / cpu::kQuad * cpu::kQuad;
  for (bool with_sums : {true, false}) {
    Fenced<int8_t> q(padded);
    Fenced<float> scales(groups), offset(1);
    Fenced<int32_t> sums(groups);
    k.quantize_fine(q, scales, with_sums ? sums.data() : nullptr, offset, x, n);
    EXPECT(same_bits(*offset, expected.offset), "%s %d, n %ld: offset %a, expected %a", what, kind, long(n), *offset,
           expected.offset);
    for (int64_t g = 0; g < groups; ++g) {
      EXPECT(same_bits(scales[g], expected.scales[g]), "%s %d, n %ld, group %ld: scale %a, expected %a", what, kind,
             long(n), long(g), scales[g], expected.scales[g]);
      if (with_sums) EXPECT(sums[g] == expected.sums[g], "%s %d, n %ld, group %ld: sum %d, expected %d", what, kind, long(n),
                            long(g), sums[g], expected.sums[g]);
    }
    for (int64_t i = 0; i < padded; ++i)
      EXPECT(q[i] == (i < n ? expected.codes[i] : 0), "%s %d, n %ld, i %ld: %d", what, kind, long(n), long(i), q[i]);
  }
}

void quantize_fine(const Kernels& k) {
  Numbers numbers(6);
  for (int64_t n : kSizes) {
    for (int kind = 0; kind < kFineKinds; ++kind) compare_fine(k, segment_of(kind, n, numbers), "kind", kind);
    for (float bad : {kNan, -kNan, kInf, -kInf})
      for (int64_t at : {int64_t{0}, numbers.below(n), n - 1}) {
        std::vector<float> values = segment_of(0, n, numbers);
        values[at] = bad;
        compare_fine(k, values, "not finite at", static_cast<int>(at));
      }
  }
}

}  // namespace

void test_activations(const Kernels& k) {
  quantize(k);
  quantize_fine(k);
}

}  // namespace isa_test
