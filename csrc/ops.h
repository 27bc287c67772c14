// Floor 1: THE contract. Every op of the decoder, once, for every backend.
//
// A backend is a namespace (cpu, cuda) that defines the functions at the end of this file. An op
//   - never allocates: scratch is passed in, at least 16-byte aligned, sized by the op's own *_workspace function;
//   - never synchronises, and never reads a device's memory on the host;
//   - writes its outputs and its scratch, nothing else; outputs do not overlap inputs unless said, nor rows each other;
//   - checks names, shapes, dtypes, strides and devices before it launches, and throws ValueError or TypeError. What
//     lies on a GPU cannot be looked at: there a token at a negative position, or whose page the table lacks or names
//     outside the cache, is IDLE: nothing is appended for it, its attention is 0, its other outputs are of no meaning,
//     and no memory is touched out of bounds. seq_lens[b] = 0 makes a row of a fixed-size batch idle on purpose;
//   - accepts num_tokens == 0, and then writes nothing.
//
// Symbols, as in the model's description:
//   d = n_embd, H = n_head, D = d/H, R = rotary_dim, F = n_inner, V = vocab_size, P = n_positions
//   T = tokens of the call (all sequences, one after another), B = sequences of the call
//
// Activations between ops ("act" below): float32 on the CPU; float16 or bfloat16 on CUDA, one type for all operands of
// a call, the cache included, and for weights that are not int8. All sums are float32 or wider (int32 inside int8 and
// int4 groups). On CUDA what is stored between ops (and the normalised row, and the attention's weights) is rounded
// to act.
//
// INVARIANCE. Within a phase an output element's bits follow from the op's shapes, the token's own inputs and
// its sequence's own length. They never depend on T, on B, on the other sequences, on the number of threads, or
// on where a prompt was cut into chunks.
//
// INT8. A product with i8 weights runs in one of two modes, fixed by backend and phase and never by T: w8a16 (the
// weights are dequantised, activations stay as they are) or w8a8 (activations are quantised as quantize_activations
// says; sums within a group are exact in int32, groups are scaled and added in their order in float32).
//   cpu:  w8a8 in both phases, groups of 64 columns, or of 32 for weights that are themselves in groups (below).
//   cuda: decode w8a16; prefill w8a8, a group is a whole segment, so that all of a row's sums stay in int32.
//
// INT4. i4 weights exist on the CPU alone, in one mode, w4a8: activations are quantised as for i8 there. Sums are exact
// in int32 within the columns that share both a weight's scale and an activation's, are multiplied by the product of
// the two (rounded to float32) and added in their order in float32.
#pragma once

#include "view.h"

namespace codegen_fast {

// Prefill: many tokens of a sequence at once. Decode: the steps of generation and the verification of drafts.
// Backends may use different arithmetic in the two; a token's bits are reproducible within each.
enum class Phase : uint8_t { prefill, decode };

// ---- Operands ----------------------------------------------------------------------------------

// The weights of one linear map y = W x in the backend's stored layout, read by both phases.
//
// Logically W is (out_features, in_features). Its rows are cut into sections (W_in: q, k, v, fc_in; else one) and
// its columns into segments (W_out: attention, fc_out; else one), so that tensors of a checkpoint land in it one
// by one. Only pack() and unpack() and the products know the order of elements inside `data`.
//   dtype f32, f16, bf16: the values themselves.
//   dtype i8: symmetric, W[row, col] = scale[segment(col), row] * q, q in [-127, 127];
//             scale = amax / 127 over the row's columns of that segment, q = round_half_even(W * (127 / amax)),
//             both in float32; a row of zeros has scale 0; where 127 / amax overflows, q is 0.
//   dtype i8 with group_cols = 32 (CPU alone): symmetric in groups of so many columns of a segment (the last may be
//             shorter): W[row, col] = scale[segment(col), group(col), row] * q, q in [-127, 127], scale a bfloat16.
//             Let a be the group's largest magnitude. Of the 8 consecutive bfloat16 numbers s from the smallest that is
//             not below a * (1 / 127.5), the first with the least e is taken: y = W * (1 / s),
//             q = min(max(round_half_even(y), -127), 127), e = (s/a)^2 * (the sum of (y - q)^2 over the columns in
//             their order); every operation is rounded to float32. Where 1 / s overflows, y is 0.
//             Beside the data stands every row's sum over each segment: of scale * (the sum of a group's codes), group
//             after group, in float32. It meets the activations' offset (quantize_activations).
//   dtype i4: symmetric in groups of group_cols columns of a segment (the last may be shorter), one scale for each row
//             of a group: W[row, col] = scale[segment(col), group(col), row] * q, q in [-8, 7], scale a bfloat16.
//             Let m be the group's value of largest magnitude, the first of equals. Of the scales s = bf16(m * -f/128),
//             f = 18, 17.5, ... 10.5 in this order, the first with the least e is taken: y = W * (1 / s),
//             q = min(max(round_half_even(y), -8), 7), e = (s/m)^2 * (the sum of (y - q)^2 over the columns in their
//             order); every operation is rounded to float32. Where m is 0 or 1 / s overflows, y is 0.
struct PackedWeight {
  static constexpr int kMaxSections = 4;
  static constexpr int kMaxSegments = 2;
  DType dtype = DType::f32;
  int64_t group_cols = 0;  // i4: 32, 64 or 128. i8: 0 for one scale a row and segment, or 32
  int num_sections = 1;
  int64_t section_rows[kMaxSections] = {};  // out_features of each section
  int num_segments = 1;
  int64_t segment_cols[kMaxSegments] = {};  // in_features of each segment
  TensorView data;    // (packed_weight_bytes,) u8, 64-byte aligned
  TensorView scales;  // i8 only: (packed_weight_scales,) f32; in groups the rows' sums. Other scales stand in data

