// Stage 0: token ids to rows; and LayerNorm on its own, for hidden states.
#include "checks.h"
#include "product.h"

namespace codegen_fast::cpu {

void embed(TensorView& x, const TensorView& ids, const TensorView& wte) {
  check_embed(kRules, x, ids, wte);
  const int64_t tokens = ids.shape[0], vocab_size = wte.shape[0], d = wte.shape[1];

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
  check_layer_norm(kRules, out, x, norm);
  const int64_t tokens = x.shape[0], d = x.shape[1];

  for (int64_t t = 0; t < tokens; ++t)
    kernels().layer_norm(out.as<float>() + t * out.strides[0], x.as<float>() + t * x.strides[0],
                         norm.weight.as<float>(), norm.bias.as<float>(), norm.eps, d);
}

}  // namespace codegen_fast::cpu
