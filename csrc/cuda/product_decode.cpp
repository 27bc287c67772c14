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

constexpr double kMostExtra = 0.5;          // bytes of activations read once more, for each byte of weights

// Shared memory of a block, two of which a multiprocessor holds.
int half_multiprocessor() { return (device_limits().shared_bytes_per_block + kReserved) / 2 - kReserved; }

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
  const int whole = device_limits().shared_bytes_per_block, half = half_multiprocessor();
  DecodePlan plan = {};
  plan.chunks = w.num_chunks();
  plan.panel_bytes = w.panel_bytes();
  plan.table = round_up(kBarrierBytes * (kSumsBarriers + kStripes * kMaxSlots), 128);
  plan.scratch = plan.table + round_up(shape.tokens * kPlaceBytes, 128);
  plan.parked = plan.scratch + round_up(kScratchBytes, 128);
  const bool split = w.element_bytes == 1 && w.num_segments > 1;
  const int float_rows = kPanel * static_cast<int>(sizeof(float));  // bytes of a token's sums of a panel
  plan.sums = plan.parked + (split ? shape.tiles * kTileTokens * shape.panels * float_rows : 0);
  plan.sums_bytes = kStripes * shape.sums_panels * std::min(kTileTokens, tokens) * float_rows;
  plan.activations = plan.sums + shape.sums_buffers * plan.sums_bytes;
  auto take = [&](int64_t activation_bytes, int least_ring) {
    const int64_t ring = plan.activations + activation_bytes;
    int64_t room = half - ring;
    if (shape.blocks == 1 || room < kLeastRing) room = std::min<int64_t>(whole - ring, kLargestRing);
    if (room < least_ring) return;
    // pieces of equal size, small enough that a group's can be used while the next group's arrive
    const int longest = ceil_div(plan.chunks, kStripes);
    const int enough = shape.panels > 4 ? shape.panels * 3 / 2 : shape.panels * 2;
    for (int most = kSlotBytes / w.chunk_bytes(); most > 0 && plan.slots < enough; most /= 2) {
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
  if (shape.may_hold) take(int64_t{tokens} * plan.chunks * kChunkBytes, kLeastRing);
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

// Resident rows are read once, streamed ones once for each group of panels, from L2. If the resident block takes the
// multiprocessor whole and the streamed one half of it, streaming keeps the overlap between kernels. How much traffic
// that is worth is a model's answer (L2 delivers somewhat less than twice what memory does), not a measured one.
bool better_streamed(const Weight& w, int tokens) {
  const int half = half_multiprocessor();
  const DecodeShape shape(DecodeMode::few);
  const DecodePlan resident = plan_decode(w, DecodeShape(DecodeMode::resident), tokens);
  if (resident.fits && resident.shared_bytes <= half) return false;
  const DecodePlan streamed = plan_decode(w, shape, tokens);
  if (!streamed.fits || streamed.shared_bytes > half) return false;
  const int panels = ceil_div(w.num_panels, std::min(w.num_panels, device_limits().multiprocessors));  // of a block
  const double again = (ceil_div(panels, shape.panels) - 1.0) * tokens * kChunkBytes;
  return again <= kMostExtra * panels * w.chunk_bytes();
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
