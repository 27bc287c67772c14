// The next token of every row: temperature, top_k, top_p, a counter-based draw. One block a row, nothing is sorted.
//
// Probabilities are summed as integers, multiples of 2^-46 (fewer bits for vocabularies beyond 65536): integer sums do
// not depend on their order, so atomics and any split over threads give the same token. What is lost of a sum is below
// 1e-9 of it, so a token can differ from the CPU's only where the draw falls that close to a boundary.
#include <algorithm>

#include "../philox.h"
#include "checks.h"
#include "intrinsics.h"
#include "launch.h"
#include "layout.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRadix = 256;           // bins of a digit of select()
constexpr int kBins = 2 * kThreads;   // of the mass by z, 64 a unit of z: fine enough that threads seldom meet in one
constexpr int64_t kMaxBlocks = 128;   // rows that have scratch of their own; the others take turns
constexpr int kMassBits = 46;

struct Params {
  int64_t* out;
  const float* logits;
  int64_t stride;
  int rows, vocab_size, mass_bits;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const int64_t* seed;
  const int32_t* sample_index;
  const int32_t* position;
  char* workspace;
  int64_t block_bytes;
};

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

// (vocab_size,) each, of one block.
struct Scratch {
  int32_t* ids;      // the tokens that top_k left, in order
  int32_t* members;  // positions in ids, in order
  float* z;          // of ids
};

// Ascending keys are descending floats; 0.0 and -0.0 are equal.
CODEGEN_FAST_DEVICE uint32_t descending_key(float x) {
  const uint32_t b = float_to_bits(x + 0.0f);
  return b >> 31 ? b : ~b & 0x7fffffff;
}
// The same for z, which is never positive, and back.
CODEGEN_FAST_DEVICE uint32_t key_of_z(float z) { return float_to_bits(z) & 0x7fffffff; }
CODEGEN_FAST_DEVICE float z_of_key(uint32_t key) { return bits_to_float(key | 0x80000000u); }
CODEGEN_FAST_DEVICE int bin_of_z(float z) { return static_cast<int>(fminf(z * -64.0f, kBins - 1.0f)); }

// exp(z) for z <= 0, in the CPU backend's arithmetic (csrc/cpu/kernels/simd.h); below -80 no mass is left of it.
CODEGEN_FAST_DEVICE float exponential(float z) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float x = fmaxf(z, -80.0f);
  const float shifted = fmaf(x, 1.44269504088896341f, magic);
  const float n = shifted - magic;
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  return p * bits_to_float((float_to_bits(shifted) - 0x4B400000u + 127) << 23);
}

// exp(z) as a multiple of 2^-bits, rounded down.
CODEGEN_FAST_DEVICE int64_t mass_of_z(float z, int bits) {
  const uint32_t b = float_to_bits(exponential(z));
  const int64_t mantissa = (b & 0x7fffff) | 0x800000;
  const int shift = static_cast<int>(b >> 23) - 150 + bits;  // the value is mantissa * 2^(exponent - 150)
  return shift >= 0 ? mantissa << shift : shift > -24 ? mantissa >> -shift : 0;
}

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

// The largest logit and the first index that has it; whether there is a NaN. thread_best: of this thread's share.
struct Best {
  float logit, thread_best;
  int index;
  bool has_nan;
};
CODEGEN_FAST_DEVICE Best find_best(Shared& s, const float* logits, int vocab_size) {
  float best = bits_to_float(0xff800000u);  // -infinity
  int index = 0x7fffffff;
  bool has_nan = false;
#pragma unroll 8
  for (int i = threadIdx.x; i < vocab_size; i += kThreads) {
    const float v = logits[i];
    has_nan = has_nan || v != v;
    if (v > best) {
      best = v;
      index = i;
    }
  }
  const float own = best;
  has_nan = any_lane(has_nan);
  auto reduce = [&] {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      const float other = shuffle_xor(best, mask);
      const int other_index = shuffle_xor(index, mask);
      if (other > best || (other == best && other_index < index)) {
        best = other;
        index = other_index;
      }
    }
  };
  reduce();
  sync_threads();
  if (lane_id() == 0) {
    s.warp_best[warp_id()] = best;
    s.warp_index[warp_id()] = index;
    s.warp_nan[warp_id()] = has_nan;
  }
  sync_threads();
  best = s.warp_best[lane_id()];
  index = s.warp_index[lane_id()];
  has_nan = any_lane(s.warp_nan[lane_id()]);
  reduce();
  return {best, own, index, has_nan};
}

