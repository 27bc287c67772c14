// What the attention kernels of both phases are made of: tiles of query rows, rows of the cache in shared memory, and
// a warp's arithmetic on 16 query rows.
//
// A warp holds fragments as mma16x8x16 gives them: with g = lane / 4 and t = lane % 4, a thread has of query rows g and
// g + 8 the columns 2t, 2t+1 of every 8. Rows know nothing of each other, and keys that a row must not see have weight
// exactly 0 and leave its maximum alone: what else stands in a tile changes no bit of it.
#pragma once

#include <cmath>

#include "attention.h"
#include "intrinsics.h"

namespace codegen_fast::cuda {

// A row of kDim elements in shared memory: 16 bytes more than its elements, so that the 8 rows that ldmatrix reads at a
// time begin in different banks.
template <int kDim> constexpr int kRowBytes = kDim * 2 + 16;

// Query rows of one sequence.
struct Tile {
  int sequence;
  int first_token;  // of the call
  int rows;         // 0: nothing to do
  int64_t first_position;
  int64_t fresh;    // the first position that is new in this call
  int keys;         // that the tile's last row sees, as far as the page table goes: no row sees more
};

// Tiles are counted so that the device finds its own without a sum over all sequences: those of sequence b begin at
// query_start[b] / rows + b. Some of the tiles are empty.
inline int tile_slots(const Sequences& s, int rows) { return s.num_tokens / rows + s.num_seqs; }

CODEGEN_FAST_DEVICE Tile find_tile(const Sequences& s, int slot, int rows) {
  constexpr int64_t kMostKeys = 1 << 30;
  int begun = 0;  // sequences whose tiles begin at the slot or before
  for (int first = 0; first < s.num_seqs; first += kWarp) {
    const int b = first + lane_id();
    begun += count_bits(ballot(b < s.num_seqs && s.query_start[b] / rows + b <= slot));
    if (begun < first + kWarp) break;
  }
  if (begun == 0) return {};
  const int b = begun - 1, begin = s.query_start[b], end = s.query_start[b + 1];
  const int64_t first = int64_t{begin} + int64_t{slot - b - begin / rows} * rows;
  const int64_t count = (end < s.num_tokens ? end : s.num_tokens) - first;
  if (begin < 0 || first < begin || count <= 0) return {};
  Tile tile;
  tile.sequence = b;
  tile.first_token = static_cast<int>(first);
  tile.rows = static_cast<int>(count < rows ? count : rows);
  tile.fresh = int64_t{s.seq_lens[b]} - end + begin;
  tile.first_position = tile.fresh + first - begin;
  int64_t keys = tile.first_position + tile.rows;
  if (keys > int64_t{s.max_pages} * kPage) keys = int64_t{s.max_pages} * kPage;
  if (keys > kMostKeys) keys = kMostKeys;
  tile.keys = keys < 0 ? 0 : static_cast<int>(keys);
  return tile;
}

// A sequence's page of keys [page * kPage, ...), or -1.
CODEGEN_FAST_DEVICE int find_page(const Sequences& s, const Pages& pages, int sequence, int page) {
  if (page >= s.max_pages) return -1;
  const int id = s.page_table[sequence * s.page_table_stride + page];
  return id >= 0 && id < pages.num_pages ? id : -1;
}

// How many keys a row of the tile sees; 0 for an idle token and for a row behind the tile's end.
CODEGEN_FAST_DEVICE int visible_keys(const Sequences& s, const Pages& pages, const Tile& tile, int row) {
  const int64_t position = tile.first_position + row;
  if (row >= tile.rows || position < 0 || position >= tile.keys) return 0;
  const bool there = find_page(s, pages, tile.sequence, static_cast<int>(position / kPage)) >= 0;
  return there ? static_cast<int>(position) + 1 : 0;
}

// Rows of a page, of which the first `rows` exist, to shared memory, by `threads` threads; all else is zeros: garbage
// behind a sequence's end must not meet a weight of 0. Copies are asynchronous where rows are made of 16-byte pieces.
template <int kDim, int kRows, int kThreads>
CODEGEN_FAST_DEVICE void load_keys(char* shared, const uint16_t* from, int rows, int head_dim, int thread) {
  if (head_dim % 8 == 0) {
    constexpr int kPieces = kDim / 8, kAll = kRows * kPieces;
#pragma unroll
    for (int i = 0; i < ceil_div(kAll, kThreads); ++i) {
      const int at = i * kThreads + thread, row = at / kPieces, column = at % kPieces * 8;
      if (kAll % kThreads && at >= kAll) break;
      const bool valid = row < rows && column < head_dim;
      copy_async16(shared + row * kRowBytes<kDim> + column * 2, valid ? from + row * head_dim + column : from, valid);
    }
  } else {
    for (int at = thread; at < kRows * kDim / 2; at += kThreads) {
      const int row = at / (kDim / 2), column = at % (kDim / 2) * 2;
      const bool valid = row < rows && column < head_dim;
      store4(shared + row * kRowBytes<kDim> + column * 2, valid ? load4(from + row * head_dim + column) : 0);
    }
  }
}

// Query rows of a tile to shared memory, zeros behind its end. Activations may begin anywhere.
template <int kDim, int kRows, int kThreads>
CODEGEN_FAST_DEVICE void load_queries(char* shared, const AttentionCall& c, const Tile& tile, int head, int thread) {
  const int head_dim = c.pages.head_dim;
  const uint16_t* from = c.q + tile.first_token * c.q_stride + head * head_dim;
  const bool vectors = (reinterpret_cast<uintptr_t>(from) % 16 | c.q_stride % 8 | head_dim % 8) == 0;
  for (int at = thread; at < kRows * (kDim / 8); at += kThreads) {
    const int row = at / (kDim / 8), column = at % (kDim / 8) * 8;
    const uint16_t* source = from + row * c.q_stride + column;
    Bytes16 v{};
    if (row < tile.rows) {
      if (vectors) {
        if (column < head_dim) v = load16(source);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (column + i < head_dim) v.v[i / 2] |= static_cast<uint32_t>(source[i]) << (i % 2 * 16);
      }
    }
    store16(shared + row * kRowBytes<kDim> + column * 2, v);
  }
}

// Two elements of a row of act, at an even column. Aligned: the row begins on 4 bytes.
template <class T>
CODEGEN_FAST_DEVICE void store_outputs(uint16_t* to, bool aligned, float low, float high) {
  const uint32_t pair = pack2<T>(low, high);
  if (aligned) {
    store4(to, pair);
  } else {
    to[0] = static_cast<uint16_t>(pair);
    to[1] = static_cast<uint16_t>(pair >> 16);
  }
}
CODEGEN_FAST_DEVICE bool pairs_aligned(const uint16_t* row) { return reinterpret_cast<uintptr_t>(row) % 4 == 0; }

// scores[m][j]: 16 query rows of tile m, keys 8j .. 8j+7 of the kKeys in shared memory, summed in the order of the
// dimensions.
template <class T, int kDim, int kTiles, int kKeys>
CODEGEN_FAST_DEVICE void multiply_keys(float (&scores)[kTiles][kKeys / 8][4], const char* queries, const char* keys) {
  const int lane = lane_id();
  const char* query = queries + (lane % 16) * kRowBytes<kDim> + lane / 16 * 16;
  const char* key = keys + (lane / 16 * 8 + lane % 8) * kRowBytes<kDim> + lane / 8 % 2 * 16;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[m][j][e] = 0.0f;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) load_matrix4(a[m], query + m * 16 * kRowBytes<kDim> + k * 32);
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t b[4];
      load_matrix4(b, key + j * 16 * kRowBytes<kDim> + k * 32);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma16x8x16<T>(scores[m][2 * j], a[m], b);
        mma16x8x16<T>(scores[m][2 * j + 1], a[m], b + 2);
      }
    }
  }
}

