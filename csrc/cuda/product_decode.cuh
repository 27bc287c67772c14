// Products of the decode phase: y = W x for a few tokens, at the rate at which the weights can be read.
//
// The order of additions, which alone decides an element's bits. A row's chunks of 64 columns are cut into eight
// stripes; a stripe is summed in the order of its columns by the tensor cores, and the eight are added in their order.
// int8 sums are multiplied by the row's scale at the end; where there are two segments, every stripe's part of each.
// Any way to deal stripes out computes the same bits.
//
// A block takes a range of panels for up to kTokens tokens; its product warp w takes stripe w of each. More than 32
// tokens are cut into parts: blocks of different parts read the same weights at about the same time, so that memory
// delivers them once and L2 as often as there are parts. What that saves is a model's answer and has not been measured:
// what L2 delivers for a panel of weights and a group's activations is least with large groups, and there are
// registers for 8 panels of 32 tokens.
//
// Weights arrive through a ring of slots that every warp has to itself: the warp that empties a slot asks for the next
// piece, so product warps never wait for each other. They start to fill their rings before the kernel before this one
// has finished. Panels go in groups, so that a fragment of activations serves several. Sums of a group are handed to
// the epilogue warps through one of a few buffers, and the stream goes on meanwhile.
//
// Activations lie in shared memory as rows of chunks of 128 bytes, 16-byte units swizzled by the row: all of them
// (resident), or a few chunks at a time of each warp's own stripe (streamed).
#pragma once

#include <algorithm>

#include "epilogues.cuh"
#include "launch.h"
#include "product_decode.h"

namespace codegen_fast::cuda {

constexpr int kProductThreads = kStripes * kWarp;
static_assert(kProductThreads == kRowThreads, "the product warps normalise rows");
static_assert(sizeof(Place) == kPlaceBytes && kRowScratch * sizeof(float) == kScratchBytes, "plan_decode() makes room");

template <class T, class Epilogue>
struct DecodeParams {
  Weight w;
  Rows<T> rows;             // as they are if `normalize`, else dense and padded
  NormWeights norm;
  bool normalize;           // only where kMode is resident
  int first_token, end_token;  // of this launch
  int tokens;                  // of a part of it, at most
  DecodePlan plan;
  Epilogue epilogue;
};

// The chunks of its panels that a warp reads. It takes pieces of them; with kSplit these end where segments do.
template <bool kSplit>
struct Stripe {
  int begin, middle, end;  // those before `middle` are of the first segment, the others of the last

  CODEGEN_FAST_DEVICE Stripe(const Weight& w, int chunks, int stripe) {
    begin = chunks * stripe / kStripes;
    end = chunks * (stripe + 1) / kStripes;
    middle = kSplit ? max(begin, min(end, w.segment_chunk[w.num_segments - 1])) : begin;
  }
  // Chunks of the piece that begins with this one.
  CODEGEN_FAST_DEVICE int piece(int chunk, int most) const {
    return min(most, (kSplit && chunk < middle ? middle : end) - chunk);
  }
};

// A warp's ring of weights: pieces are asked for in the order in which they are used, kPanels panels at a time.
template <int kPanels, bool kSplit>
struct Ring {
  const Weight& w;
  const DecodePlan& plan;
  const Stripe<kSplit>& stripe;
  int end;  // of the block's panels
  Barrier* full;
  char* data;
  // what is asked for next: a piece of so many panels
  const char* next;
  int next_chunk, next_first, next_panels, next_slot;
  // what is used next
  int slot, parity;

  CODEGEN_FAST_DEVICE Ring(const Weight& w_, const DecodePlan& plan_, const Stripe<kSplit>& stripe_, char* shared,
                           int warp, int first_panel, int end_panel)
      : w(w_), plan(plan_), stripe(stripe_), end(end_panel),
        full(in_register(reinterpret_cast<Barrier*>(shared) + kSumsBarriers + warp * plan.slots)),
        data(in_register(shared + plan.ring + warp * plan.slots * plan.slot_bytes)),
        next(at(first_panel, stripe.begin)), next_chunk(stripe.begin), next_first(first_panel),
        next_panels(stripe.begin < stripe.end ? min(kPanels, end - first_panel) : 0), next_slot(0), slot(0),
        parity(0) {}

