// The next token of every row: temperature, filters, a counter-based draw; and the scores that it is drawn from.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../checks.h"
#include "../philox.h"
#include "dispatch.h"
#include "filters.h"
#include "lanes.h"

namespace codegen_fast::cpu {
namespace {

// One row's parameters; the filters' neutral values where they are left out.
struct RowParams {
  float temperature;
  int64_t top_k;
  float top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff;
  int64_t at_least;

  RowParams(const SamplingParams& params, int64_t b)
      : temperature(params.temperature.as<float>()[b]),
        top_k(params.top_k.as<int32_t>()[b]),
        top_p(params.top_p.as<float>()[b]),
        min_p(entry(params.min_p, b, 0.0f)),
        typical_p(entry(params.typical_p, b, 1.0f)),
        epsilon_cutoff(entry(params.epsilon_cutoff, b, 0.0f)),
        eta_cutoff(entry(params.eta_cutoff, b, 0.0f)),
        at_least(params.min_tokens_to_keep) {}

  static float entry(const TensorView& values, int64_t b, float neutral) {
    return values.data ? values.as<float>()[b] : neutral;
  }
  // Written so that NaN is out of range.
  bool in_range() const {
    return temperature >= 0.0f && temperature <= std::numeric_limits<float>::max() && top_k >= 0 && top_p >= 0.0f &&
           top_p <= 1.0f && min_p >= 0.0f && min_p <= 1.0f && typical_p > 0.0f && typical_p <= 1.0f &&
           epsilon_cutoff >= 0.0f && epsilon_cutoff < 1.0f && eta_cutoff >= 0.0f && eta_cutoff < 1.0f;
  }
};

// The first of the largest logits; -1 where there is no answer.
int64_t best_of(const float* logits, int64_t vocab_size, const RowParams& row) {
  if (!row.in_range()) return -1;
  const int64_t best = kernels().argmax(logits, vocab_size);
  return best >= 0 && std::isfinite(logits[best]) ? best : -1;
}

Candidates filtered(const float* logits, int64_t vocab_size, float largest, const RowParams& row, char* scratch) {
  Candidates c(logits, vocab_size, largest, row.temperature, scratch);
  if (row.top_k > 0) c.keep_top_k(std::max(row.top_k, row.at_least));
  if (row.top_p < 1.0f) c.keep_top_p(row.top_p, row.at_least);
  if (row.min_p > 0.0f) c.keep_min_p(row.min_p, row.at_least);
  if (row.typical_p < 1.0f) c.keep_typical(row.typical_p, row.at_least);
  if (row.epsilon_cutoff > 0.0f) c.keep_epsilon(row.epsilon_cutoff, row.at_least);
  if (row.eta_cutoff > 0.0f) c.keep_eta(row.eta_cutoff, row.at_least);
  return c;
}

}  // namespace

int64_t sample_workspace(int64_t num_rows, int64_t vocab_size) {
  return lanes_bytes(num_rows, Candidates::scratch_bytes(vocab_size));
}

void sample(TensorView& out, const TensorView& logits, const SamplingParams& params, TensorView& workspace) {
  // check
  const int64_t rows = logits.shape[0], vocab_size = logits.shape[1];
  check_sample(out, logits, params);
  check_workspace(workspace, sample_workspace(rows, vocab_size), logits.device);

  for_each_row(rows, Candidates::scratch_bytes(vocab_size), workspace.as<char>(), [&](int64_t b, char* scratch) {
    const float* l = logits.as<float>() + b * logits.strides[0];
    const RowParams row(params, b);
    int64_t token = best_of(l, vocab_size, row);
    if (token >= 0 && row.temperature > 0.0f)
      token = filtered(l, vocab_size, l[token], row, scratch)
                  .draw(philox_uniform(static_cast<uint64_t>(params.seed.as<int64_t>()[b]),
                                       static_cast<uint32_t>(params.sample_index.as<int32_t>()[b]),
                                       static_cast<uint32_t>(params.position.as<int32_t>()[b])));
    out.as<int64_t>()[b] = token;
  });
}

void filter_logits(TensorView& logits, const SamplingParams& params, TensorView& workspace) {
  // check
  const int64_t rows = logits.shape[0], vocab_size = logits.shape[1];
  check_filter_logits(logits, params);
  check_workspace(workspace, sample_workspace(rows, vocab_size), logits.device);

  for_each_row(rows, Candidates::scratch_bytes(vocab_size), workspace.as<char>(), [&](int64_t b, char* scratch) {
    float* l = logits.as<float>() + b * logits.strides[0];
    const RowParams row(params, b);
    const int64_t best = best_of(l, vocab_size, row);
    if (best < 0) {
      std::fill_n(l, vocab_size, std::numeric_limits<float>::quiet_NaN());
    } else if (row.temperature > 0.0f) {
      const Candidates c = filtered(l, vocab_size, l[best], row, scratch);
      float* end = l;
      for (int64_t i = 0; i < c.count(); ++i) {
        std::fill(end, l + c.ids()[i], -std::numeric_limits<float>::infinity());
        l[c.ids()[i]] /= row.temperature;
        end = l + c.ids()[i] + 1;
      }
      std::fill(end, l + vocab_size, -std::numeric_limits<float>::infinity());
    }
  });
}

}  // namespace codegen_fast::cpu
