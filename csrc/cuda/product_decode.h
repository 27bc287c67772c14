// How the decode product divides tokens into launches and lays out shared memory. Host code.
#pragma once

#include "layout.h"

namespace codegen_fast::cuda {

constexpr int kStripes = 8;             // product warps of a block
constexpr int kChunkBytes = kChunk * 2; // of a row of activations
constexpr int kTileTokens = 16;         // of a tile of the tensor cores, and of a buffer of sums
constexpr int kMaxSumsBuffers = 4;
constexpr int kSumsBarriers = 2 * kMaxSumsBuffers;  // at the beginning of shared memory; the rings' come behind them
constexpr int kPlaceBytes = 8;          // where a token stands
constexpr int kScratchBytes = 64;       // of LayerNorm
constexpr int kMaxParts = 4;            // of a launch's tokens
constexpr int kNormalizedTokens = 2;    // up to so many, every block normalises the rows itself

// What a kernel is built for: its tokens, and whether activations may be streamed.
enum class DecodeMode {
  resident,  // 8 tokens, rows in shared memory as a whole
  few,       // 8 tokens, streamed
  some,      // 16
  many,      // 32, and up to kMaxParts times as many, each part in blocks of its own
};

// What follows from it.
struct DecodeShape {
  bool may_hold;       // rows as a whole
  bool may_stream;
  int tokens;
  int tiles;           // of up to 16 tokens
  int panels;          // of a group
  int sums_panels;     // of a buffer of sums
  int stages;          // streamed chunks of activations that a warp holds; 2 where there is no room for them
  int epilogue_warps;
  int sums_buffers;
  int blocks;          // that a multiprocessor should be able to hold

  CODEGEN_FAST_BOTH constexpr explicit DecodeShape(DecodeMode mode)
      : may_hold(mode != DecodeMode::few), may_stream(mode != DecodeMode::resident),
        tokens(mode == DecodeMode::many ? 32 : mode == DecodeMode::some ? 16 : 8),
        tiles(ceil_div(tokens, kTileTokens)),
        panels(mode == DecodeMode::resident ? 2 : mode == DecodeMode::many ? 8 : 4),
        sums_panels(panels < 4 ? panels : 4),
        stages(mode == DecodeMode::many ? 2 : 4),
        epilogue_warps(tokens == 8 ? 1 : 4),
        sums_buffers(mode == DecodeMode::resident ? 4 : 2),
        blocks(tokens == 8 ? 2 : 1) {}
  CODEGEN_FAST_BOTH constexpr int threads() const { return (kStripes + epilogue_warps) * 32; }
};

struct DecodePlan {
  bool fits;      // at all
  bool resident;
  int chunks;     // of a panel
  int64_t panel_bytes;
  int piece;      // chunks of a panel in a slot of the ring
  int slots;      // of a warp
  int slot_bytes;
  int stages;     // of a warp, where activations are streamed
  int stage_bytes;
  // byte offsets in shared memory: where tokens stand, LayerNorm's scratch, sums of the segment before, buffers of
  // sums, activations, ring
  int table, scratch, parked, sums, sums_bytes, activations, ring;
  int shared_bytes;
};
DecodePlan plan_decode(const Weight& w, const DecodeShape& shape, int tokens);
// Whether up to 8 tokens are better streamed (DecodeMode::few), though they might be resident.
bool better_streamed(const Weight& w, int tokens);

// Bytes of workspace that decode_product needs.
int64_t decode_workspace(int64_t tokens, const PackedWeight& w);
// Rows of activations as the kernel copies them: 16-byte aligned, segments padded; the stride in elements.
struct DecodeRows {
  const void* data;
  int64_t stride;
};
// Those of x that `index` names (null: all), normalised if there is a norm; made in the workspace unless x's own do.
DecodeRows decode_rows(const TensorView& x, const TensorView* index, const Norm* norm, const PackedWeight& w,
                       void* workspace);

}  // namespace codegen_fast::cuda