// The softmax of 16 query rows as far as it has come. sum is a thread's own part of a row's until add_sums().
struct Running {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// Scores become weights 2^(score * scale - maximum); `keep` is what all that was summed before must be multiplied by.
// limit: keys that the thread's two rows see, counted from the first of these.
template <int kKeys>
CODEGEN_FAST_DEVICE void weigh(float (&scores)[kKeys / 8][4], Running& state, float (&keep)[2], float scale,
                               const int (&limit)[2]) {
  const int column = lane_id() % 4 * 2;
  const bool all = limit[0] >= kKeys && limit[1] >= kKeys;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = state.max[half];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        // Multiplied first, not fused with taking the maximum off: the largest weight is 1 however large scores are.
        float& s = scores[j][e];
        s = s * scale;
        if (!all && j * 8 + column + e % 2 >= limit[half]) s = -INFINITY;
        most = fmaxf(most, s);
      }
    most = fmaxf(most, shuffle_xor(most, 1));
    most = fmaxf(most, shuffle_xor(most, 2));
    // A row that has seen no key yet: -infinity - -infinity would be NaN.
    const float base = most == -INFINITY ? 0.0f : most;
    keep[half] = exp2_fast(state.max[half] - base);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        scores[j][e] = exp2_fast(scores[j][e] - base);
        sum += scores[j][e];
      }
    state.sum[half] = fmaf(state.sum[half], keep[half], sum);
    state.max[half] = most;
  }
}

// A row's sum over its four threads, in all of them.
CODEGEN_FAST_DEVICE void add_sums(Running& state) {
  for (int half = 0; half < 2; ++half) {
    state.sum[half] += shuffle_xor(state.sum[half], 1);
    state.sum[half] += shuffle_xor(state.sum[half], 2);
  }
}

template <int kDim>
CODEGEN_FAST_DEVICE void rescale(float (&out)[kDim / 8][4], const float (&keep)[2]) {
  if (!any_lane(keep[0] != 1.0f || keep[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) out[n][e] *= keep[e / 2];
}

// out[m] += weights[m], rounded to T, times values, in the order of the keys.
template <class T, int kDim, int kTiles, int kKeys>
CODEGEN_FAST_DEVICE void multiply_values(float (&out)[kTiles][kDim / 8][4],
                                         const float (&weights)[kTiles][kKeys / 8][4], const char* values) {
  const int lane = lane_id();
  const char* value = values + (lane % 16) * kRowBytes<kDim> + lane / 16 * 16;
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[m][i] = pack2<T>(weights[m][2 * j + i / 2][i % 2 * 2], weights[m][2 * j + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];
      load_matrix4_transposed(b, value + j * 16 * kRowBytes<kDim> + n * 32);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma16x8x16<T>(out[m][2 * n], a[m], b);
        mma16x8x16<T>(out[m][2 * n + 1], a[m], b + 2);
      }
    }
  }
}

}  // namespace codegen_fast::cuda
