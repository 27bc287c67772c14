#include "checks.h"

#include <climits>

#include "attention.h"

namespace codegen_fast::cuda {
namespace {

DType activation_type(const TensorView& x) {
  if (x.dtype != DType::f16 && x.dtype != DType::bf16)
    throw TypeError(std::string(x.name) + ": expected float16 or bfloat16 on CUDA, got " + dtype_name(x.dtype));
  return x.dtype;
}

void check_page_type(const TensorView& pages) { activation_type(pages); }

void check_weight_type(const PackedWeight& w, const char* name) {
  if (w.dtype != DType::f16 && w.dtype != DType::bf16 && w.dtype != DType::i8)
    throw TypeError(std::string(name) + ": expected float16, bfloat16 or int8 weights on CUDA, got " +
                    dtype_name(w.dtype));
  if (w.group_cols)
    throw TypeError(std::string(name) + ": int8 weights with scales for groups of columns run on the CPU only; on CUDA "
                    "a row has one scale");
}

void check_head_dim(int64_t head_dim) {
  if (head_dim < 2 || head_dim > kMaxHeadDim || head_dim % 2)
    throw ValueError("n_head: heads of " + std::to_string(head_dim) + " dimensions; an even number up to " +
                     std::to_string(kMaxHeadDim) + " is supported on CUDA");
}

}  // namespace

const BackendRules kRules{.activation_type = activation_type,
                          .one_type = true,
                          .check_page_type = check_page_type,
                          .check_weight_type = check_weight_type,
                          .check_head_dim = check_head_dim,
                          .copied_page_alignment = 16,
                          .packed_weight_bytes = packed_weight_bytes,
                          .packed_weight_scales = packed_weight_scales,
                          .kv_page_size = kv_page_size,
                          .activation_group = activation_group,
                          .activation_padding = activation_padding};

void check_counts(const Batch& batch, const KVCache& cache) {
  to_int(batch.num_tokens, "num_tokens");
  to_int(cache.pages.shape[0], "pages");
}

int to_int(int64_t n, const char* name) {
  if (n < 0 || n > INT_MAX) throw ValueError(std::string(name) + ": expected 0 to 2^31 - 1, got " + std::to_string(n));
  return static_cast<int>(n);
}

Sequences sequences_of(const Batch& batch) {
  return {.query_start = batch.query_start.as<int32_t>(),
          .seq_lens = batch.seq_lens.as<int32_t>(),
          .page_table = batch.page_table.as<int32_t>(),
          .page_table_stride = batch.page_table.strides[0],
          .max_pages = static_cast<int>(batch.page_table.shape[1]),
          .num_seqs = static_cast<int>(batch.num_seqs()),
          .num_tokens = static_cast<int>(batch.num_tokens)};
}

Pages pages_of(const KVCache& cache, int64_t n_head) {
  const int64_t d = cache.pages.shape[2] / 2;
  return {.data = cache.pages.as<uint16_t>(),
          .num_pages = static_cast<int>(cache.pages.shape[0]),
          .n_head = static_cast<int>(n_head),
          .head_dim = static_cast<int>(d / n_head)};
}

}  // namespace codegen_fast::cuda
