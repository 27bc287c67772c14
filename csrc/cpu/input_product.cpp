// Stage 1 of a layer: LayerNorm + W_in; epilogues rotary, cache append, bias + gelu.
#include <algorithm>
#include <cstring>

#include "batch.h"
#include "product.h"

namespace codegen_fast::cpu {

int64_t input_product_workspace(int64_t num_tokens, const PackedWeight& w_in) {
  return ProductScratch::bytes(num_tokens, w_in, true) + round_up(num_tokens * sizeof(TokenPlace), 64);
}

void input_product(TensorView& q_out, TensorView& act, KVCache& cache, const TensorView& x, const Norm& norm,
                   const PackedWeight& w_in, const TensorView& bias_in, const TensorView& rotary, int64_t n_head,
                   const Batch& batch, Phase, TensorView& workspace) {
  // check
  const Device device = x.device;
  check_packed(w_in, "w_in", device);
  const int64_t tokens = batch.num_tokens, d = w_in.in_features(), inner = w_in.section_rows[3];
  if (w_in.num_sections != 4 || w_in.num_segments != 1 || w_in.section_rows[0] != d || w_in.section_rows[1] != d ||
      w_in.section_rows[2] != d)
    throw ValueError("w_in: expected sections (d, d, d, F) over one segment of d columns");
  if (n_head < 1 || d % n_head) throw ValueError("n_head: " + std::to_string(n_head) + " does not divide " + std::to_string(d));
  const int64_t head_dim = d / n_head;
  check_activations(x, tokens, d, device);
  check_output(q_out, tokens, d, device);
  check_output(act, tokens, d + inner, device);
  check_norm(norm, d, device);
  check_dtype(bias_in, {DType::f32});
  check_shape(bias_in, {inner});
  check_contiguous(bias_in);
  check_device(bias_in, device);
  check_dtype(rotary, {DType::f32});
  check_shape(rotary, {-1, -1});
  check_contiguous(rotary);
  check_device(rotary, device);
  const int64_t rotary_dim = rotary.shape[1];
  if (rotary_dim % 2 || rotary_dim > head_dim)
    throw ValueError("rotary: expected an even number of columns, at most the head's " + std::to_string(head_dim) +
                     ", got " + std::to_string(rotary_dim));
  if (head_dim % 2) throw ValueError("n_head: heads of " + std::to_string(head_dim) + " dimensions; rotary needs an even number");
  if (batch.max_seq_len > rotary.shape[0])
    throw ValueError("rotary: the table has " + std::to_string(rotary.shape[0]) + " positions, max_seq_len is " +
                     std::to_string(batch.max_seq_len));
  check_batch(batch, cache, d, device);
  check_workspace(workspace, input_product_workspace(tokens, w_in));
  if (tokens == 0) return;

  // plan
  const Kernels& k = kernels();
  const ProductScratch scratch(workspace, tokens, w_in, true);
  TokenPlace* places = reinterpret_cast<TokenPlace*>(scratch.rest);
  fill_places(batch, places);
  const DType cache_type = cache.pages.dtype;
  const int64_t page_bytes = kPage * 2 * d * dtype_bytes(cache_type);

  // LayerNorm
  const ProductRows rows = prepare_rows([&](int64_t t) { return x.as<float>() + t * x.strides[0]; }, tokens,
                                        x.strides[0], &norm, w_in, scratch);

  // product and epilogues
  multiply(w_in, rows, [&](const Tile& tile) {
    for (int64_t i = 0; i < tile.tokens; ++i) {
      const int64_t t = tile.first_token + i;
      const float* c = tile.c + i * kPanel;
      if (tile.section == 3) {
        k.bias_gelu(act.as<float>() + t * act.strides[0] + d + tile.first_row, c,
                    bias_in.as<float>() + tile.first_row, tile.count);
        continue;
      }
      const TokenPlace at = places[t];
      float values[kPanel];
      std::memcpy(values, c, tile.count * sizeof(float));
      if (tile.section < 2) {  // q and k turn; a panel may hold pieces of several heads
        const float* cosines = rotary.as<float>() + at.position * rotary_dim;
        for (int64_t r = 0; r < tile.count;) {
          const int64_t dim = (tile.first_row + r) % head_dim;
          const int64_t run = std::min(tile.count - r, head_dim - dim);
          const int64_t turned = std::min(run, rotary_dim - dim);
          if (turned > 0) k.rotate(values + r, cosines + dim / 2, cosines + rotary_dim / 2 + dim / 2, turned / 2);
          r += run;
        }
      }
      if (tile.section == 0) {
        std::memcpy(q_out.as<float>() + t * q_out.strides[0] + tile.first_row, values, tile.count * sizeof(float));
      } else {
        const int32_t page = pages_of(batch, at.sequence)[at.position / kPage];
        k.append(cache.pages.as<char>() + page * page_bytes, cache_type, tile.section == 1 ? values : nullptr,
                 tile.section == 2 ? values : nullptr, at.position % kPage, tile.first_row, tile.count, head_dim);
      }
    }
  });
}

}  // namespace codegen_fast::cpu
