// What is left of a row before a token is drawn: temperature, then the filters in the contract's order.
//
// Probabilities are summed as integers, multiples of 2^-46 (fewer bits for vocabularies beyond 65536). What is lost of
// a sum is below 1e-9 of it, so a token can be kept or drawn otherwise than on the CPU only where it lies that close to
// a threshold.
#pragma once

#include "block_select.cuh"

namespace codegen_fast::cuda {

constexpr float kLeastZ = -87.33654f;  // of what is less likely exp(z) counts as 0

// Rows of logits and their parameters. The filters from min_p on: null leaves one out.
struct FilterParams {
  const float* logits;
  int64_t stride;
  int rows, vocab_size, mass_bits;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const float* typical_p;
  const float* epsilon_cutoff;
  const float* eta_cutoff;
  int at_least;  // min_tokens_to_keep, at most vocab_size
  char* workspace;
  int64_t block_bytes;
};

// (vocab_size,) each, of one block.
struct Scratch {
  int32_t* ids;      // the tokens that top_k left, in order
  int32_t* members;  // positions in ids, in order
  float* z;          // of ids; NaN: dropped by a filter after top_p

  CODEGEN_FAST_DEVICE explicit Scratch(const FilterParams& p)
      : ids(reinterpret_cast<int32_t*>(p.workspace + blockIdx.x * p.block_bytes)),
        members(ids + p.vocab_size),
        z(reinterpret_cast<float*>(ids + 2 * int64_t{p.vocab_size})) {}
};

// ---- Keys and masses ---------------------------------------------------------------------------

// Ascending keys are descending floats; 0.0 and -0.0 are equal.
CODEGEN_FAST_DEVICE uint32_t descending_key(float x) {
  const uint32_t b = float_to_bits(x + 0.0f);
  return b >> 31 ? b : ~b & 0x7fffffff;
}
// The same for z, which is never positive, and back. Dropped tokens come last.
CODEGEN_FAST_DEVICE uint32_t key_of_z(float z) { return float_to_bits(z) & 0x7fffffff; }
CODEGEN_FAST_DEVICE float z_of_key(uint32_t key) { return bits_to_float(key | 0x80000000u); }
// Of the histogram of masses, 64 bins a unit of z: fine enough that threads seldom meet in one.
CODEGEN_FAST_DEVICE int bin_of_z(float z) { return static_cast<int>(fminf(z * -64.0f, kBins - 1.0f)); }

CODEGEN_FAST_DEVICE float dropped() { return bits_to_float(0x7fc00000); }
CODEGEN_FAST_DEVICE bool is_dropped(float z) { return z != z; }

// exp(z) for kLeastZ <= z <= 0, bit for bit the CPU backend's (csrc/cpu/kernels/simd.h). Below, and for dropped tokens,
// that of kLeastZ, of which no mass is left.
CODEGEN_FAST_DEVICE float exponential(float z) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float x = fmaxf(z, kLeastZ);
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

// The smallest mass that is at least this share of the total, and at least 1.
CODEGEN_FAST_DEVICE int64_t mass_wanted(float share, int64_t total) {
  const double exact = static_cast<double>(share) * static_cast<double>(total);
  int64_t wanted = static_cast<int64_t>(exact);
  if (static_cast<double>(wanted) < exact) ++wanted;
  return wanted < 1 ? 1 : wanted > total ? total : wanted;
}

// ---- The row as it comes -----------------------------------------------------------------------

// Written so that NaN fails.
template <bool kMore>
CODEGEN_FAST_DEVICE bool in_range(const FilterParams& p, int row) {
  const float temperature = p.temperature[row], top_p = p.top_p[row];
  bool ok = temperature >= 0.0f && temperature <= kLargestFloat && p.top_k[row] >= 0 && top_p >= 0.0f && top_p <= 1.0f;
  if constexpr (kMore) {
    if (p.min_p) ok = ok && p.min_p[row] >= 0.0f && p.min_p[row] <= 1.0f;
    if (p.typical_p) ok = ok && p.typical_p[row] > 0.0f && p.typical_p[row] <= 1.0f;
    if (p.epsilon_cutoff) ok = ok && p.epsilon_cutoff[row] >= 0.0f && p.epsilon_cutoff[row] < 1.0f;
    if (p.eta_cutoff) ok = ok && p.eta_cutoff[row] >= 0.0f && p.eta_cutoff[row] < 1.0f;
  }
  return ok;
}

// The largest logit and the first index that has it; whether there is a NaN. thread_best: of this thread's share.
struct Best {
  float logit, thread_best;
  int index;
  bool has_nan;