  CODEGEN_FAST_DEVICE const char* at(int panel, int chunk) const {
    return w.data + panel * plan.panel_bytes + int64_t{chunk} * w.chunk_bytes();
  }
  CODEGEN_FAST_DEVICE void ask(int n) {
#pragma unroll 1
    for (; n > 0 && next_panels > 0; --n) {
      const int chunks = stripe.piece(next_chunk, plan.piece);
      stream_copy(&full[next_slot], data + next_slot * plan.slot_bytes, next, chunks * w.chunk_bytes());
      next_slot = next_slot + 1 == plan.slots ? 0 : next_slot + 1;
      next += plan.panel_bytes;
      if (--next_panels > 0) continue;
      next_chunk += chunks;
      if (next_chunk == stripe.end) {
        next_chunk = stripe.begin;
        next_first += kPanels;
      }
      next_panels = max(0, min(kPanels, end - next_first));
      next = at(next_first, next_chunk);
    }
  }
  // Byte of data at which the slot lies that is used next, filled.
  CODEGEN_FAST_DEVICE uint32_t take() {
    barrier_wait(&full[slot], parity);
    const uint32_t filled = slot * plan.slot_bytes;
    if (++slot == plan.slots) {
      slot = 0;
      parity ^= 1;
    }
    return filled;
  }
};

// Byte of 16-byte unit `unit` of a chunk in row `row`, counted from the chunk's first byte in row 0.
CODEGEN_FAST_DEVICE uint32_t activation_unit(int row, int unit, int row_bytes) {
  return row * row_bytes + ((unit ^ (row & 7)) << 4);
}

// The unit of a chunk whose row a lane gives to load_activations(), in the first k step (8 tokens: in the first half).
template <int kTokens>
CODEGEN_FAST_DEVICE int lane_unit(int lane) {
  return kTokens == 8 ? (lane >> 4) + (lane >> 2 & 2) : lane >> 4;
}

// Fragments of two k steps of 16 columns, `half` of a chunk, for a tile of 16 or 8 tokens. at: activation_unit() of the
// lane's row and lane_unit().
template <int kTokens>
CODEGEN_FAST_DEVICE void load_activations(uint32_t a[2][4], uint32_t at, const char* chunk, int half) {
  if constexpr (kTokens == 8) {
    // The second k step stands in rows 8 .. 15 of the first, whose sums nobody looks at: no register is moved for it.
    load_matrix4(a[0], chunk + (at ^ (half * 64)));
    a[1][0] = a[0][1];
    a[1][1] = 0;
    a[1][2] = a[0][3];
    a[1][3] = 0;
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) load_matrix4(a[k], chunk + (at ^ ((2 * half + k) * 32)));
  }
}

