// The end of a decode step: every row takes its token.
#include <algorithm>
#include <atomic>
#include <limits>

#include "../checks.h"

namespace codegen_fast::cpu {

void advance(TensorView& tokens, TensorView& seq_lens, TensorView& remaining, TensorView& step, TensorView& history,
             HostRing& ring, const TensorView& sampled, const TensorView& eos) {
  // check
  check_advance(tokens, seq_lens, remaining, step, history, ring, sampled, eos);
  check_device(ring.slots, sampled.device);
  if (*step.as<int64_t>() < 0) throw ValueError("step: expected at least 0, got " + std::to_string(*step.as<int64_t>()));

  const int64_t rows = sampled.shape[0], num_slots = ring.slots.shape[0];
  int64_t& count = *step.as<int64_t>();
  int64_t* slot = ring.slots.as<int64_t>() + count % num_slots * (1 + rows);
  const int64_t* first_eos = eos.as<int64_t>();
  for (int64_t b = 0; b < rows; ++b) {
    int32_t& length = seq_lens.as<int32_t>()[b];
    if (length <= 0) {
      slot[1 + b] = -2;
      continue;
    }
    const int64_t token = sampled.as<int64_t>()[b];
    tokens.as<int64_t>()[b] = slot[1 + b] = token;
    if (length < history.shape[1])
      history.as<int32_t>()[b * history.strides[0] + length] = static_cast<int32_t>(token);
    int32_t& left = remaining.as<int32_t>()[b];
    left = static_cast<int32_t>(static_cast<uint32_t>(left) - 1u);
    const bool last = left == 0 || length == std::numeric_limits<int32_t>::max();
    const bool ended = token < 0 || std::find(first_eos, first_eos + eos.numel(), token) != first_eos + eos.numel();
    length = last || ended ? 0 : length + 1;
  }
  count = static_cast<int64_t>(static_cast<uint64_t>(count) + 1u);
  std::atomic_ref<int64_t>(slot[0]).store(count, std::memory_order_release);
}

}  // namespace codegen_fast::cpu
