// Ops that take a row a block, of which each has scratch of its own.
#pragma once

#include <algorithm>
#include <cstdint>

namespace codegen_fast::cuda {

constexpr int64_t kMaxBlocks = 128;  // rows that have scratch of their own; the others take turns

inline unsigned row_blocks(int64_t rows) { return static_cast<unsigned>(std::min(rows, kMaxBlocks)); }
inline int64_t row_blocks_bytes(int64_t rows, int64_t block_bytes) { return row_blocks(rows) * block_bytes; }

}  // namespace codegen_fast::cuda
