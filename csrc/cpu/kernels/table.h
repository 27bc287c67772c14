// What one instruction set offers: plain functions over plain pointers, found through a table at run time.
// The ops in csrc/cpu/*.cpp check, plan and split the work; the functions here do a piece of it on one thread.
#pragma once

#include <cstdint>

#include "../../view.h"

namespace codegen_fast::cpu {

constexpr int kPanel = 32;      // rows of a weight that stand interleaved
constexpr int kQuad = 4;        // int8: neighbouring columns that stand together
constexpr int kGroup = 64;      // int8: columns that share one scale of the activations
constexpr int kSumColumns = 32; // int8: columns whose codes quantize() sums
constexpr int kFineGroup = 32;  // int8 in groups: columns that share a scale, of weights and of activations
constexpr int kScalesTried = 8; // int8 in groups: neighbouring bfloat16 values that may become a weight's scale
constexpr int kPair = 2 * kQuad;  // int4: columns that share bytes, the first quad in the low halves
constexpr int kPage = 16;       // tokens of a page of the cache
constexpr int kSplit = 256;     // keys that attention sums before it merges; a multiple of kPage
constexpr int kQueries = 8;     // neighbouring tokens of a sequence that attention takes together
constexpr int kMaxHeadDim = 1024;

// Attention, not yet normalised: out = sum exp(score - max) v, sum = sum exp(score - max).
struct AttentionPartial {
  float max, sum;
};

// Up to kQueries neighbouring tokens of a sequence and one head, over a split of the sequence's keys. Query i sees
// min(first_count + i, kSplit) keys. A query's bits do not depend on the queries beside it.
struct AttentionSplit {
  float* out;                  // (queries, head_dim)
  AttentionPartial* partials;  // (queries,)
  const float* q;              // (queries, head_dim), scaled
  const int32_t* page_ids;     // of the split
  int64_t page_elements, head, first_count, queries;
};

// A group of a row of activations, as products of many rows want it that add up a scale's powers of two (scale_terms.h).
struct ScaledGroup {
  uint32_t terms[3];
  int32_t start;  // what a sum of products with the group's codes begins with
};

// Rows of activations as quantize() leaves them, of one segment; groups_stride groups lie between two rows.
struct QuantizedRows {
  const int8_t* q;
  const float* scales;
  const int32_t* sums;
  const ScaledGroup* scaled;  // of scale_terms(), or null
  int64_t q_stride, groups_stride;
  int64_t count;
};

struct Kernels {
  const char* name;

  // ---- rows
  // out[d] = (x - mean) / sqrt(var + eps) * weight + bias
  void (*layer_norm)(float* out, const float* x, const float* weight, const float* bias, float eps, int64_t d);
  // q[round4(n)], scales[groups] and sums[groups][kGroup / kSumColumns] from x[n], groups = ceil(n / kGroup): one segment
  // of a row of activations. sums: of the codes, for kernels that multiply them by weights with an offset.
  void (*quantize)(int8_t* q, float* scales, int32_t* sums, const float* x, int64_t n);
  // The same for weights of int8 in groups: q[round4(n)], scales[groups], sums[groups] and offset[1] of a segment,
  // groups = ceil(n / kFineGroup), as quantize_activations in ops.h says; sums may be null.
  void (*quantize_fine)(int8_t* q, float* scales, int32_t* sums, float* offset, const float* x, int64_t n);
  // Of a segment of n groups that quantize_fine() has left, what panel_product_i8g() reads beside for many rows. Null
  // where it reads nothing.
  void (*scale_terms)(ScaledGroup* to, const float* scales, const int32_t* sums, int64_t n);
  // out[n] = gelu_new(x[n] + bias[n])
  void (*bias_gelu)(float* out, const float* x, const float* bias, int64_t n);
  // out[n] += x[n] + bias[n]
  void (*add_bias)(float* out, const float* x, const float* bias, int64_t n);
  // pairs (2i, 2i+1) of x[2n] turned by the angles whose cosines and sines are given
  void (*rotate)(float* x, const float* cosines, const float* sines, int64_t n);
  // out[i] = exp(z[i])
  void (*exponentials)(float* out, const float* z, int64_t n);
  // index of the first of the largest of x[n], n at least 1; -1 if any is NaN
  int64_t (*argmax)(const float* x, int64_t n);
  // The elements of ids, z and p, n each, where of[i] >= bound, moved to their beginnings in order; how many they are.
  // `of` may be z or p.
  int64_t (*keep_from)(int32_t* ids, float* z, float* p, const float* of, float bound, int64_t n);
  // sum of x[n], n a multiple of 256: nothing but reading, as fast as memory gives
  float (*read)(const float* x, int64_t n);
  // type conversion, round to nearest even; by DType f32, f16, bf16
  void (*to_f32)(float* out, const void* in, DType type, int64_t n);
  void (*from_f32)(void* out, const float* in, DType type, int64_t n);

