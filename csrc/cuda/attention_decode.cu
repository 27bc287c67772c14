// Decode: few query rows a sequence (one, or the tokens of a draft), bound by how fast the cache can be read.
//
// What is summed in which order. Keys are dealt out, counted from position 0: splits of 64 keys go round kRanks ranks,
// and a split's four times 16 keys to the four warps of a block. A (rank, warp) runs over its keys in order with an
// online softmax; a rank's four warps are added in their order, then the ranks in theirs. So the work of a sequence
// and head can be spread over kRanks blocks (many SMs for one sequence, and few parts to combine however long it is),
// or be walked through by one block, with the same bits.
//   spread  grid (tiles x heads, ranks), parts in the workspace, and a second kernel that combines them
//   walked  grid (tiles x heads), one kernel
// A warp's keys and values come through a ring of its own in shared memory: no barrier but at the end of a rank.
//
// What was there before this chain of kernels began (the batch, and keys and values of earlier calls: embed() waits
// for all of them) is read before dependency_wait(), while the product before still runs.
#include <algorithm>

#include "attention.cuh"
#include "launch.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kRows = 16;                   // query rows of a tile
constexpr int kKeys = 16;                   // that a warp takes at a time: half a page
constexpr int kSplit = kWarps * kKeys;
constexpr int kRanks = 8;
constexpr int kMaxSpreadTokens = 64;        // that there is workspace for
constexpr int kReserved = 1024;             // shared memory that the system takes for a block
constexpr int kWalkedKeys = 256;            // up to which a large grid walks: longer ones leave SMs idle at the end

// Slots of a warp's ring. Bytes on their way are (slots - 1) x blocks of an SM x what a slot holds (20 KB at D = 64).
template <int kDim> constexpr int kMaxSlots = kDim <= 32 ? 4 : kDim <= 80 ? 3 : 2;
// Rows that the warps add at a time at the end of a rank. Nearly always there is one.
template <int kDim> constexpr int kFoldRows = kDim <= 64 ? 4 : kDim <= 128 ? 2 : 1;

// How the shared memory of a block is laid out, in bytes.
template <int kDim>
struct Layout {
  static constexpr int kQueries = kRows * kRowBytes<kDim>;
  static constexpr int kHalfSlot = kKeys * kRowBytes<kDim>;  // keys, or values
  static constexpr int kSlot = 2 * kHalfSlot;
  static constexpr int kFold = kWarps * kFoldRows<kDim> * kDim * 4;
  static constexpr int kStates = kWarps * kRows * 2 * 4;     // of warps: (max, sum) of every row
  static constexpr int kTotals = kRows * kDim * 4;           // walked only
  static constexpr int fixed(bool spread) { return kQueries + kFold + kStates + kRows * 32 + (spread ? 0 : kTotals); }
  static constexpr int ring(int slots) { return kWarps * slots * kSlot; }
};
static_assert(Layout<256>::fixed(false) + Layout<256>::ring(1) <= 99 * 1024,
              "sm_86, sm_89 and sm_120 give a block 99 KB");

struct DecodeParams {
  AttentionCall c;
  bool spread;
  int slots;      // of a ring
  float* values;  // spread: (T, H, ranks, D), a rank's sum of weights times values
  float* states;  // spread: (T, H, ranks, 2), its maximum and its sum of weights; sum 0: no values are there
};

// The ranks so far, and how the next one is taken in: total = total * keep + its values * gain.
struct Merge {
  float max, sum;  // with the next one in
  float keep, gain;
};
CODEGEN_FAST_DEVICE Merge merge(float max, float sum, float next_max, float next_sum) {
  const float most = fmaxf(max, next_max);
  // A side that weighs nothing is left out: -infinity - -infinity would be NaN.
  const float keep = sum == 0.0f ? 0.0f : exp2_fast(max - most);
  const float gain = next_sum == 0.0f ? 0.0f : exp2_fast(next_max - most);
  return {most, fmaf(sum, keep, next_sum * gain), keep, gain};
}

// What becomes of a row at the end of a rank.
struct RowWeights {
  float warp[kWarps];
  float keep, gain;    // walked
  float max, sum;      // of the rank; walked: of all ranks so far
};
static_assert(sizeof(RowWeights) == 32);

// The splits of a block, one after another: those of one rank, or of all.
struct Walk {
  int splits, first_rank;
  bool one_rank;

