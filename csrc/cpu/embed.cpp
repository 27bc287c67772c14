// Stage 0: token ids to rows; and LayerNorm on its own, for hidden states.
#include "product.h"

namespace codegen_fast::cpu {

void embed(TensorView& x, const TensorView& ids, const TensorView& wte) {
  const Device device = ids.device;
  check_dtype(ids, {DType::i64});
  check_shape(ids, {-1});
  check_contiguous(ids);
  check_dtype(wte, {DType::f32, DType::f16, DType::bf16});
  check_shape(wte, {-1, -1});
  check_contiguous(wte);
  check_device(wte, device);
  const int64_t tokens = ids.shape[0], vocab_size = wte.shape[0], d = wte.shape[1];
  check_output(x, tokens, d, device);

  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t id = ids.as<int64_t>()[t];
    float* out = x.as<float>() + t * x.strides[0];
    if (id < 0 || id >= vocab_size)
      for (int64_t i = 0; i < d; ++i) out[i] = __builtin_nanf("");
    else
      kernels().to_f32(out, wte.as<char>() + id * d * dtype_bytes(wte.dtype), wte.dtype, d);
  }
}

void layer_norm(TensorView& out, const TensorView& x, const Norm& norm) {
  const Device device = x.device;
  check_shape(x, {-1, -1});
  const int64_t tokens = x.shape[0], d = x.shape[1];
  check_activations(x, tokens, d, device);
  check_output(out, tokens, d, device);
  check_norm(norm, d, device);

  for (int64_t t = 0; t < tokens; ++t)
    kernels().layer_norm(out.as<float>() + t * out.strides[0], x.as<float>() + t * x.strides[0],
                         norm.weight.as<float>(), norm.bias.as<float>(), norm.eps, d);
}

}  // namespace codegen_fast::cpu
