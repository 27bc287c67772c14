// A ragged batch as the CPU ops walk over it.
#pragma once

#include "../ops.h"
#include "kernels/table.h"

namespace codegen_fast::cpu {

// Where one new token of a call stands.
struct TokenPlace {
  int32_t sequence, position;
};

// Throws unless what the batch holds is consistent with itself and the cache. On the CPU it lies in memory that can be
// read: a wrong page id is an error here and not a crash.
void check_contents(const Batch& batch, const KVCache& cache);
// places (num_tokens,); the batch has been checked.
void fill_places(const Batch& batch, TokenPlace* places);

inline const int32_t* pages_of(const Batch& batch, int64_t sequence) {
  return batch.page_table.as<int32_t>() + sequence * batch.page_table.strides[0];
}

}  // namespace codegen_fast::cpu
