// What becomes of a product's sums: the three epilogues that the decode and the prefill products share.
//
// An epilogue takes the sums v0, v1 (float32, int8's scales already in) of one token and of rows row, row + 1 (row
// even) of a panel, in two steps, so that what it reads can be on its way before the sums are ready:
//   Inputs load(Place, int token, int panel, int row)      reads operands; never what the same kernel writes elsewhere
//   void store(Inputs, Place, int token, float v0, float v1)
// or both at once as operator()(Place, token, panel, row, v0, v1). Rows behind a section's end are skipped inside.
// It also says what its op's product is like:
//   kPlaces      place_of(token) tells where a token stands (it reads the batch: after dependency_wait(), once a token,
//                into a table in shared memory); elsewhere the Place is not looked at
//   kNormalized  the rows of activations may have to be normalised
//   kSegments    segments that the weights have at most
#pragma once

#include <cmath>

#include "intrinsics.h"
#include "layout.h"
#include "rows.cuh"

namespace codegen_fast::cuda {

// Where a new token of the call stands. An idle token has position -1.
struct Place {
  int32_t position;
  int32_t page;
};

// The place of a token, or idle: none of a sequence's tokens, a negative position, one past num_positions, or no page.
CODEGEN_FAST_DEVICE Place find_place(const Sequences& s, int token, int num_positions, int num_pages) {
  constexpr Place idle{-1, -1};
  if (token >= s.num_tokens || s.num_seqs == 0) return idle;
  // Most steps of decoding have one token a sequence: then this is right, and the three loads wait for none.
  int b = min(token, s.num_seqs - 1), begin = s.query_start[b], end = s.query_start[b + 1], length = s.seq_lens[b];
  if (token < begin || token >= end) {
    b = 0;
    for (int behind = s.num_seqs; behind - b > 1;) {
      const int middle = (b + behind) / 2;
      if (s.query_start[middle] <= token) b = middle;
      else behind = middle;
    }
    begin = s.query_start[b];
    end = s.query_start[b + 1];
    length = s.seq_lens[b];
    if (token < begin || token >= end) return idle;
  }
  const int64_t position = int64_t{length} - end + token;
  if (position < 0 || position >= num_positions || position / kPage >= s.max_pages) return idle;
  const int page = s.page_table[b * s.page_table_stride + position / kPage];
  if (page < 0 || page >= num_pages) return idle;
  return {static_cast<int32_t>(position), page};
}

// to[0] = v0 and, where there is a second, to[1] = v1.
template <class T>
CODEGEN_FAST_DEVICE void store_pair(T* to, float v0, float v1, bool second) {
  if (second && is_aligned(to, 4)) {
    store4(to, pack2<T>(v0, v1));
  } else {
    to[0] = from_float<T>(v0);
    if (second) to[1] = from_float<T>(v1);
  }
}

// gelu_new(x) = x / 2 (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3).
CODEGEN_FAST_DEVICE float gelu_new(float x) {
  const float inner = x * fmaf(x * x, 0.044715f, 1.0f);
  const float down = 1.0f + exp2_fast(inner * -2.302208198f);  // -2 sqrt(2/pi) log2(e)
  return x == -INFINITY ? -0.0f : divide(x, down);
}

// W_in: q and k turn by their position, q goes to q_out, k and v to the cache, fc_in through bias and gelu to act.
template <class T>
struct InputEpilogue {
  Weight w;
  T* q;  // (T, d)
  int64_t q_stride;
  T* act;  // (T, F): act of the op from column d on
  int64_t act_stride;
  Pages pages;
  const float* bias;    // (F,)
  const float* rotary;  // (num_positions, rotary_dim)
  int rotary_dim;
  int num_positions;
  Sequences sequences;

  struct Inputs {
    int section;  // -1: no such row
    int row;      // of the section
    bool second;  // row + 1 exists
    float a, b;   // cosine and sine, or the bias
  };
  static constexpr bool kPlaces = true, kNormalized = true;
  static constexpr int kSegments = 1;
  CODEGEN_FAST_DEVICE Place place_of(int token) const {
    return find_place(sequences, token, num_positions, pages.num_pages);
  }

  CODEGEN_FAST_DEVICE Inputs load(Place place, int, int panel, int row) const {
    const int section = w.section_of(panel), rows = w.section_rows[section];
    row += (panel - w.section_panel[section]) * kPanel;
    if (row >= rows) return {-1, 0, false, 0.0f, 0.0f};
    Inputs in{section, row, row + 1 < rows, 1.0f, 0.0f};
    if (section == 3) {
      in.a = bias[row];
      if (in.second) in.b = bias[row + 1];
    } else if (section < 2 && place.position >= 0) {
      const int dim = row % pages.head_dim;
      if (dim < rotary_dim) {
        const float* turn = rotary + int64_t{place.position} * rotary_dim + dim / 2;
        in.a = turn[0];
        in.b = turn[rotary_dim / 2];
      }
    }
    return in;
  }