// acc += one chunk of activations times the same chunk of a group's panels, whose weights lie at ring + b(panel) +
// offset.
template <class T, bool kInt8, int kTokens, int kPanels, int kTiles, class Offsets>
CODEGEN_FAST_DEVICE void multiply_chunk(float (&acc)[kPanels][kTiles][4], const char* activations,
                                        const uint32_t (&at)[kTiles], int tokens, const char* ring,
                                        const Offsets& b, uint32_t offset) {
  if constexpr (kPanels > 4) {
    // Registers hold the activations of a half (int8: of the chunk), and the weights of one panel after the other.
    constexpr int kHalves = kInt8 ? 2 : 1;
#pragma unroll
    for (int first = 0; first < 2; first += kHalves) {
      uint32_t a[kHalves][kTiles][2][4];
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
#pragma unroll
        for (int m = 0; m < kTiles; ++m) load_activations<kTokens>(a[h][m], at[m], activations, first + h);
#pragma unroll
      for (int g = 0; g < kPanels; ++g) {
        uint32_t quads[4];
        if constexpr (kInt8) load_matrix4(quads, ring + (b(g) + offset));
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          uint32_t weights[4];
          if constexpr (kInt8) {
            dequantize4<T>(quads[2 * h], weights);
            dequantize4<T>(quads[2 * h + 1], weights + 2);
          } else {
            load_matrix4(weights, ring + (b(g) + (offset + (first + h) * 4 * kCore)));
          }
#pragma unroll
          for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int m = 0; m < kTiles; ++m) mma16x8x16<T>(acc[g][m], a[h][m][k], weights + 2 * k);
        }
      }
    }
  } else {
    uint32_t quads[kInt8 ? kPanels : 1][4];  // int8: 64 columns of each panel
    if constexpr (kInt8) {
#pragma unroll
      for (int g = 0; g < kPanels; ++g) load_matrix4(quads[g], ring + (b(g) + offset));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t weights[kPanels][4];  // two k steps
#pragma unroll
      for (int g = 0; g < kPanels; ++g) {
        if constexpr (kInt8) {
          dequantize4<T>(quads[g][2 * half], weights[g]);
          dequantize4<T>(quads[g][2 * half + 1], weights[g] + 2);
        } else {
          load_matrix4(weights[g], ring + (b(g) + (offset + half * 4 * kCore)));
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (m > 0 && m * kTileTokens >= tokens) break;
        uint32_t a[2][4];
        load_activations<kTokens>(a, at[m], activations, half);
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
          for (int g = 0; g < kPanels; ++g) mma16x8x16<T>(acc[g][m], a[k], weights[g] + 2 * k);
      }
    }
  }
}

// The sums of a round (a tile of tokens and a group of panels) in one of kBuffers buffers in shared memory, pairs of
// rows: [warp][panel of the group][token of the tile][pair].
template <int kPanels, int kBuffers>
struct Sums {
  Barrier* full;
  Barrier* empty;
  int parity;
  float* data;
  int rows;  // tokens of the tile

  CODEGEN_FAST_DEVICE Sums(char* shared, const DecodePlan& plan, int round, int rows_)
      : full(reinterpret_cast<Barrier*>(shared) + round % kBuffers), empty(full + kBuffers),
        parity(round / kBuffers & 1),
        data(reinterpret_cast<float*>(shared + plan.sums + round % kBuffers * plan.sums_bytes)), rows(rows_) {}
  CODEGEN_FAST_DEVICE float* pair(int warp, int panel, int row, int pair) const {
    return data + 2 * (((warp * kPanels + panel) * rows + row) * 4 + pair);
  }
};

// What an epilogue warp does one after the other: `step` of a round, in which each of its threads has at most a pair.
struct EpilogueStep {
  int first, tile, round, step;
};

template <class T, bool kInt8, DecodeMode kMode, class Epilogue>
__global__ void __launch_bounds__(DecodeShape(kMode).threads(),
                                  DecodeShape(kMode).blocks)
