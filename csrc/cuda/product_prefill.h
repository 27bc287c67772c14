// Products of many tokens: rows of activations are made ready (normalised, padded, quantised), then multiplied on the
// tensor cores, and an epilogue (epilogues.cuh) takes every sum.
#pragma once

#include "layout.h"

namespace codegen_fast::cuda {

// Activations as the product reads them: rows of padded_columns() f16 or bf16; or, for int8 weights, of as many int8
// in the order of byte_of(), with a scale for every row and segment. Rows begin on multiples of 16 bytes.
struct PrefillRows {
  const char* data;
  int64_t stride;       // in bytes
  const float* scales;  // (tokens, segments), int8 only
};

// Bytes of the part of an op's workspace that the rows of `tokens` tokens take, a multiple of 16.
int64_t prefill_rows_bytes(int64_t tokens, const PackedWeight& w);

// Each makes the rows in `workspace`. A row that `index` names and x lacks becomes NaN; index null: row t is x[t].
PrefillRows normalized_rows(const TensorView& x, const TensorView* index, const Norm& norm, const PackedWeight& w,
                            void* workspace);
// x as it is: where it already lies as the product reads it, nothing is copied.
PrefillRows plain_rows(const TensorView& x, const PackedWeight& w, void* workspace);

// epilogue(token, rows of w) for all tokens. T: f16 or bf16, the type of weights that are not int8.
// The instances stand at the end of product_prefill.cu.
template <class T, class Epilogue>
void prefill_product(const char* name, const Weight& w, const PrefillRows& rows, int tokens,
                     const Epilogue& epilogue);

}  // namespace codegen_fast::cuda
