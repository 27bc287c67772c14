// Checks that the CUDA ops share, and operands as kernels see them. The contents of a batch lie on the device and are
// not looked at: kernels take what does not fit for idle.
#pragma once

#include "layout.h"

namespace codegen_fast::cuda {

// x's type if it is one of activations (f16, bf16); throws otherwise.
DType activation_type(const TensorView& x);
// (rows, columns) of activations of this type, rows may be strided; -1: any number. An output's rows share no memory.
void check_activations(const TensorView& x, int64_t rows, int64_t columns, DType type, Device device);
void check_output(const TensorView& x, int64_t rows, int64_t columns, DType type, Device device);
// (length,) float32, contiguous
void check_vector(const TensorView& x, int64_t length, Device device);
void check_norm(const Norm& norm, int64_t d, Device device);
void check_workspace(const TensorView& workspace, int64_t bytes, Device device);
// A weight that is not int8 has the activations' type.
void check_weight_type(const PackedWeight& w, const char* name, DType activations);
// Shapes and types of a batch and of the cache of d = n_embd; the cache has the activations' type.
void check_batch(const Batch& batch, const KVCache& cache, int64_t d, DType activations, Device device);
// A count that kernels hold in an int.
int to_int(int64_t n, const char* name);

Sequences sequences_of(const Batch& batch);
Pages pages_of(const KVCache& cache, int64_t n_head);

}  // namespace codegen_fast::cuda
