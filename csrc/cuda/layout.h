// Where an element of a PackedWeight and of a cache page lies on the GPU. For kernels and for the host code that
// launches them.
//
// Weights. Rows stand in panels of 8; a section begins a new panel, and missing rows of its last panel are zeros. A
// panel's columns stand in segments, each rounded up to whole chunks of 64 columns (zeros), one after another. The
// unit is a core matrix of 8 rows x 16 bytes, 128 bytes with its rows one after another: what ldmatrix reads without
// bank conflicts, what wgmma takes as it is, and contiguous in k, so that a product streams a panel from its first
// byte to its last.
//   f16, bf16: data[panel][k / 8][row % 8][k % 8]
//   i8:        data[panel][k / 16][row % 8][byte_of(k % 16)]
//   scales:    scales[segment][panel][row % 8]
// byte_of() orders the 16 columns of a core so that the four bytes that ldmatrix gives a lane are, converted to 16
// bits, the two pairs of columns that it must hold for a 16 x 8 x 16 product. The same order serves the int8 product
// as long as its activations are stored in it (quantised rows are).
//
// Pages. data[page][head][key or value][token in page][dimension of the head].
#pragma once

#include "../ops.h"

#ifdef __CUDACC__
#define CODEGEN_FAST_BOTH __host__ __device__
#else
#define CODEGEN_FAST_BOTH
#endif

namespace codegen_fast::cuda {

constexpr int kPanel = 8;    // rows
constexpr int kChunk = 64;   // columns that a segment is padded to: what a warp takes at a time
constexpr int kCore = 128;   // bytes of a core matrix
constexpr int kPage = 32;    // tokens of a cache page

template <class Int> CODEGEN_FAST_BOTH constexpr Int ceil_div(Int a, Int b) { return (a + b - 1) / b; }
template <class Int> CODEGEN_FAST_BOTH constexpr Int round_up(Int a, Int b) { return ceil_div(a, b) * b; }

// Position in an int8 core of column k % 16: lane t of four holds bytes 4t .. 4t+3 = columns 2t, 2t+1, 2t+8, 2t+9.
CODEGEN_FAST_BOTH constexpr int byte_of(int k) { return (k & 7) / 2 * 4 + (k & 1) + (k & 8) / 4; }

// What kernels know of a PackedWeight, passed by value.
struct Weight {
  const char* data;
  const float* scales;            // i8 only
  int num_panels;
  int num_sections;
  int section_panel[PackedWeight::kMaxSections + 1];  // first panel of each section, and the end
  int section_rows[PackedWeight::kMaxSections];
  int num_segments;
  int segment_columns[PackedWeight::kMaxSegments];       // as they are
  int segment_chunk[PackedWeight::kMaxSegments + 1];     // first chunk of each segment, and the end
  int element_bytes;                                     // 1 or 2

  CODEGEN_FAST_BOTH int num_chunks() const { return segment_chunk[num_segments]; }
  CODEGEN_FAST_BOTH int chunk_bytes() const { return kPanel * kChunk * element_bytes; }  // of one panel
  CODEGEN_FAST_BOTH int64_t panel_bytes() const { return int64_t{num_chunks()} * chunk_bytes(); }
  CODEGEN_FAST_BOTH const char* chunk(int panel, int chunk) const {
    return data + panel * panel_bytes() + int64_t{chunk} * chunk_bytes();
  }
  CODEGEN_FAST_BOTH const float* scales_of(int segment, int panel) const {
    return scales + (int64_t{segment} * num_panels + panel) * kPanel;
  }
  CODEGEN_FAST_BOTH int section_of(int panel) const {
    int s = 0;
    while (s + 1 < num_sections && panel >= section_panel[s + 1]) ++s;
    return s;
  }
};

// w has been checked, or only its sizes are used.
Weight weight_of(const PackedWeight& w);

// Sections first .. end of a weight of one segment, under their numbers: those before have no panels.
Weight sections_of(const Weight& w, int first, int end);

// Columns that a row of activations takes as the products read them: every segment rounded up to whole chunks.
inline int64_t padded_columns(const PackedWeight& w) {
  int64_t n = 0;
  for (int i = 0; i < w.num_segments; ++i) n += round_up<int64_t>(w.segment_cols[i], kChunk);
  return n;
}

// A cache as kernels see it. T is f16 or bf16, held as 16 bits.
struct Pages {
  uint16_t* data;
  int num_pages;
  int n_head, head_dim;

  CODEGEN_FAST_BOTH int64_t block() const { return int64_t{kPage} * head_dim; }  // elements of keys of a page and head
  // Keys (value = 0) or values (1) of a page and head: (kPage, head_dim), dense.
  CODEGEN_FAST_BOTH uint16_t* at(int64_t page, int head, int value) const {
    return data + ((page * n_head + head) * 2 + value) * block();
  }
};

// A ragged batch as kernels see it.
struct Sequences {
  const int32_t* query_start;  // (num_seqs + 1,)
  const int32_t* seq_lens;
  const int32_t* page_table;
  int64_t page_table_stride;
  int max_pages;               // columns of page_table
  int num_seqs;
  int num_tokens;
};

}  // namespace codegen_fast::cuda
