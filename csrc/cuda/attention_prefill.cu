// Prefill: many query rows of a sequence at once, causal, on the tensor cores.
//
// A block takes a tile of query rows and a head, and walks over the keys in blocks counted from position 0, two of
// them in shared memory: while one is multiplied the next is on its way. Every warp has 16 or 32 of the rows. Tiles
// that see the most keys go first.
#include "attention.cuh"
#include "launch.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;

// Two times 16 rows a warp halve what is read from shared memory for a product; large heads have no registers for it.
template <int kDim> constexpr int kTiles = kDim == 64 || kDim == 80 ? 2 : 1;
template <int kDim> constexpr int kTileRows = kWarps * 16 * kTiles<kDim>;
// Keys of a block. Fixed by the head dimension alone, as a row's bits follow from it. With 32, heads of 256 need the
// 99 KB that every GPU from sm_80 on has.
template <int kDim> constexpr int kBlockKeys = kDim <= 128 ? 64 : 32;
template <int kDim> constexpr int kQueryBytes = kTileRows<kDim> * kRowBytes<kDim>;
template <int kDim> constexpr int kKeyBytes = kBlockKeys<kDim> * kRowBytes<kDim>;  // of a block's keys, or values
template <int kDim> constexpr int kSharedBytes = kQueryBytes<kDim> + 4 * kKeyBytes<kDim>;
static_assert(kSharedBytes<256> <= 99 * 1024, "sm_86, sm_89 and sm_120 give a block 99 KB");

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 2) prefill_attention_kernel(AttentionCall c) {
  constexpr int kRows = kTileRows<kDim>, kKeys = kBlockKeys<kDim>, kMine = kTiles<kDim>;
  dependency_launch();
  const int head = blockIdx.x % c.pages.n_head, slot = gridDim.x / c.pages.n_head - 1 - blockIdx.x / c.pages.n_head;
  const Tile tile = find_tile(c.sequences, slot, kRows);

  // What this warp's rows see, and this thread's.
  const int first_row = warp_id() * 16 * kMine, lane = lane_id();
  int limit[kMine][2], warp_keys = 0;
  for (int m = 0; m < kMine; ++m)
    for (int half = 0; half < 2; ++half) {
      limit[m][half] = visible_keys(c.sequences, c.pages, tile, first_row + m * 16 + half * 8 + lane / 4);
      warp_keys = limit[m][half] > warp_keys ? limit[m][half] : warp_keys;
    }
  for (int mask = 4; mask < kWarp; mask *= 2) {
    const int other = shuffle_xor(warp_keys, mask);
    warp_keys = other > warp_keys ? other : warp_keys;
  }
  dependency_wait();  // the batch was there before this chain of kernels began
  if (tile.rows == 0) return;

  char* queries = shared_memory();
  char* ring = queries + kQueryBytes<kDim>;
  // Keys and values of block j, in half j % 2 of the ring.
  auto load_block = [&](int j) {
    char* keys = ring + j % 2 * 2 * kKeyBytes<kDim>;
#pragma unroll 1  // addresses of all the copies at once would take the registers that heads of 80 have not got
    for (int part = 0; part < kKeys / kPage; ++part) {
      const int first = j * kKeys + part * kPage;
      const int page = first < tile.keys ? find_page(c.sequences, c.pages, tile.sequence, first / kPage) : -1;
      const int rows = page < 0 ? 0 : tile.keys - first;
      char* to = keys + part * kPage * kRowBytes<kDim>;
      for (int value = 0; value < 2; ++value)
        load_keys<kDim, kPage, kThreads>(to + value * kKeyBytes<kDim>, c.pages.at(page < 0 ? 0 : page, head, value),
                                         rows, c.pages.head_dim, threadIdx.x);
    }
  };
  const int blocks = ceil_div(tile.keys, kKeys);
  if (blocks) load_block(0);
  copy_async_commit();
  load_queries<kDim, kRows, kThreads>(queries, c, tile, head, threadIdx.x);

  Running state[kMine];
  float out[kMine][kDim / 8][4];
#pragma unroll
  for (int m = 0; m < kMine; ++m)
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[m][n][e] = 0.0f;

  for (int j = 0; j < blocks; ++j) {
    copy_async_wait<0>();
    sync_threads();  // block j is there, and no warp reads the block before it any more
    if (j + 1 < blocks) load_block(j + 1);
    copy_async_commit();
    if (j * kKeys >= warp_keys) continue;
    const char* keys = ring + j % 2 * 2 * kKeyBytes<kDim>;
    float scores[kMine][kKeys / 8][4];
    multiply_keys<T, kDim, kMine, kKeys>(scores, queries + first_row * kRowBytes<kDim>, keys);
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int left[2] = {limit[m][0] - j * kKeys, limit[m][1] - j * kKeys};
      float keep[2];
      weigh<kKeys>(scores[m], state[m], keep, c.scale, left);
      rescale<kDim>(out[m], keep);
    }
    multiply_values<T, kDim, kMine, kKeys>(out, scores, keys + kKeyBytes<kDim>);
  }

#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    add_sums(state[m]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + m * 16 + half * 8 + lane / 4;
      if (row >= tile.rows) continue;
      uint16_t* to = c.act + (tile.first_token + row) * c.act_stride + head * c.pages.head_dim;
      const bool idle = limit[m][half] == 0, aligned = pairs_aligned(to);
      const float inverse = divide(1.0f, state[m].sum[half]);  // at least 1 is divided by: the largest weight
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        if (column >= c.pages.head_dim) continue;
        store_outputs<T>(to + column, aligned, idle ? 0.0f : out[m][n][2 * half] * inverse,
                         idle ? 0.0f : out[m][n][2 * half + 1] * inverse);
      }
    }
  }
}

}  // namespace

template <class T>
void prefill_attention(const AttentionCall& call) {
  with_head_dim(call.pages.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    const unsigned blocks = static_cast<unsigned>(tile_slots(call.sequences, kTileRows<kDim>)) * call.pages.n_head;
    launch("attention", prefill_attention_kernel<T, kDim>, Grid{dim3(blocks), kThreads, size_t{kSharedBytes<kDim>}},
           call);
  });
}

template void prefill_attention<f16>(const AttentionCall&);
template void prefill_attention<bf16>(const AttentionCall&);

}  // namespace codegen_fast::cuda
