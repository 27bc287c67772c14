// Products of many tokens on the tensor cores: f16 and bf16 with float32 sums, int8 x int8 with int32 sums.
//
// A block takes a tile of tokens and rows of the weight, and goes through the columns in stages of 128 bytes a row: a
// ring of slots in shared memory that cp.async fills a few stages ahead. The weight's part of a slot is as in memory,
// core after core; in that of the activations the 16-byte unit u of row r lies at unit u ^ (r % 8) of its 128 bytes, so
// that ldmatrix meets no bank twice in either. Fragments of the next 32 bytes are loaded while those before are
// multiplied.
//
// An element is summed in the order of its columns, 32 bytes at a time, by one thread: its bits know nothing of the
// tile's shape, or of other tokens. int8: int32 over a segment; segments are scaled and added in float32, in order.
//
// Blocks that follow one another take the same rows of the weight and other tokens, up to kBandTokens of them: weights
// come from memory once a band, and the activations of a band stay in the L2 cache.
#pragma once

#include "epilogues.cuh"
#include "intrinsics.h"
#include "product_prefill.h"

namespace codegen_fast::cuda {

constexpr int kStageBytes = 128;  // of a row
constexpr int kStageSteps = 4;    // of 32 bytes, what one mma takes
constexpr int kMaxStages = 4;
constexpr int kBandTokens = 2048;

// Tokens x rows of a block and of a warp.
template <int Tokens, int Rows, int WarpTokens, int WarpRows>
struct Tile {
  static constexpr int kTokens = Tokens, kRows = Rows, kWarpTokens = WarpTokens, kWarpRows = WarpRows;
  static constexpr int kThreads = Tokens / WarpTokens * (Rows / WarpRows) * kWarp;
  static constexpr int kStage = (Tokens + Rows) * kStageBytes;  // bytes of a slot
  // The epilogue's slab of a warp: 16 tokens in float32, padded so that stores of fragments meet no bank twice.
  static constexpr int kSlabRow = WarpRows + 8;
  static constexpr int kSlab = 16 * kSlabRow * 4;
  static_assert(Tokens % WarpTokens == 0 && WarpTokens % 16 == 0, "a warp takes fragments of 16 tokens");
  static_assert(Rows % WarpRows == 0 && WarpRows % 16 == 0, "a warp takes panels in pairs");
  static_assert(WarpRows <= 64, "a lane of the epilogue has a pair of rows");
  static_assert(kThreads % (8 * kPanel) == 0, "all units that a thread copies have the same place in a row or panel");
  static_assert(Tokens * 8 % kThreads == 0 && Rows * 8 % kThreads == 0, "threads copy the same number of units");
  static_assert(kThreads / kWarp * kSlab <= 2 * kStage, "slabs lie in the ring");
};

template <class Epilogue>
struct PrefillParams {
  Weight w;
  PrefillRows rows;
  int tokens;
  int stages;       // slots of the ring
  int first_steps;  // stages that the first segment takes, the rest follow; all of them for f16 and bf16
  int steps;
  Epilogue epilogue;
};

template <class Input> struct Accumulator { using type = float; };
template <> struct Accumulator<int8_t> { using type = int32_t; };

template <class Input>
CODEGEN_FAST_DEVICE void multiply_add(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  mma16x8x16<Input>(d, a, b);
}
template <class Input>
CODEGEN_FAST_DEVICE void multiply_add(int32_t d[4], const uint32_t a[4], const uint32_t b[2]) {
  mma16x8x32(d, a, b);
}

// Which columns a stage has: bytes begin .. begin + valid of every row, the rest of the slot is zeros.
struct StageColumns {
  int begin, valid;
};
template <class Epilogue>
CODEGEN_FAST_DEVICE StageColumns columns_of_stage(const PrefillParams<Epilogue>& p, int step) {
  const int chunk = kChunk * p.w.element_bytes;
  const bool first = step < p.first_steps;
  const int begin = first ? step * kStageBytes : p.w.segment_chunk[1] * chunk + (step - p.first_steps) * kStageBytes;
  const int end = (first && p.first_steps < p.steps ? p.w.segment_chunk[1] : p.w.num_chunks()) * chunk;
  return {begin, min(kStageBytes, end - begin)};
}

// What a thread copies into a slot.
template <class Tile>
struct Copies {
  static constexpr int kTokenStep = Tile::kThreads / 8;    // tokens between a thread's units
  static constexpr int kPanelStep = Tile::kThreads / 64;   // panels between them
  const char* tokens;   // its first unit of column 0
  const char* panels;
  int64_t token_step, panel_step;  // in bytes
  int tokens_left, panels_left;    // from its first on
  int token_unit, panel_unit;      // byte of a stage's columns at which its units begin, in a row and in a panel
  int slot;                        // offset of its first unit of tokens in a slot

