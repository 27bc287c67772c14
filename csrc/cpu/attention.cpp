// Stage 2 of a layer: attention of the new tokens over the paged cache.
//
// Every (token, head) sums its keys in splits of kSplit, counted from position 0, and merges the splits in order.
// Splits are spread over the threads only where tokens x heads are too few to keep them busy; the bits are the same.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "batch.h"
#include "checks.h"
#include "product.h"

namespace codegen_fast::cpu {
namespace {

constexpr int64_t kMaxSpread = 256;  // (token, head) pairs up to which splits may be spread

// (state, total) takes in one more split.
void merge(AttentionPartial& state, float* total, AttentionPartial part, const float* values, int64_t head_dim) {
  const float m = part.max > state.max ? part.max : state.max;
  // exp(-infinity - -infinity) is NaN: a side that weighs nothing is left out.
  const float keep = state.sum == 0.0f ? 0.0f : std::exp(state.max - m);
  const float gain = part.sum == 0.0f ? 0.0f : std::exp(part.max - m);
  for (int64_t i = 0; i < head_dim; ++i) total[i] = total[i] * keep + values[i] * gain;
  state.sum = state.sum * keep + part.sum * gain;
  state.max = m;
}

int64_t splits_of(int64_t len) { return (len + kSplit - 1) / kSplit; }

}  // namespace

int64_t attention_workspace(int64_t num_tokens, int64_t n_head, int64_t head_dim, int64_t max_seq_len) {
  const int64_t pairs = std::min(num_tokens * n_head, kMaxSpread);
  return round_up(num_tokens * sizeof(TokenPlace), 64) + pairs * splits_of(max_seq_len) * (head_dim + 2) * 4;
}

void attention(TensorView& act, const TensorView& q, const KVCache& cache, int64_t n_head, const Batch& batch, Phase,
               TensorView& workspace) {
  // check
  check_attention(kRules, act, q, cache, n_head, batch);
  check_contents(batch, cache);
  const int64_t tokens = batch.num_tokens, d = q.shape[1], head_dim = d / n_head;
  check_workspace(workspace, attention_workspace(tokens, n_head, head_dim, batch.max_seq_len), q.device);
  if (tokens == 0) return;

  // plan
  const Kernels& k = kernels();
  TokenPlace* places = workspace.as<TokenPlace>();
  fill_places(batch, places);
  const int64_t page_elements = kPage * 2 * d;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  int64_t longest = 0;
  for (int64_t t = 0; t < tokens; ++t) longest = std::max<int64_t>(longest, places[t].position + 1);

  // Of tokens t .. t + n of one sequence, n at most kQueries: their part of a split that all of them see.
  auto attend = [&](int64_t t, int64_t n, int64_t head, int64_t split, float* out, AttentionPartial* partials) {
    const int64_t first = split * kSplit;
    float scaled[kQueries * kMaxHeadDim];
    for (int64_t m = 0; m < n; ++m) {
      const float* query = q.as<float>() + (t + m) * q.strides[0] + head * head_dim;
      for (int64_t i = 0; i < head_dim; ++i) scaled[m * head_dim + i] = query[i] * scale;
    }
    k.attend({out, partials, scaled, pages_of(batch, places[t].sequence) + first / kPage, page_elements, head,
              places[t].position + 1 - first, n},
             cache.pages.data, cache.pages.dtype, head_dim);
  };
  auto finish = [&](int64_t t, int64_t head, const AttentionPartial& state, const float* total) {
    float* out = act.as<float>() + t * act.strides[0] + head * head_dim;
    for (int64_t i = 0; i < head_dim; ++i) out[i] = total[i] / state.sum;
  };

  const int64_t pairs = tokens * n_head, splits = splits_of(longest);
  if (splits > 1 && pairs <= kMaxSpread && pairs < 4 * num_threads()) {
    // scores of every split first, then the merges
    float* partials = reinterpret_cast<float*>(workspace.as<char>() + round_up(tokens * sizeof(TokenPlace), 64));
    const int64_t stride = head_dim + 2;
    parallel_for(pairs * splits, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / splits / n_head;
        if (i % splits >= splits_of(places[t].position + 1)) continue;
        float* at = partials + i * stride;
        AttentionPartial part;
        attend(t, 1, i / splits % n_head, i % splits, at + 2, &part);
        at[0] = part.max;
        at[1] = part.sum;
      }
    });
    for (int64_t i = 0; i < pairs; ++i) {
      const float* at = partials + i * splits * stride;
      AttentionPartial state{at[0], at[1]};
      float total[kMaxHeadDim];
      std::memcpy(total, at + 2, head_dim * sizeof(float));
      const int64_t t = i / n_head;
      for (int64_t s = 1; s < splits_of(places[t].position + 1); ++s) {
        at += stride;
        merge(state, total, {at[0], at[1]}, at + 2, head_dim);
      }
      finish(t, i % n_head, state, total);
    }
    return;
  }

  // Tokens t .. t + n of one sequence and one head, all splits. Later tokens see splits that the first does not.
  auto together = [&](int64_t t, int64_t n, int64_t head) {
    AttentionPartial states[kQueries], parts[kQueries];
    float totals[kQueries * kMaxHeadDim], values[kQueries * kMaxHeadDim];
    attend(t, n, head, 0, totals, states);
    for (int64_t s = 1; s < splits_of(places[t + n - 1].position + 1); ++s) {
      int64_t from = 0;
      while (s >= splits_of(places[t + from].position + 1)) ++from;
      attend(t + from, n - from, head, s, values, parts);
      for (int64_t m = from; m < n; ++m)
        merge(states[m], totals + m * head_dim, parts[m - from], values + (m - from) * head_dim, head_dim);
    }
    for (int64_t m = 0; m < n; ++m) finish(t + m, head, states[m], totals + m * head_dim);
  };
  // Head after head, so that what the tokens of a sequence have in common is read from cache and not from memory.
  const int64_t blocks = (tokens + kQueries - 1) / kQueries, items = n_head * blocks;
  auto some = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks, last = std::min(tokens, (i % blocks + 1) * kQueries);
      for (int64_t t = i % blocks * kQueries, n; t < last; t += n) {
        for (n = 1; t + n < last && places[t + n].sequence == places[t].sequence;) ++n;
        together(t, n, head);
      }
    }
  };
  if (pairs * longest * head_dim <= 16384) some(0, items);
  else parallel_for(items, 1, some);
}

}  // namespace codegen_fast::cpu
