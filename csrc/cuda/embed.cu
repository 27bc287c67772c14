// Stage 0: token ids to rows; and LayerNorm on its own, for hidden states.
#include "checks.h"
#include "columns.cuh"
#include "launch.h"

namespace codegen_fast::cuda {
namespace {

template <class T, class S>
struct EmbedParams {
  T* x;
  int64_t stride;
  const int64_t* ids;
  const S* wte;
  int64_t vocab_size;
  int columns;
};

template <class T, class S>
__global__ void __launch_bounds__(kRowThreads) embed_kernel(EmbedParams<T, S> p) {
  dependency_launch();
  dependency_wait();
  const int64_t id = p.ids[blockIdx.x];
  const bool known = id >= 0 && id < p.vocab_size;
  const S* from = p.wte + (known ? id : 0) * p.columns;
  for (int first = threadIdx.x * kRowVector; first < p.columns; first += kRowStep) {
    float v[kRowVector];
    if (known) load_columns(v, from, first, p.columns);
    else for (int i = 0; i < kRowVector; ++i) v[i] = bits_to_float(0x7fc00000u);  // NaN
    store_columns(p.x + blockIdx.x * p.stride, v, first, p.columns);
  }
}

template <class T>
struct LayerNormParams {
  T* out;
  int64_t out_stride;
  const T* x;
  int64_t x_stride;
  int columns;
  NormWeights norm;
};

template <class T>
__global__ void __launch_bounds__(kRowThreads) layer_norm_kernel(LayerNormParams<T> p) {
  const NormHeld held(p.norm, p.columns);
  dependency_launch();
  dependency_wait();
  const T* x = p.x + blockIdx.x * p.x_stride;
  T* out = p.out + blockIdx.x * p.out_stride;
  normalize_row(x, p.columns, round_up(p.columns, kRowVector), p.norm, held, reinterpret_cast<float*>(shared_memory()),
                [&](int first, Bytes16 packed) { store_columns(out, packed, first, p.columns); });
}

template <class T>
void embed_as(TensorView& x, const TensorView& ids, const TensorView& wte) {
  auto run = [&](auto s) {
    using S = decltype(s);
    const EmbedParams<T, S> params{x.as<T>(), x.strides[0], ids.as<int64_t>(), wte.as<S>(), wte.shape[0],
                                   to_int(wte.shape[1], "columns of wte")};
    Grid grid{dim3(to_int(ids.shape[0], "num_tokens")), kRowThreads};
    grid.depends = false;  // the first kernel of a step: the steps before it and their copies have ended
    launch("embed", embed_kernel<T, S>, grid, params);
  };
  if (wte.dtype == DType::f32) run(float{});
  else if (wte.dtype == DType::f16) run(f16{});
  else run(bf16{});
}

template <class T>
void layer_norm_as(TensorView& out, const TensorView& x, const Norm& norm) {
  const LayerNormParams<T> params{out.as<T>(), out.strides[0], x.as<T>(), x.strides[0],
                                  to_int(x.shape[1], "columns of x"),
                                  {norm.weight.as<float>(), norm.bias.as<float>(), norm.eps}};
  Grid grid{dim3(to_int(x.shape[0], "num_tokens")), kRowThreads};
  grid.shared_bytes = kRowScratch * sizeof(float);
  launch("layer_norm", layer_norm_kernel<T>, grid, params);
}

}  // namespace

void embed(TensorView& x, const TensorView& ids, const TensorView& wte) {
  check_embed(kRules, x, ids, wte);
  if (x.dtype == DType::f16) embed_as<f16>(x, ids, wte);
  else embed_as<bf16>(x, ids, wte);
}

void layer_norm(TensorView& out, const TensorView& x, const Norm& norm) {
  check_layer_norm(kRules, out, x, norm);
  if (x.dtype == DType::f16) layer_norm_as<f16>(out, x, norm);
  else layer_norm_as<bf16>(out, x, norm);
}

}  // namespace codegen_fast::cuda
