#include "checks.h"

#include "kernels/table.h"

namespace codegen_fast::cpu {
namespace {

DType activation_type(const TensorView& x) {
  check_dtype(x, {DType::f32});
  return x.dtype;
}

void check_page_type(const TensorView& pages) { check_dtype(pages, {DType::f32, DType::f16, DType::bf16}); }

void check_weight_type(const PackedWeight& w, const char* name) {
  if (w.dtype != DType::f32 && w.dtype != DType::f16 && w.dtype != DType::bf16 && w.dtype != DType::i8 &&
      w.dtype != DType::i4)
    throw TypeError(std::string(name) + ": expected float32, float16, bfloat16, int8 or int4 weights, got " +
                    dtype_name(w.dtype));
}

void check_head_dim(int64_t head_dim) {
  if (head_dim > kMaxHeadDim)
    throw ValueError("n_head: heads of " + std::to_string(head_dim) + " dimensions, at most " +
                     std::to_string(kMaxHeadDim) + " are supported");
}

}  // namespace

const BackendRules kRules{.activation_type = activation_type,
                          .one_type = false,
                          .check_page_type = check_page_type,
                          .check_weight_type = check_weight_type,
                          .check_head_dim = check_head_dim,
                          .copied_page_alignment = 1,
                          .packed_weight_bytes = packed_weight_bytes,
                          .packed_weight_scales = packed_weight_scales,
                          .kv_page_size = kv_page_size,
                          .activation_group = activation_group,
                          .activation_padding = activation_padding};

}  // namespace codegen_fast::cpu
