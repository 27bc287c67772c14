// Packing, quantisation and their inverses. A warp takes 8 rows x 4 cores of a panel at a time, lane i row i % 8 of
// core i / 8: what lies in the weight is then contiguous, and four lanes share a row of the caller's tensor.
#include "checks.h"
#include "columns.cuh"
#include "launch.h"
#include "quantize.cuh"

namespace codegen_fast::cuda {
namespace {

constexpr int kThreads = 256;  // of a block, which takes one panel; a warp a row where whole rows are read
constexpr int kLaneCores = kWarp / kPanel;
static_assert(kThreads / kWarp == kPanel, "a warp finds the largest value of its row");

// Rows of a panel that a call writes or reads: of the caller's tensor, row 0 lies in row `lane` of panel `panel`.
struct Range {
  int panel, lane, count;
  int columns;
  int64_t panel_bytes;
  char* data;      // of the segment, in panel 0
  float* scales;   // of the segment, for panel 0; i8 only

  // What the caller's row of this row of the block's panel is, or -1.
  CODEGEN_FAST_DEVICE int row_of(int r) const {
    const int row = static_cast<int>(blockIdx.x) * kPanel + r - lane;
    return row < 0 || row >= count ? -1 : row;
  }
  CODEGEN_FAST_DEVICE char* core(int index, int r) const {
    return data + (panel + static_cast<int64_t>(blockIdx.x)) * panel_bytes + int64_t{index} * kCore + r * 16;
  }
  CODEGEN_FAST_DEVICE float* scale(int r) const {
    return scales + (panel + static_cast<int64_t>(blockIdx.x)) * kPanel + r;
  }
};

// Calls f(core, r) for the cores of a panel, `Elements` columns each, and its rows.
template <int Elements, class F>
CODEGEN_FAST_DEVICE void for_cores(const Range& range, const F& f) {
  const int cores = ceil_div(range.columns, Elements);
  for (int core = warp_id() * kLaneCores + lane_id() / kPanel; core < cores; core += kThreads / kWarp * kLaneCores)
    f(core, lane_id() % kPanel);
}

// Counts of values that cannot be stored as they are.
struct Faults {
  int non_finite = 0, overflowed = 0;

