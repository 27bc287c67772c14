// One instruction set's table. Compiled once for each, with its flags and -DCODEGEN_FAST_ISA=<name>.
#include "attention.h"
#include "products.h"
#include "products_i4.h"
#include "products_i8.h"
#include "products_i8g.h"
#include "quantize_i4.h"
#include "quantize_i8.h"
#include "rows.h"
#include "scale_terms.h"
#include "table.h"

#define CODEGEN_FAST_STRING_(x) #x
#define CODEGEN_FAST_STRING(x) CODEGEN_FAST_STRING_(x)
#define CODEGEN_FAST_JOIN_(a, b) a##b
#define CODEGEN_FAST_JOIN(a, b) CODEGEN_FAST_JOIN_(a, b)

namespace codegen_fast::cpu {

const Kernels& CODEGEN_FAST_JOIN(kernels_, CODEGEN_FAST_ISA)() {
  using namespace CODEGEN_FAST_ISA;
  static constexpr Kernels table = {
      .name = CODEGEN_FAST_STRING(CODEGEN_FAST_ISA),
      .layer_norm = layer_norm,
      .quantize = quantize,
      .quantize_fine = quantize_fine,
      .scale_terms = kAddsScales ? scale_terms : nullptr,
      .bias_gelu = bias_gelu,
      .add_bias = add_bias,
      .rotate = rotate,
      .exponentials = exponentials,
      .argmax = argmax,
      .keep_from = keep_from,
      .read = read,
      .to_f32 = to_f32,
      .from_f32 = from_f32,
      .panel_product = panel_product,
      .panel_product_i8 = panel_product_i8,
      .begin_i8g = begin_i8g,
      .panel_product_i8g = panel_product_i8g,
      .panel_product_i4 = panel_product_i4,
      .quantize_i4 = quantize_i4,
      .quantize_i8 = quantize_i8,
      .append = append,
      .attend = attend,
  };
  return table;
}

}  // namespace codegen_fast::cpu
