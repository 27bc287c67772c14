// LayerNorm of a row of activations by 256 threads: the one place where a row is normalised, so that a row has the
// same bits whoever asks (a product's prologue, a kernel of its own, prefill, decode).
//
// Thread i owns the elements 8 i + j of every 2048 and adds them in their order; the threads of a warp are added by a
// butterfly, the eight warps in their order. The variance is that of the differences to the mean (two passes).
#pragma once

#include "intrinsics.h"
#include "layout.h"

namespace codegen_fast::cuda {

constexpr int kRowThreads = 256;  // thread 0 .. 255 of a block; others of the block take no part
constexpr int kRowBarrier = 1;    // the named barrier that they use
constexpr int kRowVector = 8;     // elements that a thread takes at a time
constexpr int kRowStep = kRowThreads * kRowVector;
constexpr int kRowHeld = 2;       // vectors of a row that a thread keeps in registers; what is beyond is read again
constexpr int kRowScratch = 2 * kRowThreads / kWarp;  // floats of shared memory that normalize_row() needs

struct NormWeights {
  const float* weight;
  const float* bias;
  float eps;
};

// Rows of activations as the products read them: row m is x[index ? index[m] : m], of which there are num_rows.
template <class T>
struct Rows {
  const T* x;
  int64_t stride;        // in elements
  const int32_t* index;  // or null
  int num_rows;

  // Null for a row that does not exist.
  CODEGEN_FAST_DEVICE const T* row(int m) const {
    const int at = index ? index[m] : m;
    return at < 0 || at >= num_rows ? nullptr : x + at * stride;
  }
};

CODEGEN_FAST_BOTH inline bool is_aligned(const void* p, int bytes) {
  return (reinterpret_cast<uintptr_t>(p) & (bytes - 1)) == 0;
}

CODEGEN_FAST_DEVICE bool takes_vectors(const void* row, int columns) {
  return columns % kRowVector == 0 && is_aligned(row, 16);
}

// Eight elements of a row from `first` on, zeros behind its end. vector: takes_vectors(row).
template <class T>
CODEGEN_FAST_DEVICE void load_elements(float (&v)[kRowVector], const T* row, int first, int columns, bool vector) {
  if (!vector || first >= columns) {
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) v[i] = first + i < columns ? to_float(row[first + i]) : 0.0f;
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Bytes16 b = load16(row + first + 4 * half);
      for (int i = 0; i < 4; ++i) v[4 * half + i] = bits_to_float(b.v[i]);
    }
  } else {
    const Bytes16 b = load16(row + first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = low_float<T>(b.v[i]);
      v[2 * i + 1] = high_float<T>(b.v[i]);
    }
  }
}

// Sum over the threads, known to all of them afterwards. scratch (8,).
CODEGEN_FAST_DEVICE float sum_over_threads(float v, float* scratch) {
#pragma unroll
  for (int mask = kWarp / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  if (lane_id() == 0) scratch[warp_id()] = v;
  sync_threads(kRowBarrier, kRowThreads);
  v = scratch[0];
#pragma unroll
  for (int w = 1; w < kRowThreads / kWarp; ++w) v += scratch[w];
  return v;
}

// What a thread keeps of a norm's weights. They are weights: it may be made before dependency_wait().
struct NormHeld {
  float weight[kRowHeld][kRowVector], bias[kRowHeld][kRowVector];

  CODEGEN_FAST_DEVICE NormHeld(const NormWeights& norm, int columns) {
    const int own = threadIdx.x * kRowVector;
#pragma unroll
    for (int j = 0; j < kRowHeld; ++j) {
      load_elements(weight[j], norm.weight, own + j * kRowStep, columns, takes_vectors(norm.weight, columns));
      load_elements(bias[j], norm.bias, own + j * kRowStep, columns, takes_vectors(norm.bias, columns));
    }
  }
};

// layer_norm(x), rounded to T; a null x gives NaN. sink(first, Bytes16) takes the elements first .. first + 8, for
// every multiple of 8 below `padded` (a multiple of 8, at least `columns`); elements behind the row's end are zeros.
// Calls may follow one another without a barrier between.
template <class T, class Sink>
CODEGEN_FAST_DEVICE void normalize_row(const T* x, int columns, int padded, const NormWeights& norm,
                                       const NormHeld& held, float* scratch, const Sink& sink) {
  const bool vector = takes_vectors(x, columns);
  const int own = threadIdx.x * kRowVector, rest = own + kRowHeld * kRowStep, end = x ? columns : 0;
  float kept[kRowHeld][kRowVector], v[kRowVector];

  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kRowHeld; ++j) load_elements(kept[j], x, own + j * kRowStep, end, vector);
#pragma unroll
  for (int j = 0; j < kRowHeld; ++j)
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) sum += kept[j][i];
#pragma unroll 1
  for (int first = rest; first < end; first += kRowStep) {
    load_elements(v, x, first, end, vector);
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) sum += v[i];
  }
  sum = sum_over_threads(sum, scratch);
  const float mean = x ? divide(sum, static_cast<float>(columns)) : bits_to_float(0x7fc00000u);  // NaN

  float square = 0.0f;
  auto add_square = [&](const float(&w)[kRowVector], int first) {
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) {
      const float difference = w[i] - mean;
      if (first + i < columns) square = fmaf(difference, difference, square);
    }
  };
#pragma unroll
  for (int j = 0; j < kRowHeld; ++j) add_square(kept[j], own + j * kRowStep);
#pragma unroll 1
  for (int first = rest; first < end; first += kRowStep) {
    load_elements(v, x, first, end, vector);
    add_square(v, first);
  }
  const float variance = divide(sum_over_threads(square, scratch + kRowThreads / kWarp), static_cast<float>(columns));
  const float scale = divide(1.0f, square_root(variance + norm.eps));

  using Vector = float[kRowVector];
  auto put = [&](const Vector& w, const Vector& weight, const Vector& bias, int first) {
    Bytes16 packed;
#pragma unroll
    for (int i = 0; i < kRowVector; i += 2) {
      const float low = fmaf((w[i] - mean) * scale, weight[i], bias[i]);
      const float high = fmaf((w[i + 1] - mean) * scale, weight[i + 1], bias[i + 1]);
      packed.v[i / 2] = pack2<T>(first + i < columns ? low : 0.0f, first + i + 1 < columns ? high : 0.0f);
    }
    sink(first, packed);
  };
#pragma unroll
  for (int j = 0; j < kRowHeld; ++j)
    if (own + j * kRowStep < padded) put(kept[j], held.weight[j], held.bias[j], own + j * kRowStep);
#pragma unroll 1
  for (int first = rest; first < padded; first += kRowStep) {
    float weight[kRowVector], bias[kRowVector];
    load_elements(v, x, first, end, vector);
    load_elements(weight, norm.weight, first, columns, takes_vectors(norm.weight, columns));
    load_elements(bias, norm.bias, first, columns, takes_vectors(norm.bias, columns));
    put(v, weight, bias, first);
  }
}

}  // namespace codegen_fast::cuda
