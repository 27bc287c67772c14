// c += a * panel: floats against sums in double, integers exactly, and no row's bits by its company.
#include "checks.h"

namespace isa_test {
namespace {

constexpr int64_t kPanel = cpu::kPanel;
const int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 17, 26, 27, 64};

void float_products(const Kernels& k) {
  Numbers numbers(11);
  for (DType type : {DType::f32, DType::f16, DType::bf16})
    for (int64_t columns : {1, 2, 3, 17, 64, 255, 257, 515})
      for (int64_t rows : kRows) {
        if (columns > 257 && rows > 17) continue;
        const int64_t stride = columns + 3;
        std::vector<float> x = numbers.floats((rows - 1) * stride + columns);
        const int64_t bad = rows > 2 ? rows / 2 : -1;  // a row that must keep its NaN to itself
        if (bad >= 0) x[bad * stride + columns / 2] = rows % 2 ? kNan : kInf;
        const Fenced<float> a(x);
        const Typed weights(numbers.floats(columns * kPanel), type);
        const Fenced<uint8_t> panel(weights.bytes);
        const std::vector<float> before = numbers.floats(rows * kPanel);
        Fenced<float> c(rows * kPanel), alone(kPanel);
        std::memcpy(c.data(), before.data(), before.size() * 4);
        k.panel_product(c, a, stride, panel, type, rows, columns);
        for (int64_t m = 0; m < rows; ++m) {
          std::memcpy(alone.data(), &before[m * kPanel], kPanel * 4);
          k.panel_product(alone, a + m * stride, columns, panel, type, 1, columns);
          for (int64_t j = 0; j < kPanel; ++j) {
            const float got = c[m * kPanel + j];
            EXPECT(same_bits(got, alone[j]), "%s, %ld columns, row %ld of %ld: %a, alone %a", name_of(type),
                   long(columns), long(m), long(rows), got, alone[j]);
            if (m == bad) {
              EXPECT(!std::isfinite(got), "%s, %ld columns, %ld rows: %g", name_of(type), long(columns), long(rows), got);
              continue;
            }
            double sum = before[m * kPanel + j], magnitude = std::fabs(sum);
            for (int64_t i = 0; i < columns; ++i) {
              const double term = double{a[m * stride + i]} * weights.values[i * kPanel + j];
              sum += term, magnitude += std::fabs(term);
            }
            const double bound = (columns + 2) * kUnit * magnitude;
            EXPECT(std::fabs(got - sum) <= bound, "%s, %ld columns, row %ld of %ld: %g, expected %g +- %g",
                   name_of(type), long(columns), long(m), long(rows), got, sum, bound);
          }
        }
      }
}

// Rows of codes as quantize() leaves them, their scales given.
struct Codes {
  int64_t rows, columns, groups, stride;
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<int32_t> sums;

  Codes(int64_t rows, int64_t columns, Numbers& numbers, bool extreme, int64_t padding = cpu::kQuad)
      : rows(rows), columns(columns), groups((columns + cpu::kGroup - 1) / cpu::kGroup),
        stride((columns + padding - 1) / padding * padding), q(rows * stride), scales(rows * groups, 1.0f),
        sums(rows * groups * (cpu::kGroup / cpu::kSumColumns)) {
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t i = 0; i < columns; ++i) {
        const int code = extreme ? (m % 3 == 0 ? 127 : m % 3 == 1 ? -127 : numbers.below(2) ? 127 : -127)
                                 : static_cast<int>(numbers.below(255)) - 127;
        q[m * stride + i] = static_cast<int8_t>(code);
        sums[m * groups * (cpu::kGroup / cpu::kSumColumns) + i / cpu::kSumColumns] += code;
      }
  }
};

