// A PackedWeight as kernels know it.
#include "layout.h"

namespace codegen_fast::cuda {

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

Weight sections_of(const Weight& w, int first, int end) {
  Weight part = w;
  const int panel = w.section_panel[first];
  part.data = w.chunk(panel, 0);
  if (w.scales) part.scales = w.scales_of(0, panel);
  part.num_sections = end;
  for (int i = 0; i <= end; ++i) part.section_panel[i] = w.section_panel[i < first ? first : i] - panel;
  part.num_panels = part.section_panel[end];
  return part;
}

}  // namespace codegen_fast::cuda