decode_product_kernel(DecodeParams<T, Epilogue> p) {
  constexpr bool kSplit = kInt8 && Epilogue::kSegments > 1;
  constexpr DecodeShape kShape(kMode);
  constexpr int kTokens = kShape.tokens, kTiles = kShape.tiles, kPanels = kShape.panels, kBuffers = kShape.sums_buffers;
  constexpr int kSumsPanels = kShape.sums_panels;
  // chunks of a piece; for more there are no registers
  constexpr int kUnroll = kMode == DecodeMode::many || kMode == DecodeMode::few ? 1 : 2;
  constexpr int kCopyUnroll = kMode == DecodeMode::many ? 1 : 2;
  char* const shared = shared_memory();
  const int warp = shuffle(warp_id(), 0), lane = lane_id();  // the compiler sees that all lanes have one warp
  const int stripe_id = warp % kStripes;
  const int first_panel = static_cast<int>(int64_t{p.w.num_panels} * blockIdx.y / gridDim.y);
  const int end_panel = static_cast<int>(int64_t{p.w.num_panels} * (blockIdx.y + 1) / gridDim.y);
  const int part = kMode == DecodeMode::many ? blockIdx.x : 0;
  const int first_token = p.first_token + part * p.tokens, tokens = min(p.tokens, p.end_token - first_token);
  const Stripe<kSplit> stripe(p.w, p.plan.chunks, stripe_id);
  Ring<kPanels, kSplit> ring(p.w, p.plan, stripe, shared, stripe_id, first_panel, end_panel);

  // the stream of weights starts, whatever the kernels before this one still do
  if (warp < kStripes) {
    if (lane < p.plan.slots) {
      barrier_init(&ring.full[lane], kStreamArrivals);
      barrier_init_fence();
    }
    sync_warp();
    ring.ask(p.plan.slots);
  } else if (threadIdx.x == kProductThreads) {
    for (int i = 0; i < kBuffers; ++i) {
      const Sums<kSumsPanels, kBuffers> sums(shared, p.plan, i, 0);
      barrier_init(sums.full, kStripes);
      barrier_init(sums.empty, kShape.epilogue_warps);
    }
    barrier_init_fence();
  }
  dependency_launch();
  sync_threads();

  if (warp >= kStripes) {
    // epilogue
    dependency_wait();
    const int thread = threadIdx.x - kProductThreads;
    constexpr int kThreads = kShape.epilogue_warps * kWarp;
    Place* const table = reinterpret_cast<Place*>(shared + p.plan.table);
    if constexpr (Epilogue::kPlaces) {
      for (int i = thread; i < tokens; i += kThreads) table[i] = p.epilogue.place_of(first_token + i);
      sync_threads(kRowBarrier + 1, kThreads);
    }
    auto rows_of = [&](const EpilogueStep& s) { return min(kTileTokens, tokens - s.tile); };
    auto pairs_of = [&](const EpilogueStep& s) { return min(kSumsPanels, end_panel - s.first) * rows_of(s) * 4; };
    struct Operands {
      Place place;
      typename Epilogue::Inputs inputs;
      float scale0, scale1;
    };
    auto load = [&](const EpilogueStep& s) {
      Operands o{{-1, -1}, {}, 1.0f, 1.0f};
      const int i = s.step * kThreads + thread;
      if (s.first >= end_panel || i >= pairs_of(s)) return o;
      const int rows = rows_of(s), panel = s.first + i / (rows * 4), token = s.tile + i / 4 % rows, pair = i & 3;
      if constexpr (Epilogue::kPlaces) o.place = table[token];
      o.inputs = p.epilogue.load(o.place, first_token + token, panel, 2 * pair);
      if constexpr (kInt8 && !kSplit) {
        const float* scales = p.w.scales_of(0, panel) + 2 * pair;
        o.scale0 = scales[0];
        o.scale1 = scales[1];
      }
      return o;
    };
    EpilogueStep now{first_panel, 0, 0, 0};
    for (Operands operands = load(now); now.first < end_panel;) {
      const int rows = rows_of(now), pairs = pairs_of(now), i = now.step * kThreads + thread;
      EpilogueStep next = now;
      const bool last = ++next.step * kThreads >= pairs;  // of the round
      if (last) {
        next = {now.first, now.tile + kTileTokens, now.round + 1, 0};
        if (next.tile >= tokens) next = {now.first + kSumsPanels, 0, now.round + 1, 0};
      }
      const Operands ahead = load(next);

      const Sums<kSumsPanels, kBuffers> sums(shared, p.plan, now.round, rows);
      barrier_wait(sums.full, sums.parity);
      if (i < pairs) {
        float v0 = 0.0f, v1 = 0.0f;
#pragma unroll
        for (int w = 0; w < kStripes; ++w) {
          const Bytes8 sum = load8(sums.pair(w, i / (rows * 4), i / 4 % rows, i & 3));
          v0 += bits_to_float(sum.v[0]);
          v1 += bits_to_float(sum.v[1]);
        }
        p.epilogue.store(operands.inputs, operands.place, first_token + now.tile + i / 4 % rows, v0 * operands.scale0,
                         v1 * operands.scale1);
      }
      sync_warp();
      if (last && lane == 0) barrier_arrive(sums.empty);
      now = next;
      operands = ahead;
    }
    return;
  }

  // the rows of activations
  const int columns = p.plan.chunks * kChunk;
  const bool resident = kMode == DecodeMode::resident || p.plan.resident;
  char* const activations = shared + p.plan.activations;
  char* const fragments = in_register(activations);  // for what takes addresses of shared memory
  // Where 16-byte unit `unit` of a resident row lies.
  auto resident_unit = [&](int row, int unit) {
    return activations + unit / 8 * kChunkBytes + activation_unit(row, unit & 7, columns * 2);
  };
  bool normalized = false;  // otherwise a warp reads what it copies itself
  if constexpr (kMode == DecodeMode::resident && Epilogue::kNormalized) {
    if (p.normalize) {
      const NormHeld held(p.norm, p.w.segment_columns[0]);
      dependency_wait();
      for (int row = 0; row < tokens; ++row)
        normalize_row(p.rows.row(first_token + row), p.w.segment_columns[0], columns, p.norm, held,
                      reinterpret_cast<float*>(shared + p.plan.scratch),
                      [&](int first, Bytes16 b) { store16(resident_unit(row, first / 8), b); });
      sync_threads(kRowBarrier, kProductThreads);
      normalized = true;
    }
  }
  if (!normalized) {
    dependency_wait();
    if (resident) {
      for (int row = 0; row < tokens; ++row) {
        const T* from = p.rows.x + (first_token + row) * p.rows.stride;
        for (int unit = stripe.begin * 8 + lane; unit < stripe.end * 8; unit += kWarp)
          copy_async16(resident_unit(row, unit), from + unit * 8);
      }
      copy_async_commit();
      copy_async_wait<0>();
      sync_warp();
    }
  }

  // the product
  char* const streamed = fragments + warp * p.plan.stages * p.plan.stage_bytes;
  uint32_t at[kTiles];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    // rows behind the last token repeat it; nobody looks at their sums
    const int row = min(m * kTileTokens + (lane & (kTokens == 8 ? 7 : 15)), tokens - 1);
    at[m] = activation_unit(row, lane_unit<kTokens>(lane), resident ? columns * 2 : kChunkBytes);
  }
  int next_chunk = stripe.begin, next_first = first_panel, next_stage = 0;  // of streamed activations
  auto ask_activations = [&] {
    if (next_first < end_panel && stripe.begin < stripe.end) {
      char* const to = streamed + next_stage * p.plan.stage_bytes;
      const T* from = p.rows.x + first_token * p.rows.stride + int64_t{next_chunk} * kChunk;
#pragma unroll kCopyUnroll
      for (int i = lane; i < tokens * 8; i += kWarp)
        copy_async16(to + activation_unit(i / 8, i & 7, kChunkBytes), from + i / 8 * p.rows.stride + (i & 7) * 8);
      next_stage = next_stage + 1 == p.plan.stages ? 0 : next_stage + 1;
      if (++next_chunk == stripe.end) {
        next_chunk = stripe.begin;
        next_first += kPanels;
      }
    }
    copy_async_commit();
  };
  if (!resident)
    for (int i = 0; i < p.plan.stages; ++i) ask_activations();

  int stage = 0, round = 0;
  for (int first = first_panel; first < end_panel; first += kPanels) {
    const int count = min(kPanels, end_panel - first);
    float acc[kPanels][kTiles][4] = {};
    // Of a row at most one stripe lies in two segments: its sums of the first wait here, a lane's own.
    float* const parked = reinterpret_cast<float*>(shared + p.plan.parked) + lane;
    auto parked_sum = [&](int g, int m, int j) -> float& { return parked[((g * kTiles + m) * 4 + j) * kWarp]; };
    // The panels' scales of a segment: there are registers to have them early for up to four panels.
    struct Scale { float of_row[2]; };
    auto scale_of = [&](int g, int segment) -> Scale {
      const float* s = p.w.scales_of(segment, min(first + g, end_panel - 1)) + 2 * (lane & 3);
      return {s[0], s[1]};
    };
    constexpr bool kEarly = kSplit && kPanels <= 4;
    Scale early[kEarly ? kPanels : 1];
    auto load_scales = [&](int segment) {
      if constexpr (kEarly)
#pragma unroll
        for (int g = 0; g < kPanels; ++g) early[g] = scale_of(g, segment);
    };
    const int last_segment = p.w.num_segments - 1;
    if constexpr (kSplit) load_scales(stripe.begin < stripe.middle ? 0 : last_segment);

    for (int chunk = stripe.begin; chunk < stripe.end;) {
      if constexpr (kSplit) {
        if (chunk == stripe.middle && chunk > stripe.begin) {
#pragma unroll
          for (int g = 0; g < kPanels; ++g) {
            const Scale scale = kEarly ? early[kEarly ? g : 0] : scale_of(g, 0);
#pragma unroll
            for (int m = 0; m < kTiles; ++m)
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                if (kTokens > 8 || j < 2) parked_sum(g, m, j) = acc[g][m][j] * scale.of_row[j & 1];
                acc[g][m][j] = 0.0f;
              }
          }
          load_scales(last_segment);
        }
      }
      const int chunks = stripe.piece(chunk, p.plan.piece);
      // nobody looks at the sums of a panel that there is not
      uint32_t held[kPanels > 4 ? 1 : kPanels];
      const int slot = ring.slot;
      if constexpr (kPanels > 4) {
#pragma unroll 1
        for (int g = 0; g < count; ++g) ring.take();
      } else {
#pragma unroll
        for (int g = 0; g < kPanels; ++g) held[g] = g < count ? ring.take() + lane * 16 : held[0];
      }
      auto b = [&](int g) -> uint32_t {
        if constexpr (kPanels <= 4) return held[g];
        int at = slot + min(g, count - 1);  // no registers for all of them
        if (at >= p.plan.slots) at -= p.plan.slots;
        return at * p.plan.slot_bytes + lane * 16;
      };
#pragma unroll kUnroll
      for (int c = 0; c < chunks; ++c) {
        const char* a = fragments + (chunk + c) * kChunkBytes;
        if (!resident) {
          if (p.plan.stages == 2) copy_async_wait<1>();
          else copy_async_wait<kShape.stages - 1>();
          sync_warp();
          a = streamed + stage * p.plan.stage_bytes;
          stage = stage + 1 == p.plan.stages ? 0 : stage + 1;
        }
        multiply_chunk<T, kInt8, kTokens>(acc, a, at, tokens, ring.data, b, c * kPanel * kChunk * (kInt8 ? 1 : 2));
        if (!resident) {
          sync_warp();
          ask_activations();
        }
      }
      sync_warp();
      ring.ask(count);
      chunk += chunks;
    }
    if constexpr (kSplit) {
      const bool straddles = stripe.begin < stripe.middle && stripe.middle < stripe.end;
#pragma unroll
      for (int g = 0; g < kPanels; ++g) {
        const Scale scale = kEarly ? early[kEarly ? g : 0] : scale_of(g, stripe.middle < stripe.end ? last_segment : 0);
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            acc[g][m][j] *= scale.of_row[j & 1];
            if (straddles && (kTokens > 8 || j < 2)) acc[g][m][j] += parked_sum(g, m, j);
          }
      }
    }

    // to the epilogue, a buffer at a time