// The tokens whose logits are the k-th largest or larger, in order, to scratch.ids; 0 < k < vocab_size.
CODEGEN_FAST_DEVICE int keep_top_k(Shared& s, const Scratch& scratch, const float* logits, int vocab_size, int k,
                                   float thread_best) {
  const auto one = [](int) { return int64_t{1}; };
  int64_t before;
  // The k-th largest of the threads' best ones is no larger than the k-th largest of all: few pass it.
  uint32_t bound = 0xffffffffu;
  if (k <= kThreads) {
    sync_threads();
    s.keys[threadIdx.x] = descending_key(thread_best);
    bound = select(s, kThreads, k, [&](int i) { return s.keys[i]; }, one, before);
  }
  const int candidates = gather(s, vocab_size, [&](int i) { return descending_key(logits[i]) <= bound; },
                                [&](int rank, int i) { scratch.members[rank] = i; });
  const uint32_t threshold = select(
      s, candidates, k, [&](int i) { return descending_key(logits[scratch.members[i]]); }, one, before);
  return gather(s, candidates, [&](int i) { return descending_key(logits[scratch.members[i]]) <= threshold; },
                [&](int rank, int i) { scratch.ids[rank] = scratch.members[i]; });
}

// What is kept of count tokens: those with a smaller key, and those of this key up to this position.
struct Kept {
  uint32_t key = 0xffffffffu;
  int last = 0x7fffffff;
  CODEGEN_FAST_DEVICE bool operator()(uint32_t k, int i) const { return k < key || (k == key && i <= last); }
};

// The bins hold the masses by z.
CODEGEN_FAST_DEVICE Kept keep_top_p(Shared& s, const Scratch& scratch, int count, float top_p, int64_t total,
                                    int bits) {
  // Less than `wanted` before a token: it stays. So does the first in any case.
  const double exact = static_cast<double>(top_p) * static_cast<double>(total);
  int64_t wanted = static_cast<int64_t>(exact);
  if (static_cast<double>(wanted) < exact) ++wanted;
  wanted = wanted < 1 ? 1 : wanted > total ? total : wanted;
  int64_t before, inside;
  const int bin = find_bin(s, kBins, wanted, before);
  const int members = gather(s, count, [&](int i) { return bin_of_z(scratch.z[i]) == bin; },
                             [&](int rank, int i) { scratch.members[rank] = i; });
  Kept kept;
  kept.key = select(
      s, members, wanted - before, [&](int i) { return key_of_z(scratch.z[scratch.members[i]]); },
      [&](int i) { return mass_of_z(scratch.z[scratch.members[i]], bits); }, inside);
  const int64_t left = wanted - before - inside;  // for the tokens of this key, which weigh the same
  const int64_t number = ceil_div(left, mass_of_z(z_of_key(kept.key), bits));
  gather(s, members, [&](int i) { return key_of_z(scratch.z[scratch.members[i]]) == kept.key; },
         [&](int rank, int i) { if (rank == number - 1) s.position = scratch.members[i]; });
  kept.last = s.position;
  return kept;
}