  template <class Epilogue>
  CODEGEN_FAST_DEVICE Copies(const PrefillParams<Epilogue>& p, int first_token, int first_panel) {
    const int thread = threadIdx.x, row = thread / 8, unit = thread % 8, panel = thread / 64;
    tokens = p.rows.data + (first_token + row) * p.rows.stride + unit * 16;
    panels = p.w.data + (first_panel + panel) * p.w.panel_bytes() + thread % 64 * 16;
    token_step = kTokenStep * p.rows.stride;
    panel_step = kPanelStep * p.w.panel_bytes();
    tokens_left = p.tokens - first_token - row;
    panels_left = p.w.num_panels - first_panel - panel;
    token_unit = unit * 16;
    panel_unit = thread % 64 * 16;
    slot = row * kStageBytes + (unit ^ row % 8) * 16;
  }
  CODEGEN_FAST_DEVICE void copy_tokens(char* to, StageColumns c) const {
#pragma unroll
    for (int i = 0; i < Tile::kTokens / kTokenStep; ++i)
      copy_async16(to + slot + i * kTokenStep * kStageBytes, tokens + i * token_step + c.begin,
                   i * kTokenStep < tokens_left && token_unit < c.valid);
  }
  CODEGEN_FAST_DEVICE void copy_panels(char* to, StageColumns c) const {
    to += Tile::kTokens * kStageBytes + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < Tile::kRows / kPanel / kPanelStep; ++i)
      copy_async16(to + i * Tile::kThreads * 16, panels + i * panel_step + int64_t{c.begin} * kPanel,
                   i * kPanelStep < panels_left && panel_unit < c.valid * kPanel);
  }
};

// Waits for the slot that was asked for stages - 1 groups ago.
CODEGEN_FAST_DEVICE void wait_for_stage(int stages) {
  static_assert(kMaxStages == 4, "a case for every number of stages");
  if (stages == 4) copy_async_wait<2>();
  else if (stages == 3) copy_async_wait<1>();
  else copy_async_wait<0>();
}

// The tile of a block: tokens first within a band, then rows of the weight, then bands.
struct TilePlace {
  int first_token, first_panel;
};
template <class Tile>
CODEGEN_FAST_DEVICE TilePlace tile_place(int index, int tokens, int num_panels) {
  const int token_tiles = ceil_div(tokens, Tile::kTokens), row_tiles = ceil_div(num_panels, Tile::kRows / kPanel);
  constexpr int kBand = kBandTokens / Tile::kTokens;
  const int band = index / (kBand * row_tiles), in_band = index - band * kBand * row_tiles;
  const int height = min(kBand, token_tiles - band * kBand);
  return {(band * kBand + in_band % height) * Tile::kTokens, in_band / height * (Tile::kRows / kPanel)};
}

