// What the threads of one block find out about a row together: sums, lists in order, and the key up to which a mass has
// been seen. Nothing is sorted, and every sum is one of integers: it does not depend on its order, so atomics and any
// split over threads give the same bits.
#pragma once

#include "intrinsics.h"
#include "layout.h"

namespace codegen_fast::cuda {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRadix = 256;          // bins of a digit of select()
constexpr int kBins = 2 * kThreads;  // at most

struct Shared {
  uint32_t low[kBins], high[kBins];  // 64-bit bins in halves: there are no 64-bit atomics on shared memory
  uint32_t keys[kThreads];
  int64_t warp_sums[kWarps];
  float warp_best[kWarps];
  int warp_index[kWarps];
  int warp_nan[kWarps];
  // What one thread finds for all.
  int bin;
  int64_t before;
  int position;
};

// Sum of v over the threads before this one; all threads of the block take part.
CODEGEN_FAST_DEVICE int64_t scan(Shared& s, int64_t v, int64_t& total) {
  int64_t sum = v;
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int64_t other = shuffle_up(sum, delta);
    if (lane_id() >= delta) sum += other;
  }
  sync_threads();  // the sums of an earlier call have been read
  if (lane_id() == kWarp - 1) s.warp_sums[warp_id()] = sum;
  sync_threads();
  int64_t warps = s.warp_sums[lane_id()];
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int64_t other = shuffle_up(warps, delta);
    if (lane_id() >= delta) warps += other;
  }
  total = shuffle(warps, kWarp - 1);
  const int64_t below = shuffle(warps, warp_id() == 0 ? 0 : warp_id() - 1);
  return (warp_id() == 0 ? 0 : below) + sum - v;
}

// A warp's share of 0 .. count: contiguous, so that warps in order are indices in order.
struct Range { int begin, end; };
CODEGEN_FAST_DEVICE Range share_of_warp(int count) {
  const int size = round_up(ceil_div(count, kWarps), kWarp);
  const int begin = warp_id() * size;
  return {begin < count ? begin : count, begin + size < count ? begin + size : count};
}

// Calls store(rank, i) for every i of 0 .. count with keep(i), ranked in order; returns how many there are.
template <class Keep, class Store>
CODEGEN_FAST_DEVICE int gather(Shared& s, int count, Keep keep, Store store) {
  const Range range = share_of_warp(count);
  const int lane = lane_id();
  int n = 0;
  for (int i = range.begin; i < range.end; i += kWarp) n += count_bits(ballot(i + lane < range.end && keep(i + lane)));
  int64_t total;
  int at = static_cast<int>(shuffle(scan(s, lane == 0 ? n : 0, total), 0));
  for (int i = range.begin; i < range.end; i += kWarp) {
    const bool kept = i + lane < range.end && keep(i + lane);
    const uint32_t mask = ballot(kept);
    if (kept) store(at + count_bits(mask & ((1u << lane) - 1)), i + lane);
    at += count_bits(mask);
  }
  sync_threads();  // what was stored is there for all
  return static_cast<int>(total);
}

CODEGEN_FAST_DEVICE void clear_bins(Shared& s, int bins) {
  sync_threads();  // they have been read
  for (int i = threadIdx.x; i < bins; i += kThreads) s.low[i] = s.high[i] = 0;
  sync_threads();
}
CODEGEN_FAST_DEVICE void add_to_bin(Shared& s, int bin, int64_t mass) {
  const uint32_t low = static_cast<uint32_t>(mass);
  const uint32_t carry = atomic_add(&s.low[bin], low) > ~low ? 1 : 0;
  const uint32_t high = static_cast<uint32_t>(mass >> 32) + carry;
  if (high) atomic_add(&s.high[bin], high);
}

// The first bin up to which the masses sum to `wanted` or more, and the sum before it. 0 < wanted <= the whole sum.
CODEGEN_FAST_DEVICE int find_bin(Shared& s, int bins, int64_t wanted, int64_t& before) {
  sync_threads();  // the bins are filled
  const int each = ceil_div(bins, kThreads), first = threadIdx.x * each;
  int64_t mass[ceil_div(kBins, kThreads)] = {}, sum = 0, total;
  for (int i = 0; i < each && first + i < bins; ++i) {
    mass[i] = static_cast<int64_t>(s.high[first + i]) << 32 | s.low[first + i];
    sum += mass[i];
  }
  int64_t below = scan(s, sum, total);
  if (below < wanted && below + sum >= wanted) {
    int i = 0;
    while (below + mass[i] < wanted) below += mass[i++];
    s.bin = first + i;
    s.before = below;
  }
  sync_threads();
  before = s.before;
  return s.bin;
}

// The first key, in ascending order, up to which the masses of count items sum to `wanted` or more, and the sum of the
// keys before it: digit by digit. 0 < wanted <= the whole sum.
template <class Key, class Mass>
CODEGEN_FAST_DEVICE uint32_t select(Shared& s, int count, int64_t wanted, Key key, Mass mass, int64_t& before) {
  uint32_t prefix = 0;
  before = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    clear_bins(s, kRadix);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t k = key(i);
      if (shift == 24 || k >> (shift + 8) == prefix) add_to_bin(s, k >> shift & (kRadix - 1), mass(i));
    }
    int64_t inside;
    prefix = prefix << 8 | static_cast<uint32_t>(find_bin(s, kRadix, wanted - before, inside));
    before += inside;
  }
  return prefix;
}

}  // namespace codegen_fast::cuda
