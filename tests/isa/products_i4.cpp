// c += a * panel with int4 weights: integers exactly, floats against sums in double, and no row's bits by its company.
#include "codes.h"

namespace isa_test {

void test_products_i4(const Kernels& k) {
  Numbers numbers(13);
  for (int64_t group : {32, 64, 128})
    for (int64_t columns : {1, 7, 32, 63, 129, 200, 515})
      for (int64_t rows : kRows)
        for (int kind = 1; kind < 4; ++kind) {  // integers of the largest magnitude, floats, a NaN
          if (columns > (rows <= 4 ? 515 : rows <= 17 ? 200 : 63)) continue;
          Codes codes(rows, columns, numbers, kind == 1, cpu::kPair);
          const std::vector<int8_t> w = codes_of_weights(columns, -8, 7, numbers, kind == 1);
          const int64_t weight_groups = (columns + group - 1) / group;
          std::vector<float> scale(weight_groups * kPanel, 1.0f), before(rows * kPanel, 0.0f);
          if (kind >= 2) {
            scale = numbers.floats(weight_groups * kPanel, -0.1f, 0.1f);
            for (float& s : scale) s = static_cast<float>(rounded(s, DType::bf16));
            before = numbers.floats(rows * kPanel);
            codes.draw_scales(numbers);
          }
          const int64_t bad = kind == 3 ? rows / 2 : -1;
          if (bad >= 0) codes.scales[bad * codes.groups] = kNan;
          std::vector<uint8_t> bytes;
          for (int64_t g = 0; g < weight_groups; ++g) {
            append_scales(bytes, &scale[g * kPanel]);
            const int64_t end = std::min(columns, (g + 1) * group);
            auto nibble = [&](int64_t i, int64_t j) { return i < end ? w[i * kPanel + j] + 8 : 8; };
            for (int64_t i = g * group; i < end; i += cpu::kPair)
              for (int64_t j = 0; j < kPanel; ++j)
                for (int64_t b = 0; b < cpu::kQuad; ++b)
                  bytes.push_back(static_cast<uint8_t>(nibble(i + b, j) | nibble(i + cpu::kQuad + b, j) << 4));
          }
          const Fenced<uint8_t> panel(bytes);
          const FencedCodes a(codes);
          Fenced<float> c(rows * kPanel), alone(kPanel);
          std::memcpy(c.data(), before.data(), before.size() * 4);
          k.panel_product_i4(c, a.rows(0, rows), panel, group, columns);
          for (int64_t m = 0; m < rows; ++m) {
            std::memcpy(alone.data(), &before[m * kPanel], kPanel * 4);
            k.panel_product_i4(alone, a.rows(m, 1), panel, group, columns);
            for (int64_t j = 0; j < kPanel; ++j) {
              const float got = c[m * kPanel + j];
              EXPECT(same_bits(got, alone[j]), "i4, %ld columns, row %ld of %ld, kind %d", long(columns), long(m),
                     long(rows), kind);
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

}  // namespace isa_test
