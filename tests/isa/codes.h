// What the tests of integer products share: rows of int8 codes between fences, and codes of weights.
#pragma once

#include "checks.h"

namespace isa_test {

// Rows of codes as quantize() and quantize_fine() leave them, their scales given. Behind each row's segment may stand
// another one, of `behind` columns, whose codes and scales are not to be looked at.
struct Codes {
  int64_t rows, columns, groups;           // groups: of the segment in question
  int64_t stride, groups_stride, sums_stride;
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<int32_t> sums;

  Codes(int64_t rows, int64_t columns, Numbers& numbers, bool extreme, int64_t padding = cpu::kQuad,
        int64_t group = cpu::kGroup, int64_t behind = 0)
      : rows(rows), columns(columns), groups((columns + group - 1) / group),
        stride((columns + padding - 1) / padding * padding + behind),
        groups_stride(groups + (behind + group - 1) / group), sums_stride(groups_stride * (group / cpu::kSumColumns)),
        q(rows * stride), scales(rows * groups_stride, kNan), sums(rows * sums_stride) {
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t i = 0; i < columns; ++i) {
        const int code = extreme ? (m % 3 == 0 ? 127 : m % 3 == 1 ? -127 : numbers.below(2) ? 127 : -127)
                                 : static_cast<int>(numbers.below(255)) - 127;
        q[m * stride + i] = static_cast<int8_t>(code);
        sums[m * sums_stride + i / cpu::kSumColumns] += code;
      }
      for (int64_t i = stride - behind; i < stride; ++i) q[m * stride + i] = 99;
      for (int64_t g = 0; g < groups; ++g) scales[m * groups_stride + g] = 1.0f;
    }
  }
  void draw_scales(Numbers& numbers) {
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t g = 0; g < groups; ++g) scales[m * groups_stride + g] = numbers.uniform(0.001f, 0.1f);
  }
};

// The same between fences, as products take them.
class FencedCodes {
 public:
  explicit FencedCodes(const Codes& codes)
      : stride_(codes.stride), groups_stride_(codes.groups_stride), sums_stride_(codes.sums_stride), q_(codes.q),
        scales_(codes.scales), sums_(codes.sums) {}
  cpu::QuantizedRows rows(int64_t first, int64_t count) const {
    return {q_ + first * stride_, scales_ + first * groups_stride_, sums_ + first * sums_stride_, nullptr, stride_,
            groups_stride_, count};
  }

 private:
  int64_t stride_, groups_stride_, sums_stride_;
  Fenced<int8_t> q_;
  Fenced<float> scales_;
  Fenced<int32_t> sums_;
};

// Codes [columns][kPanel] of weights in [low, high]; the extreme ones meet those of Codes in every lane.
inline std::vector<int8_t> codes_of_weights(int64_t columns, int low, int high, Numbers& numbers, bool extreme) {
  std::vector<int8_t> w(columns * kPanel);
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j < kPanel; ++j)
      w[i * kPanel + j] = static_cast<int8_t>(extreme ? (j % 3 == 0 ? high : j % 3 == 1 ? low : i % 2 ? high : low)
                                                      : low + numbers.below(high - low + 1));
  return w;
}

// Where column i of lane j stands in a panel's or a group's int8 codes.
inline int64_t place_in_quads(int64_t i, int64_t j) {
  return (i / cpu::kQuad * kPanel + j) * cpu::kQuad + i % cpu::kQuad;
}

// Puts the bfloat16 scales of a group's rows where they stand in a panel: before its codes.
inline void append_scales(std::vector<uint8_t>& panel, const float* scales) {
  for (int64_t j = 0; j < kPanel; ++j) {
    const uint16_t s = encode16(scales[j], DType::bf16);
    panel.push_back(static_cast<uint8_t>(s)), panel.push_back(static_cast<uint8_t>(s >> 8));
  }
}

}  // namespace isa_test