void integer_products(const Kernels& k) {
  Numbers numbers(12);
  for (int64_t columns : {1, 3, 4, 5, 31, 33, 63, 64, 65, 127, 191, 260, 1029})
    for (int64_t rows : kRows)
      for (int kind = 0; kind < 4; ++kind) {  // integers, integers of the largest magnitude, floats, a NaN
        if (columns > (rows <= 4 ? 1029 : rows <= 17 ? 260 : 65)) continue;
        Codes codes(rows, columns, numbers, kind == 1);
        const int64_t quads = (columns + cpu::kQuad - 1) / cpu::kQuad;
        std::vector<int8_t> w(quads * kPanel * cpu::kQuad);
        auto weight = [&](int64_t i, int64_t j) -> int8_t& { return w[(i / 4 * kPanel + j) * 4 + i % 4]; };
        for (int64_t i = 0; i < columns; ++i)
          for (int64_t j = 0; j < kPanel; ++j)
            weight(i, j) = static_cast<int8_t>(kind == 1 ? (j % 3 == 0 ? 127 : j % 3 == 1 ? -127 : i % 2 ? 127 : -127)
                                                         : numbers.below(255) - 127);
        std::vector<float> scale(kPanel, 1.0f), before(rows * kPanel, 0.0f);
        if (kind >= 2) {
          scale = numbers.floats(kPanel, 0.001f, 0.1f);
          before = numbers.floats(rows * kPanel);
          codes.scales = numbers.floats(rows * codes.groups, 0.001f, 0.1f);
        }
        const int64_t bad = kind == 3 ? rows / 2 : -1;
        if (bad >= 0) codes.scales[bad * codes.groups + codes.groups - 1] = kNan;
        const Fenced<int8_t> q(codes.q), panel(w);
        const Fenced<float> q_scales(codes.scales), scales(scale);
        const Fenced<int32_t> sums(codes.sums);
        const int64_t sums_stride = codes.groups * (cpu::kGroup / cpu::kSumColumns);
        Fenced<float> c(rows * kPanel), alone(kPanel);
        std::memcpy(c.data(), before.data(), before.size() * 4);
        k.panel_product_i8(c, {q, q_scales, sums, codes.stride, codes.groups, rows}, panel, scales, columns);
        for (int64_t m = 0; m < rows; ++m) {
          std::memcpy(alone.data(), &before[m * kPanel], kPanel * 4);
          k.panel_product_i8(alone,
                             {q + m * codes.stride, q_scales + m * codes.groups, sums + m * sums_stride, codes.stride,
                              codes.groups, 1},
                             panel, scales, columns);
          for (int64_t j = 0; j < kPanel; ++j) {
            const float got = c[m * kPanel + j];
            EXPECT(same_bits(got, alone[j]), "%ld columns, row %ld of %ld, kind %d", long(columns), long(m), long(rows), kind);
            if (m == bad) {
              EXPECT(std::isnan(got), "%ld columns, row %ld of %ld: %g", long(columns), long(m), long(rows), got);
              continue;
            }
            double sum = 0, magnitude = std::fabs(before[m * kPanel + j]);
            for (int64_t g = 0; g < codes.groups; ++g) {
              int64_t integer = 0;
              for (int64_t i = g * cpu::kGroup; i < std::min(columns, (g + 1) * cpu::kGroup); ++i)
                integer += int64_t{codes.q[m * codes.stride + i]} * weight(i, j);
              const double term = double{codes.scales[m * codes.groups + g]} * integer;
              sum += term, magnitude += std::fabs(term * scale[j]);
            }
            const double expected = sum * scale[j] + before[m * kPanel + j];
            // With scales of 1 the sums are integers below 2^24, which floats hold: nothing is rounded.
            const double bound = kind < 2 ? 0 : (2 * codes.groups + 4) * kUnit * magnitude;
            EXPECT(std::fabs(got - expected) <= bound, "%ld columns, row %ld of %ld, kind %d: %.9g, expected %.9g +- %g",
                   long(columns), long(m), long(rows), kind, got, expected, bound);
          }
        }
      }
}