  int64_t out_features() const { int64_t n = 0; for (int i = 0; i < num_sections; ++i) n += section_rows[i]; return n; }
  int64_t in_features() const { int64_t n = 0; for (int i = 0; i < num_segments; ++i) n += segment_cols[i]; return n; }
};

struct Norm {
  TensorView weight;  // (d,) f32
  TensorView bias;    // (d,) f32
  float eps = 1e-5f;
};

// A ragged batch: B sequences, each with the tokens that are new in this call, and its pages of the cache.
// Token t of sequence b has position seq_lens[b] - (query_start[b+1] - query_start[b]) + (t - query_start[b]).
// No page that new tokens fall on belongs to two sequences.
struct Batch {
  TensorView query_start;  // (B+1,) i32: tokens query_start[b] .. query_start[b+1] of the call belong to b
  TensorView seq_lens;     // (B,) i32: length of the sequence with its new tokens
  TensorView page_table;   // (B, max_pages) i32, rows may be strided: page of positions [i*page_size, (i+1)*page_size)
  int64_t num_tokens = 0;  // T, known to the host
  int64_t max_seq_len = 0; // an upper bound of seq_lens, known to the host

  int64_t num_seqs() const { return seq_lens.shape[0]; }
};

// One layer's paged cache. The order inside a page belongs to the backend; copying whole pages is all that others
// may do with it.
struct KVCache {
  TensorView pages;  // (num_pages, page_size, 2 * d) f32, f16 or bf16, contiguous; page_size = kv_page_size()
};

// Where a device hands tokens to the host without either waiting for the other.
struct HostRing {
  TensorView slots;  // (num_slots, 1 + B) i64, in memory that the host can read while the device writes it
};

struct SamplingParams {       // one entry a row of logits
  TensorView temperature;     // (B,) f32; 0 takes the largest logit (the first of equals)
  TensorView top_k;           // (B,) i32; 0 keeps all
  TensorView top_p;           // (B,) f32; 1 keeps all
  TensorView seed;            // (B,) i64, read as 64 unsigned bits: the prompt's seed
  TensorView sample_index;    // (B,) i32: which sample of that prompt
  TensorView position;        // (B,) i32: the position that the sampled token will have
  // Filters that follow top_p, in this order; an empty view leaves its filter out.
  TensorView min_p;           // (B,) f32 in [0, 1]; 0 keeps all
  TensorView typical_p;       // (B,) f32 in (0, 1]; 1 keeps all
  TensorView epsilon_cutoff;  // (B,) f32 in [0, 1); 0 keeps all
  TensorView eta_cutoff;      // (B,) f32 in [0, 1); 0 keeps all
  int64_t min_tokens_to_keep = 1;  // every filter leaves at least so many (beam sampling needs more than one)
};

// What changes logits before a token is chosen, the same for all rows of a call. A rule whose list is empty or whose
// number is neutral (the default) does nothing. Token ids outside [0, V) are ignored as targets and are not edited; in
// the past of a sequence they match a history that holds them.
// n[b] = history_len[b] - prompt_len[b] is the number of new tokens that stand before the one to choose.
struct LogitsRules {
  // The tokens so far: row b of the logits follows history[history_row[b], 0 .. history_len[b]).
  TensorView history;      // (S, columns) i32, rows may be strided
  TensorView history_row;  // (B,) i32
  TensorView history_len;  // (B,) i32; 0 or less, more than columns, or a history_row outside [0, S): the row is idle
  TensorView prompt_len;   // (B,) i32
  // Sequences of tokens, one after another: sequence i is tokens[starts[i] .. starts[i+1]). A sequence that is empty or
  // not within the tokens is ignored.
  TensorView bias_tokens;  // (n,) i32
  TensorView bias_starts;  // (k+1,) i32
  TensorView biases;       // (k,) f32
  float repetition_penalty = 1.0f;
  int64_t no_repeat_ngram_size = 0;
  TensorView banned_tokens;  // (n,) i32: as bias_tokens, with a bias of -infinity
  TensorView banned_starts;  // (k+1,) i32
  TensorView eos;            // (n,) i32
  int64_t min_new_tokens = 0;
  TensorView forced_eos;            // (n,) i32
  int64_t forced_eos_after = -1;    // the n at which it is forced; -1: never
  bool remove_invalid_values = false;
  int64_t decay_start = -1;         // exponential decay of the length: from n > decay_start on; -1: never
  double decay_factor = 1.0;
  TensorView suppressed;            // (n,) i32
  TensorView suppressed_at_begin;   // (n,) i32
};

// ---- The ops of a backend ----------------------------------------------------------------------

#define CODEGEN_FAST_DECLARE_OPS                                                                                      \
  /* Bytes of PackedWeight::data and floats of PackedWeight::scales. */                                               \
  int64_t packed_weight_bytes(const PackedWeight& w);                                                                 \
  int64_t packed_weight_scales(const PackedWeight& w);                                                                \
  /* Tokens a page holds. */                                                                                          \
  int64_t kv_page_size();                                                                                             \
  /* Columns of a group and of a segment's padding in quantize_activations; a group of 0 is a whole segment. */       \
  int64_t activation_group(const PackedWeight& w);                                                                    \
  int64_t activation_padding();                                                                                       \
                                                                                                                      \
  /* Rows row .. row+n of (section, segment) of w  <-  source (n, segment_cols) f32, f16 or bf16, rows may be         \
     strided. Values are rounded to nearest even; i8 and i4 quantise as PackedWeight says.                            \
     status (2,) i32, added to: [0] values of the source that are NaN or infinite, [1] finite values that became      \
     infinite in a narrower type. Every element of every section and segment is written once by the loader;           \
     padding is written by clear_packed. */                                                                           \
  void pack(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,                 \
            TensorView& status);                                                                                      \
  /* Fills w (padding included) with zeros. */                                                                        \
  void clear_packed(PackedWeight& w);                                                                                 \
  /* i8 and i4: puts quantised rows back as they were saved: source (n, segment_cols) i8, for i4 in [-8, 7] (the      \
     caller sees to it); scales f32, (n,), or in groups (n, groups) and there bfloat16 values (low bits go). */       \
  void pack_quantized(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,       \
                      const TensorView& scales);                                                                      \
  /* out (n, segment_cols) f32, f16 or bf16  <-  rows row .. row+n, dequantised; or, for an i8 or i4 weight and an    \
     out of i8, the quantised values, with out_scales f32 as pack_quantized takes them (an empty view otherwise). */  \
  void unpack(TensorView& out, TensorView& out_scales, const PackedWeight& w, int64_t section, int64_t row,           \
              int64_t segment);                                                                                       \
                                                                                                                      \
  /* q (T, padded columns) i8, scales (T, groups) f32  <-  x (T, K) act, as the products do it in w8a8: every         \
     segment of w is cut into groups (INT8 above; the last may be shorter); in a group scale = amax / 127,            \
     q = round_half_even(x * (127 / amax)), 0 where amax is 0 or 127 / amax overflows; NaN or infinity in a group     \
     makes its scale NaN. Columns stand in their order, segments padded with 0 to multiples of activation_padding().  \
     For i8 weights in groups, what is quantised is x - c, c an offset of the row's segment, which a product adds     \
     back as c times the weights' sums: halfway between the groups' mean largest and mean smallest values,            \
     c = (sum of largest + sum of smallest) * (0.5 / groups), in float32, groups in their order (after gelu nothing   \
     is below -0.17, and half of the codes would lie idle). There a scale is amax / 127 rounded up to 5 bits of       \
     mantissa (its bits + 0x7ffff, the lowest 19 cleared), q = round_half_even((x - c) * (1 / scale)), 0 where        \
     1 / scale or amax overflows: such a scale is a sum of three powers of two, which products of many rows add. Then \
     scales is (T, groups + segments): behind the scales stand the offsets; NaN or infinity in a segment makes all of \
     its scales and its offset NaN. Exists so that tests see the quantised activations. */                            \
  void quantize_activations(TensorView& q, TensorView& scales, const TensorView& x, const PackedWeight& w);           \
                                                                                                                      \
  /* x[t] = wte[ids[t]].  x (T, d) act; ids (T,) i64; wte (V, d) f32, f16 or bf16.                                    \
     An id outside [0, V) gives a row of NaN (callers check ids; this keeps memory safe). */                          \
  void embed(TensorView& x, const TensorView& ids, const TensorView& wte);                                            \
                                                                                                                      \
  /* out[t] = (x[t] - mean) / sqrt(var + eps) * weight + bias, var biased.  out, x (T, d) act. May be in place. */    \
  void layer_norm(TensorView& out, const TensorView& x, const Norm& norm);                                            \
                                                                                                                      \
  /* h = layer_norm(x);  q, k, v, m = the four sections of w_in (3d + F, d) times h;                                  \
     q, k = rotary(q, k): the first R dims of every head, pairs (2i, 2i+1), angle position * 10000^(-2i/R);           \
     q_out (T, d) = q;  the cache gets k and v at the token's position;  act[:, d:] = gelu_new(m + bias_in).          \
     In a prefill q_out and act may both have no rows: then the cache gets k and v, and nothing else is computed.     \
     x (T, d) act; act (T, d + F) act, columns 0 .. d untouched; bias_in (F,) f32;                                    \
     rotary (P, R) f32: R/2 cosines, then R/2 sines of each position. */                                              \
  void input_product(TensorView& q_out, TensorView& act, KVCache& cache, const TensorView& x, const Norm& norm,       \
                     const PackedWeight& w_in, const TensorView& bias_in, const TensorView& rotary, int64_t n_head,   \
                     const Batch& batch, Phase phase, TensorView& workspace);                                         \
  int64_t input_product_workspace(int64_t num_tokens, const PackedWeight& w_in);                                      \
                                                                                                                      \
  /* act[t, :d] = softmax(q[t] . k[j] / sqrt(D) over j = 0 .. position(t)) v, per head, of the token's own sequence.  \
     Cut into splits of a fixed number of keys, counted from position 0, that go to a fixed number of sums,           \
     which are combined in a fixed order. */                                                                          \
  void attention(TensorView& act, const TensorView& q, const KVCache& cache, int64_t n_head, const Batch& batch,      \
                 Phase phase, TensorView& workspace);                                                                 \
  int64_t attention_workspace(int64_t num_tokens, int64_t n_head, int64_t head_dim, int64_t max_seq_len);             \
                                                                                                                      \
  /* x[t] += w_out (d, d + F) times act[t] + bias_out.  x (T, d) act, in place; act (T, d + F); bias_out (d,) f32. */ \
  void output_product(TensorView& x, const TensorView& act, const PackedWeight& w_out, const TensorView& bias_out,    \
                      Phase phase, TensorView& workspace);                                                            \
  int64_t output_product_workspace(int64_t num_tokens, const PackedWeight& w_out);                                    \
                                                                                                                      \
  /* logits[m] = w_lm (V, d) times layer_norm(x[rows[m]]) + bias_lm.                                                  \
     logits (M, V) f32; x (T, d) act; rows (M,) i32, each in [0, T) (others give NaN); bias_lm (V,) f32.              \
     For i8 weights in groups the rows are multiplied in two parts, q and q' with offsets c and c': what              \
     quantize_activations makes of x, and of (x - c) - scale * q. Errors here go straight into the logits. */         \
  void lm_head(TensorView& logits, const TensorView& x, const TensorView& rows, const Norm& norm,                     \
               const PackedWeight& w_lm, const TensorView& bias_lm, Phase phase, TensorView& workspace);              \
  int64_t lm_head_workspace(int64_t num_rows, const PackedWeight& w_lm);                                              \
                                                                                                                      \
  /* out (B,) i64  <-  logits (B, V) f32. With temperature 0 the argmax. Else, in transformers' order:                \
     z = logits / temperature; top_k drops logits below the k-th largest (equals of it stay); top_p keeps, from       \
     the most probable down (of equals the lower id first), every token before which less than top_p of the mass      \
     that top_k left has been kept; one token always stays. u = philox_uniform(seed, sample_index, position)          \
     (philox.h); the token is the first kept id, in order of ids, at which the running mass exceeds u * kept mass.    \
     A row gives -1 if it holds a NaN, if its largest logit is infinite, or if a parameter is out of its range:       \
     temperature finite and at least 0, top_k at least 0, the others as SamplingParams says.                          \
     The filters after top_p act in turn on what is left, with p its probabilities and H their entropy:               \
     min_p keeps p >= min_p * max p; typical_p keeps the tokens with the smallest t = |-log p - H| up to the first    \
     at which their mass reaches typical_p (equals of its t stay); epsilon_cutoff keeps p >= epsilon;                  \
     eta_cutoff keeps p >= min(eta, sqrt(eta) * exp(-H)); each keeps the min_tokens_to_keep most probable too         \
     (typical_p: those of the smallest t), as top_k and top_p do; of equals at its end all stay in top_k, min_p,      \
     epsilon and eta, those with lower ids in top_p. */                                                               \
  void sample(TensorView& out, const TensorView& logits, const SamplingParams& params, TensorView& workspace);        \
  int64_t sample_workspace(int64_t num_rows, int64_t vocab_size);                                                     \
                                                                                                                      \
  /* logits[b] in place  <-  the scores that sample() chooses from: z of sample(), -infinity where a filter dropped   \
     the token. Rows with temperature 0 stay as they are. Rows that sample() would refuse (-1) become NaN.            \
     z is rounded to float32: where logits / temperature overflows it is infinite. */                                 \
  void filter_logits(TensorView& logits, const SamplingParams& params, TensorView& workspace);                        \
                                                                                                                      \
  /* logits (B, V) f32 in place, by the rules that are there, in transformers' order. "Sequence s matches" means that \
     the history ends with all but the last token of s (always, if s has one token); its last token is the target.    \
     1 for every i that matches, in order: logits[target of i] += biases[i] (of equal targets the biases are added   \
       up first);                                                                                                     \
     2 for every token of the history, once: l = l < 0 ? l * repetition_penalty : l / repetition_penalty;             \
     3 every token that would complete a second occurrence of an n-gram of no_repeat_ngram_size = -infinity;          \
     4 the targets of banned sequences that match = -infinity;                                                        \
     5 if n[b] < min_new_tokens: logits of eos = -infinity;                                                           \
     6 if n[b] == forced_eos_after: all = -infinity, then those of forced_eos = 0;                                    \
     7 remove_invalid_values: NaN = 0, infinity = FLT_MAX, -infinity = -FLT_MAX;                                      \
     8 if decay_start >= 0 and n[b] > decay_start: for eos, l += |l| * (decay_factor^(n[b] - decay_start) - 1), the   \
       power in double, the factor rounded to float; once a token; what is not finite stays;                          \
     9 logits of suppressed = -infinity; if n[b] == 0 those of suppressed_at_begin too. */                            \
  void edit_logits(TensorView& logits, const LogitsRules& rules, TensorView& workspace);                              \
  int64_t edit_logits_workspace(int64_t num_rows, int64_t vocab_size);                                                \
                                                                                                                      \
  /* The end of a decode step: every row takes its token and is ready for the next step, or idle.                     \
     For rows b with seq_lens[b] > 0: tokens[b] = sampled[b]; history[b, seq_lens[b]] = sampled[b] if it is in there  \
     (history takes the low 32 bits); remaining[b] -= 1; the row has finished if sampled[b] is negative, one of eos,  \
     if remaining[b] is 0 or seq_lens[b] is INT32_MAX: then seq_lens[b] = 0, else seq_lens[b] += 1.                   \
     slots[s, 1 + b] = sampled[b], or -2 for rows that were idle before, s = step[0] % num_slots; then step[0] += 1   \
     and, once all of that is visible to the host, slots[s, 0] = step[0]. Counts wrap around; on the CPU a negative   \
     step is refused.                                                                                                 \
     tokens (B,) i64, seq_lens (B,) i32, remaining (B,) i32, step (1,) i64: in place; sampled (B,) i64; eos (n,) i64; \
     history (B, columns) i32, rows may be strided; no columns: none is kept. */                                      \
  void advance(TensorView& tokens, TensorView& seq_lens, TensorView& remaining, TensorView& step, TensorView& history,\
               HostRing& ring, const TensorView& sampled, const TensorView& eos);                                     \
                                                                                                                      \
  /* pages[destination[i]] = pages[source[i]] for one layer. source, destination (n,) i32; no destination twice,      \
     none that is also a source. */                                                                                   \
  void copy_pages(KVCache& cache, const TensorView& source, const TensorView& destination);

namespace cpu {
CODEGEN_FAST_DECLARE_OPS
}
namespace cuda {
CODEGEN_FAST_DECLARE_OPS
}

}  // namespace codegen_fast