  CODEGEN_FAST_DEVICE bool has_answer() const { return !has_nan && fabsf(logit) <= kLargestFloat; }
};
CODEGEN_FAST_DEVICE Best find_best(Shared& s, const float* logits, int vocab_size) {
  float best = minus_infinity();
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

// ---- top_k and top_p ---------------------------------------------------------------------------

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
  const int64_t wanted = mass_wanted(top_p, total);
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

// ---- The filters after them --------------------------------------------------------------------
// They work on all count positions, dropped tokens weighing nothing.

// Sum of of(i) over the positions.
template <class Of>
CODEGEN_FAST_DEVICE int64_t sum_over(Shared& s, int count, Of of) {
  const Range range = share_of_warp(count);
  int64_t sum = 0, total;
  for (int i = range.begin + lane_id(); i < range.end; i += kWarp) sum += of(i);
  scan(s, sum, total);
  return total;
}

// The key of the number-th position by ascending keys, or of the last, and how many positions have smaller ones.
template <class Key>
CODEGEN_FAST_DEVICE uint32_t select_number(Shared& s, int count, int number, Key key, int64_t& before) {
  return select(s, count, number < count ? number : count, key, [](int) { return int64_t{1}; }, before);
}

// Drops the positions i for which keep(i) is false; keep looks at position i alone.
template <class Keep>
CODEGEN_FAST_DEVICE void drop_others(const Scratch& scratch, int count, Keep keep) {
  const Range range = share_of_warp(count);
  for (int i = range.begin + lane_id(); i < range.end; i += kWarp)
    if (!keep(i)) scratch.z[i] = dropped();
  sync_threads();
}

CODEGEN_FAST_DEVICE int64_t total_mass(Shared& s, const Scratch& scratch, int count, int bits) {
  return sum_over(s, count, [&](int i) { return mass_of_z(scratch.z[i], bits); });
}

// The mean of -z under the probabilities, at least 0: each product is exact in float64 and becomes an integer as masses
// do. No product exceeds 1 / e, so their sum fits where that of the masses does.
CODEGEN_FAST_DEVICE double mean_distance(Shared& s, const Scratch& scratch, int count, int64_t total, int bits) {
  const double unit = static_cast<double>(int64_t{1} << bits);
  const int64_t sum = sum_over(s, count, [&](int i) {
    const float z = scratch.z[i];
    if (mass_of_z(z, bits) == 0) return int64_t{0};
    return static_cast<int64_t>(static_cast<double>(exponential(z)) * -static_cast<double>(z) * unit);
  });
  return static_cast<double>(sum) / static_cast<double>(total);
}

// If top_p kept fewer than at_least: of the most probable so many, of equals the lower ids.
CODEGEN_FAST_DEVICE Kept keep_at_least(Shared& s, const Scratch& scratch, int count, Kept kept, int at_least) {
  if (at_least == 1) return kept;
  const auto key = [&](int i) { return key_of_z(scratch.z[i]); };
  at_least = at_least < count ? at_least : count;
  if (sum_over(s, count, [&](int i) { return int64_t{kept(key(i), i)}; }) >= at_least) return kept;
  int64_t before;
  kept.key = select_number(s, count, at_least, key, before);
  gather(s, count, [&](int i) { return key(i) == kept.key; },
         [&](int rank, int i) { if (rank == at_least - before - 1) s.position = i; });
  kept.last = s.position;
  return kept;
}

// Keeps exp(z) >= threshold; if fewer than at_least pass, instead the at_least largest logits and the last one's
// equals. logit_of(i): of position i.
template <class Logit>
CODEGEN_FAST_DEVICE void keep_probable(Shared& s, const Scratch& scratch, int count, double threshold, int at_least,
                                       Logit logit_of) {
  const auto passes = [&](int i) {
    const float z = scratch.z[i];
    return z >= kLeastZ && static_cast<double>(exponential(z)) >= threshold;
  };
  if (sum_over(s, count, [&](int i) { return int64_t{passes(i)}; }) >= at_least)
    return drop_others(scratch, count, passes);
  const auto key = [&](int i) { return is_dropped(scratch.z[i]) ? 0xffffffffu : descending_key(logit_of(i)); };
  int64_t before;
  const uint32_t last = select_number(s, count, at_least, key, before);
  drop_others(scratch, count, [&](int i) { return key(i) <= last; });
}

// With the mean of z, t = |-log p - H| is |z - mean|.
CODEGEN_FAST_DEVICE void keep_typical(Shared& s, const Scratch& scratch, int count, float typical_p, int at_least,
                                      int bits) {
  const int64_t total = total_mass(s, scratch, count, bits);
  const float mean = static_cast<float>(-mean_distance(s, scratch, count, total, bits));
  const auto key = [&](int i) { return float_to_bits(fabsf(scratch.z[i] - mean)); };  // NaN, dropped, comes last
  int64_t before;
  uint32_t last = select(s, count, mass_wanted(typical_p, total), key,
                         [&](int i) { return mass_of_z(scratch.z[i], bits); }, before);
  if (at_least > 1) {
    const uint32_t other = select_number(s, count, at_least, key, before);
    last = other > last ? other : last;
  }
  drop_others(scratch, count, [&](int i) { return key(i) <= last; });
}

enum class Filter { min_p, typical_p, epsilon_cutoff, eta_cutoff, end };

CODEGEN_FAST_DEVICE const float* values_of(const FilterParams& p, Filter filter) {
  return filter == Filter::min_p            ? p.min_p
         : filter == Filter::typical_p      ? p.typical_p
         : filter == Filter::epsilon_cutoff ? p.epsilon_cutoff
                                            : p.eta_cutoff;
}

// Those that follow top_p, in turn.
template <class Logit>
CODEGEN_FAST_DEVICE void apply_filters(Shared& s, const Scratch& scratch, const FilterParams& p, int row, int count,
                                       Logit logit_of) {
  const int bits = p.mass_bits;
#pragma unroll 1  // keep_probable() is inlined once
  for (int i = 0; i < static_cast<int>(Filter::end); ++i) {
    const Filter filter = static_cast<Filter>(i);
    const float* values = values_of(p, filter);
    if (!values) continue;
    const float value = values[row];
    if (filter == Filter::typical_p) {
      if (value < 1.0f) keep_typical(s, scratch, count, value, p.at_least, bits);
      continue;
    }
    if (value == 0.0f) continue;
    double threshold = value;  // of exp(z), the largest of which is 1: what min_p is a part of
    if (filter != Filter::min_p) {
      const int64_t total = total_mass(s, scratch, count, bits);
      const double mass = static_cast<double>(total) / static_cast<double>(int64_t{1} << bits);
      if (filter == Filter::eta_cutoff) {
        const double entropy = log(mass) + mean_distance(s, scratch, count, total, bits);
        threshold = fmin(threshold, sqrt(threshold) * exp(-entropy));
      }
      threshold *= mass;
    }
    keep_probable(s, scratch, count, threshold, p.at_least, logit_of);
  }
}

// ---- All of them -------------------------------------------------------------------------------

// What the filters left: of count positions, those that are kept and not dropped.
struct Left {
  int count;
  bool has_ids;        // else positions are ids
  Kept kept;
  int64_t sum, below;  // the masses of this thread's positions and of all before them
  int64_t total;

  CODEGEN_FAST_DEVICE int id_of(const Scratch& scratch, int i) const { return has_ids ? scratch.ids[i] : i; }
};

// kMore: with filters beside top_k and top_p, or at_least above 1. Parameters are in range, the temperature is above 0.
template <bool kMore>
CODEGEN_FAST_DEVICE Left filter_row(Shared& s, const Scratch& scratch, const FilterParams& p, int row,
                                    const Best& best) {
  const float* logits = p.logits + row * p.stride;
  const int vocab_size = p.vocab_size, bits = p.mass_bits;
  const float temperature = p.temperature[row], top_p = p.top_p[row];
  int top_k = p.top_k[row];
  if (kMore && top_k > 0 && top_k < p.at_least) top_k = p.at_least;

  Left left;
  left.has_ids = top_k > 0 && top_k < vocab_size;
  left.count = left.has_ids ? keep_top_k(s, scratch, logits, vocab_size, top_k, best.thread_best) : vocab_size;
  const int count = left.count;

  // z and the masses
  const bool has_top_p = top_p < 1.0f;
  const Range range = share_of_warp(count);
  if (has_top_p) clear_bins(s, kBins);
  left.sum = 0;
#pragma unroll 4
  for (int i = range.begin + lane_id(); i < range.end; i += kWarp) {
    const float z = divide(logits[left.id_of(scratch, i)] - best.logit, temperature);
    const int64_t mass = mass_of_z(z, bits);
    scratch.z[i] = z;
    left.sum += mass;
    if (has_top_p && mass > 0) add_to_bin(s, bin_of_z(z), mass);
  }
  left.below = scan(s, left.sum, left.total);
  if (has_top_p) left.kept = keep_top_p(s, scratch, count, top_p, left.total, bits);

  if constexpr (kMore) {
    const auto logit_of = [&](int i) { return logits[left.id_of(scratch, i)]; };
    if (has_top_p) {
      const Kept kept = keep_at_least(s, scratch, count, left.kept, p.at_least);
      drop_others(scratch, count, [&](int i) { return kept(key_of_z(scratch.z[i]), i); });
      left.kept = Kept();
    }
    apply_filters(s, scratch, p, row, count, logit_of);
  }
  if (has_top_p || kMore) {
    left.sum = 0;
    for (int i = range.begin + lane_id(); i < range.end; i += kWarp)
      if (left.kept(key_of_z(scratch.z[i]), i)) left.sum += mass_of_z(scratch.z[i], bits);
    left.below = scan(s, left.sum, left.total);
  }
  return left;
}

}  // namespace codegen_fast::cuda