#pragma unroll
    for (int s = 0; s < kPanels; s += kSumsPanels) {
      if (s >= count) break;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (m * kTileTokens >= tokens) break;
        const int rows = min(kTileTokens, tokens - m * kTileTokens), row = lane >> 2;
        const Sums<kSumsPanels, kBuffers> sums(shared, p.plan, round, rows);
        barrier_wait(sums.empty, sums.parity ^ 1);
#pragma unroll
        for (int g = 0; g < kSumsPanels; ++g) {
          const float* v = acc[s + g][m];
          if (s + g < count && row < rows)
            store8(sums.pair(warp, g, row, lane & 3), {{float_to_bits(v[0]), float_to_bits(v[1])}});
          if (kTokens > 8 && s + g < count && row + 8 < rows)
            store8(sums.pair(warp, g, row + 8, lane & 3), {{float_to_bits(v[2]), float_to_bits(v[3])}});
        }
        sync_warp();
        if (lane == 0) barrier_arrive(sums.full);
        ++round;
      }
    }
  }
}

// Launches for the next tokens, `most` of those left; false if they do not fit in shared memory.
template <class T, DecodeMode kMode, class Epilogue>
bool launch_decode(const char* name, DecodeParams<T, Epilogue>& p, int left, int most) {
  const bool int8 = p.w.element_bytes == 1;
  const DecodeShape shape(kMode);
  const int taken = std::min(left, most), parts = ceil_div(taken, shape.tokens);
  p.tokens = ceil_div(taken, parts);
  p.end_token = p.first_token + taken;
  p.plan = plan_decode(p.w, shape, p.tokens);
  if (!p.plan.fits) return false;
  const Grid grid{.blocks = dim3(parts, std::min(p.w.num_panels, std::max(1, device_limits().multiprocessors / parts))),
                  .threads = shape.threads(),
                  .shared_bytes = static_cast<size_t>(p.plan.shared_bytes)};
  if (int8) launch(name, decode_product_kernel<T, true, kMode, Epilogue>, grid, p);
  else launch(name, decode_product_kernel<T, false, kMode, Epilogue>, grid, p);
  return true;
}

