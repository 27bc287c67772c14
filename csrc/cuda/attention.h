// What the host entry of attention (attention.cu) hands to the two phases.
#pragma once

#include "layout.h"

namespace codegen_fast::cuda {

constexpr int kMaxHeadDim = 256;

// Elements are f16 or bf16, held as 16 bits.
struct AttentionCall {
  Sequences sequences;
  Pages pages;
  const uint16_t* q;  // (T, d)
  int64_t q_stride;
  uint16_t* act;  // (T, d) of a wider matrix
  int64_t act_stride;
  float scale;  // log2(e) / sqrt(D): weights of keys are powers of two
  int max_seq_len;
};

// Prefill: one kernel, a block for every (tile of query rows, head). attention_prefill.cu
template <class T> void prefill_attention(const AttentionCall& call);

// Decode: see attention_decode.cu. The workspace holds the parts of a token and head that are combined at the end.
template <class T> void decode_attention(const AttentionCall& call, void* workspace);
int64_t decode_attention_workspace(int64_t num_tokens, int64_t n_head, int64_t head_dim, int64_t max_seq_len);

// run(Dim<D>) with the smallest D there are kernels for that holds head_dim: columns behind it are filled with zeros.
template <int D> struct Dim { static constexpr int value = D; };
template <class Run>
void with_head_dim(int head_dim, Run&& run) {
  if (head_dim <= 16) run(Dim<16>{});
  else if (head_dim <= 32) run(Dim<32>{});
  else if (head_dim <= 64) run(Dim<64>{});
  else if (head_dim <= 80) run(Dim<80>{});
  else if (head_dim <= 128) run(Dim<128>{});
  else run(Dim<256>{});
}

}  // namespace codegen_fast::cuda
