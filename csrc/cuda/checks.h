// What the CUDA ops take, and operands as kernels see them. The contents of a batch lie on the device and are not
// looked at: kernels take what does not fit for idle.
#pragma once

#include "../checks.h"
#include "layout.h"

namespace codegen_fast::cuda {

extern const BackendRules kRules;

// Throws where kernels cannot count the tokens or the pages.
void check_counts(const Batch& batch, const KVCache& cache);
// A count that kernels hold in an int.
int to_int(int64_t n, const char* name);

Sequences sequences_of(const Batch& batch);
Pages pages_of(const KVCache& cache, int64_t n_head);

}  // namespace codegen_fast::cuda
