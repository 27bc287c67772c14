// Rows that need scratch, over the threads: a thread's rows use the same scratch one after another, so that it stays in
// the thread's cache.
#pragma once

#include <algorithm>
#include <atomic>

#include "layout.h"
#include "pool.h"

namespace codegen_fast::cpu {

constexpr int64_t kMaxLanes = 64;

// Bytes for `rows` rows of which one takes row_bytes, whatever the number of threads.
inline int64_t lanes_bytes(int64_t rows, int64_t row_bytes) {
  return std::min(rows, kMaxLanes) * round_up(row_bytes, 64);
}

// f(row, scratch) for every row, scratch from a workspace of lanes_bytes.
template <class F>
void for_each_row(int64_t rows, int64_t row_bytes, char* workspace, F&& f) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min({rows, kMaxLanes, int64_t{num_threads()}}), 1, [&](int64_t lane, int64_t) {
    for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < rows;)
      f(row, workspace + lane * round_up(row_bytes, 64));
  });
}

}  // namespace codegen_fast::cpu
