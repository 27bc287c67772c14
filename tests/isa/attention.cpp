// Pages that are filled a token at a time, and attention over them.
#include "checks.h"

namespace isa_test {
namespace {

constexpr int64_t kPage = cpu::kPage;

// What a page holds at (head, dimension, slot), as an index of its elements.
int64_t key_at(int64_t head, int64_t dim, int64_t slot, int64_t head_dim) {
  return head * 2 * kPage * head_dim + dim * kPage + slot;
}
int64_t value_at(int64_t head, int64_t dim, int64_t slot, int64_t head_dim) {
  return head * 2 * kPage * head_dim + kPage * head_dim + slot * head_dim + dim;
}

void append(const Kernels& k) {
  Numbers numbers(21);
  for (DType type : {DType::f32, DType::f16, DType::bf16})
    for (int64_t head_dim : {1, 3, 16, 20, 64})
      for (int which = 0; which < 3; ++which) {  // keys and values, keys alone, values alone
        const int64_t heads = 3, d = heads * head_dim, slot = numbers.below(kPage);
        const int64_t first = numbers.below(d), count = 1 + numbers.below(d - first);
        const std::vector<float> keys = numbers.floats(count), values = numbers.floats(count);
        const Fenced<float> key(keys), value(values);
        Fenced<uint8_t> page(kPage * 2 * d * bytes_of(type));
        std::vector<uint8_t> expected = page.copy();
        k.append(page, type, which == 2 ? nullptr : key.data(), which == 1 ? nullptr : value.data(), slot, first, count,
                 head_dim);
        const Typed stored_keys(keys, type), stored_values(values, type);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t head = (first + i) / head_dim, dim = (first + i) % head_dim, bytes = bytes_of(type);
          if (which != 2)
            std::memcpy(&expected[key_at(head, dim, slot, head_dim) * bytes], &stored_keys.bytes[i * bytes], bytes);
          if (which != 1)
            std::memcpy(&expected[value_at(head, dim, slot, head_dim) * bytes], &stored_values.bytes[i * bytes], bytes);
        }
        EXPECT(page.copy() == expected, "%s, head_dim %ld, which %d", name_of(type), long(head_dim), which);
      }
}

// The cache of one head, as numbers, in pages that stand in another order than their keys.
struct Cache {
  static constexpr int64_t kHeads = 2, kPages = cpu::kSplit / kPage;
  int64_t head_dim, page_elements;
  std::vector<int32_t> page_ids;
  std::vector<float> elements;

