#include "product.h"

namespace codegen_fast::cpu {

int64_t ProductScratch::bytes(int64_t rows, const PackedWeight& w, bool with_norm) {
  int64_t n = with_norm ? round_up(rows * w.in_features() * 4, 64) : 0;
  if (w.dtype == DType::i8) n += round_up(rows * stored_columns(w), 64) + round_up(rows * num_groups(w) * 4, 64);
  return n;
}

ProductScratch::ProductScratch(const TensorView& workspace, int64_t rows, const PackedWeight& w, bool with_norm) {
  char* at = workspace.as<char>();
  if (with_norm) {
    normed = reinterpret_cast<float*>(at);
    at += round_up(rows * w.in_features() * 4, 64);
  }
  if (w.dtype == DType::i8) {
    q = reinterpret_cast<int8_t*>(at);
    at += round_up(rows * stored_columns(w), 64);
    q_scales = reinterpret_cast<float*>(at);
    at += round_up(rows * num_groups(w) * 4, 64);
  }
  rest = at;
}

void check_workspace(const TensorView& workspace, int64_t bytes) {
  check_dtype(workspace, {DType::u8});
  check_contiguous(workspace);
  if (bytes) check_alignment(workspace, 16);
  if (workspace.ndim != 1 || workspace.numel() < bytes)
    throw ValueError(std::string(workspace.name) + ": expected at least " + std::to_string(bytes) +
                     " bytes in one dimension, got shape " + shape_string(workspace));
}

void check_norm(const Norm& norm, int64_t d, Device device) {
  for (const TensorView* t : {&norm.weight, &norm.bias}) {
    check_dtype(*t, {DType::f32});
    check_shape(*t, {d});
    check_contiguous(*t);
    check_device(*t, device);
  }
}

void check_activations(const TensorView& x, int64_t rows, int64_t columns, Device device) {
  check_dtype(x, {DType::f32});
  check_shape(x, {rows, columns});
  check_rows_contiguous(x);
  check_device(x, device);
}

void check_output(const TensorView& x, int64_t rows, int64_t columns, Device device) {
  check_activations(x, rows, columns, device);
  check_output_rows(x);
}

void quantize_activations(TensorView& q, TensorView& scales, const TensorView& x, const PackedWeight& w) {
  check_packed(w, "weight", x.device);
  check_activations(x, -1, w.in_features(), w.data.device);
  if (w.dtype != DType::i8) throw TypeError(std::string("weight: expected int8, got ") + dtype_name(w.dtype));
  check_dtype(q, {DType::i8});
  check_shape(q, {x.shape[0], stored_columns(w)});
  check_contiguous(q);
  check_dtype(scales, {DType::f32});
  check_shape(scales, {x.shape[0], num_groups(w)});
  check_contiguous(scales);

  TensorView none;
  ProductScratch scratch(none, 0, w, false);
  scratch.q = q.as<int8_t>();
  scratch.q_scales = scales.as<float>();
  prepare_rows([&](int64_t t) { return x.as<float>() + t * x.strides[0]; }, x.shape[0], x.strides[0], nullptr, w,
               scratch);
}

}  // namespace codegen_fast::cpu
