// The next token of every row: temperature, filters, a counter-based draw; and the scores that it is drawn from. One
// block a row.
#include <algorithm>

#include "../philox.h"
#include "checks.h"
#include "launch.h"
#include "row_blocks.h"
#include "sample_filters.cuh"

namespace codegen_fast::cuda {
namespace {

constexpr int kMassBits = 46;

struct Draw {
  int64_t* out;
  const int64_t* seed;
  const int32_t* sample_index;
  const int32_t* position;
};

template <bool kMore>
CODEGEN_FAST_DEVICE int64_t sample_row(Shared& s, const Scratch& scratch, const FilterParams& p, const Draw& draw,
                                       int row) {
  if (!in_range<kMore>(p, row)) return -1;
  const Best best = find_best(s, p.logits + row * p.stride, p.vocab_size);
  if (!best.has_answer()) return -1;
  if (p.temperature[row] == 0.0f) return best.index;
  const Left left = filter_row<kMore>(s, scratch, p, row, best);

  // The first kept token, in order of ids, at which the running mass exceeds the target.
  const double u =
      philox_uniform(static_cast<uint64_t>(draw.seed[row]), static_cast<uint32_t>(draw.sample_index[row]),
                     static_cast<uint32_t>(draw.position[row]));
  int64_t target = static_cast<int64_t>(u * static_cast<double>(left.total));
  if (target >= left.total) target = left.total - 1;  // u * total rounded up to total
  const Range range = share_of_warp(left.count);
  int64_t running = shuffle(left.below, 0);  // before this warp's share
  const int64_t end = shuffle(left.below + left.sum, kWarp - 1);
  if (running <= target && target < end) {
    for (int i = range.begin;; i += kWarp) {
      const int at = i + lane_id();
      int64_t mass = 0;
      if (at < range.end && left.kept(key_of_z(scratch.z[at]), at)) mass = mass_of_z(scratch.z[at], p.mass_bits);
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
  return left.id_of(scratch, s.position);
}

template <bool kMore>
__global__ void __launch_bounds__(kThreads) sample_rows(FilterParams p, Draw draw) {
  dependency_wait();
  dependency_launch();
  Shared& s = *reinterpret_cast<Shared*>(shared_memory());
  const Scratch scratch(p);
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t token = sample_row<kMore>(s, scratch, p, draw, row);
    if (threadIdx.x == 0) draw.out[row] = token;
    sync_threads();  // the next row uses the same shared memory
  }
}

CODEGEN_FAST_DEVICE void filter_logits_of_row(Shared& s, const Scratch& scratch, const FilterParams& p, float* logits,
                                              int row) {
  const auto fill = [&](float value) {
    for (int i = threadIdx.x; i < p.vocab_size; i += kThreads) logits[i] = value;
  };
  const float temperature = p.temperature[row];
  bool valid = in_range<true>(p, row);
  Best best;
  if (valid) {
    best = find_best(s, logits, p.vocab_size);
    valid = best.has_answer();
  }
  if (!valid) return fill(bits_to_float(0x7fc00000));
  if (temperature == 0.0f) return;
  const Left left = filter_row<true>(s, scratch, p, row, best);

  // The scores take z's place until all logits have been read.
  for (int i = threadIdx.x; i < left.count; i += kThreads)
    scratch.z[i] = is_dropped(scratch.z[i]) ? minus_infinity()
                                            : divide(logits[left.id_of(scratch, i)], temperature);
  sync_threads();
  if (left.has_ids) fill(minus_infinity());
  sync_threads();
  for (int i = threadIdx.x; i < left.count; i += kThreads) logits[left.id_of(scratch, i)] = scratch.z[i];
}

__global__ void __launch_bounds__(kThreads) filter_rows(FilterParams p, float* logits) {
  dependency_wait();
  dependency_launch();
  Shared& s = *reinterpret_cast<Shared*>(shared_memory());
  const Scratch scratch(p);
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    filter_logits_of_row(s, scratch, p, logits + row * p.stride, row);
    sync_threads();  // the next row uses the same memory
  }
}

int64_t block_bytes(int64_t vocab_size) { return round_up<int64_t>(3 * 4 * vocab_size, 64); }

FilterParams filter_params(const TensorView& logits, const SamplingParams& params, const TensorView& workspace) {
  const int64_t vocab_size = logits.shape[1];
  int mass_bits = kMassBits;
  while ((vocab_size - 1) >> (62 - mass_bits)) --mass_bits;  // the sum of all masses stays below 2^62
  return {.logits = logits.as<float>(),
          .stride = logits.strides[0],
          .rows = to_int(logits.shape[0], "rows"),
          .vocab_size = to_int(vocab_size, "vocab_size"),
          .mass_bits = mass_bits,
          .temperature = params.temperature.as<float>(),
          .top_k = params.top_k.as<int32_t>(),
          .top_p = params.top_p.as<float>(),
          .min_p = params.min_p.as<float>(),
          .typical_p = params.typical_p.as<float>(),
          .epsilon_cutoff = params.epsilon_cutoff.as<float>(),
          .eta_cutoff = params.eta_cutoff.as<float>(),
          .at_least = static_cast<int>(std::min(params.min_tokens_to_keep, vocab_size)),
          .workspace = workspace.as<char>(),
          .block_bytes = block_bytes(vocab_size)};
}

Grid grid_of(int64_t rows) {
  return {dim3(row_blocks(rows)), kThreads, sizeof(Shared)};
}

}  // namespace

int64_t sample_workspace(int64_t num_rows, int64_t vocab_size) {
  return row_blocks_bytes(num_rows, block_bytes(vocab_size));
}

void sample(TensorView& out, const TensorView& logits, const SamplingParams& params, TensorView& workspace) {
  // check
  const int64_t rows = logits.shape[0];
  check_sample(out, logits, params);
  check_workspace(workspace, sample_workspace(rows, logits.shape[1]), logits.device);

  // plan: the usual case runs a kernel without the other filters
  const FilterParams p = filter_params(logits, params, workspace);
  const bool more = p.min_p || p.typical_p || p.epsilon_cutoff || p.eta_cutoff || p.at_least > 1;

  // launch
  launch("sample", more ? sample_rows<true> : sample_rows<false>, grid_of(rows), p,
         Draw{out.as<int64_t>(), params.seed.as<int64_t>(), params.sample_index.as<int32_t>(),
              params.position.as<int32_t>()});
}

void filter_logits(TensorView& logits, const SamplingParams& params, TensorView& workspace) {
  // check
  const int64_t rows = logits.shape[0];
  check_filter_logits(logits, params);
  check_workspace(workspace, sample_workspace(rows, logits.shape[1]), logits.device);

  // launch
  launch("filter_logits", filter_rows, grid_of(rows), filter_params(logits, params, workspace), logits.as<float>());
}

}  // namespace codegen_fast::cuda
