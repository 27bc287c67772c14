// c += a * panel with int8 weights in groups, whose scales stand among the codes: the bits that table.h says, operation
// by operation, whatever rows stand beside. (So integers are exact: with scales of 1 floats hold all up to 2^24.)
#include "codes.h"

namespace isa_test {
namespace {

constexpr int64_t kGroup = cpu::kFineGroup;
constexpr int64_t kMostRows = 64;

std::vector<uint8_t> panel_of(const std::vector<int8_t>& w, const std::vector<float>& scales, int64_t columns) {
  std::vector<uint8_t> bytes;
  for (int64_t first = 0; first < columns; first += kGroup) {
    append_scales(bytes, &scales[first / kGroup * kPanel]);
    for (int64_t i = first; i < std::min(columns, first + kGroup); i += cpu::kQuad)
      for (int64_t j = 0; j < kPanel; ++j)
        for (int64_t b = i; b < i + cpu::kQuad; ++b)
          bytes.push_back(static_cast<uint8_t>(b < columns ? w[b * kPanel + j] : 0));
  }
  return bytes;
}

// Element (row, j) of c after the product.
float expected_at(float c, const Codes& a, int64_t row, const std::vector<int8_t>& w, const std::vector<float>& scales,
                  int64_t j, bool fused) {
  for (int64_t g = 0; g < a.groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = g * kGroup; i < std::min(a.columns, (g + 1) * kGroup); ++i)
      sum += a.q[row * a.stride + i] * w[i * kPanel + j];
    const float scale = scales[g * kPanel + j] * a.scales[row * a.groups_stride + g], integer = static_cast<float>(sum);
    c = fused ? std::fma(integer, scale, c) : c + integer * scale;
  }
  return c;
}

// What scale_terms() makes of the codes' rows, between fences.
Fenced<cpu::ScaledGroup> scaled_of(const Kernels& k, const Codes& codes) {
  std::vector<cpu::ScaledGroup> all(codes.rows * codes.groups_stride);
  for (int64_t m = 0; m < codes.rows; ++m) {
    const int64_t at = m * codes.groups_stride;
    k.scale_terms(&all[at], &codes.scales[at], &codes.sums[at], codes.groups);
  }
  return Fenced<cpu::ScaledGroup>(all);
}

// The `count` last of the rows, or first where a fence stands before them, must have the bits they have alone, whether
// their scales are multiplied or (scaled) added.
void in_company(const Kernels& k, const FencedCodes& a, const cpu::ScaledGroup* scaled, const Fenced<uint8_t>& panel,
                int64_t columns, int64_t count, const std::vector<float>& before, const std::vector<float>& alone) {
  const int64_t first = g_fence == Fence::after ? kMostRows - count : 0;
  Fenced<float> c(count * kPanel);
  cpu::QuantizedRows rows = a.rows(first, count);
  if (scaled) rows.scaled = scaled + first * rows.groups_stride;
  std::memcpy(c.data(), &before[first * kPanel], count * kPanel * 4);
  k.panel_product_i8g(c, rows, reinterpret_cast<const char*>(panel.data()), columns);
  for (int64_t e = 0; e < count * kPanel; ++e)
    EXPECT(same_bits(c[e], alone[first * kPanel + e]), "%ld columns, row %ld of %ld%s: %a, alone %a", long(columns),
           long(e / kPanel), long(count), scaled ? ", scales added" : "", c[e], alone[first * kPanel + e]);
}

void begin(const Kernels& k, Numbers& numbers) {
  for (int64_t segments : {1, 2})
    for (int64_t rows : {1, 3, 72}) {
      const int64_t stride = 3 * kPanel;
      const Fenced<float> offsets(numbers.floats(rows * segments)), sums(numbers.floats((segments - 1) * stride + kPanel));
      Fenced<float> c(rows * kPanel);
      k.begin_i8g(c, offsets, sums, stride, segments, rows);
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t j = 0; j < kPanel; ++j) {
          float expected = offsets[m * segments] * sums[j];
          for (int64_t s = 1; s < segments; ++s) expected = expected + offsets[m * segments + s] * sums[s * stride + j];
          EXPECT(same_bits(c[m * kPanel + j], expected), "begin, row %ld of %ld, lane %ld: %a, expected %a", long(m),
                 long(rows), long(j), c[m * kPanel + j], expected);
        }
    }
}

