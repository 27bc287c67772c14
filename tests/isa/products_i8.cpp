// c += a * panel with int8 weights: integers exactly, floats against sums in double, and no row's bits by its company.
#include "codes.h"

namespace isa_test {

void test_products_i8(const Kernels& k) {
  Numbers numbers(12);
  for (int64_t columns : {1, 3, 4, 5, 31, 33, 63, 64, 65, 127, 191, 260, 1029})
    for (int64_t rows : kRows)
      for (int kind = 0; kind < 4; ++kind) {  // integers, integers of the largest magnitude, floats, a NaN
        if (columns > (rows <= 4 ? 1029 : rows <= 17 ? 260 : 65)) continue;
        Codes codes(rows, columns, numbers, kind == 1);
        const std::vector<int8_t> w = codes_of_weights(columns, -127, 127, numbers, kind == 1);
        std::vector<int8_t> quads((columns + cpu::kQuad - 1) / cpu::kQuad * cpu::kQuad * kPanel);
        for (int64_t i = 0; i < columns; ++i)
          for (int64_t j = 0; j < kPanel; ++j) quads[place_in_quads(i, j)] = w[i * kPanel + j];
        std::vector<float> scale(kPanel, 1.0f), before(rows * kPanel, 0.0f);
        if (kind >= 2) {
          scale = numbers.floats(kPanel, 0.001f, 0.1f);
          before = numbers.floats(rows * kPanel);
          codes.draw_scales(numbers);
        }
        const int64_t bad = kind == 3 ? rows / 2 : -1;
        if (bad >= 0) codes.scales[bad * codes.groups + codes.groups - 1] = kNan;
        const FencedCodes a(codes);
        const Fenced<int8_t> panel(quads);
        const Fenced<float> scales(scale);
        Fenced<float> c(rows * kPanel), alone(kPanel);
        std::memcpy(c.data(), before.data(), before.size() * 4);
        k.panel_product_i8(c, a.rows(0, rows), panel, scales, columns);
        for (int64_t m = 0; m < rows; ++m) {
          std::memcpy(alone.data(), &before[m * kPanel], kPanel * 4);
          k.panel_product_i8(alone, a.rows(m, 1), panel, scales, columns);
          for (int64_t j = 0; j < kPanel; ++j) {
            const float got = c[m * kPanel + j];
            EXPECT(same_bits(got, alone[j]), "%ld columns, row %ld of %ld, kind %d", long(columns), long(m), long(rows),
                   kind);
            if (m == bad) {
              EXPECT(std::isnan(got), "%ld columns, row %ld of %ld: %g", long(columns), long(m), long(rows), got);
              continue;
            }
            double sum = 0, magnitude = std::fabs(before[m * kPanel + j]);
            for (int64_t g = 0; g < codes.groups; ++g) {
              int64_t integer = 0;
              for (int64_t i = g * cpu::kGroup; i < std::min(columns, (g + 1) * cpu::kGroup); ++i)
                integer += int64_t{codes.q[m * codes.stride + i]} * w[i * kPanel + j];
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

}  // namespace isa_test
