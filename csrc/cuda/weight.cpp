// A PackedWeight checked, and as kernels know it.
#include "layout.h"

namespace codegen_fast::cuda {

void check_packed(const PackedWeight& w, const char* name, Device device) {
  const std::string n(name);
  if (w.num_sections < 1 || w.num_segments < 1) throw ValueError(n + ": a weight needs a section and a segment");
  for (int i = 0; i < w.num_sections; ++i)
    if (w.section_rows[i] < 1) throw ValueError(n + ": sections must have at least one row");
  for (int i = 0; i < w.num_segments; ++i)
    if (w.segment_cols[i] < 1) throw ValueError(n + ": segments must have at least one column");
  if (w.dtype != DType::f16 && w.dtype != DType::bf16 && w.dtype != DType::i8)
    throw TypeError(n + ": expected float16, bfloat16 or int8 weights on CUDA, got " + dtype_name(w.dtype));
  check_dtype(w.data, {DType::u8});
  check_shape(w.data, {packed_weight_bytes(w)});
  check_contiguous(w.data);
  check_alignment(w.data, 64);
  check_device(w.data, device);
  if (w.dtype != DType::i8) return;
  check_dtype(w.scales, {DType::f32});
  check_shape(w.scales, {packed_weight_scales(w)});
  check_contiguous(w.scales);
  check_device(w.scales, device);
}

Weight weight_of(const PackedWeight& packed) {
  Weight w = {};
  w.data = packed.data.as<char>();
  w.scales = packed.dtype == DType::i8 ? packed.scales.as<float>() : nullptr;
  w.num_sections = packed.num_sections;
  for (int i = 0; i < w.num_sections; ++i) {
    w.section_rows[i] = static_cast<int>(packed.section_rows[i]);
    w.section_panel[i + 1] = w.section_panel[i] + ceil_div(w.section_rows[i], kPanel);
  }
  w.num_panels = w.section_panel[w.num_sections];
  w.num_segments = packed.num_segments;
  for (int i = 0; i < w.num_segments; ++i) {
    w.segment_columns[i] = static_cast<int>(packed.segment_cols[i]);
    w.segment_chunk[i + 1] = w.segment_chunk[i] + ceil_div(w.segment_columns[i], kChunk);
  }
  w.element_bytes = static_cast<int>(dtype_bytes(packed.dtype));
  return w;
}

}  // namespace codegen_fast::cuda