// Segments > 1 is for int8 weights of two segments, whose float32 totals live beside the int32 sums.
template <class Input, class Tile, int Segments, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads) prefill_kernel(const __grid_constant__ PrefillParams<Epilogue> p) {
  using Sum = typename Accumulator<Input>::type;
  constexpr bool kInteger = sizeof(Input) == 1;
  constexpr int kTokenTiles = Tile::kWarpTokens / 16, kPanels = Tile::kWarpRows / kPanel;
  char* ring = shared_memory();
  Place* places = reinterpret_cast<Place*>(ring + p.stages * Tile::kStage);  // (kTokens,)

  const TilePlace at = tile_place<Tile>(blockIdx.x, p.tokens, p.w.num_panels);
  const Copies<Tile> copies(p, at.first_token, at.first_panel);
  const int ahead = p.stages - 1;

  // Weights need not wait for the kernel before. Group s is what stage s needs beyond the groups before it.
  for (int s = 0; s < ahead && s < p.steps; ++s)
    copies.copy_panels(ring + s * Tile::kStage, columns_of_stage(p, s));
  dependency_wait();
  dependency_launch();
  for (int s = 0; s < ahead; ++s) {
    if (s < p.steps) copies.copy_tokens(ring + s * Tile::kStage, columns_of_stage(p, s));
    copy_async_commit();
  }
  if constexpr (Epilogue::kPlaces)
    for (int i = threadIdx.x; i < Tile::kTokens; i += Tile::kThreads)
      places[i] = p.epilogue.place_of(at.first_token + i);

  constexpr int kWarpColumns = Tile::kRows / Tile::kWarpRows;
  const int warp_token = warp_id() / kWarpColumns * Tile::kWarpTokens;  // in the tile
  const int warp_panel = warp_id() % kWarpColumns * kPanels;

  // ldmatrix: lane i gives row i % 16 and unit i / 16 of 16 tokens x 2 units; of weights row i % 8 of unit i / 8 % 2 of
  // panel i / 16.
  const int lane = lane_id();
  const int token_row = (warp_token + lane % 16) * kStageBytes, token_unit = lane / 16 ^ lane % 8;
  const int panel_row = Tile::kTokens * kStageBytes + (warp_panel + lane / 16) * kPanel * kStageBytes +
                        lane / 8 % 2 * kCore + lane % 8 * 16;
  uint32_t a[2][kTokenTiles][4], b[2][kPanels][2];
  auto load_fragments = [&](const char* slot, int step, uint32_t (&a)[kTokenTiles][4], uint32_t (&b)[kPanels][2]) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i)
      load_matrix4(a[i], slot + token_row + i * 16 * kStageBytes + (token_unit ^ 2 * step) * 16);