// epilogue(W h) for h = the rows of x that `index` names (null: all), or with a norm those normalised, then W has one
// segment. The epilogue's tokens count from 0.
template <class T, class Epilogue>
void decode_product(const char* name, const PackedWeight& packed, const TensorView& x, const TensorView* index,
                    const Norm* norm, int tokens, void* workspace, const Epilogue& epilogue) {
  DecodeParams<T, Epilogue> p{};
  p.w = weight_of(packed);
  p.epilogue = epilogue;
  p.normalize = norm && tokens <= kNormalizedTokens &&
                plan_decode(p.w, DecodeShape(DecodeMode::resident), tokens).fits;
  if (p.normalize) {
    p.rows = Rows<T>{x.as<T>(), x.strides[0], index ? index->as<int32_t>() : nullptr, static_cast<int>(x.shape[0])};
    p.norm = NormWeights{norm->weight.as<float>(), norm->bias.as<float>(), norm->eps};
  } else {
    const DecodeRows made = decode_rows(x, index, norm, packed, workspace);
    p.rows = Rows<T>{static_cast<const T*>(made.data), made.stride, nullptr, tokens};
  }

  for (int done = 0; done < tokens; done = p.end_token) {
    const int left = tokens - done;
    p.first_token = done;
    if (left > 16 && launch_decode<T, DecodeMode::many>(name, p, left, kMaxParts * 32)) continue;
    if (left > 8 && launch_decode<T, DecodeMode::some>(name, p, left, 16)) continue;
    if (!p.normalize && better_streamed(p.w, std::min(left, 8)) &&
        launch_decode<T, DecodeMode::few>(name, p, left, 8))
      continue;
    if (launch_decode<T, DecodeMode::resident>(name, p, left, 8)) continue;
    if (launch_decode<T, DecodeMode::few>(name, p, left, 8)) continue;
    throw ValueError(std::string(name) + ": " + std::to_string(p.w.num_chunks() * kChunk) +
                     " columns do not fit this GPU's shared memory");
  }
}

}  // namespace codegen_fast::cuda
