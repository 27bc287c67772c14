// What the tests of this folder share: numbers to compute with, types decoded without the kernels' help, and reports.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../../csrc/cpu/kernels/table.h"
#include "fenced.h"

namespace isa_test {

using namespace codegen_fast;
using cpu::Kernels;

// The tests of one table; each counts what it finds wrong in g_failures.
void test_rows(const Kernels& k);
void test_conversions(const Kernels& k);
void test_activations(const Kernels& k);
void test_weights(const Kernels& k);
void test_products(const Kernels& k);
void test_products_i8(const Kernels& k);
void test_products_i8g(const Kernels& k);
void test_products_i4(const Kernels& k);
void test_attention(const Kernels& k);
// A small model through the ops, on the instruction set in force: a prompt of `prompt` tokens beside one of 5, then
// three steps of both.
struct Weights {
  DType type;
  int64_t group_cols = 0;  // as in PackedWeight
};
struct ModelRun {
  std::vector<float> logits;    // of every prediction
  std::vector<int64_t> tokens;  // sampled from them
};
ModelRun run_model(Weights weights, DType pages, int64_t prompt);

inline int g_failures = 0;
inline std::string g_isa;

// Reports a failure with what it is about.
#define EXPECT(condition, ...)                                                              \
  do {                                                                                      \
    if (!(condition) && ++isa_test::g_failures <= 20) {                                     \
      std::fprintf(stderr, "%s:%d [%s] %s: ", __FILE__, __LINE__, isa_test::g_isa.c_str(), #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                                    \
      std::fputc('\n', stderr);                                                             \
    }                                                                                       \
  } while (0)

// Elements of a row, and rows of a product.
constexpr int64_t kSizes[] = {1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,  31,  32,  33,
                              47, 63, 64, 65, 100, 127, 129, 255, 256, 257, 511, 770, 1023};
constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 17, 26, 27, 64};
constexpr int64_t kPanel = cpu::kPanel;

constexpr double kUnit = 1.0 / (1 << 24);  // half an ulp of 1 in float32: a rounding's relative error
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A fixed sequence of numbers, the same on every machine.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  float uniform(float low = -1.0f, float high = 1.0f) {
    return low + (high - low) * (static_cast<float>(bits() >> 8) / (1 << 24));
  }
  std::vector<float> floats(int64_t n, float low = -1.0f, float high = 1.0f) {
    std::vector<float> v(n);
    for (float& x : v) x = uniform(low, high);
    return v;
  }

 private:
  uint64_t state_;
};

inline float float_of(uint32_t bits) { float f; std::memcpy(&f, &bits, 4); return f; }
inline uint32_t bits_of(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }
inline bool same_bits(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }

// A 16-bit pattern as a number.
inline double decode16(uint16_t bits, DType type) {
  if (type == DType::bf16) return float_of(uint32_t{bits} << 16);
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? kNan : sign * kInf;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

// x rounded to the type, ties to even, as a number.
inline double rounded(double x, DType type) {
  if (type == DType::f32 || !std::isfinite(x) || x == 0.0) return x;
  const bool half = type == DType::f16;
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(x), half ? -14 : -126) - (half ? 10 : 7));
  const double r = std::nearbyint(x / ulp) * ulp;
  return std::fabs(r) > (half ? 65504.0 : 3.3895313892515355e38) ? std::copysign(kInf, x) : r;
}

// The pattern of a number that the type has, by its bits as a float: no rounding is left to do.
inline uint16_t encode16(double exact, DType type) {
  const uint32_t u = bits_of(static_cast<float>(exact));
  if (type == DType::bf16) return static_cast<uint16_t>(u >> 16);
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  if (std::isnan(exact)) return sign | 0x7e00;
  if (std::isinf(exact)) return sign | 0x7c00;
  const double a = std::fabs(exact);
  if (a < std::ldexp(1.0, -14)) return sign | static_cast<uint16_t>(std::ldexp(a, 24));
  return sign | static_cast<uint16_t>(((u & 0x7fffffff) >> 13) - (112 << 10));  // exponents begin at -15, not -127
}

inline int64_t bytes_of(DType type) { return dtype_bytes(type); }

// Values as a type stores them: the bytes, and what they are worth.
struct Typed {
  std::vector<uint8_t> bytes;
  std::vector<double> values;
  Typed(const std::vector<float>& from, DType type) : bytes(from.size() * bytes_of(type)), values(from.size()) {
    for (size_t i = 0; i < from.size(); ++i) {
      values[i] = rounded(from[i], type);
      if (type == DType::f32) {
        std::memcpy(&bytes[4 * i], &from[i], 4);
      } else {
        const uint16_t code = encode16(values[i], type);
        std::memcpy(&bytes[2 * i], &code, 2);
      }
    }
  }
};

inline const char* name_of(DType type) { return dtype_name(type); }

}  // namespace isa_test