  CODEGEN_FAST_DEVICE int count() const {
    return !one_rank ? splits : first_rank < splits ? ceil_div(splits - first_rank, kRanks) : 0;
  }
  CODEGEN_FAST_DEVICE int split(int i) const {
    if (one_rank) return first_rank + i * kRanks;
    const int each = splits / kRanks, longer = splits % kRanks;  // so many ranks have one split more
    if (i < longer * (each + 1)) return i / (each + 1) + i % (each + 1) * kRanks;
    i -= longer * (each + 1);
    return longer + i / each + i % each * kRanks;
  }
  // The one after `split`, without a division.
  CODEGEN_FAST_DEVICE int next(int split) const {
    return split + kRanks < splits ? split + kRanks : split % kRanks + 1;
  }
  CODEGEN_FAST_DEVICE bool ends_rank(int split) const { return split + kRanks >= splits; }
};

CODEGEN_FAST_DEVICE void wait_for_copies(int pending) {
  if (pending == 0) copy_async_wait<0>();
  else if (pending == 1) copy_async_wait<1>();
  else if (pending == 2) copy_async_wait<2>();
  else copy_async_wait<3>();
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) decode_attention_kernel(DecodeParams p) {
  using Shared = Layout<kDim>;
  const Sequences& s = p.c.sequences;
  const Pages& pages = p.c.pages;
  const int head = blockIdx.x % pages.n_head, head_dim = pages.head_dim, warp = warp_id(), lane = lane_id();
  dependency_launch();
  const Tile tile = find_tile(s, blockIdx.x / pages.n_head, kRows);
  const Walk walk{ceil_div(tile.keys, kSplit), static_cast<int>(blockIdx.y), p.spread};
  const int count = tile.rows ? walk.count() : 0;

  char* queries = shared_memory();
  float* fold = reinterpret_cast<float*>(queries + Shared::kQueries);  // (warps, kFoldRows, kDim)
  float* warp_states = fold + Shared::kFold / 4;                       // (warps, kRows, 2)
  RowWeights* weights = reinterpret_cast<RowWeights*>(warp_states + Shared::kStates / 4);
  float* totals = reinterpret_cast<float*>(weights + kRows);           // (kRows, kDim), walked only
  char* ring = reinterpret_cast<char*>(totals) + (p.spread ? 0 : Shared::kTotals) + warp * p.slots * Shared::kSlot;

  // Loads the next of this warp's pieces of 16 keys into the ring, where there is one left.
  int loaded = 0, load_split = walk.first_rank, load_slot = 0;
  int ids = -1;  // lane i: the page of piece i, of 32 at a time
  auto first_key = [&](int split) { return split * kSplit + warp * kKeys; };
  auto load_next = [&] {
    if (loaded < count) {
      if (loaded % kWarp == 0) {
        const int mine = loaded + lane;
        ids = mine < count ? find_page(s, pages, tile.sequence, first_key(walk.split(mine)) / kPage) : -1;
      }
      const int first = first_key(load_split), page = shuffle(ids, loaded % kWarp);
      if (first < tile.keys) {
        char* to = ring + load_slot * Shared::kSlot;
#pragma unroll
        for (int value = 0; value < 2; ++value)
          load_keys<kDim, kKeys, kWarp>(to + value * Shared::kHalfSlot,
                                        pages.at(page < 0 ? 0 : page, head, value) + first % kPage * head_dim,
                                        page < 0 ? 0 : tile.keys - first, head_dim, lane);
      }
      ++loaded;
      load_split = walk.next(load_split);
      load_slot = load_slot + 1 == p.slots ? 0 : load_slot + 1;
    }
    copy_async_commit();
  };

  const int seen = visible_keys(s, pages, tile, lane % kRows);
  const int limit[2] = {shuffle(seen, lane / 4), shuffle(seen, lane / 4 + 8)};

  // What earlier calls appended is there already; the other slots, the queries and all writes wait.
  int committed = 0;
  for (; committed < p.slots && committed < count && first_key(load_split) + kKeys <= tile.fresh; ++committed)
    load_next();
  dependency_wait();
  if (tile.rows == 0) return;
  for (; committed < p.slots; ++committed) load_next();
  load_queries<kDim, kRows, kThreads>(queries, p.c, tile, head, threadIdx.x);

  if (threadIdx.x < kRows) weights[threadIdx.x] = {{}, 0.0f, 0.0f, -INFINITY, 0.0f};
  sync_threads();

  Running state;
  float out[1][kDim / 8][4];
  auto start = [&] {
    state = {};
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[0][n][e] = 0.0f;
  };

  // Where the part of a row and this block's rank lies in the workspace.
  auto part_of = [&](int row) {
    return (int64_t{tile.first_token + row} * pages.n_head + head) * gridDim.y + blockIdx.y;
  };
  // A pair of columns of row base + i, which the four warps have put into fold: added, and written as a rank's part or
  // taken into the totals. A thread always has the same elements.
  constexpr int kGroup = kFoldRows<kDim>, kPairs = kDim / 2;
  auto add_warps = [&](int rank, int base, int i, int column) {
    const int row = base + i;
    if (row >= tile.rows || column >= head_dim) return;
    const RowWeights& w = weights[row];
    float value[2] = {0.0f, 0.0f};
    for (int from = 0; from < kWarps; ++from)
      for (int e = 0; e < 2; ++e)
        value[e] = fmaf(fold[(from * kGroup + i) * kDim + column + e], w.warp[from], value[e]);
    if (p.spread) {
      store8(p.values + part_of(row) * head_dim + column, {{float_to_bits(value[0]), float_to_bits(value[1])}});
      if (column == 0) store8(p.states + part_of(row) * 2, {{float_to_bits(w.max), float_to_bits(w.sum)}});
    } else {
      float* total = totals + row * kDim + column;
      for (int e = 0; e < 2; ++e) total[e] = fmaf(rank == 0 ? 0.0f : total[e], w.keep, value[e] * w.gain);
    }
  };
  auto end_rank = [&](int rank) {
    add_sums(state);
    if (lane % 4 == 0)
      for (int half = 0; half < 2; ++half) {
        warp_states[(warp * kRows + lane / 4 + half * 8) * 2] = state.max[half];
        warp_states[(warp * kRows + lane / 4 + half * 8) * 2 + 1] = state.sum[half];
      }
    sync_threads();
    if (threadIdx.x < kRows) {
      RowWeights& w = weights[threadIdx.x];
      float max = -INFINITY, sum = 0.0f;
      const float* of_row = warp_states + threadIdx.x * 2;
      for (int i = 0; i < kWarps; ++i) max = fmaxf(max, of_row[i * kRows * 2]);
      for (int i = 0; i < kWarps; ++i) {
        const float of_warp = of_row[i * kRows * 2 + 1];
        w.warp[i] = of_warp == 0.0f ? 0.0f : exp2_fast(of_row[i * kRows * 2] - max);
        sum = fmaf(of_warp, w.warp[i], sum);
      }
      if (p.spread) {
        w.max = max;
        w.sum = sum;
      } else {
        const Merge m = merge(w.max, w.sum, max, sum);
        w.max = m.max;
        w.sum = m.sum;
        w.keep = m.keep;
        w.gain = m.gain;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)  // of the fragments
      for (int base = half * 8; base < half * 8 + 8 && base < tile.rows; base += kGroup) {
        const int row = lane / 4 + half * 8 - base;
        if (row >= 0 && row < kGroup)
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n)
            store8(fold + (warp * kGroup + row) * kDim + n * 8 + lane % 4 * 2,
                   {{float_to_bits(out[0][n][2 * half]), float_to_bits(out[0][n][2 * half + 1])}});
        sync_threads();
        for (int at = threadIdx.x; at < kGroup * kPairs; at += kThreads)
          add_warps(rank, base, at / kPairs, at % kPairs * 2);
        sync_threads();
      }
  };

  start();
  for (int i = 0, slot = 0, split = walk.first_rank; i < count; ++i, split = walk.next(split)) {
    const int first = first_key(split);
    wait_for_copies(p.slots - 1);
    sync_warp();
    if (first < tile.keys) {
      const char* keys = ring + slot * Shared::kSlot;
      float scores[1][kKeys / 8][4], keep[2];
      multiply_keys<T, kDim, 1, kKeys>(scores, queries, keys);
      const int left[2] = {limit[0] - first, limit[1] - first};
      weigh<kKeys>(scores[0], state, keep, p.c.scale, left);
      rescale<kDim>(out[0], keep);
      multiply_values<T, kDim, 1, kKeys>(out, scores, keys + Shared::kHalfSlot);
    }
    sync_warp();
    load_next();
    slot = slot + 1 == p.slots ? 0 : slot + 1;
    if (walk.ends_rank(split)) {
      end_rank(split % kRanks);
      start();
    }
  }

  if (p.spread) {
    if (count == 0 && threadIdx.x < tile.rows)
      store8(p.states + part_of(threadIdx.x) * 2, {{float_to_bits(-INFINITY), 0}});
    return;
  }
  for (int group = 0; group < tile.rows; group += kGroup)
    for (int at = threadIdx.x; at < kGroup * kPairs; at += kThreads) {
      const int row = group + at / kPairs, column = at % kPairs * 2;
      if (row >= tile.rows || column >= head_dim) continue;
      const float sum = weights[row].sum, *total = totals + row * kDim + column;
      uint16_t* to = p.c.act + (tile.first_token + row) * p.c.act_stride + head * head_dim;
      store_outputs<T>(to + column, pairs_aligned(to), sum == 0.0f ? 0.0f : divide(total[0], sum),
                       sum == 0.0f ? 0.0f : divide(total[1], sum));
    }
}

