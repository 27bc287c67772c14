// A right kernel, which the tests make wrong by replacing a piece of its text:
// out[column] = sum over rows of x (rows, columns), through a tile in shared memory; 64 columns a block.
#include "harness.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kTile = 64;   // columns of a block, and threads
constexpr int kStep = 32;   // rows at a time

__device__ float warp_sum(float v) {
  for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

__global__ void __launch_bounds__(kTile) column_sums(Arguments p) {
  dependency_wait();
  const int rows = p.number[0], columns = p.number[1];
  const float* x = p.as<float>(0);
  float* tile = reinterpret_cast<float*>(shared_memory());  // (kStep, kTile)
  const int first = blockIdx.x * kTile;
  float sums[kTile / 2];  // of this warp's columns: the same in all lanes
  for (int c = 0; c < kTile / 2; ++c) sums[c] = 0.f;
  for (int row = 0; row < rows; row += kStep) {
    for (int r = 0; r < kStep; ++r) {
      const int column = first + static_cast<int>(threadIdx.x);
      const bool inside = row + r < rows && column < columns;
      tile[r * kTile + threadIdx.x] = inside ? x[(row + r) * columns + column] : 0.f;
    }
    sync_threads();  // the tile is full
    for (int c = 0; c < kTile / 2; ++c) sums[c] += warp_sum(tile[lane_id() * kTile + warp_id() + 2 * c]);
    sync_threads();  // the tile has been read
  }
  for (int c = lane_id(); c < kTile / 2; c += 32) {
    const int column = first + warp_id() + 2 * c;
    if (column < columns) p.as<float>(1)[column] = sums[c];
  }
}

}  // namespace

const NamedKernel kKernels[] = {{"column_sums", column_sums}, {nullptr, nullptr}};

}  // namespace codegen_fast::cuda