  CODEGEN_FAST_DEVICE void store(const Inputs& in, Place place, int token, float v0, float v1) const {
    if (in.section < 0) return;
    if (in.section == 3) {
      store_pair(act + token * act_stride + in.row, gelu_new(v0 + in.a), gelu_new(v1 + in.b), in.second);
      return;
    }
    if (in.section < 2) {
      const float even = v0, odd = v1;
      v0 = fmaf(even, in.a, -(odd * in.b));
      v1 = fmaf(odd, in.a, even * in.b);
    }
    if (in.section == 0) {
      store_pair(q + token * q_stride + in.row, v0, v1, true);
    } else if (place.position >= 0) {
      const int head = in.row / pages.head_dim, dim = in.row % pages.head_dim;
      T* block = reinterpret_cast<T*>(pages.at(place.page, head, in.section - 1));
      store_pair(block + place.position % kPage * pages.head_dim + dim, v0, v1, true);
    }
  }

  CODEGEN_FAST_DEVICE void operator()(Place place, int token, int panel, int row, float v0, float v1) const {
    store(load(place, token, panel, row), place, token, v0, v1);
  }
};

// W_out: x += sum + bias.
template <class T>
struct OutputEpilogue {
  T* x;  // (T, rows), in place
  int64_t x_stride;
  const float* bias;  // (rows,)
  int rows;

  struct Inputs {
    int row;  // -1: no such row
    bool second;
    float x0, x1, bias0, bias1;
  };
  static constexpr bool kPlaces = false, kNormalized = false;
  static constexpr int kSegments = 2;

  CODEGEN_FAST_DEVICE Inputs load(Place, int token, int panel, int row) const {
    row += panel * kPanel;
    if (row >= rows) return {-1, false, 0.0f, 0.0f, 0.0f, 0.0f};
    const T* from = x + token * x_stride + row;
    Inputs in{row, row + 1 < rows, 0.0f, 0.0f, bias[row], 0.0f};
    if (in.second) in.bias1 = bias[row + 1];
    if (in.second && is_aligned(from, 4)) {
      const uint32_t pair = load4(from);
      in.x0 = low_float<T>(pair);
      in.x1 = high_float<T>(pair);
    } else {
      in.x0 = to_float(from[0]);
      if (in.second) in.x1 = to_float(from[1]);
    }
    return in;
  }

  CODEGEN_FAST_DEVICE void store(const Inputs& in, Place, int token, float v0, float v1) const {
    if (in.row < 0) return;
    store_pair(x + token * x_stride + in.row, in.x0 + (v0 + in.bias0), in.x1 + (v1 + in.bias1), in.second);
  }

  CODEGEN_FAST_DEVICE void operator()(Place place, int token, int panel, int row, float v0, float v1) const {
    store(load(place, token, panel, row), place, token, v0, v1);
  }
};

// lm_head: logits = sum + bias, float32.
struct LogitsEpilogue {
  float* logits;  // (M, rows)
  int64_t stride;
  const float* bias;  // (rows,)
  int rows;

  struct Inputs {
    int row;  // -1: no such row
    bool second;
    float bias0, bias1;
  };
  static constexpr bool kPlaces = false, kNormalized = true;
  static constexpr int kSegments = 1;

  CODEGEN_FAST_DEVICE Inputs load(Place, int, int panel, int row) const {
    row += panel * kPanel;
    if (row >= rows) return {-1, false, 0.0f, 0.0f};
    const bool second = row + 1 < rows;
    return {row, second, bias[row], second ? bias[row + 1] : 0.0f};
  }

  CODEGEN_FAST_DEVICE void store(const Inputs& in, Place, int token, float v0, float v1) const {
    if (in.row < 0) return;
    float* to = logits + token * stride + in.row;
    if (in.second && is_aligned(to, 8)) {
      store8(to, {{float_to_bits(v0 + in.bias0), float_to_bits(v1 + in.bias1)}});
    } else {
      to[0] = v0 + in.bias0;
      if (in.second) to[1] = v1 + in.bias1;
    }
  }

  CODEGEN_FAST_DEVICE void operator()(Place place, int token, int panel, int row, float v0, float v1) const {
    store(load(place, token, panel, row), place, token, v0, v1);
  }
};

}  // namespace codegen_fast::cuda