struct CombineParams {
  const float* values;
  const float* states;
  uint16_t* act;
  int64_t act_stride;
  int n_head, head_dim, ranks;
};

// A block for every token and head, a thread for a pair of columns.
template <class T>
__global__ void __launch_bounds__(kThreads) combine_attention_kernel(CombineParams p) {
  dependency_launch();
  dependency_wait();
  const int column = threadIdx.x * 2;
  if (column >= p.head_dim) return;
  const float* values = p.values + int64_t{blockIdx.x} * p.ranks * p.head_dim + column;
  const float* states = p.states + int64_t{blockIdx.x} * p.ranks * 2;
  Bytes8 value[kRanks], state[kRanks];
#pragma unroll
  for (int r = 0; r < kRanks; ++r)
    if (r < p.ranks) {
      state[r] = load8(states + r * 2);
      value[r] = load8(values + r * p.head_dim);
    }
  float max = -INFINITY, sum = 0.0f, total[2] = {0.0f, 0.0f};
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    if (r >= p.ranks || bits_to_float(state[r].v[1]) == 0.0f) continue;  // no values are there
    const Merge m = merge(max, sum, bits_to_float(state[r].v[0]), bits_to_float(state[r].v[1]));
    max = m.max;
    sum = m.sum;
    for (int e = 0; e < 2; ++e) total[e] = fmaf(total[e], m.keep, bits_to_float(value[r].v[e]) * m.gain);
  }
  const int64_t token = blockIdx.x / p.n_head, head = blockIdx.x % p.n_head;
  uint16_t* to = p.act + token * p.act_stride + head * p.head_dim;
  store_outputs<T>(to + column, pairs_aligned(to), sum == 0.0f ? 0.0f : divide(total[0], sum),
                   sum == 0.0f ? 0.0f : divide(total[1], sum));
}

