// Stage 2 of a layer: attention of the new tokens over the paged cache. Checks, and the choice of the phase's kernels.
#include "attention.h"

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "intrinsics.h"

namespace codegen_fast::cuda {

int64_t attention_workspace(int64_t num_tokens, int64_t n_head, int64_t head_dim, int64_t max_seq_len) {
  return decode_attention_workspace(num_tokens, n_head, head_dim, max_seq_len);
}

void attention(TensorView& act, const TensorView& q, const KVCache& cache, int64_t n_head, const Batch& batch,
               Phase phase, TensorView& workspace) {
  // check
  check_attention(kRules, act, q, cache, n_head, batch);
  check_counts(batch, cache);
  check_alignment(cache.pages, 16);
  const DType type = q.dtype;
  const int64_t tokens = batch.num_tokens, head_dim = q.shape[1] / n_head;
  check_workspace(workspace, attention_workspace(tokens, n_head, head_dim, batch.max_seq_len), q.device);
  if (tokens == 0 || batch.num_seqs() == 0) return;

  // launch
  const AttentionCall call{.sequences = sequences_of(batch),
                           .pages = pages_of(cache, n_head),
                           .q = q.as<uint16_t>(),
                           .q_stride = q.strides[0],
                           .act = act.as<uint16_t>(),
                           .act_stride = act.strides[0],
                           .scale = 1.4426950408889634f / std::sqrt(static_cast<float>(head_dim)),
                           .max_seq_len = static_cast<int>(batch.max_seq_len)};
  if (phase == Phase::prefill) type == DType::f16 ? prefill_attention<f16>(call) : prefill_attention<bf16>(call);
  else if (type == DType::f16) decode_attention<f16>(call, workspace.data);
  else decode_attention<bf16>(call, workspace.data);
}

}  // namespace codegen_fast::cuda