  // ---- products: c[m][kPanel] += a[m][k] * panel, for m in [0, rows)
  // panel of f32, f16 or bf16: [k][kPanel]. Every element is summed in the order of k, whatever `rows` is.
  void (*panel_product)(float* c, const float* a, int64_t a_stride, const void* panel, DType type, int64_t rows,
                        int64_t k);
  // panel of i8: [ceil(k / kQuad)][kPanel][kQuad]; rows from quantize(); scales[kPanel] of the panel's rows.
  // Exact int32 sums in groups of kGroup columns; groups are scaled and summed in float in their order.
  void (*panel_product_i8)(float* c, const QuantizedRows& rows, const int8_t* panel, const float* scales, int64_t k);
  // c[m][kPanel] = what the rows' offsets[m][segments] contribute to it, row_sums[segments][kPanel] of the panel's rows,
  // which lie stride apart: c begins so where quantize_fine() made the rows.
  void (*begin_i8g)(float* c, const float* offsets, const float* row_sums, int64_t stride, int64_t segments, int64_t rows);
  // panel of i8 in groups: for every kFineGroup columns scales[kPanel] bfloat16, then quads as above; rows from
  // quantize_fine(), scaled or not. Exact int32 sums of a group, each times (weight's scale * activation's scale), summed
  // in float in their order.
  void (*panel_product_i8g)(float* c, const QuantizedRows& rows, const char* panel, int64_t k);
  // panel of i4: for every group of `group` columns (the last may be shorter) scales[kPanel] bfloat16, then
  // [ceil(columns / kPair)][kPanel][kQuad] bytes: q + 8 of a column in the low half, of kQuad columns on in the high.
  // rows as above, with zeros up to a multiple of kPair. Exact int32 sums of at most kGroup columns of a group, each
  // times (weight's scale * activation's scale), summed in float in their order.
  void (*panel_product_i4)(float* c, const QuantizedRows& rows, const uint8_t* panel, int64_t group, int64_t k);
  // One group of a panel, quantised as PackedWeight says: q[n][kPanel] and bfloat16 scales[kPanel] from w[n][kPanel].
  void (*quantize_i4)(int8_t* q, uint16_t* scales, const float* w, int64_t n);
  // The same for i8 in groups: codes in quads, [ceil(n / kQuad)][kPanel][kQuad] with zeros at the end, and their
  // sums[kPanel].
  void (*quantize_i8)(int8_t* quads, uint16_t* scales, int32_t* sums, const float* w, int64_t n);

  // ---- cache and attention; a page holds, for every head, keys [D][kPage] and values [kPage][D]
  void (*append)(void* page, DType type, const float* key, const float* value, int64_t slot, int64_t first,
                 int64_t count, int64_t head_dim);
  void (*attend)(const AttentionSplit& split, const void* pages, DType type, int64_t head_dim);
};

// The tables that this build has: cmake/isas.cmake.
const Kernels& kernels_portable();
const Kernels& kernels_avx2();
const Kernels& kernels_avx2_vnni();
const Kernels& kernels_avx512();
const Kernels& kernels_neon();
const Kernels& kernels_neon_dotprod();

}  // namespace codegen_fast::cpu