CODEGEN_FAST_DEVICE int64_t sample_row(Shared& s, const Scratch& scratch, const Params& p, int row) {
  const float* logits = p.logits + row * p.stride;
  const int vocab_size = p.vocab_size, bits = p.mass_bits;
  const float temperature = p.temperature[row], top_p = p.top_p[row];
  const int top_k = p.top_k[row];
  // Written so that NaN fails.
  if (!(temperature >= 0.0f && temperature <= 3.402823466e38f && top_k >= 0 && top_p >= 0.0f && top_p <= 1.0f))
    return -1;
  const Best best = find_best(s, logits, vocab_size);
  if (best.has_nan || !(fabsf(best.logit) <= 3.402823466e38f)) return -1;
  if (temperature == 0.0f) return best.index;

  const bool has_ids = top_k > 0 && top_k < vocab_size, has_top_p = top_p < 1.0f;
  const int count = has_ids ? keep_top_k(s, scratch, logits, vocab_size, top_k, best.thread_best) : vocab_size;
  const auto id_of = [&](int i) { return has_ids ? scratch.ids[i] : i; };

  // z and the masses
  const Range range = share_of_warp(count);
  if (has_top_p) clear_bins(s, kBins);
  int64_t sum = 0;
#pragma unroll 4
  for (int i = range.begin + lane_id(); i < range.end; i += kWarp) {
    const float z = divide(logits[id_of(i)] - best.logit, temperature);
    const int64_t mass = mass_of_z(z, bits);
    scratch.z[i] = z;
    sum += mass;
    if (has_top_p && mass > 0) add_to_bin(s, bin_of_z(z), mass);
  }
  int64_t total, below = scan(s, sum, total);
  Kept kept;
  if (has_top_p) {
    kept = keep_top_p(s, scratch, count, top_p, total, bits);
    sum = 0;
    for (int i = range.begin + lane_id(); i < range.end; i += kWarp)
      if (kept(key_of_z(scratch.z[i]), i)) sum += mass_of_z(scratch.z[i], bits);
    below = scan(s, sum, total);
  }

  // The first kept token, in order of ids, at which the running mass exceeds the target.
  const double u = philox_uniform(static_cast<uint64_t>(p.seed[row]), static_cast<uint32_t>(p.sample_index[row]),
                                  static_cast<uint32_t>(p.position[row]));
  int64_t target = static_cast<int64_t>(u * static_cast<double>(total));
  if (target >= total) target = total - 1;  // u * total rounded up to total
  int64_t running = shuffle(below, 0);      // before this warp's share
  const int64_t end = shuffle(below + sum, kWarp - 1);
  if (running <= target && target < end) {
    for (int i = range.begin;; i += kWarp) {
      const int at = i + lane_id();
      int64_t mass = 0;
      if (at < range.end && kept(key_of_z(scratch.z[at]), at)) mass = mass_of_z(scratch.z[at], bits);
      for (int delta = 1; delta < kWarp; delta *= 2) {
        const int64_t other = shuffle_up(mass, delta);
        if (lane_id() >= delta) mass += other;
      }
      const uint32_t beyond = ballot(running + mass > target);
      if (beyond) {
        if (lane_id() == first_bit(beyond)) s.position = at;
        break;
      }
      running += shuffle(mass, kWarp - 1);
    }
  }
  sync_threads();
  return id_of(s.position);
}

__global__ void __launch_bounds__(kThreads) sample_rows(Params p) {
  dependency_wait();
  dependency_launch();
  Shared& s = *reinterpret_cast<Shared*>(shared_memory());
  int32_t* lists = reinterpret_cast<int32_t*>(p.workspace + blockIdx.x * p.block_bytes);
  const Scratch scratch = {lists, lists + p.vocab_size, reinterpret_cast<float*>(lists + 2 * int64_t{p.vocab_size})};
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t token = sample_row(s, scratch, p, row);
    if (threadIdx.x == 0) p.out[row] = token;
    sync_threads();  // the next row uses the same shared memory
  }
}

int64_t block_bytes(int64_t vocab_size) { return round_up<int64_t>(3 * 4 * vocab_size, 64); }

}  // namespace

int64_t sample_workspace(int64_t num_rows, int64_t vocab_size) {
  return std::min(num_rows, kMaxBlocks) * block_bytes(vocab_size);
}

void sample(TensorView& out, const TensorView& logits, const SamplingParams& params, TensorView& workspace) {
  // check
  const int64_t rows = logits.shape[0], vocab_size = logits.shape[1];
  check_sample(out, logits, params);
  check_workspace(workspace, sample_workspace(rows, vocab_size), logits.device);

  // plan
  int mass_bits = kMassBits;
  while ((vocab_size - 1) >> (62 - mass_bits)) --mass_bits;  // the sum of all masses stays below 2^62
  const Params p = {out.as<int64_t>(), logits.as<float>(), logits.strides[0], static_cast<int>(rows),
                    static_cast<int>(vocab_size), mass_bits, params.temperature.as<float>(),
                    params.top_k.as<int32_t>(), params.top_p.as<float>(), params.seed.as<int64_t>(),
                    params.sample_index.as<int32_t>(), params.position.as<int32_t>(), workspace.as<char>(),
                    block_bytes(vocab_size)};

  // launch
  launch("sample", sample_rows, {dim3(static_cast<unsigned>(std::min(rows, kMaxBlocks))), kThreads, sizeof(Shared)}, p);
}

}  // namespace codegen_fast::cuda
