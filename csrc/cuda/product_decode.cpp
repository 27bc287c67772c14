#include "product_decode.h"

#include <algorithm>

#include "launch.h"
#include "product_prefill.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kSlotBytes = 2048;            // of a ring, at most
constexpr int kMaxSlots = 16;               // of a warp
constexpr int kLeastRing = 48 * 1024;       // that a block is content with
constexpr int kLargestRing = 128 * 1024;
constexpr int kBarrierBytes = 8;
constexpr int kReserved = 1024;             // shared memory that the system takes for a block

// A weight of the same shape in x's type: what rows that are not quantised are made for.
PackedWeight unquantized(const PackedWeight& w, DType type) {
  PackedWeight plain = w;
  plain.dtype = type;
  return plain;
}

}  // namespace

// Two blocks of consecutive launches share a multiprocessor where that leaves each a ring of 48 KB: the second fills
// its ring while the first drains. Elsewhere a block takes the multiprocessor whole.
DecodePlan plan_decode(const Weight& w, const DecodeShape& shape, int tokens) {
  const int whole = device_limits().shared_bytes_per_block, half = (whole + kReserved) / 2 - kReserved;
  DecodePlan plan = {};
  plan.chunks = w.num_chunks();
  plan.panel_bytes = w.panel_bytes();
  plan.table = round_up(kBarrierBytes * (kSumsBarriers + kStripes * kMaxSlots), 128);
  plan.scratch = plan.table + round_up(shape.tokens * kPlaceBytes, 128);
  plan.sums = plan.scratch + round_up(kScratchBytes, 128);
  plan.sums_bytes = kStripes * shape.panels * std::min(kTileTokens, tokens) * kPanel * static_cast<int>(sizeof(float));
  plan.activations = plan.sums + shape.sums_buffers * plan.sums_bytes;
  auto take = [&](int64_t activation_bytes, int least_ring) {
    const int64_t ring = plan.activations + activation_bytes;
    int64_t room = half - ring;
    if (shape.blocks == 1 || room < kLeastRing) room = std::min<int64_t>(whole - ring, kLargestRing);
    if (room < least_ring) return;
    // pieces of equal size, small enough that a group's can be used while the next group's arrive
    const int longest = ceil_div(plan.chunks, kStripes);
    for (int most = kSlotBytes / w.chunk_bytes(); most > 0 && plan.slots < 2 * shape.panels; most /= 2) {
      plan.piece = ceil_div(longest, ceil_div(longest, most));
      plan.slot_bytes = plan.piece * w.chunk_bytes();
      plan.slots = static_cast<int>(std::clamp<int64_t>(room / (kStripes * plan.slot_bytes), 0, kMaxSlots));
    }
    if (plan.slots < shape.panels) return;  // a group's pieces are in use at the same time
    plan.fits = true;
    plan.ring = static_cast<int>(ring);
    plan.shared_bytes = plan.ring + plan.slots * kStripes * plan.slot_bytes;
  };
  plan.resident = true;
  take(int64_t{tokens} * plan.chunks * kChunkBytes, kLeastRing);
  if (plan.fits || !shape.may_stream) return plan;
  plan.resident = false;
  plan.stage_bytes = round_up(tokens, kPanel) * kChunkBytes;
  for (const int stages : {shape.stages, 2}) {
    plan.stages = stages;
    take(int64_t{kStripes} * stages * plan.stage_bytes, 0);
    if (plan.fits) break;
  }
  return plan;
}

int64_t decode_workspace(int64_t tokens, const PackedWeight& w) {
  return prefill_rows_bytes(tokens, unquantized(w, DType::f16));
}

DecodeRows decode_rows(const TensorView& x, const TensorView* index, const Norm* norm, const PackedWeight& w,
                       void* workspace) {
  const PackedWeight plain = unquantized(w, x.dtype);
  const PrefillRows rows = norm ? normalized_rows(x, index, *norm, plain, workspace) : plain_rows(x, plain, workspace);
  return {rows.data, rows.stride / dtype_bytes(x.dtype)};
}

}  // namespace codegen_fast::cuda