  CODEGEN_FAST_DEVICE void count(const float (&v)[kRowVector], float bound) {
    for (int i = 0; i < kRowVector; ++i) {
      const bool finite = magnitude_bits(v[i]) < kInfinityBits;
      non_finite += !finite;
      overflowed += finite && fabsf(v[i]) >= bound;
    }
  }
  CODEGEN_FAST_DEVICE void add_to(int32_t* status) const {
    if (non_finite) atomic_add(status, non_finite);
    if (overflowed) atomic_add(status + 1, overflowed);
  }
};

// The magnitude from which a finite value rounds to infinity.
template <class T> constexpr float kOverflow = 65520.0f;
template <> constexpr float kOverflow<bf16> = 3.3961775e38f;  // halfway between the largest bfloat16 and 2^128

template <class S>
struct PackParams {
  Range range;
  const S* source;
  int64_t stride;
  int32_t* status;
};

template <class T, class S>
__global__ void __launch_bounds__(kThreads) pack_kernel(PackParams<S> p) {
  dependency_wait();
  dependency_launch();
  Faults faults;
  for_cores<8>(p.range, [&](int core, int r) {
    const int row = p.range.row_of(r);
    if (row < 0) return;
    float v[8];
    load_columns(v, p.source + row * p.stride, core * 8, p.range.columns);
    faults.count(v, kOverflow<T>);
    store16(p.range.core(core, r), pack_columns<T>(v));
  });
  faults.add_to(p.status);
}

template <class S>
__global__ void __launch_bounds__(kThreads) quantize_kernel(PackParams<S> p) {
  float* inverse = reinterpret_cast<float*>(shared_memory());  // (kPanel,)
  dependency_wait();
  dependency_launch();
  const int own = p.range.row_of(warp_id());
  if (own >= 0) {
    Faults faults;
    uint32_t largest = 0;
    for (int first = lane_id() * 8; first < p.range.columns; first += kWarp * 8) {
      float v[8];
      load_columns(v, p.source + own * p.stride, first, p.range.columns);
      faults.count(v, INFINITY);
      for (int i = 0; i < 8; ++i) largest = max(largest, magnitude_bits(v[i]));
    }
    faults.add_to(p.status);
    const Quantizer quantizer = quantizer_of(largest_in_warp(largest));
    if (lane_id() == 0) {
      inverse[warp_id()] = quantizer.inverse;
      *p.range.scale(warp_id()) = quantizer.scale;
    }
  }
  sync_threads();
  for_cores<16>(p.range, [&](int core, int r) {
    const int row = p.range.row_of(r);
    if (row < 0) return;
    float low[8], high[8];
    load_columns(low, p.source + row * p.stride, core * 16, p.range.columns);
    load_columns(high, p.source + row * p.stride, core * 16 + 8, p.range.columns);
    store16(p.range.core(core, r), quantize_core(low, high, inverse[r]));
  });
}

struct QuantizedParams {  // pack_quantized and its inverse
  Range range;
  int8_t* rows;
  int64_t stride;
  float* scales;
};

__global__ void __launch_bounds__(kThreads) pack_quantized_kernel(QuantizedParams p) {
  dependency_wait();
  dependency_launch();
  for_cores<16>(p.range, [&](int core, int r) {
    const int row = p.range.row_of(r);
    if (row < 0) return;
    const int8_t* from = p.rows + row * p.stride + core * 16;
    const int count = min(16, p.range.columns - core * 16);
    Bytes16 packed{};
    for (int k = 0; k < 16; ++k)
      if (k < count) packed.v[byte_of(k) / 4] |= (static_cast<uint32_t>(from[k]) & 0xffu) << byte_of(k) % 4 * 8;
    store16(p.range.core(core, r), packed);
    if (core == 0) *p.range.scale(r) = p.scales[row];
  });
}

__global__ void __launch_bounds__(kThreads) unpack_quantized_kernel(QuantizedParams p) {
  dependency_wait();
  dependency_launch();
  for_cores<16>(p.range, [&](int core, int r) {
    const int row = p.range.row_of(r);
    if (row < 0) return;
    int8_t* to = p.rows + row * p.stride + core * 16;
    const int count = min(16, p.range.columns - core * 16);
    const Bytes16 packed = load16(p.range.core(core, r));
    for (int k = 0; k < 16; ++k)
      if (k < count) to[k] = static_cast<int8_t>(packed.v[byte_of(k) / 4] >> byte_of(k) % 4 * 8);
    if (core == 0) p.scales[row] = *p.range.scale(r);
  });
}

template <class O>
struct UnpackParams {
  Range range;
  O* out;
  int64_t stride;
};

template <class T, class O>
__global__ void __launch_bounds__(kThreads) unpack_kernel(UnpackParams<O> p) {
  dependency_wait();
  dependency_launch();
  for_cores<8>(p.range, [&](int core, int r) {
    const int row = p.range.row_of(r);
    if (row < 0) return;
    const Bytes16 packed = load16(p.range.core(core, r));
    float v[8];
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = low_float<T>(packed.v[i]);
      v[2 * i + 1] = high_float<T>(packed.v[i]);
    }
    store_columns(p.out + row * p.stride, v, core * 8, p.range.columns);
  });
}

template <class O>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(UnpackParams<O> p) {
  dependency_wait();
  dependency_launch();
  for_cores<16>(p.range, [&](int core, int r) {
    const int row = p.range.row_of(r);
    if (row < 0) return;
    const Bytes16 packed = load16(p.range.core(core, r));
    const float scale = *p.range.scale(r);
    for (int half = 0; half < 16; half += 8) {
      float v[8];
      for (int i = 0; i < 8; ++i) {
        const int byte = byte_of(half + i);
        v[i] = scale * static_cast<float>(static_cast<int8_t>(packed.v[byte / 4] >> byte % 4 * 8));
      }
      store_columns(p.out + row * p.stride, v, core * 16 + half, p.range.columns);
    }
  });
}

// ---- Host --------------------------------------------------------------------------------------

// Calls f with a value of the element type: f32, f16 or bf16.
template <class F>
void for_type(DType type, F&& f) {
  if (type == DType::f32) f(float{});
  else if (type == DType::f16) f(f16{});
  else f(bf16{});
}

Range range_of(const PackedWeight& packed, int64_t section, int64_t row, int64_t segment, int64_t count) {
  const Weight w = weight_of(packed);
  Range r;
  r.panel = w.section_panel[section] + static_cast<int>(row / kPanel);
  r.lane = static_cast<int>(row % kPanel);
  r.count = static_cast<int>(count);
  r.columns = w.segment_columns[segment];
  r.panel_bytes = w.panel_bytes();
  r.data = packed.data.as<char>() + int64_t{w.segment_chunk[segment]} * w.chunk_bytes();
  r.scales = packed.dtype == DType::i8 ? packed.scales.as<float>() + segment * w.num_panels * kPanel : nullptr;
  return r;
}

Grid grid_of(const Range& r) {
  Grid grid{dim3(r.count ? ceil_div(r.lane + r.count, kPanel) : 0), kThreads};
  grid.shared_bytes = kPanel * sizeof(float);
  return grid;
}

}  // namespace

