// Activations made ready for the prefill product: normalised or as they are, padded, and quantised for int8 weights.
// A block takes a row.
#include "checks.h"
#include "columns.cuh"
#include "launch.h"
#include "product_prefill.h"
#include "quantize.cuh"

namespace codegen_fast::cuda {
namespace {

template <class T>
struct RowParams {
  Rows<T> x;
  int num_segments;
  int columns[PackedWeight::kMaxSegments];  // of each segment
  int padded;    // columns of an output row
  char* out;     // (rows, padded) of T or int8
  float* scales; // (rows, segments), int8 only
  NormWeights norm;  // of rows that are normalised: they have one segment

  // An index known only at run time would make the compiler keep a copy of the parameters in local memory.
  CODEGEN_FAST_DEVICE int columns_of(int segment) const { return segment == 0 ? columns[0] : columns[1]; }
};
static_assert(PackedWeight::kMaxSegments == 2, "columns_of() knows two segments");

// Rows of T.
template <class T>
__global__ void __launch_bounds__(kRowThreads) normalize_kernel(RowParams<T> p) {
  const NormHeld held(p.norm, p.columns[0]);
  dependency_launch();
  dependency_wait();
  T* out = reinterpret_cast<T*>(p.out) + int64_t{blockIdx.x} * p.padded;
  normalize_row(p.x.row(blockIdx.x), p.columns[0], p.padded, p.norm, held, reinterpret_cast<float*>(shared_memory()),
                [&](int first, Bytes16 packed) { store16(out + first, packed); });
}

template <class T>
__global__ void __launch_bounds__(kRowThreads) copy_kernel(RowParams<T> p) {
  dependency_launch();
  dependency_wait();
  const T* x = p.x.row(blockIdx.x);
  T* out = reinterpret_cast<T*>(p.out) + int64_t{blockIdx.x} * p.padded;
  for (int s = 0; s < p.num_segments; ++s) {
    const int columns = p.columns_of(s), padded = round_up(columns, kChunk);
    for (int first = threadIdx.x * kRowVector; first < padded; first += kRowStep) {
      float v[kRowVector];
      load_columns(v, x, first, columns);
      store16(out + first, pack_columns<T>(v));
    }
    x += columns;
    out += padded;
  }
}

// Quantises a row of T segment by segment. scratch (kMaxSegments, 8) is used once. ByCore: in the order of byte_of(),
// into aligned memory; else in the columns' order, into any.
template <bool ByCore, class T>
CODEGEN_FAST_DEVICE void quantize_row(const RowParams<T>& p, const T* x, uint32_t* scratch) {
  constexpr int kCoreColumns = 16, kWarps = kRowThreads / kWarp;
  char* q = p.out + int64_t{blockIdx.x} * p.padded;
  for (int s = 0; s < p.num_segments; ++s) {
    const int columns = p.columns_of(s), padded = round_up(columns, kChunk);
    uint32_t largest = 0;
    for (int first = threadIdx.x * kRowVector; first < columns; first += kRowStep) {
      float v[kRowVector];
      load_columns(v, x, first, columns);
      for (int i = 0; i < kRowVector; ++i) largest = max(largest, magnitude_bits(v[i]));
    }
    largest = largest_in_warp(largest);
    if (lane_id() == 0) scratch[s * kWarps + warp_id()] = largest;
    sync_threads();
    for (int w = 0; w < kWarps; ++w) largest = max(largest, scratch[s * kWarps + w]);
    const Quantizer quantizer = quantizer_of(largest);
    if (threadIdx.x == 0) p.scales[int64_t{blockIdx.x} * p.num_segments + s] = quantizer.scale;
    for (int first = threadIdx.x * kCoreColumns; first < padded; first += kRowThreads * kCoreColumns) {
      float low[kRowVector], high[kRowVector];
      load_columns(low, x, first, columns);
      load_columns(high, x, first + kRowVector, columns);
      if constexpr (ByCore) {
        store16(q + first, quantize_core(low, high, quantizer.inverse));
      } else {
        for (int i = 0; i < kRowVector; ++i) {
          q[first + i] = static_cast<char>(quantize(low[i], quantizer.inverse));
          q[first + kRowVector + i] = static_cast<char>(quantize(high[i], quantizer.inverse));
        }
      }
    }
    x += columns;
    q += padded;
  }
}

constexpr int kQuantizeScratch = PackedWeight::kMaxSegments * kRowThreads / kWarp * sizeof(uint32_t);

template <bool ByCore, class T>
__global__ void __launch_bounds__(kRowThreads) quantize_kernel(RowParams<T> p) {
  dependency_wait();
  dependency_launch();
  quantize_row<ByCore>(p, p.x.row(blockIdx.x), reinterpret_cast<uint32_t*>(shared_memory()));
}

// Shared memory: the row as layer_norm() gives it, then scratch.
template <class T>
__global__ void __launch_bounds__(kRowThreads) normalize_quantize_kernel(RowParams<T> p) {
  T* row = reinterpret_cast<T*>(shared_memory());
  uint32_t* largest = reinterpret_cast<uint32_t*>(row + p.padded);
  float* sums = reinterpret_cast<float*>(largest) + kQuantizeScratch / sizeof(float);
  const NormHeld held(p.norm, p.columns[0]);
  dependency_launch();
  dependency_wait();
  normalize_row(p.x.row(blockIdx.x), p.columns[0], p.padded, p.norm, held, sums,
                [&](int first, Bytes16 packed) { store16(row + first, packed); });
  sync_threads();
  quantize_row<true>(p, row, largest);
}

// ---- Host --------------------------------------------------------------------------------------

int64_t row_bytes(const PackedWeight& w) { return padded_columns(w) * dtype_bytes(w.dtype); }

// Where rows made in `workspace` lie.
PrefillRows rows_in(void* workspace, int64_t tokens, const PackedWeight& w) {
  char* data = static_cast<char*>(workspace);
  return {data, row_bytes(w), reinterpret_cast<const float*>(data + tokens * row_bytes(w))};
}

template <class T>
RowParams<T> params_of(const TensorView& x, const TensorView* index, const PackedWeight& w, void* out,
                       const float* scales) {
  RowParams<T> p = {};
  p.x = {x.as<T>(), x.strides[0], index ? index->as<int32_t>() : nullptr, to_int(x.shape[0], "num_tokens")};
  p.num_segments = w.num_segments;
  for (int s = 0; s < w.num_segments; ++s) p.columns[s] = to_int(w.segment_cols[s], "columns of a segment");
  p.padded = to_int(padded_columns(w), "columns");
  p.out = static_cast<char*>(out);
  p.scales = const_cast<float*>(scales);
  return p;
}

template <class T>
void launch_normalized(const TensorView& x, const TensorView* index, const Norm& norm, const PackedWeight& w,
                       const PrefillRows& rows) {
  RowParams<T> p = params_of<T>(x, index, w, const_cast<char*>(rows.data), rows.scales);
  p.norm = {norm.weight.as<float>(), norm.bias.as<float>(), norm.eps};
  Grid grid{dim3(to_int(index ? index->shape[0] : x.shape[0], "num_tokens")), kRowThreads};
  grid.shared_bytes = kRowScratch * sizeof(float);
  if (w.dtype != DType::i8) return launch("normalized_rows", normalize_kernel<T>, grid, p);
  grid.shared_bytes += p.padded * sizeof(T) + kQuantizeScratch;
  launch("normalized_rows", normalize_quantize_kernel<T>, grid, p);
}

template <class T>
void launch_plain(const TensorView& x, const PackedWeight& w, const PrefillRows& rows) {
  const RowParams<T> p = params_of<T>(x, nullptr, w, const_cast<char*>(rows.data), rows.scales);
  Grid grid{dim3(p.x.num_rows), kRowThreads};
  if (w.dtype != DType::i8) return launch("plain_rows", copy_kernel<T>, grid, p);
  grid.shared_bytes = kQuantizeScratch;
  launch("plain_rows", quantize_kernel<true, T>, grid, p);
}

}  // namespace

int64_t activation_group(const PackedWeight&) { return 0; }
int64_t activation_padding() { return kChunk; }

int64_t prefill_rows_bytes(int64_t tokens, const PackedWeight& w) {
  const int64_t scales = w.dtype == DType::i8 ? tokens * w.num_segments * int64_t{sizeof(float)} : 0;
  return tokens * row_bytes(w) + round_up<int64_t>(scales, 16);
}

PrefillRows normalized_rows(const TensorView& x, const TensorView* index, const Norm& norm, const PackedWeight& w,
                            void* workspace) {
  const PrefillRows rows = rows_in(workspace, index ? index->shape[0] : x.shape[0], w);
  if (x.dtype == DType::f16) launch_normalized<f16>(x, index, norm, w, rows);
  else launch_normalized<bf16>(x, index, norm, w, rows);
  return rows;
}

PrefillRows plain_rows(const TensorView& x, const PackedWeight& w, void* workspace) {
  const int64_t stride = x.strides[0] * dtype_bytes(x.dtype);
  const bool as_it_lies = w.dtype != DType::i8 && x.shape[1] == padded_columns(w) && stride % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  if (as_it_lies) return {x.as<char>(), stride, nullptr};
  const PrefillRows rows = rows_in(workspace, x.shape[0], w);
  if (x.dtype == DType::f16) launch_plain<f16>(x, w, rows);
  else launch_plain<bf16>(x, w, rows);
  return rows;
}

void quantize_activations(TensorView& q, TensorView& scales, const TensorView& x, const PackedWeight& w) {
  check_quantize_activations(kRules, q, scales, x, w);

  auto run = [&](auto t) {
    using T = decltype(t);
    const RowParams<T> p = params_of<T>(x, nullptr, w, q.data, scales.as<float>());
    Grid grid{dim3(p.x.num_rows), kRowThreads};
    grid.shared_bytes = kQuantizeScratch;
    launch("quantize_activations", quantize_kernel<false, T>, grid, p);
  };
  if (x.dtype == DType::f16) run(f16{});
  else run(bf16{});
}

}  // namespace codegen_fast::cuda
