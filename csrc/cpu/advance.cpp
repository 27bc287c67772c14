// The end of a decode step: every row takes its token.
#include <algorithm>
#include <atomic>

#include "../ops.h"

namespace codegen_fast::cpu {

void advance(TensorView& tokens, TensorView& seq_lens, TensorView& remaining, TensorView& step, HostRing& ring,
             const TensorView& sampled, const TensorView& eos) {
  // check
  const Device device = sampled.device;
  check_shape(sampled, {-1});
  const int64_t rows = sampled.shape[0];
  for (const TensorView* t : {static_cast<const TensorView*>(&tokens), &sampled}) {
    check_dtype(*t, {DType::i64});
    check_shape(*t, {rows});
  }
  for (const TensorView* t : {&seq_lens, &remaining}) {
    check_dtype(*t, {DType::i32});
    check_shape(*t, {rows});
  }
  check_dtype(step, {DType::i64});
  check_shape(step, {1});
  check_dtype(eos, {DType::i64});
  check_shape(eos, {-1});
  check_dtype(ring.slots, {DType::i64});
  check_shape(ring.slots, {-1, 1 + rows});
  for (const TensorView* t : {static_cast<const TensorView*>(&tokens), &sampled, static_cast<const TensorView*>(&seq_lens),
                              static_cast<const TensorView*>(&remaining), static_cast<const TensorView*>(&step), &eos,
                              static_cast<const TensorView*>(&ring.slots)}) {
    check_contiguous(*t);
    check_device(*t, device);
  }
  const int64_t num_slots = ring.slots.shape[0];
  if (num_slots < 1) throw ValueError("slots: expected at least one");
  if (*step.as<int64_t>() < 0) throw ValueError("step: expected at least 0, got " + std::to_string(*step.as<int64_t>()));

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
    const bool last = --remaining.as<int32_t>()[b] == 0;
    const bool ended = token < 0 || std::find(first_eos, first_eos + eos.numel(), token) != first_eos + eos.numel();
    length = last || ended ? 0 : length + 1;
  }
  ++count;
  std::atomic_ref<int64_t>(slot[0]).store(count, std::memory_order_release);
}

}  // namespace codegen_fast::cpu
