// The kernels over one row of floats, and the conversions of types.
#include "checks.h"

namespace isa_test {
namespace {

void layer_norm(const Kernels& k) {
  Numbers numbers(1);
  for (int64_t d : kSizes)
    for (float shift : {0.0f, 30.0f}) {
      const Fenced<float> x(numbers.floats(d, shift - 2, shift + 2)), w(numbers.floats(d)), b(numbers.floats(d));
      Fenced<float> out(d), in_place(d);
      k.layer_norm(out, x, w, b, 1e-5f, d);
      std::memcpy(in_place.data(), x.data(), d * 4);
      k.layer_norm(in_place, in_place, w, b, 1e-5f, d);
      double mean = 0, square = 0, magnitude = 0;
      for (int64_t i = 0; i < d; ++i) mean += double{x[i]} / d, magnitude += std::fabs(x[i]) / d;
      for (int64_t i = 0; i < d; ++i) square += (x[i] - mean) * (x[i] - mean) / d;
      // Rows are added up in at least 16 parts.
      const double roundings = d / 16.0 + 10, mean_error = roundings * kUnit * magnitude;
      const double variance = square + 1e-5, inverse = 1 / std::sqrt(variance);
      const double relative =
          roundings * kUnit + (2 * mean_error * std::sqrt(square) + mean_error * mean_error) / variance + 4 * kUnit;
      for (int64_t i = 0; i < d; ++i) {
        const double scaled = (x[i] - mean) * inverse * w[i];
        const double bound = std::fabs(scaled) * relative + mean_error * inverse * std::fabs(w[i]) +
                             2 * kUnit * std::fabs(scaled + b[i]);
        EXPECT(std::fabs(out[i] - (scaled + b[i])) <= bound, "d %ld, i %ld: %g, expected %g +- %g", long(d), long(i),
               out[i], scaled + b[i], bound);
        EXPECT(same_bits(out[i], in_place[i]), "d %ld, in place", long(d));
      }
    }
  for (float bad : {kNan, kInf, -kInf}) {
    std::vector<float> values = numbers.floats(77);
    values[70] = bad;
    const Fenced<float> x(values), w(numbers.floats(77)), b(numbers.floats(77));
    Fenced<float> out(77);
    k.layer_norm(out, x, w, b, 1e-5f, 77);
    for (int64_t i = 0; i < 77; ++i) EXPECT(std::isnan(out[i]), "i %ld: %g", long(i), out[i]);
  }
}

void functions(const Kernels& k) {
  Numbers numbers(3);
  for (int64_t n : kSizes) {
    std::vector<float> values = numbers.floats(n, -100, 100);
    if (n > 8) values[1] = kNan, values[2] = kInf, values[3] = -kInf, values[4] = 0, values[5] = -0.0f, values[6] = 1e30f;
    const Fenced<float> x(values);
    Fenced<float> out(n);
    k.exponentials(out, x, n);
    for (int64_t i = 0; i < n; ++i) {
      const double expected = std::exp(double{x[i]});
      if (std::isnan(x[i])) EXPECT(std::isnan(out[i]), "exp(NaN) = %g", out[i]);
      else if (x[i] > 88.72283f) EXPECT(out[i] == kInf, "exp(%g) = %g", x[i], out[i]);
      else if (x[i] < -87.33654f) EXPECT(out[i] == 0, "exp(%g) = %g", x[i], out[i]);
      else EXPECT(std::fabs(out[i] - expected) <= 4 * kUnit * expected, "exp(%a) = %a, expected %a", x[i], out[i], expected);
    }

    std::vector<float> small = numbers.floats(n, -12, 12), bias = numbers.floats(n);
    if (n > 8) small[1] = kNan, small[2] = kInf, small[3] = 1e30f, small[4] = 0, bias[4] = 0, small[5] = -200;
    const Fenced<float> y(small), b(bias);
    k.bias_gelu(out, y, b, n);
    for (int64_t i = 0; i < n; ++i) {
      const double v = y[i] + b[i], inner = 1.5957691216057308 * v * (1 + 0.044715 * v * v);
      const double expected = v / (1 + std::exp(-inner));
      // x's sigmoid: of exp's error and the relative error of its argument only the part that is not 1 counts
      const double rest = 1 / (1 + std::exp(inner));
      const double bound = std::fabs(expected) * (rest * (6 * kUnit * std::fabs(inner) + 6 * kUnit) + 4 * kUnit) + 1e-36;
      if (std::isnan(v)) EXPECT(std::isnan(out[i]), "gelu(NaN) = %g", out[i]);
      else if (std::isinf(v)) EXPECT(out[i] == kInf, "gelu(inf) = %g", out[i]);
      else EXPECT(std::fabs(out[i] - expected) <= bound, "gelu(%g) = %a, expected %a +- %g", v, out[i], expected, bound);
    }

    const std::vector<float> rest = numbers.floats(n);
    Fenced<float> sum(n);
    std::memcpy(sum.data(), rest.data(), n * sizeof(float));
    k.add_bias(sum, y, b, n);
    for (int64_t i = 0; i < n; ++i)
      EXPECT(same_bits(sum[i], rest[i] + (y[i] + b[i])), "add_bias, n %ld, %ld: %a", long(n), long(i), sum[i]);

    const std::vector<float> pairs = numbers.floats(2 * n), cosines = numbers.floats(n), sines = numbers.floats(n);
    const Fenced<float> c(cosines), s(sines);
    Fenced<float> turned(2 * n);
    std::memcpy(turned.data(), pairs.data(), 8 * n);
    k.rotate(turned, c, s, n);
    for (int64_t i = 0; i < n; ++i) {
      const double even = pairs[2 * i], odd = pairs[2 * i + 1], bound = 3 * kUnit * (std::fabs(even) + std::fabs(odd));
      EXPECT(std::fabs(turned[2 * i] - (even * c[i] - odd * s[i])) <= bound, "n %ld, even %ld", long(n), long(i));
      EXPECT(std::fabs(turned[2 * i + 1] - (odd * c[i] + even * s[i])) <= bound, "n %ld, odd %ld", long(n), long(i));
    }
  }
  // exp on a grid that is as fine as its reduction
  std::vector<float> grid;
  for (double z = -87.3; z < 88.7; z += 0.00731) grid.push_back(static_cast<float>(z));
  const Fenced<float> z(grid);
  Fenced<float> out(z.size());
  k.exponentials(out, z, z.size());
  for (int64_t i = 0; i < z.size(); ++i) {
    const double expected = std::exp(double{z[i]});
    EXPECT(std::fabs(out[i] - expected) <= 4 * kUnit * expected, "exp(%a) = %a", z[i], out[i]);
  }
}

void searches(const Kernels& k) {
  Numbers numbers(4);
  for (int64_t n : kSizes)
    for (int kind = 0; kind < 6; ++kind) {
      std::vector<float> values = numbers.floats(n);
      if (kind == 1) for (float& v : values) v = std::nearbyint(v * 3);  // many that are equal
      if (kind == 2) values[numbers.below(n)] = kNan;
      if (kind == 3) for (float& v : values) v = -kInf;
      if (kind == 4) values[n - 1] = kInf;
      if (kind == 5) values[0] = kNan, values[n / 2] = kInf;
      const Fenced<float> x(values);
      int64_t best = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (std::isnan(x[i])) { best = -1; break; }
        if (x[i] > x[best]) best = i;
      }
      EXPECT(k.argmax(x, n) == best, "n %ld, kind %d: %ld, expected %ld", long(n), kind, long(k.argmax(x, n)), long(best));

      for (float bound : {-kInf, -0.5f, 0.0f, 0.9f, 2.0f})
        for (bool by_z : {false, true}) {
          Fenced<int32_t> ids(n);
          Fenced<float> z(n), p(n);
          std::vector<int32_t> expected;
          for (int64_t i = 0; i < n; ++i) {
            ids[i] = static_cast<int32_t>(i * 7);
            (by_z ? z : p)[i] = x[i];
            (by_z ? p : z)[i] = static_cast<float>(i);
            if (x[i] >= bound) expected.push_back(static_cast<int32_t>(i));
          }
          const int64_t kept = k.keep_from(ids, z, p, by_z ? z : p, bound, n);
          EXPECT(kept == static_cast<int64_t>(expected.size()), "n %ld, kind %d: kept %ld", long(n), kind, long(kept));
          for (int64_t i = 0; i < std::min(kept, static_cast<int64_t>(expected.size())); ++i)
            EXPECT(ids[i] == expected[i] * 7 && (by_z ? p : z)[i] == expected[i] &&
                       same_bits((by_z ? z : p)[i], x[expected[i]]),
                   "n %ld, kind %d: place %ld", long(n), kind, long(i));
        }
    }
  for (int64_t n : {256, 512, 2048}) {
    const Fenced<float> x(numbers.floats(n));
    double sum = 0, magnitude = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i], magnitude += std::fabs(x[i]);
    EXPECT(std::fabs(k.read(x, n) - sum) <= n * kUnit * magnitude, "n %ld", long(n));
  }
}

}  // namespace