// A scale as quantize_fine() makes it: 5 bits of mantissa.
float five_bits(Numbers& numbers, int exponent) {
  return std::ldexp(static_cast<float>(16 + numbers.below(16)), exponent - 4);
}

}  // namespace

void test_products_i8g(const Kernels& k) {
  Numbers numbers(15);
  begin(k, numbers);
  const bool fused = std::string("portable") != k.name;
  // Past 1024 and 2048 columns a kernel's blocks of columns end.
  for (int64_t columns : {1, 3, 4, 5, 31, 32, 33, 38, 63, 64, 100, 127, 260, 1024, 1029, 2087})
    for (int kind = 0; kind < 6; ++kind) {
      // integers, integers of the largest magnitude, floats, a NaN in some rows; scales that cannot be added, of some
      // activations or weights
      if (columns > 260 && kind == 0) continue;
      Codes codes(kMostRows, columns, numbers, kind == 1, cpu::kQuad, kGroup, columns % 2 ? 0 : 40);
      const std::vector<int8_t> w = codes_of_weights(columns, -127, 127, numbers, kind == 1);
      std::vector<float> scales(codes.groups * kPanel, 1.0f), before(kMostRows * kPanel, 0.0f);
      if (kind >= 2) {
        for (float& s : scales) s = static_cast<float>(rounded(numbers.uniform(0.001f, 0.1f), DType::bf16));
        before = numbers.floats(kMostRows * kPanel);
        for (int64_t m = 0; m < kMostRows; ++m)
          for (int64_t g = 0; g < codes.groups; ++g)
            codes.scales[m * codes.groups_stride + g] = five_bits(numbers, static_cast<int>(numbers.below(14)) - 12);
      }
      if (kind == 4)
        for (float scale : {0.0f, five_bits(numbers, -60), five_bits(numbers, -59), five_bits(numbers, 59),
                            five_bits(numbers, 60), five_bits(numbers, -120)})
          codes.scales[numbers.below(kMostRows) * codes.groups_stride + numbers.below(codes.groups)] = scale;
      if (kind == 5)
        for (float scale : {0.0f, std::ldexp(1.0f, -59), std::ldexp(1.0f, -60), std::ldexp(1.0f, 60), 1e-40f})
          if (numbers.below(2))
            scales[numbers.below(codes.groups * kPanel)] = static_cast<float>(rounded(scale, DType::bf16));
      if (kind == 3)
        for (int64_t m = 0; m < kMostRows; m += 5)
          codes.scales[m * codes.groups_stride + numbers.below(codes.groups)] = kNan;
      const FencedCodes a(codes);
      const Fenced<uint8_t> panel(panel_of(w, scales, columns));
      std::vector<float> alone(before);
      for (int64_t m = 0; m < kMostRows; ++m) {
        Fenced<float> c(kPanel);
        std::memcpy(c.data(), &before[m * kPanel], kPanel * 4);
        k.panel_product_i8g(c, a.rows(m, 1), reinterpret_cast<const char*>(panel.data()), columns);
        std::memcpy(&alone[m * kPanel], c.data(), kPanel * 4);
        for (int64_t j = 0; j < kPanel; ++j) {
          const float expected = expected_at(before[m * kPanel + j], codes, m, w, scales, j, fused);
          EXPECT(same_bits(c[j], expected), "%ld columns, row %ld, lane %ld, kind %d: %a, expected %a", long(columns),
                 long(m), long(j), kind, c[j], expected);
          EXPECT(std::isnan(c[j]) == (kind == 3 && m % 5 == 0), "%ld columns, row %ld, kind %d: %g", long(columns), long(m),
                 kind, c[j]);
        }
      }
      auto company = [&](const cpu::ScaledGroup* scaled) {
        if (columns <= 260 || kind == 2 || kind == 5)
          for (int64_t count = 1; count <= kMostRows; ++count)
            in_company(k, a, scaled, panel, columns, count, before, alone);
        else
          for (int64_t count : kRows) in_company(k, a, scaled, panel, columns, count, before, alone);
      };
      company(nullptr);
      if (k.scale_terms) company(scaled_of(k, codes));
    }
}

}  // namespace isa_test