int ranks_of(int64_t max_seq_len) {
  return static_cast<int>(std::min<int64_t>(kRanks, ceil_div<int64_t>(max_seq_len, kSplit)));
}

}  // namespace

int64_t decode_attention_workspace(int64_t num_tokens, int64_t n_head, int64_t head_dim, int64_t max_seq_len) {
  return std::min<int64_t>(num_tokens, kMaxSpreadTokens) * n_head * ranks_of(max_seq_len) * (head_dim + 2) * 4;
}

template <class T>
void decode_attention(const AttentionCall& call, void* workspace) {
  // plan
  const int heads = call.pages.n_head, tokens = call.sequences.num_tokens, ranks = ranks_of(call.max_seq_len);
  const int64_t tiles = int64_t{tile_slots(call.sequences, kRows)} * heads;
  const bool large = tiles >= 2 * device_limits().multiprocessors && call.max_seq_len <= kWalkedKeys;
  const bool spread = ranks > 1 && tokens <= kMaxSpreadTokens && !large;
  float* values = static_cast<float*>(workspace);
  float* states = values + int64_t{tokens} * heads * ranks * call.pages.head_dim;
  DecodeParams params{call, spread, 0, values, states};

  // launch
  with_head_dim(call.pages.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    const int pieces = ceil_div(ceil_div(call.max_seq_len, kSplit), spread ? kRanks : 1);
    params.slots = std::max(1, std::min(kMaxSlots<kDim>, pieces));
    auto bytes = [&] { return Layout<kDim>::fixed(spread) + Layout<kDim>::ring(params.slots); };
    // A spread block takes at most half a multiprocessor where one slot does: then it can start beside a block of the
    // product before it. That this is worth the bytes on their way that it costs at D = 256 has not been measured.
    const int whole = device_limits().shared_bytes_per_block, half = (whole + kReserved) / 2 - kReserved;
    const bool shares = spread && Layout<kDim>::fixed(spread) + Layout<kDim>::ring(1) <= half;
    while (params.slots > 1 && bytes() > (shares ? half : whole)) --params.slots;
    launch("attention", decode_attention_kernel<T, kDim>,
           Grid{dim3(static_cast<unsigned>(tiles), spread ? ranks : 1), kThreads, static_cast<size_t>(bytes())},
           params);
  });
  if (!spread) return;
  const CombineParams combine{values, states, call.act, call.act_stride, heads, call.pages.head_dim, ranks};
  launch("attention", combine_attention_kernel<T>,
         Grid{dim3(static_cast<unsigned>(tokens) * heads), round_up(call.pages.head_dim / 2, kWarp)}, combine);
}

template void decode_attention<f16>(const AttentionCall&, void*);
template void decode_attention<bf16>(const AttentionCall&, void*);

}  // namespace codegen_fast::cuda
