// The end of a decode step: every row takes its token. One block; the ring's sequence number is the last to be stored.
#include "checks.h"
#include "intrinsics.h"
#include "launch.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kThreads = 256;

struct Params {
  int64_t* tokens;
  int32_t* seq_lens;
  int32_t* remaining;
  int64_t* step;
  int32_t* history;
  int64_t history_stride;
  int columns;
  int64_t* slots;
  int num_slots, rows;
  const int64_t* sampled;
  const int64_t* eos;
  int num_eos;
};

__global__ void __launch_bounds__(kThreads) advance_rows(Params p) {
  dependency_wait();
  dependency_launch();
  const int64_t step = *p.step;
  int64_t* slot = p.slots + static_cast<int64_t>(static_cast<uint64_t>(step) % p.num_slots) * (1 + p.rows);
  for (int b = threadIdx.x; b < p.rows; b += kThreads) {
    const int32_t length = p.seq_lens[b];
    if (length <= 0) {
      slot[1 + b] = -2;
      continue;
    }
    const int64_t token = p.sampled[b];
    const int32_t left = static_cast<int32_t>(static_cast<uint32_t>(p.remaining[b]) - 1u);
    bool ended = token < 0 || left == 0 || length == INT32_MAX;
    for (int i = 0; i < p.num_eos; ++i) ended = ended || token == p.eos[i];
    p.tokens[b] = slot[1 + b] = token;
    if (length < p.columns) p.history[b * p.history_stride + length] = static_cast<int32_t>(token);
    p.remaining[b] = left;
    p.seq_lens[b] = ended ? 0 : length + 1;
  }
  sync_threads();  // all rows are written, and all have read the step
  if (threadIdx.x == 0) {
    const int64_t count = static_cast<int64_t>(static_cast<uint64_t>(step) + 1u);
    *p.step = count;
    store_release_system(slot, count);
  }
}

}  // namespace

void advance(TensorView& tokens, TensorView& seq_lens, TensorView& remaining, TensorView& step, TensorView& history,
             HostRing& ring, const TensorView& sampled, const TensorView& eos) {
  // check
  check_advance(tokens, seq_lens, remaining, step, history, ring, sampled, eos);
  const TensorView& slots = ring.slots;
  // The slots as the device addresses them: memory that it cannot write is refused here.
  void* device_slots = nullptr;
  if (cudaHostGetDevicePointer(&device_slots, slots.data, 0) != cudaSuccess) {
    cudaGetLastError();
    throw ValueError("slots: expected pinned memory of the host, which the device can write");
  }

  // launch
  launch("advance", advance_rows, {dim3(1), kThreads},
         Params{tokens.as<int64_t>(), seq_lens.as<int32_t>(), remaining.as<int32_t>(), step.as<int64_t>(),
                history.as<int32_t>(), history.strides[0], to_int(history.shape[1], "history"),
                static_cast<int64_t*>(device_slots), to_int(slots.shape[0], "slots"),
                to_int(sampled.shape[0], "sampled"), sampled.as<int64_t>(), eos.as<int64_t>(),
                to_int(eos.numel(), "eos")});
}

}  // namespace codegen_fast::cuda
