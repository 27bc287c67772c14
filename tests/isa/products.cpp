// c += a * panel in floats, against sums in double; no row's bits by its company.
#include "checks.h"

namespace isa_test {

void test_products(const Kernels& k) {
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

}  // namespace isa_test
