// Stage 1 of a layer: LayerNorm + W_in; epilogues rotary, cache append, bias + gelu.
#include <algorithm>
#include <cstring>

#include "batch.h"
#include "checks.h"
#include "product.h"

namespace codegen_fast::cpu {

int64_t input_product_workspace(int64_t num_tokens, const PackedWeight& w_in) {
  return ProductScratch::bytes(num_tokens, w_in, true) + round_up(num_tokens * sizeof(TokenPlace), 64);
}

void input_product(TensorView& q_out, TensorView& act, KVCache& cache, const TensorView& x, const Norm& norm,
                   const PackedWeight& w_in, const TensorView& bias_in, const TensorView& rotary, int64_t n_head,
                   const Batch& batch, Phase phase, TensorView& workspace) {
  // check
  const int64_t tokens = batch.num_tokens;
  check_input_product(kRules, q_out, act, cache, x, norm, w_in, bias_in, rotary, n_head, batch, phase);
  check_contents(batch, cache);
  check_workspace(workspace, input_product_workspace(tokens, w_in), x.device);
  if (tokens == 0) return;

  // plan
  const Kernels& k = kernels();
  const int64_t d = w_in.in_features(), head_dim = d / n_head, rotary_dim = rotary.shape[1];
  const ProductScratch scratch(workspace, tokens, w_in, true);
  TokenPlace* places = reinterpret_cast<TokenPlace*>(scratch.rest);
  fill_places(batch, places);
  const DType cache_type = cache.pages.dtype;
  const int64_t page_bytes = kPage * 2 * d * dtype_bytes(cache_type);

  // LayerNorm
  const ProductRows rows = prepare_rows([&](int64_t t) { return x.as<float>() + t * x.strides[0]; }, tokens,
                                        x.strides[0], &norm, w_in, scratch);

  // product and epilogues
  const bool cache_alone = q_out.shape[0] == 0;
  const Panels wanted = cache_alone ? Panels{first_panel(w_in, 1), first_panel(w_in, 3)} : all_panels(w_in);
  multiply(w_in, wanted, rows, [&](const Tile& tile) {
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
      std::memcpy(values, c, sizeof values);  // a row of c is whole, whatever the tile's count
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
