// The paged cache and attention of one query and one head over a split of its keys.
//
// A page holds, head after head, keys as [D][kPage] (a vector of scores grows by one dimension at a time, without
// sums across lanes) and values as [kPage][D] (the output grows by one key at a time).
#pragma once

#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

template <class T>
static void append_typed(T* page, const float* key, const float* value, int64_t slot, int64_t first, int64_t count,
                         int64_t head_dim) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t head = (first + i) / head_dim, dim = (first + i) % head_dim;
    T* block = page + head * 2 * kPage * head_dim;
    if (key) block[dim * kPage + slot] = from_float<T>(key[i]);
    if (value) block[kPage * head_dim + slot * head_dim + dim] = from_float<T>(value[i]);
  }
}

static void append(void* page, DType type, const float* key, const float* value, int64_t slot, int64_t first,
                   int64_t count, int64_t head_dim) {
  if (type == DType::f32)
    append_typed(static_cast<float*>(page), key, value, slot, first, count, head_dim);
  else if (type == DType::f16)
    append_typed(static_cast<half*>(page), key, value, slot, first, count, head_dim);
  else
    append_typed(static_cast<bfloat*>(page), key, value, slot, first, count, head_dim);
}

// Scores of the kPage keys of each of `Pages` pages. More pages at a time hide the latency of the fused
// multiply-add; a score's own sum runs over the dimensions in order either way.
template <class T, int Pages>
static inline void page_scores(float* scores, const float* q, const T* const* keys, int64_t head_dim) {
  constexpr int vectors = kPage / kWidth;
  vreg sums[Pages][vectors] = {};
  for (int64_t i = 0; i < head_dim; ++i) {
    const vreg x = set1(q[i]);
    for (int p = 0; p < Pages; ++p)
      for (int j = 0; j < vectors; ++j) sums[p][j] = fma(x, load(keys[p] + i * kPage + j * kWidth), sums[p][j]);
  }
  for (int p = 0; p < Pages; ++p)
    for (int j = 0; j < vectors; ++j) store(scores + p * kPage + j * kWidth, sums[p][j]);
}

// out[0 .. Vectors * kWidth) = sum over keys of weight * value, keys in order.
template <class T, int Vectors>
static inline void weighted_values(float* out, const float* weights, const T* const* values, int64_t count,
                                   int64_t head_dim) {
  vreg sums[Vectors] = {};
  for (int64_t j = 0; j < count; ++j) {
    const T* v = values[j / kPage] + (j % kPage) * head_dim;
    const vreg w = set1(weights[j]);
    for (int i = 0; i < Vectors; ++i) sums[i] = fma(w, load(v + i * kWidth), sums[i]);
  }
  for (int i = 0; i < Vectors; ++i) store(out + i * kWidth, sums[i]);
}

template <class T>
static AttentionPartial attend_typed(float* out, const float* q, const T* pages, int64_t page_elements,
                                     const int32_t* page_ids, int64_t count, int64_t head, int64_t head_dim) {
  const T* keys[kSplit / kPage];
  const T* values[kSplit / kPage];
  const int64_t num_pages = (count + kPage - 1) / kPage;
  for (int64_t p = 0; p < num_pages; ++p) {
    keys[p] = pages + page_ids[p] * page_elements + head * 2 * kPage * head_dim;
    values[p] = keys[p] + kPage * head_dim;
  }

  float scores[kSplit];
  int64_t p = 0;
  for (; p + 4 <= num_pages; p += 4) page_scores<T, 4>(scores + p * kPage, q, keys + p, head_dim);
  for (; p < num_pages; ++p) page_scores<T, 1>(scores + p * kPage, q, keys + p, head_dim);
  // Slots that no token has filled hold anything, also NaN: they leave here.
  for (int64_t j = count; j < num_pages * kPage; ++j) scores[j] = -__builtin_inff();

  vreg largest = set1(-__builtin_inff());
  for (int64_t j = 0; j < num_pages * kPage; j += kWidth) largest = max(load(scores + j), largest);
  const float m = max_lanes(largest);
  // Scores that all overflowed to -infinity weigh nothing beside other splits; minus infinity itself would make NaN.
  const float shift = m == -__builtin_inff() ? 0.0f : m;
  vreg sum{};
  for (int64_t j = 0; j < num_pages * kPage; j += kWidth) {
    const vreg e = exp(load(scores + j) - shift);
    store(scores + j, e);
    sum += e;
  }

  int64_t i = 0;
  for (; i + 8 * kWidth <= head_dim; i += 8 * kWidth) {
    const T* base[kSplit / kPage];
    for (int64_t n = 0; n < num_pages; ++n) base[n] = values[n] + i;
    weighted_values<T, 8>(out + i, scores, base, count, head_dim);
  }
  for (; i + kWidth <= head_dim; i += kWidth) {
    const T* base[kSplit / kPage];
    for (int64_t n = 0; n < num_pages; ++n) base[n] = values[n] + i;
    weighted_values<T, 1>(out + i, scores, base, count, head_dim);
  }
  for (; i < head_dim; ++i) {
    vreg total{};
    for (int64_t j = 0; j < count; ++j)
      total = fma(set1(scores[j]), set1(to_float(values[j / kPage][(j % kPage) * head_dim + i])), total);
    out[i] = total[0];
  }
  return {m, sum_lanes(sum)};
}

static AttentionPartial attend(float* out, const float* q, const void* pages, int64_t page_elements, DType type,
                               const int32_t* page_ids, int64_t count, int64_t head, int64_t head_dim) {
  if (type == DType::f32)
    return attend_typed(out, q, static_cast<const float*>(pages), page_elements, page_ids, count, head, head_dim);
  if (type == DType::f16)
    return attend_typed(out, q, static_cast<const half*>(pages), page_elements, page_ids, count, head, head_dim);
  return attend_typed(out, q, static_cast<const bfloat*>(pages), page_elements, page_ids, count, head, head_dim);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
