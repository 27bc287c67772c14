// Quantisation of weights in groups, as PackedWeight in csrc/ops.h says, operation by operation: nothing may differ.
#include "codes.h"

namespace isa_test {
namespace {

constexpr int kKinds = 7;

// A group of n columns, [n][kPanel].
std::vector<float> group_of(int kind, int64_t n, Numbers& numbers) {
  std::vector<float> values = numbers.floats(n * kPanel);
  for (int64_t e = 0; e < n * kPanel; ++e) {
    float& v = values[e];
    const int j = static_cast<int>(e % kPanel);
    if (kind == 1) v = std::nearbyint(v * 4);  // equals, ties and zeros
    if (kind == 2) v *= 1e-38f;
    if (kind == 3) v = std::copysign(0.0f, v);
    if (kind == 4) v *= 3e38f;
    if (kind == 5) v = std::ldexp(v, 8 * j - 130);  // every row with a magnitude of its own
    // What int8 rounds to 128 at the smallest scale, -128 where the sign is other, and ties.
    if (kind == 6) v = std::ldexp(e < kPanel ? std::copysign(127.5f, v) : std::nearbyint(v * 255) / 2, j - 16);
  }
  return values;
}

struct Quantized {
  float scale;
  std::vector<int8_t> codes;
};

// A row's columns of a group with the first of these scales that has the least error; `largest` is its magnitude.
Quantized quantized(const std::vector<float>& row, const std::vector<float>& scales, float largest, float low, float high) {
  auto code = [&](float y) { return std::min(std::max(std::nearbyint(y), low), high); };
  float best = 0, best_inverse = 0, least = 0;
  for (size_t step = 0; step < scales.size(); ++step) {
    const float s = scales[step], inverse = std::isfinite(1 / s) ? 1 / s : 0.0f;
    float e = 0;
    for (float v : row) {
      const float y = v * inverse, d = y - code(y);
      e = e + d * d;
    }
    e = s / largest * (s / largest) * e;
    if (step == 0 || e < least) best = s, best_inverse = inverse, least = e;
  }
  Quantized result{best, {}};
  for (float v : row) result.codes.push_back(static_cast<int8_t>(code(v * best_inverse)));
  return result;
}

Quantized int4_of(const std::vector<float>& row) {
  float m = 0;
  for (float v : row) m = std::fabs(v) > std::fabs(m) ? v : m;
  std::vector<float> scales;
  for (float f = 18; f >= 10.5f; f -= 0.5f) scales.push_back(static_cast<float>(rounded(m * (-f / 128), DType::bf16)));
  return quantized(row, scales, m, -8, 7);
}

Quantized int8_of(const std::vector<float>& row) {
  float a = 0;
  for (float v : row) a = std::max(a, std::fabs(v));
  const float least = a * (1 / 127.5f);
  const float nearest = static_cast<float>(rounded(least, DType::bf16));
  std::vector<float> scales{nearest < least ? float_of(bits_of(nearest) + 0x10000) : nearest};
  while (scales.size() < 8) scales.push_back(float_of(bits_of(scales.back()) + 0x10000));
  return quantized(row, scales, a, -127, 127);
}

void compare(const Kernels& k, DType type, int64_t n, int kind, Numbers& numbers) {
  const Fenced<float> w(group_of(kind, n, numbers));
  const bool is_i8 = type == DType::i8;  // its codes stand in quads
  const int64_t padded = is_i8 ? (n + cpu::kQuad - 1) / cpu::kQuad * cpu::kQuad : n;
  Fenced<int8_t> q(padded * kPanel);
  Fenced<uint16_t> scales(kPanel);
  Fenced<int32_t> sums(kPanel);
  if (is_i8) k.quantize_i8(q, scales, sums, w, n);
  else k.quantize_i4(q, scales, w, n);
  for (int64_t j = 0; j < kPanel; ++j) {
    std::vector<float> row;
    for (int64_t i = 0; i < n; ++i) row.push_back(w[i * kPanel + j]);
    const Quantized expected = is_i8 ? int8_of(row) : int4_of(row);
    EXPECT(decode16(scales[j], DType::bf16) == expected.scale, "%s, n %ld, kind %d, lane %ld: scale %g, expected %g",
           name_of(type), long(n), kind, long(j), decode16(scales[j], DType::bf16), expected.scale);
    int32_t sum = 0;
    for (int64_t i = 0; i < padded; ++i) {
      const int got = q[is_i8 ? place_in_quads(i, j) : i * kPanel + j], code = i < n ? expected.codes[i] : 0;
      EXPECT(got == code, "%s, n %ld, kind %d, i %ld, lane %ld: %d, expected %d", name_of(type), long(n), kind, long(i),
             long(j), got, code);
      sum += code;
    }
    if (is_i8) EXPECT(sums[j] == sum, "n %ld, kind %d, lane %ld: sum %d", long(n), kind, long(j), sums[j]);
  }
}

}  // namespace

void test_weights(const Kernels& k) {
  Numbers numbers(14);
  for (int kind = 0; kind < kKinds; ++kind) {
    for (int64_t n : {1, 2, 5, 31, 32, 64, 128}) compare(k, DType::i4, n, kind, numbers);
    for (int64_t n = 1; n <= cpu::kFineGroup; ++n) compare(k, DType::i8, n, kind, numbers);
  }
}

}  // namespace isa_test
