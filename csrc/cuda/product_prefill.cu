// Which tile a prefill product takes, its launch, and the instances that exist.
#include "product_prefill.cuh"

#include <algorithm>

#include "launch.h"

namespace codegen_fast::cuda {
namespace {

// kBlocks: how many of a tile's blocks a multiprocessor should hold; kRate: products a clock and multiprocessor,
// relative to the first tile. Both are a model, not measured.
struct LargeTile : Tile<128, 256, 64, 64> {
  static constexpr int kBlocks = 1;
  static constexpr double kRate = 1.0;
};
struct MediumTile : Tile<128, 128, 64, 64> {
  static constexpr int kBlocks = 2;
  static constexpr double kRate = 0.9;
};
struct TotalsTile : Tile<128, 128, 64, 32> {  // has registers for float32 totals beside the int32 sums
  static constexpr int kBlocks = 1;
  static constexpr double kRate = 0.75;
};
struct SmallTile : Tile<64, 64, 32, 32> {
  static constexpr int kBlocks = 3;
  static constexpr double kRate = 0.6;
};

constexpr int kMinStages = 2;
static_assert(kMinStages * LargeTile::kStage + LargeTile::kTokens * sizeof(Place) <= 99 * 1024,
              "the multiprocessors of sm_86, sm_89 and sm_120 have room for two slots of the largest tile");

// Products that the busiest multiprocessor makes, by the rate at which it makes them.
template <class Tile>
double cost_of(const Weight& w, int tokens) {
  const int64_t tiles = int64_t{ceil_div(tokens, Tile::kTokens)} * ceil_div(w.num_panels, Tile::kRows / kPanel);
  const int64_t largest_share = ceil_div<int64_t>(tiles, device_limits().multiprocessors);
  return static_cast<double>(largest_share * Tile::kTokens * Tile::kRows) / Tile::kRate;
}

template <class Input, class Tile, int Segments, class Epilogue>
void launch_tile(const char* name, const Weight& w, const PrefillRows& rows, int tokens, const Epilogue& epilogue) {
  PrefillParams<Epilogue> p = {w, rows, tokens, 0, 0, 0, epilogue};
  // f16 and bf16 are summed on over segments as if they were one.
  const int first_chunks = sizeof(Input) == 1 ? w.segment_chunk[1] : w.num_chunks(), bytes = kChunk * w.element_bytes;
  p.first_steps = ceil_div(first_chunks * bytes, kStageBytes);
  p.steps = p.first_steps + ceil_div((w.num_chunks() - first_chunks) * bytes, kStageBytes);
  // The runtime keeps 1 KB of shared memory for every block. Fewer blocks where there is no room for two slots each.
  constexpr int kPlaces = Tile::kTokens * static_cast<int>(sizeof(Place));
  const int limit = device_limits().shared_bytes_per_block;
  for (int blocks = Tile::kBlocks; p.stages < kMinStages; --blocks)
    p.stages = std::min(kMaxStages, ((limit + 1024) / blocks - 1024 - kPlaces) / Tile::kStage);
  Grid grid{dim3(ceil_div(tokens, Tile::kTokens) * ceil_div(w.num_panels, Tile::kRows / kPanel)), Tile::kThreads};
  grid.shared_bytes = p.stages * Tile::kStage + kPlaces;
  launch(name, prefill_kernel<Input, Tile, Segments, Epilogue>, grid, p);
}

template <class Input, class Epilogue>
void multiply(const char* name, const Weight& w, const PrefillRows& rows, int tokens, const Epilogue& epilogue) {
  const double large = cost_of<LargeTile>(w, tokens), medium = cost_of<MediumTile>(w, tokens),
               small = cost_of<SmallTile>(w, tokens);
  if (small < std::min(large, medium)) launch_tile<Input, SmallTile, 1>(name, w, rows, tokens, epilogue);
  else if (medium < large) launch_tile<Input, MediumTile, 1>(name, w, rows, tokens, epilogue);
  else launch_tile<Input, LargeTile, 1>(name, w, rows, tokens, epilogue);
}

template <class Epilogue>
void multiply_two_segments(const char* name, const Weight& w, const PrefillRows& rows, int tokens,
                           const Epilogue& epilogue) {
  if (cost_of<SmallTile>(w, tokens) < cost_of<TotalsTile>(w, tokens))
    launch_tile<int8_t, SmallTile, 2>(name, w, rows, tokens, epilogue);
  else
    launch_tile<int8_t, TotalsTile, 2>(name, w, rows, tokens, epilogue);
}

template <class Epilogue> constexpr bool kTwoSegments = false;
template <class T> constexpr bool kTwoSegments<OutputEpilogue<T>> = true;

}  // namespace

template <class T, class Epilogue>
void prefill_product(const char* name, const Weight& w, const PrefillRows& rows, int tokens,
                     const Epilogue& epilogue) {
  if (w.element_bytes != 1) return multiply<T>(name, w, rows, tokens, epilogue);
  for (int s = 0; s < w.num_segments; ++s)
    if (w.segment_columns[s] > INT32_MAX / (127 * 127))
      throw ValueError(std::string(name) + ": the sum of " + std::to_string(w.segment_columns[s]) +
                       " int8 products does not fit an int32; segments of int8 weights have at most 133144 columns");
  if constexpr (kTwoSegments<Epilogue>) multiply_two_segments(name, w, rows, tokens, epilogue);
  else multiply<int8_t>(name, w, rows, tokens, epilogue);
}

#define INSTANCE(T, Epilogue) \
  template void prefill_product<T>(const char*, const Weight&, const PrefillRows&, int, const Epilogue&);
INSTANCE(f16, InputEpilogue<f16>)
INSTANCE(f16, OutputEpilogue<f16>)
INSTANCE(f16, LogitsEpilogue)
INSTANCE(bf16, InputEpilogue<bf16>)
INSTANCE(bf16, OutputEpilogue<bf16>)
INSTANCE(bf16, LogitsEpilogue)
#undef INSTANCE

}  // namespace codegen_fast::cuda