void test_rows(const Kernels& k) {
  layer_norm(k);
  functions(k);
  searches(k);
}

void test_conversions(const Kernels& k) {
  for (DType type : {DType::f16, DType::bf16}) {
    // every pattern there is, in, and between it and the next one, out
    std::vector<uint16_t> all(65536);
    for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
    const Fenced<uint16_t> in(all);
    Fenced<float> wide(65536);
    k.to_f32(wide, in, type, 65536);
    std::vector<float> values;
    for (int i = 0; i < 65536; ++i) {
      const double exact = decode16(all[i], type);
      EXPECT(std::isnan(exact) ? std::isnan(wide[i]) : wide[i] == exact && std::signbit(wide[i]) == std::signbit(exact),
             "%s %04x: %g", name_of(type), i, wide[i]);
      values.push_back(wide[i]);
      const double next = decode16(static_cast<uint16_t>(i + 1), type);
      if (!std::isfinite(exact) || !std::isfinite(next)) continue;
      const float middle = static_cast<float>((exact + next) / 2);  // exact: one bit more
      for (float v : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, middle > 0 ? kInf : -kInf)})
        values.push_back(v);
    }
    for (float v : {65519.99f, 65520.0f, 1e6f, 3.3961775e38f, 3.4e38f, 1e-45f, 1e-40f, -65520.0f}) values.push_back(v);
    for (int i = 0; i < 31; ++i) values.push_back(0.1f * i);  // a tail
    const Fenced<float> from(values);
    Fenced<uint16_t> narrow(from.size());
    k.from_f32(narrow, from, type, from.size());
    for (int64_t i = 0; i < from.size(); ++i) {
      const double got = decode16(narrow[i], type), expected = rounded(from[i], type);
      EXPECT(std::isnan(expected) ? std::isnan(got) : got == expected && std::signbit(got) == std::signbit(from[i]),
             "%s of %a: %a, expected %a", name_of(type), from[i], got, expected);
    }
  }
  Numbers numbers(5);
  for (DType type : {DType::f32, DType::f16, DType::bf16})
    for (int64_t n : kSizes) {
      const Typed stored(numbers.floats(n), type);
      const Fenced<uint8_t> bytes(stored.bytes);
      Fenced<float> wide(n);
      Fenced<uint8_t> back(n * bytes_of(type));
      k.to_f32(wide, bytes, type, n);
      k.from_f32(back, wide, type, n);
      for (int64_t i = 0; i < n; ++i) EXPECT(wide[i] == stored.values[i], "%s, n %ld, i %ld", name_of(type), long(n), long(i));
      EXPECT(std::memcmp(back, bytes, back.size()) == 0, "%s, n %ld", name_of(type), long(n));
    }
}

}  // namespace isa_test
