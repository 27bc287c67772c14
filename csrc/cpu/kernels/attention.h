// The paged cache, and attention of a few queries and one head over a split of their keys.
//
// A page holds, head after head, keys as [D][kPage] (a vector of scores grows by one dimension at a time, without
// sums across lanes) and values as [kPage][D] (the output grows by one key at a time).
#pragma once

#include "products.h"
#include "rows.h"
#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

template <class T>
static void append_typed(T* page, const float* key, const float* value, int64_t slot, int64_t first, int64_t count,
                         int64_t head_dim) {
  for (int64_t i = 0; i < count;) {  // a head at a time
    const int64_t head = (first + i) / head_dim, dim = (first + i) % head_dim;
    const int64_t n = count - i < head_dim - dim ? count - i : head_dim - dim;
    T* keys = page + head * 2 * kPage * head_dim + dim * kPage + slot;
    T* values = page + head * 2 * kPage * head_dim + kPage * head_dim + slot * head_dim + dim;
    if (key) {
      T narrow_key[kPanel];
      for (int64_t r = 0; r < n; r += kPanel) {
        const int64_t some = n - r < kPanel ? n - r : int64_t{kPanel};
        narrow<T>(narrow_key, key + i + r, some);
        for (int64_t b = 0; b < some; ++b) keys[(r + b) * kPage] = narrow_key[b];
      }
    }
    if (value) narrow<T>(values, value + i, n);
    i += n;
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

// Accumulators that stay in registers beside what they are made from.
#if defined(__AVX512F__) || defined(CODEGEN_FAST_NEON)
constexpr int kSums = 16;
#else
constexpr int kSums = 8;
#endif

// A single query reads its keys and values once, from memory, in pieces too short for the hardware's prefetcher. The
// next head's stand behind this one's. Into the second cache, as prefetch_weights(): 31 GB/s, into the first 27, where a
// sum reads 34.
template <class T>
static inline void prefetch_next_head(const T* at, int64_t head_dim) {
  prefetch_weights(at + 2 * kPage * head_dim);
}

// Scores of the kPage keys of each of `Pages` pages for each of `Queries` queries, whose rows of scores lie kSplit
// apart. More at a time share what is loaded and hide the latency of the fused multiply-add; a score's own sum runs
// over the dimensions in order either way.
template <class T, int Queries, int Pages>
static inline void page_scores(float* scores, const float* q, const T* const* keys, int64_t head_dim) {
  constexpr int vectors = kPage / kWidth;
  vreg sums[Queries][Pages][vectors] = {};
  for (int64_t i = 0; i < head_dim; ++i) {
#pragma GCC unroll 16
    for (int p = 0; p < Pages; ++p) {
      if constexpr (Queries == 1) prefetch_next_head(keys[p] + i * kPage, head_dim);
      vreg k[vectors];
      for (int j = 0; j < vectors; ++j) k[j] = load(keys[p] + i * kPage + j * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < Queries; ++m) {
        const vreg x = set1(q[m * head_dim + i]);
        for (int j = 0; j < vectors; ++j) sums[m][p][j] = fma(x, k[j], sums[m][p][j]);
      }
    }
  }
  for (int m = 0; m < Queries; ++m)
    for (int p = 0; p < Pages; ++p)
      for (int j = 0; j < vectors; ++j) store(scores + m * kSplit + p * kPage + j * kWidth, sums[m][p][j]);
}

// out[m][0 .. Vectors * kWidth) += sum over keys begin .. end of weight * value, keys in order; rows of out lie
// head_dim apart, those of weights kSplit.
template <class T, int Queries, int Vectors>
static inline void weighted_values(float* out, const float* weights, const T* const* values, int64_t begin, int64_t end,
                                   int64_t head_dim) {
  vreg sums[Queries][Vectors];
  for (int m = 0; m < Queries; ++m)
    for (int i = 0; i < Vectors; ++i) sums[m][i] = load(out + m * head_dim + i * kWidth);
  for (int64_t j = begin; j < end; ++j) {
    const T* v = values[j / kPage] + (j % kPage) * head_dim;
    vreg w[Queries];
#pragma GCC unroll 8
    for (int m = 0; m < Queries; ++m) w[m] = set1(weights[m * kSplit + j]);
#pragma GCC unroll 16
    for (int i = 0; i < Vectors; ++i) {
      if constexpr (Queries == 1) prefetch_next_head(v + i * kWidth, head_dim);
      const vreg x = load(v + i * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < Queries; ++m) sums[m][i] = fma(w[m], x, sums[m][i]);
    }
  }
  for (int m = 0; m < Queries; ++m)
    for (int i = 0; i < Vectors; ++i) store(out + m * head_dim + i * kWidth, sums[m][i]);
}

// The same for all of head_dim.
template <class T, int Queries>
static inline void add_values(float* out, const float* weights, const T* const* values, int64_t num_pages,
                              int64_t begin, int64_t end, int64_t head_dim) {
  const T* base[kSplit / kPage];
  auto shift = [&](int64_t by) {
    for (int64_t n = 0; n < num_pages; ++n) base[n] = values[n] + by;
    return base;
  };
  constexpr int most = kSums / Queries;
  int64_t i = 0;
  for (; i + most * kWidth <= head_dim; i += most * kWidth)
    weighted_values<T, Queries, most>(out + i, weights, shift(i), begin, end, head_dim);
  if constexpr (most > 4)
    for (; i + 4 * kWidth <= head_dim; i += 4 * kWidth)
      weighted_values<T, Queries, 4>(out + i, weights, shift(i), begin, end, head_dim);
  for (; i + kWidth <= head_dim; i += kWidth)
    weighted_values<T, Queries, 1>(out + i, weights, shift(i), begin, end, head_dim);
  for (; i < head_dim; ++i)
    for (int m = 0; m < Queries; ++m) {
      vreg total = set1(out[m * head_dim + i]);
      for (int64_t j = begin; j < end; ++j)
        total = fma(set1(weights[m * kSplit + j]), set1(to_float(values[j / kPage][(j % kPage) * head_dim + i])), total);
      out[m * head_dim + i] = total[0];
    }
}

// weights[kSplit] <- exp(scores - their maximum), in place; keys from `count` on weigh nothing.
static inline AttentionPartial exponentiate(float* scores, int64_t count, int64_t slots) {
  // Slots that no token has filled hold anything, also NaN: they leave here.
  for (int64_t j = count; j < slots; ++j) scores[j] = -__builtin_inff();
  vreg largest = set1(-__builtin_inff());
  for (int64_t j = 0; j < slots; j += kWidth) largest = max(load(scores + j), largest);
  const float m = max_lanes(largest);
  // Scores that all overflowed to -infinity weigh nothing beside other splits; minus infinity itself would make NaN.
  const float shift = m == -__builtin_inff() ? 0.0f : m;
  vreg sum{};
  for (int64_t j = 0; j < slots; j += kWidth) {
    const vreg e = exp(load(scores + j) - shift);
    store(scores + j, e);
    sum += e;
  }
  return {m, sum_lanes(sum)};
}

template <class T, int Queries>
static void attend_typed(const AttentionSplit& split, const T* pages, int64_t head_dim) {
  const T* keys[kSplit / kPage];
  const T* values[kSplit / kPage];
  auto count_of = [&](int64_t m) { return split.first_count + m < kSplit ? split.first_count + m : int64_t{kSplit}; };
  const int64_t num_pages = (count_of(Queries - 1) + kPage - 1) / kPage;
  for (int64_t p = 0; p < num_pages; ++p) {
    keys[p] = pages + split.page_ids[p] * split.page_elements + split.head * 2 * kPage * head_dim;
    values[p] = keys[p] + kPage * head_dim;
  }

  float scores[Queries * kSplit];
  constexpr int wanted = kSums * kWidth / (Queries * kPage), together = wanted < 1 ? 1 : wanted > 8 ? 8 : wanted;
  int64_t p = 0;
  for (; p + together <= num_pages; p += together)
    page_scores<T, Queries, together>(scores + p * kPage, split.q, keys + p, head_dim);
  if constexpr (Queries == 1) {  // nothing else hides a page's latency
    if (p < num_pages)
      with_rows<together>(num_pages - p, [&](auto pages) {
        page_scores<T, 1, pages>(scores + p * kPage, split.q, keys + p, head_dim);
      });
  } else {
    for (; p < num_pages; ++p) page_scores<T, Queries, 1>(scores + p * kPage, split.q, keys + p, head_dim);
  }

  for (int m = 0; m < Queries; ++m)
    split.partials[m] = exponentiate(scores + m * kSplit, count_of(m), num_pages * kPage);

  // Keys that all queries see, then those that only the later ones do: a weight of zero would make NaN of infinities.
  for (int64_t i = 0; i < Queries * head_dim; ++i) split.out[i] = 0.0f;
  add_values<T, Queries>(split.out, scores, values, num_pages, 0, count_of(0), head_dim);
  for (int m = 1; m < Queries; ++m)
    add_values<T, 1>(split.out + m * head_dim, scores + m * kSplit, values, num_pages, count_of(0), count_of(m),
                     head_dim);
}

template <class T>
static void attend_queries(const AttentionSplit& split, const void* pages, int64_t head_dim) {
  constexpr int together = kSums < kQueries * 2 ? kSums / 2 : kQueries;
  for_tiles<together>(split.queries, [&](int64_t m, auto n) {
    AttentionSplit part = split;
    part.out += m * head_dim;
    part.partials += m;
    part.q += m * head_dim;
    part.first_count += m;
    attend_typed<T, n>(part, static_cast<const T*>(pages), head_dim);
  });
}

static void attend(const AttentionSplit& split, const void* pages, DType type, int64_t head_dim) {
  if (type == DType::f32) attend_queries<float>(split, pages, head_dim);
  else if (type == DType::f16) attend_queries<half>(split, pages, head_dim);
  else attend_queries<bfloat>(split, pages, head_dim);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
