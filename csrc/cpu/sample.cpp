// The next token of every row: temperature, top_k, top_p, a counter-based draw.
//
// Nothing is sorted but the one bucket of a histogram in which a threshold falls: sorting 51200 logits would cost a
// third of a small model's step.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../checks.h"
#include "../philox.h"
#include "product.h"
#include "pool.h"

namespace codegen_fast::cpu {
namespace {

// z = (logit - max) / temperature is never positive, so the bits of -z order tokens from the most probable down.
constexpr int kBuckets = 8192;
constexpr int kBucketShift = 18;

constexpr int64_t kLanes = 64;  // rows that have scratch of their own; the others take turns

uint32_t rank_bits(float z) {
  uint32_t u;
  std::memcpy(&u, &z, 4);
  return u & 0x7fffffff;
}

struct RowScratch {
  float* z;           // (V,)
  float* p;           // (V,) exp(z); 0 where dropped
  int32_t* ids;       // (V,) members of one bucket
  double* mass;       // (kBuckets,)
  int32_t* count;     // (kBuckets,)

  static int64_t bytes(int64_t vocab_size) {
    return 3 * round_up(vocab_size * 4, 64) + kBuckets * (sizeof(double) + sizeof(int32_t));
  }
  RowScratch(char* at, int64_t vocab_size) {
    const int64_t row = round_up(vocab_size * 4, 64);
    z = reinterpret_cast<float*>(at);
    p = reinterpret_cast<float*>(at + row);
    ids = reinterpret_cast<int32_t*>(at + 2 * row);
    mass = reinterpret_cast<double*>(at + 3 * row);
    count = reinterpret_cast<int32_t*>(at + 3 * row + kBuckets * sizeof(double));
  }
};

int64_t gather_bucket(const RowScratch& s, int64_t vocab_size, uint32_t bucket) {
  int64_t n = 0;
  for (int64_t i = 0; i < vocab_size; ++i)
    if (s.p[i] >= 0.0f && rank_bits(s.z[i]) >> kBucketShift == bucket) s.ids[n++] = static_cast<int32_t>(i);
  return n;
}

// Tokens that top_k drops get p = -1, so that top_p can tell them from those whose probability is too small for a float.
void keep_top_k(const RowScratch& s, const float* logits, int64_t vocab_size, int64_t top_k) {
  std::memset(s.count, 0, kBuckets * sizeof(int32_t));
  for (int64_t i = 0; i < vocab_size; ++i) ++s.count[rank_bits(s.z[i]) >> kBucketShift];
  int64_t above = 0;
  uint32_t bucket = 0;
  while (above + s.count[bucket] < top_k) above += s.count[bucket++];
  const int64_t n = gather_bucket(s, vocab_size, bucket);
  int32_t* kth = s.ids + (top_k - above - 1);
  // Decided on the logits: the subtraction in z may have rounded two that differ to the same value.
  std::nth_element(s.ids, kth, s.ids + n, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float threshold = logits[*kth];
  for (int64_t i = 0; i < vocab_size; ++i)
    if (logits[i] < threshold) s.p[i] = -1.0f;
}

void keep_top_p(const RowScratch& s, int64_t vocab_size, float top_p) {
  std::memset(s.mass, 0, kBuckets * sizeof(double));
  double total = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    if (s.p[i] < 0.0f) continue;
    s.mass[rank_bits(s.z[i]) >> kBucketShift] += s.p[i];
    total += s.p[i];
  }
  const double wanted = static_cast<double>(top_p) * total;
  double before = 0.0;
  uint32_t bucket = 0;
  while (bucket + 1 < kBuckets && before + s.mass[bucket] < wanted) before += s.mass[bucket++];
  const int64_t n = gather_bucket(s, vocab_size, bucket);
  std::sort(s.ids, s.ids + n, [&](int32_t a, int32_t b) { return s.z[a] != s.z[b] ? s.z[a] > s.z[b] : a < b; });
  // In the bucket, tokens stay as long as less than the wanted mass stands before them; the first of all stays.
  int64_t kept = 0;
  while (kept < n && (before < wanted || (bucket == 0 && kept == 0))) before += s.p[s.ids[kept++]];
  for (int64_t i = kept; i < n; ++i) s.p[s.ids[i]] = -1.0f;
  for (int64_t i = 0; i < vocab_size; ++i)
    if (rank_bits(s.z[i]) >> kBucketShift > bucket) s.p[i] = -1.0f;
}

int64_t sample_row(const float* logits, int64_t vocab_size, float temperature, int64_t top_k, float top_p, double u,
                   const RowScratch& s) {
  // Written so that NaN fails.
  if (!(temperature >= 0.0f && temperature <= 3.402823466e38f && top_k >= 0 && top_p >= 0.0f && top_p <= 1.0f))
    return -1;
  int64_t best = 0;
  bool has_nan = false;
  for (int64_t i = 0; i < vocab_size; ++i) {
    has_nan = has_nan || logits[i] != logits[i];
    if (logits[i] > logits[best]) best = i;
  }
  const float max = logits[best];
  if (has_nan || !std::isfinite(max)) return -1;
  if (temperature == 0.0f) return best;

  for (int64_t i = 0; i < vocab_size; ++i) s.z[i] = (logits[i] - max) / temperature;
  kernels().exponentials(s.p, s.z, vocab_size);
  if (top_k > 0 && top_k < vocab_size) keep_top_k(s, logits, vocab_size, top_k);
  if (top_p < 1.0f) keep_top_p(s, vocab_size, top_p);

  double total = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i)
    if (s.p[i] > 0.0f) total += s.p[i];
  const double target = u * total;
  double running = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    if (s.p[i] <= 0.0f) continue;
    running += s.p[i];
    if (running > target) return i;
  }
  return best;  // u * total rounded up to total
}

}  // namespace

int64_t sample_workspace(int64_t num_rows, int64_t vocab_size) {
  return std::min(num_rows, kLanes) * round_up(RowScratch::bytes(vocab_size), 64);
}

void sample(TensorView& out, const TensorView& logits, const SamplingParams& params, TensorView& workspace) {
  // check
  const int64_t rows = logits.shape[0], vocab_size = logits.shape[1];
  check_sample(out, logits, params);
  check_workspace(workspace, sample_workspace(rows, vocab_size), logits.device);

  const int64_t lanes = std::min(rows, kLanes);
  parallel_for(lanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; ++lane) {
      const RowScratch scratch(workspace.as<char>() + lane * round_up(RowScratch::bytes(vocab_size), 64), vocab_size);
      for (int64_t b = lane; b < rows; b += lanes) {
        const double u = philox_uniform(static_cast<uint64_t>(params.seed.as<int64_t>()[b]),
                                        static_cast<uint32_t>(params.sample_index.as<int32_t>()[b]),
                                        static_cast<uint32_t>(params.position.as<int32_t>()[b]));
        out.as<int64_t>()[b] = sample_row(logits.as<float>() + b * logits.strides[0], vocab_size,
                                          params.temperature.as<float>()[b], params.top_k.as<int32_t>()[b],
                                          params.top_p.as<float>()[b], u, scratch);
      }
    }
  });
}

}  // namespace codegen_fast::cpu