int64_t packed_weight_bytes(const PackedWeight& w) {
  if (w.dtype != DType::f16 && w.dtype != DType::bf16 && w.dtype != DType::i8)
    throw TypeError(std::string("weight: the CUDA backend holds weights as float16, bfloat16 or int8, not as ") +
                    dtype_name(w.dtype));
  const Weight sizes = weight_of(w);
  return sizes.num_panels * sizes.panel_bytes();
}

int64_t packed_weight_scales(const PackedWeight& w) {
  return w.dtype == DType::i8 ? int64_t{w.num_segments} * weight_of(w).num_panels * kPanel : 0;
}

void pack(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,
          TensorView& status) {
  check_pack(kRules, w, section, row, segment, source, status);

  const Range range = range_of(w, section, row, segment, source.shape[0]);
  for_type(source.dtype, [&](auto s) {
    using S = decltype(s);
    const PackParams<S> params{range, source.as<S>(), source.strides[0], status.as<int32_t>()};
    if (w.dtype == DType::i8) launch("pack", quantize_kernel<S>, grid_of(range), params);
    else if (w.dtype == DType::f16) launch("pack", pack_kernel<f16, S>, grid_of(range), params);
    else launch("pack", pack_kernel<bf16, S>, grid_of(range), params);
  });
}

void clear_packed(PackedWeight& w) {
  check_packed(kRules, w, "weight", w.data.device);
  check_call(cudaMemsetAsync(w.data.data, 0, w.data.numel(), StreamScope::stream()), "clear_packed");
  if (w.dtype != DType::i8) return;
  const size_t bytes = w.scales.numel() * sizeof(float);
  check_call(cudaMemsetAsync(w.scales.data, 0, bytes, StreamScope::stream()), "clear_packed");
}

void pack_quantized(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,
                    const TensorView& scales) {
  check_pack_quantized(kRules, w, section, row, segment, source, scales);

  const Range range = range_of(w, section, row, segment, source.shape[0]);
  const QuantizedParams params{range, source.as<int8_t>(), source.strides[0], scales.as<float>()};
  launch("pack_quantized", pack_quantized_kernel, grid_of(range), params);
}

void unpack(TensorView& out, TensorView& out_scales, const PackedWeight& w, int64_t section, int64_t row,
            int64_t segment) {
  check_unpack(kRules, out, out_scales, w, section, row, segment);

  const Range range = range_of(w, section, row, segment, out.shape[0]);
  if (out.dtype == DType::i8) {
    const QuantizedParams params{range, out.as<int8_t>(), out.strides[0], out_scales.as<float>()};
    launch("unpack", unpack_quantized_kernel, grid_of(range), params);
    return;
  }
  for_type(out.dtype, [&](auto o) {
    using O = decltype(o);
    const UnpackParams<O> params{range, out.as<O>(), out.strides[0]};
    if (w.dtype == DType::i8) launch("unpack", dequantize_kernel<O>, grid_of(range), params);
    else if (w.dtype == DType::f16) launch("unpack", unpack_kernel<f16, O>, grid_of(range), params);
    else launch("unpack", unpack_kernel<bf16, O>, grid_of(range), params);
  });
}

}  // namespace codegen_fast::cuda