void int4_products(const Kernels& k) {
  Numbers numbers(13);
  for (int64_t group : {32, 64, 128})
    for (int64_t columns : {1, 7, 32, 63, 129, 200, 515})
      for (int64_t rows : kRows)
        for (int kind = 1; kind < 4; ++kind) {  // as above
          if (columns > (rows <= 4 ? 515 : rows <= 17 ? 200 : 63)) continue;
          Codes codes(rows, columns, numbers, kind == 1, cpu::kPair);
          std::vector<int> w(columns * kPanel);
          for (int64_t i = 0; i < columns; ++i)
            for (int64_t j = 0; j < kPanel; ++j)
              w[i * kPanel + j] = kind == 1 ? (j % 3 == 0 ? 7 : j % 3 == 1 ? -8 : i % 2 ? 7 : -8)
                                            : static_cast<int>(numbers.below(16)) - 8;
          const int64_t weight_groups = (columns + group - 1) / group;
          std::vector<float> scale(weight_groups * kPanel, 1.0f), before(rows * kPanel, 0.0f);
          if (kind >= 2) {
            scale = numbers.floats(weight_groups * kPanel, -0.1f, 0.1f);
            for (float& s : scale) s = static_cast<float>(rounded(s, DType::bf16));
            before = numbers.floats(rows * kPanel);
            codes.scales = numbers.floats(rows * codes.groups, 0.001f, 0.1f);
          }
          const int64_t bad = kind == 3 ? rows / 2 : -1;
          if (bad >= 0) codes.scales[bad * codes.groups] = kNan;
          std::vector<uint8_t> bytes;
          for (int64_t g = 0; g < weight_groups; ++g) {
            for (int64_t j = 0; j < kPanel; ++j) {
              const uint16_t s = encode16(scale[g * kPanel + j], DType::bf16);
              bytes.push_back(static_cast<uint8_t>(s)), bytes.push_back(static_cast<uint8_t>(s >> 8));
            }
            const int64_t end = std::min(columns, (g + 1) * group);
            auto nibble = [&](int64_t i, int64_t j) { return i < end ? w[i * kPanel + j] + 8 : 8; };
            for (int64_t i = g * group; i < end; i += cpu::kPair)
              for (int64_t j = 0; j < kPanel; ++j)
                for (int64_t b = 0; b < cpu::kQuad; ++b)
                  bytes.push_back(static_cast<uint8_t>(nibble(i + b, j) | nibble(i + cpu::kQuad + b, j) << 4));
          }
          const Fenced<uint8_t> panel(bytes);
          const Fenced<int8_t> q(codes.q);
          const Fenced<float> q_scales(codes.scales);
          const Fenced<int32_t> sums(codes.sums);
          const int64_t sums_stride = codes.groups * (cpu::kGroup / cpu::kSumColumns);
          Fenced<float> c(rows * kPanel), alone(kPanel);
          std::memcpy(c.data(), before.data(), before.size() * 4);
          k.panel_product_i4(c, {q, q_scales, sums, codes.stride, codes.groups, rows}, panel, group, columns);
          for (int64_t m = 0; m < rows; ++m) {
            std::memcpy(alone.data(), &before[m * kPanel], kPanel * 4);
            k.panel_product_i4(alone,
                               {q + m * codes.stride, q_scales + m * codes.groups, sums + m * sums_stride, codes.stride,
                                codes.groups, 1},
                               panel, group, columns);
            for (int64_t j = 0; j < kPanel; ++j) {
              const float got = c[m * kPanel + j];
              EXPECT(same_bits(got, alone[j]), "i4, %ld columns, row %ld of %ld, kind %d", long(columns), long(m), long(rows), kind);
              if (m == bad) {
                EXPECT(std::isnan(got), "i4, %ld columns, row %ld of %ld: %g", long(columns), long(m), long(rows), got);
                continue;
              }
              double expected = before[m * kPanel + j], magnitude = std::fabs(expected);
              for (int64_t first = 0; first < columns; first += cpu::kSumColumns) {  // these share both scales
                int64_t integer = 0;
                for (int64_t i = first; i < std::min(columns, first + cpu::kSumColumns); ++i)
                  integer += w[i * kPanel + j] * codes.q[m * codes.stride + i];
                const double term = double{scale[first / group * kPanel + j]} *
                                    codes.scales[m * codes.groups + first / cpu::kGroup] * integer;
                expected += term, magnitude += std::fabs(term);
              }
              const double bound = kind < 2 ? 0 : (2 * columns / cpu::kSumColumns + 6) * kUnit * magnitude;
              EXPECT(std::fabs(got - expected) <= bound,
                     "i4 in groups of %ld, %ld columns, row %ld of %ld, kind %d: %.9g, expected %.9g +- %g", long(group),
                     long(columns), long(m), long(rows), kind, got, expected, bound);
            }
          }
        }
}

// As PackedWeight in csrc/ops.h says, operation by operation: nothing may differ.
void int4_quantisation(const Kernels& k) {
  Numbers numbers(14);
  for (int64_t n : {1, 2, 5, 31, 32, 64, 128})
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> values = numbers.floats(n * kPanel);
      if (kind == 1) for (float& v : values) v = std::nearbyint(v * 4);  // equals, ties and zeros
      if (kind == 2) for (float& v : values) v *= 1e-38f;
      if (kind == 3) for (float& v : values) v = 0;
      const Fenced<float> w(values);
      Fenced<int8_t> q(n * kPanel);
      Fenced<uint16_t> scales(kPanel);
      k.quantize_i4(q, scales, w, n);
      for (int64_t j = 0; j < kPanel; ++j) {
        float m = 0;
        for (int64_t i = 0; i < n; ++i) m = std::fabs(w[i * kPanel + j]) > std::fabs(m) ? w[i * kPanel + j] : m;
        auto code = [](float y) { return std::min(std::max(std::nearbyint(y), -8.0f), 7.0f); };
        float best = 0, best_inverse = 0, least = kInf;
        for (float f = 18; f >= 10.5f; f -= 0.5f) {
          const float s = static_cast<float>(rounded(m * (-f / 128), DType::bf16));
          const float inverse = std::isfinite(1 / s) ? 1 / s : 0.0f;
          float e = 0;
          for (int64_t i = 0; i < n; ++i) {
            const float y = w[i * kPanel + j] * inverse, d = y - code(y);
            e = e + d * d;
          }
          e = s / m * (s / m) * e;
          if (f == 18 || e < least) best = s, best_inverse = inverse, least = e;
        }
        EXPECT(decode16(scales[j], DType::bf16) == best, "n %ld, kind %d: scale %g, expected %g", long(n), kind,
               decode16(scales[j], DType::bf16), best);
        for (int64_t i = 0; i < n; ++i)
          EXPECT(q[i * kPanel + j] == code(w[i * kPanel + j] * best_inverse), "n %ld, kind %d, i %ld: %d", long(n), kind,
                 long(i), q[i * kPanel + j]);
      }
    }
}

}  // namespace

void test_products(const Kernels& k) {
  float_products(k);
  integer_products(k);
  int4_products(k);
  int4_quantisation(k);
}

}  // namespace isa_test