#pragma unroll
    for (int i = 0; i < kPanels; i += 2) {
      uint32_t two[4];
      load_matrix4(two, slot + panel_row + i * kPanel * kStageBytes + step * 2 * kCore);
      b[i][0] = two[0];
      b[i][1] = two[1];
      b[i + 1][0] = two[2];
      b[i + 1][1] = two[3];
    }
  };

  Sum sums[kTokenTiles][kPanels][4] = {};
  float totals[Segments > 1 ? kTokenTiles : 1][Segments > 1 ? kPanels : 1][4] = {};
  // Scales of a segment for the two tokens or two rows that a fragment has in this lane.
  auto token_scale = [&](int segment, int i, int half) {
    const int token = at.first_token + warp_token + i * 16 + half * 8 + lane / 4;
    return token < p.tokens ? p.rows.scales[int64_t{token} * p.w.num_segments + segment] : 0.0f;
  };
  auto row_scale = [&](int segment, int j, int e) {
    const int panel = at.first_panel + warp_panel + j;
    return panel < p.w.num_panels ? p.w.scales_of(segment, panel)[lane % 4 * 2 + e] : 0.0f;
  };

  wait_for_stage(p.stages);
  sync_threads();
  load_fragments(ring, 0, a[0], b[0]);
  int read = 0, write = ahead;  // slots
  for (int step = 0; step < p.steps; ++step) {
    const char* slot = ring + read * Tile::kStage;
    if (++read == p.stages) read = 0;
#pragma unroll
    for (int k = 0; k < kStageSteps; ++k) {
      if (k + 1 < kStageSteps) {
        load_fragments(slot, k + 1, a[(k + 1) % 2], b[(k + 1) % 2]);
      } else if (step + 1 < p.steps) {
        wait_for_stage(p.stages);
        sync_threads();  // the next slot is there, and nobody reads this one any more
        load_fragments(ring + read * Tile::kStage, 0, a[0], b[0]);
      }
      if (k == 0) {
        if (step + ahead < p.steps) {
          const StageColumns c = columns_of_stage(p, step + ahead);
          copies.copy_tokens(ring + write * Tile::kStage, c);
          copies.copy_panels(ring + write * Tile::kStage, c);
        }
        copy_async_commit();
        if (++write == p.stages) write = 0;
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
        for (int j = 0; j < kPanels; ++j) multiply_add<Input>(sums[i][j], a[k % 2][i], b[k % 2][j]);
    }
    if constexpr (Segments > 1) {
      if (step + 1 == p.first_steps || step + 1 == p.steps) {
        const int segment = step + 1 == p.first_steps ? 0 : 1;
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
          const float low = token_scale(segment, i, 0), high = token_scale(segment, i, 1);
#pragma unroll
          for (int j = 0; j < kPanels; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float scale = (e < 2 ? low : high) * row_scale(segment, j, e % 2);
              totals[i][j][e] += scale * static_cast<float>(sums[i][j][e]);
              sums[i][j][e] = 0;
            }
        }
      }
    }
  }

  // A warp's sums go through its slab, 16 tokens at a time: a lane then has the same two rows for all tokens, and what
  // a warp stores lies together.
  constexpr int kPairs = Tile::kWarpRows / 2, kTogether = kWarp / kPairs;  // tokens that a warp takes at once
  constexpr int kUnroll = 4;
  float row_scales[kPanels][2];
  if constexpr (kInteger && Segments == 1)
#pragma unroll
    for (int j = 0; j < kPanels; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) row_scales[j][e] = row_scale(0, j, e);
  sync_threads();
  float* slab = reinterpret_cast<float*>(ring + warp_id() * Tile::kSlab);
  const int pair = lane % kPairs * 2, panel = at.first_panel + warp_panel + pair / kPanel, row = pair % kPanel;
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    float scales[2];
    if constexpr (kInteger && Segments == 1)
      for (int half = 0; half < 2; ++half) scales[half] = token_scale(0, i, half);
#pragma unroll
    for (int j = 0; j < kPanels; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if constexpr (!kInteger) v[e] = sums[i][j][2 * half + e];
          else if constexpr (Segments > 1) v[e] = totals[i][j][2 * half + e];
          else v[e] = scales[half] * row_scales[j][e] * static_cast<float>(sums[i][j][2 * half + e]);
        }
        store8(slab + (half * 8 + lane / 4) * Tile::kSlabRow + j * kPanel + lane % 4 * 2,
               {{float_to_bits(v[0]), float_to_bits(v[1])}});
      }
    sync_warp();
    if (panel < p.w.num_panels) {
      const int first = warp_token + i * 16 + lane / kPairs;  // in the tile
      const int count = min(16 - lane / kPairs, p.tokens - at.first_token - first);
#pragma unroll 1
      for (int t = 0; t < count; t += kUnroll * kTogether) {
        typename Epilogue::Inputs inputs[kUnroll];
        Place place[kUnroll] = {};
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int token = t + u * kTogether;
          if (token >= count) continue;
          if constexpr (Epilogue::kPlaces) place[u] = places[first + token];
          inputs[u] = p.epilogue.load(place[u], at.first_token + first + token, panel, row);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int token = t + u * kTogether;
          if (token >= count) continue;
          const Bytes8 v = load8(slab + (token + lane / kPairs) * Tile::kSlabRow + pair);
          p.epilogue.store(inputs[u], place[u], at.first_token + first + token, bits_to_float(v.v[0]),
                           bits_to_float(v.v[1]));
        }
      }
    }
    sync_warp();
  }
}

}  // namespace codegen_fast::cuda