  Cache(int64_t head_dim, Numbers& numbers)
      : head_dim(head_dim), page_elements(kPage * 2 * kHeads * head_dim), page_ids(kPages),
        elements(numbers.floats(kPages * page_elements)) {
    for (int64_t p = 0; p < kPages; ++p) page_ids[p] = static_cast<int32_t>((p * 5 + 3) % kPages);
  }
  int64_t page(int64_t j) const { return page_ids[j / kPage] * page_elements; }
  int64_t key(int64_t head, int64_t j, int64_t i) const { return page(j) + key_at(head, i, j % kPage, head_dim); }
  int64_t value(int64_t head, int64_t j, int64_t i) const { return page(j) + value_at(head, i, j % kPage, head_dim); }
};

struct Result {
  std::vector<float> out;
  std::vector<cpu::AttentionPartial> partials;
};

Result attend(const Kernels& k, const std::vector<float>& q, const Cache& cache, const uint8_t* pages, DType type,
              int64_t head, int64_t first_count, int64_t queries) {
  const Fenced<float> query(q);
  const Fenced<int32_t> ids(std::vector<int32_t>(
      cache.page_ids.begin(),
      cache.page_ids.begin() + (std::min<int64_t>(first_count + queries - 1, cpu::kSplit) + kPage - 1) / kPage));
  Fenced<float> out(queries * cache.head_dim);
  Fenced<cpu::AttentionPartial> partials(queries);
  k.attend({out, partials, query, ids, cache.page_elements, head, first_count, queries}, pages, type, cache.head_dim);
  return {out.copy(), partials.copy()};
}

void attend_all(const Kernels& k) {
  Numbers numbers(22);
  for (DType type : {DType::f32, DType::f16, DType::bf16})
    for (int64_t head_dim : {1, 3, 16, 17, 64, 80, 256})
      for (int64_t first_count : {1, 2, 15, 16, 17, 63, 100, 127, 241, 254, 255, 256})
        for (int64_t queries = 1; queries <= cpu::kQueries; ++queries) {
          // wide heads for a few counts alone: the sums in double are what takes the time
          if (head_dim > 16 && first_count != 2 && first_count != 17 && first_count != 100 && first_count < 255) continue;
          if (head_dim > 64 && (first_count == 2 || first_count == 255 || queries == 2)) continue;
          Cache cache(head_dim, numbers);
          const int64_t head = numbers.below(Cache::kHeads);
          auto count_of = [&](int64_t m) { return std::min<int64_t>(first_count + m, cpu::kSplit); };
          // Nobody has written the slots beyond the last key; what the earlier queries do not see is worth NaN too.
          for (int64_t j = count_of(0); j < cpu::kSplit; ++j)
            for (int64_t i = 0; i < head_dim; ++i)
              cache.elements[cache.key(head, j, i)] = cache.elements[cache.value(head, j, i)] = kNan;
          const std::vector<float> q = numbers.floats(queries * head_dim, -2, 2);
          const Typed stored(cache.elements, type);
          const Fenced<uint8_t> pages(stored.bytes);
          const Result got = attend(k, q, cache, pages, type, head, first_count, queries);
          for (int64_t m = 0; m < queries; ++m) {
            const int64_t count = count_of(m);
            const std::vector<float> one(q.begin() + m * head_dim, q.begin() + (m + 1) * head_dim);
            const Result alone = attend(k, one, cache, pages, type, head, count, 1);
            bool same = same_bits(got.partials[m].max, alone.partials[0].max) &&
                        same_bits(got.partials[m].sum, alone.partials[0].sum);
            for (int64_t i = 0; i < head_dim; ++i) same = same && same_bits(got.out[m * head_dim + i], alone.out[i]);
            EXPECT(same, "%s, head_dim %ld, query %ld of %ld, %ld keys: other bits alone", name_of(type),
                   long(head_dim), long(m), long(queries), long(count));
            if (count > count_of(0)) {
              EXPECT(std::isnan(got.out[m * head_dim]), "a NaN among the keys is lost");
              continue;
            }
            // Scores in double; an error of delta in one is a relative error of delta in its weight.
            std::vector<double> scores(count);
            double largest = -kInf, delta = 0;
            for (int64_t j = 0; j < count; ++j) {
              double magnitude = 0;
              for (int64_t i = 0; i < head_dim; ++i) {
                const double term = double{one[i]} * stored.values[cache.key(head, j, i)];
                scores[j] += term, magnitude += std::fabs(term);
              }
              delta = std::max(delta, (head_dim + 2) * kUnit * magnitude);
              largest = std::max(largest, scores[j]);
            }
            EXPECT(std::fabs(got.partials[m].max - largest) <= delta, "max %g, expected %g", got.partials[m].max, largest);
            double sum = 0;
            for (double& s : scores) sum += s = std::exp(s - largest);
            const double relative = 2 * delta + (count + 8) * kUnit + 2 * delta;  // of the score, of the maximum; sums
            EXPECT(std::fabs(got.partials[m].sum - sum) <= relative * sum, "sum %g, expected %g", got.partials[m].sum, sum);
            for (int64_t i = 0; i < head_dim; ++i) {
              double expected = 0, magnitude = 0;
              for (int64_t j = 0; j < count; ++j) {
                const double term = scores[j] * stored.values[cache.value(head, j, i)];
                expected += term, magnitude += std::fabs(term);
              }
              EXPECT(std::fabs(got.out[m * head_dim + i] - expected) <= relative * magnitude,
                     "%s, head_dim %ld, query %ld of %ld, %ld keys, dim %ld: %g, expected %g", name_of(type),
                     long(head_dim), long(m), long(queries), long(count), long(i), got.out[m * head_dim + i], expected);
            }
          }
        }
}

// Scores that overflow to minus infinity weigh nothing; one that is infinite is seen.
void infinities(const Kernels& k) {
  Numbers numbers(23);
  Cache cache(8, numbers);
  for (int64_t j = 0; j < cpu::kSplit; ++j)
    for (int64_t i = 0; i < 8; ++i) cache.elements[cache.key(0, j, i)] = -1e20f;
  const Fenced<uint8_t> pages(Typed(cache.elements, DType::f32).bytes);
  const Result low = attend(k, std::vector<float>(8, 1e30f), cache, pages, DType::f32, 0, 37, 1);
  EXPECT(low.partials[0].max == -kInf && low.partials[0].sum == 0, "sum %g", low.partials[0].sum);
  for (float v : low.out) EXPECT(v == 0, "%g", v);
  const Result high = attend(k, std::vector<float>(8, -1e30f), cache, pages, DType::f32, 0, 37, 1);
  EXPECT(high.partials[0].max == kInf && std::isnan(high.out[0]), "max %g", high.partials[0].max);
}

}  // namespace

void test_attention(const Kernels& k) {
  append(k);
  attend_all(k);
  infinities(k);
}

}  // namespace isa_test
