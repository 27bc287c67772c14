#include "checks.h"

#include <climits>

namespace codegen_fast::cuda {

DType activation_type(const TensorView& x) {
  if (x.dtype != DType::f16 && x.dtype != DType::bf16)
    throw TypeError(std::string(x.name) + ": expected float16 or bfloat16 on CUDA, got " + dtype_name(x.dtype));
  return x.dtype;
}

void check_activations(const TensorView& x, int64_t rows, int64_t columns, DType type, Device device) {
  activation_type(x);
  check_dtype(x, {type});
  check_shape(x, {rows, columns});
  check_rows_contiguous(x);
  check_device(x, device);
}

void check_output(const TensorView& x, int64_t rows, int64_t columns, DType type, Device device) {
  check_activations(x, rows, columns, type, device);
  check_output_rows(x);
}

void check_vector(const TensorView& x, int64_t length, Device device) {
  check_dtype(x, {DType::f32});
  check_shape(x, {length});
  check_contiguous(x);
  check_device(x, device);
}

void check_norm(const Norm& norm, int64_t d, Device device) {
  check_vector(norm.weight, d, device);
  check_vector(norm.bias, d, device);
}

void check_workspace(const TensorView& workspace, int64_t bytes, Device device) {
  check_dtype(workspace, {DType::u8});
  check_contiguous(workspace);
  check_device(workspace, device);
  if (bytes) check_alignment(workspace, 16);
  if (workspace.ndim != 1 || workspace.numel() < bytes)
    throw ValueError(std::string(workspace.name) + ": expected at least " + std::to_string(bytes) +
                     " bytes in one dimension, got shape " + shape_string(workspace));
}

void check_weight_type(const PackedWeight& w, const char* name, DType activations) {
  if (w.dtype != DType::i8 && w.dtype != activations)
    throw TypeError(std::string(name) + ": expected " + dtype_name(activations) +
                    " weights (the activations' type) or int8, got " + dtype_name(w.dtype));
}

void check_batch(const Batch& batch, const KVCache& cache, int64_t d, DType activations, Device device) {
  const int64_t seqs = batch.num_seqs();
  for (const TensorView* t : {&batch.query_start, &batch.seq_lens, &batch.page_table}) {
    check_dtype(*t, {DType::i32});
    check_device(*t, device);
  }
  check_shape(batch.query_start, {seqs + 1});
  check_shape(batch.seq_lens, {seqs});
  check_shape(batch.page_table, {seqs, -1});
  check_contiguous(batch.query_start);
  check_contiguous(batch.seq_lens);
  check_rows_contiguous(batch.page_table);
  activation_type(cache.pages);
  check_dtype(cache.pages, {activations});
  check_shape(cache.pages, {-1, kPage, 2 * d});
  check_contiguous(cache.pages);
  check_device(cache.pages, device);
  if (batch.max_seq_len < 0 || batch.max_seq_len > INT32_MAX)
    throw ValueError("max_seq_len: expected 0 to 2^31 - 1, got " + std::to_string(batch.max_seq_len));
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
