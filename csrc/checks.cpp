#include "checks.h"

#include <algorithm>
#include <cmath>

namespace codegen_fast {
namespace {

// (rows, columns) of one type, rows may be strided; -1: any number. An output's rows share no memory.
void check_matrix(const TensorView& x, int64_t rows, int64_t columns, DType type, Device device) {
  check_dtype(x, {type});
  check_shape(x, {rows, columns});
  check_rows_contiguous(x);
  check_device(x, device);
}

void check_activations(const BackendRules& rules, const TensorView& x, int64_t rows, int64_t columns, DType type,
                       Device device) {
  rules.activation_type(x);
  check_matrix(x, rows, columns, type, device);
}

void check_output(const BackendRules& rules, const TensorView& x, int64_t rows, int64_t columns, DType type,
                  Device device) {
  check_activations(rules, x, rows, columns, type, device);
  check_output_rows(x);
}

// (length,) contiguous; -1: any length
void check_vector(const TensorView& x, int64_t length, DType type, Device device) {
  check_dtype(x, {type});
  check_shape(x, {length});
  check_contiguous(x);
  check_device(x, device);
}

// (rows, columns) contiguous; -1: any number
void check_table(const TensorView& x, int64_t rows, int64_t columns, DType type, Device device) {
  check_dtype(x, {type});
  check_shape(x, {rows, columns});
  check_contiguous(x);
  check_device(x, device);
}

// As check_vector; a view of no elements passes whatever it is.
void check_optional_vector(const TensorView& x, int64_t length, DType type, Device device) {
  if (x.numel() != 0) check_vector(x, length, type, device);
}

void check_logits(const TensorView& logits) {
  check_dtype(logits, {DType::f32});
  check_shape(logits, {-1, -1});
  check_rows_contiguous(logits);
  if (logits.shape[1] == 0)
    throw ValueError("logits: expected at least one column, got shape " + shape_string(logits));
}

void check_params(const SamplingParams& params, const TensorView& logits) {
  const int64_t rows = logits.shape[0];
  check_vector(params.temperature, rows, DType::f32, logits.device);
  check_vector(params.top_k, rows, DType::i32, logits.device);
  check_vector(params.top_p, rows, DType::f32, logits.device);
  check_vector(params.seed, rows, DType::i64, logits.device);
  check_vector(params.sample_index, rows, DType::i32, logits.device);
  check_vector(params.position, rows, DType::i32, logits.device);
  for (const TensorView* t : {&params.min_p, &params.typical_p, &params.epsilon_cutoff, &params.eta_cutoff})
    check_optional_vector(*t, rows, DType::f32, logits.device);
  if (params.min_tokens_to_keep < 1)
    throw ValueError("min_tokens_to_keep: expected at least 1, got " + std::to_string(params.min_tokens_to_keep));
}

// Sequences of tokens, one after another: both views or neither have elements.
void check_sequences(const TensorView& tokens, const TensorView& starts, Device device) {
  check_optional_vector(tokens, -1, DType::i32, device);
  check_optional_vector(starts, -1, DType::i32, device);
  if (tokens.numel() != 0 && starts.numel() == 0)
    throw ValueError(std::string(starts.name) + ": expected the start of every sequence of " + tokens.name +
                     " and the end of the last, got none");
}

void check_norm(const Norm& norm, int64_t d, Device device) {
  check_vector(norm.weight, d, DType::f32, device);
  check_vector(norm.bias, d, DType::f32, device);
}

void check_quantized(const PackedWeight& w) {
  if (w.dtype != DType::i8 && w.dtype != DType::i4)
    throw TypeError(std::string("weight: expected int8 or int4, got ") + dtype_name(w.dtype));
}

// The scales of `rows` quantised rows of a segment, as they come and go beside the values.
void check_scales(const PackedWeight& w, int64_t segment, const TensorView& scales, int64_t rows, Device device) {
  if (w.group_cols == 0) return check_vector(scales, rows, DType::f32, device);
  check_table(scales, rows, (w.segment_cols[segment] + w.group_cols - 1) / w.group_cols, DType::f32, device);
}

// Rows row .. row + n of (section, segment) of w, as the caller's tensor has them.
void check_rows(const PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& rows) {
  if (section < 0 || section >= w.num_sections)
    throw ValueError("section: expected 0 to " + std::to_string(w.num_sections - 1) + ", got " +
                     std::to_string(section));
  if (segment < 0 || segment >= w.num_segments)
    throw ValueError("segment: expected 0 to " + std::to_string(w.num_segments - 1) + ", got " +
                     std::to_string(segment));
  check_shape(rows, {-1, w.segment_cols[segment]});
  if (row < 0 || row > w.section_rows[section] - rows.shape[0])
    throw ValueError(std::string(rows.name) + ": " + std::to_string(rows.shape[0]) + " rows from row " +
                     std::to_string(row) + " on do not fit a section of " + std::to_string(w.section_rows[section]) +
                     " rows");
  check_rows_contiguous(rows);
  check_device(rows, w.data.device);
}

// The type of a product's activations x, which its weight fits.
DType product_type(const BackendRules& rules, const TensorView& x, const PackedWeight& w, const char* name) {
  const DType type = rules.activation_type(x);
  if (rules.one_type && w.dtype != DType::i8 && w.dtype != type)
    throw TypeError(std::string(name) + ": expected " + dtype_name(type) +
                    " weights (the activations' type) or int8, got " + dtype_name(w.dtype));
  return type;
}

int64_t check_heads(int64_t d, int64_t n_head) {
  if (n_head < 1 || d % n_head)
    throw ValueError("n_head: " + std::to_string(n_head) + " does not divide " + std::to_string(d));
  return d / n_head;
}

// A batch and the cache of d = n_embd, without their contents.
void check_batch(const BackendRules& rules, const Batch& batch, const KVCache& cache, int64_t d, DType type,
                 Device device) {
  const int64_t seqs = batch.num_seqs();
  for (const TensorView* t : {&batch.query_start, &batch.seq_lens, &batch.page_table}) {
    check_dtype(*t, {DType::i32});
    check_device(*t, device);
  }
  check_shape(batch.query_start, {seqs + 1});
  check_shape(batch.seq_lens, {seqs});
  check_shape(batch.page_table, {seqs, -1});
  check_contiguous(batch.query_start);
  check_contiguous(batch.seq_lens);
  check_rows_contiguous(batch.page_table);
  rules.check_page_type(cache.pages);
  if (rules.one_type) check_dtype(cache.pages, {type});
  check_shape(cache.pages, {-1, rules.kv_page_size(), 2 * d});
  check_contiguous(cache.pages);
  check_device(cache.pages, device);
  if (batch.max_seq_len < 0 || batch.max_seq_len > INT32_MAX)
    throw ValueError("max_seq_len: expected 0 to 2^31 - 1, got " + std::to_string(batch.max_seq_len));
}

}  // namespace

void check_workspace(const TensorView& workspace, int64_t bytes, Device device) {
  check_dtype(workspace, {DType::u8});
  check_contiguous(workspace);
  check_device(workspace, device);
  if (bytes) check_alignment(workspace, 16);
  if (workspace.ndim != 1 || workspace.numel() < bytes)
    throw ValueError(std::string(workspace.name) + ": expected at least " + std::to_string(bytes) +
                     " bytes in one dimension, got shape " + shape_string(workspace));
}

void check_packed(const BackendRules& rules, const PackedWeight& w, const char* name, Device device) {
  const std::string n(name);
  if (w.num_sections < 1 || w.num_segments < 1) throw ValueError(n + ": a weight needs a section and a segment");
  for (int i = 0; i < w.num_sections; ++i)
    if (w.section_rows[i] < 1) throw ValueError(n + ": sections must have at least one row");
  for (int i = 0; i < w.num_segments; ++i)
    if (w.segment_cols[i] < 1) throw ValueError(n + ": segments must have at least one column");
  rules.check_weight_type(w, name);
  if (w.dtype == DType::i4 && w.group_cols != 32 && w.group_cols != 64 && w.group_cols != 128)
    throw ValueError(n + ": int4 has groups of 32, 64 or 128 columns, got " + std::to_string(w.group_cols));
  if (w.dtype == DType::i8 && w.group_cols != 0 && w.group_cols != 32)
    throw ValueError(n + ": int8 has one scale a row or groups of 32 columns, got groups of " +
                     std::to_string(w.group_cols));
  check_dtype(w.data, {DType::u8});
  check_shape(w.data, {rules.packed_weight_bytes(w)});
  check_contiguous(w.data);
  check_alignment(w.data, 64);
  check_device(w.data, device);
  if (w.dtype == DType::i8) check_vector(w.scales, rules.packed_weight_scales(w), DType::f32, device);
}

void check_pack(const BackendRules& rules, const PackedWeight& w, int64_t section, int64_t row, int64_t segment,
                const TensorView& source, const TensorView& status) {
  check_packed(rules, w, "weight", source.device);
  check_dtype(source, {DType::f32, DType::f16, DType::bf16});
  check_rows(w, section, row, segment, source);
  check_vector(status, 2, DType::i32, source.device);
}

void check_pack_quantized(const BackendRules& rules, const PackedWeight& w, int64_t section, int64_t row,
                          int64_t segment, const TensorView& source, const TensorView& scales) {
  check_packed(rules, w, "weight", source.device);
  check_quantized(w);
  check_dtype(source, {DType::i8});
  check_rows(w, section, row, segment, source);
  check_scales(w, segment, scales, source.shape[0], source.device);
}

void check_unpack(const BackendRules& rules, const TensorView& out, const TensorView& out_scales,
                  const PackedWeight& w, int64_t section, int64_t row, int64_t segment) {
  check_packed(rules, w, "weight", out.device);
  check_rows(w, section, row, segment, out);
  check_output_rows(out);
  check_dtype(out, {DType::f32, DType::f16, DType::bf16, DType::i8});
  if (out.dtype != DType::i8) return;
  if (w.dtype != DType::i8 && w.dtype != DType::i4)
    throw TypeError(std::string("out: int8 needs an int8 or int4 weight, got ") + dtype_name(w.dtype));
  check_scales(w, segment, out_scales, out.shape[0], out.device);
}

void check_quantize_activations(const BackendRules& rules, const TensorView& q, const TensorView& scales,
                                const TensorView& x, const PackedWeight& w) {
  const Device device = x.device;
  check_packed(rules, w, "weight", device);
  check_activations(rules, x, -1, w.in_features(), rules.activation_type(x), device);
  if (w.dtype != DType::i8) throw TypeError(std::string("weight: expected int8, got ") + dtype_name(w.dtype));
  const int64_t padding = rules.activation_padding();
  int64_t columns = 0, groups = 0;
  for (int s = 0; s < w.num_segments; ++s) {
    const int64_t group = rules.activation_group(w) ? rules.activation_group(w) : w.segment_cols[s];
    columns += (w.segment_cols[s] + padding - 1) / padding * padding;
    groups += (w.segment_cols[s] + group - 1) / group;
  }
  check_table(q, x.shape[0], columns, DType::i8, device);
  if (w.group_cols) groups += w.num_segments;  // their offsets
  check_table(scales, x.shape[0], groups, DType::f32, device);
}

void check_embed(const BackendRules& rules, const TensorView& x, const TensorView& ids, const TensorView& wte) {
  check_dtype(ids, {DType::i64});
  check_shape(ids, {-1});
  check_contiguous(ids);
  check_dtype(wte, {DType::f32, DType::f16, DType::bf16});
  check_table(wte, -1, -1, wte.dtype, ids.device);
  check_output(rules, x, ids.shape[0], wte.shape[1], rules.activation_type(x), ids.device);
}

void check_layer_norm(const BackendRules& rules, const TensorView& out, const TensorView& x, const Norm& norm) {
  check_shape(x, {-1, -1});
  const int64_t tokens = x.shape[0], d = x.shape[1];
  const DType type = rules.activation_type(x);
  check_activations(rules, x, tokens, d, type, x.device);
  check_output(rules, out, tokens, d, type, x.device);
  check_norm(norm, d, x.device);
}

void check_input_product(const BackendRules& rules, const TensorView& q_out, const TensorView& act,
                         const KVCache& cache, const TensorView& x, const Norm& norm, const PackedWeight& w_in,
                         const TensorView& bias_in, const TensorView& rotary, int64_t n_head, const Batch& batch,
                         Phase phase) {
  const Device device = x.device;
  check_packed(rules, w_in, "w_in", device);
  const int64_t tokens = batch.num_tokens, d = w_in.in_features(), inner = w_in.section_rows[3];
  if (w_in.num_sections != 4 || w_in.num_segments != 1 || w_in.section_rows[0] != d || w_in.section_rows[1] != d ||
      w_in.section_rows[2] != d)
    throw ValueError("w_in: expected sections (d, d, d, F) over one segment of d columns");
  const int64_t head_dim = check_heads(d, n_head);
  const DType type = product_type(rules, x, w_in, "w_in");
  check_activations(rules, x, tokens, d, type, device);
  const bool cache_alone = phase == Phase::prefill && q_out.shape[0] == 0 && act.shape[0] == 0;
  const int64_t rows = cache_alone ? 0 : tokens;
  check_output(rules, q_out, rows, d, type, device);
  check_output(rules, act, rows, d + inner, type, device);
  check_norm(norm, d, device);
  check_vector(bias_in, inner, DType::f32, device);
  check_table(rotary, -1, -1, DType::f32, device);
  const int64_t rotary_dim = rotary.shape[1];
  if (rotary_dim % 2 || rotary_dim > head_dim)
    throw ValueError("rotary: expected an even number of columns, at most the head's " + std::to_string(head_dim) +
                     ", got " + std::to_string(rotary_dim));
  if (head_dim % 2)
    throw ValueError("n_head: heads of " + std::to_string(head_dim) + " dimensions; rotary needs an even number");
  if (batch.max_seq_len > rotary.shape[0])
    throw ValueError("rotary: the table has " + std::to_string(rotary.shape[0]) + " positions, max_seq_len is " +
                     std::to_string(batch.max_seq_len));
  check_batch(rules, batch, cache, d, type, device);
}

void check_attention(const BackendRules& rules, const TensorView& act, const TensorView& q, const KVCache& cache,
                     int64_t n_head, const Batch& batch) {
  const Device device = q.device;
  const DType type = rules.activation_type(q);
  check_shape(q, {batch.num_tokens, -1});
  const int64_t tokens = batch.num_tokens, d = q.shape[1];
  rules.check_head_dim(check_heads(d, n_head));
  check_activations(rules, q, tokens, d, type, device);
  check_output(rules, act, tokens, -1, type, device);
  if (act.shape[1] < d)
    throw ValueError("act: expected at least " + std::to_string(d) + " columns, got " + std::to_string(act.shape[1]));
  check_batch(rules, batch, cache, d, type, device);
}

void check_output_product(const BackendRules& rules, const TensorView& x, const TensorView& act,
                          const PackedWeight& w_out, const TensorView& bias_out) {
  const Device device = act.device;
  check_packed(rules, w_out, "w_out", device);
  const int64_t d = w_out.out_features();
  if (w_out.num_sections != 1) throw ValueError("w_out: expected one section of rows");
  const DType type = product_type(rules, act, w_out, "w_out");
  check_activations(rules, act, -1, w_out.in_features(), type, device);
  check_output(rules, x, act.shape[0], d, type, device);
  check_vector(bias_out, d, DType::f32, device);
}

void check_lm_head(const BackendRules& rules, const TensorView& logits, const TensorView& x, const TensorView& rows,
                   const Norm& norm, const PackedWeight& w_lm, const TensorView& bias_lm) {
  const Device device = x.device;
  check_packed(rules, w_lm, "w_lm", device);
  const int64_t d = w_lm.in_features(), vocab_size = w_lm.out_features();
  if (w_lm.num_sections != 1 || w_lm.num_segments != 1) throw ValueError("w_lm: expected one section and one segment");
  check_activations(rules, x, -1, d, product_type(rules, x, w_lm, "w_lm"), device);
  check_vector(rows, -1, DType::i32, device);
  check_matrix(logits, rows.shape[0], vocab_size, DType::f32, device);
  check_output_rows(logits);
  check_norm(norm, d, device);
  check_vector(bias_lm, vocab_size, DType::f32, device);
}

void check_sample(const TensorView& out, const TensorView& logits, const SamplingParams& params) {
  check_logits(logits);
  check_vector(out, logits.shape[0], DType::i64, logits.device);
  check_params(params, logits);
}

void check_filter_logits(const TensorView& logits, const SamplingParams& params) {
  check_logits(logits);
  check_output_rows(logits);
  check_params(params, logits);
}

void check_edit_logits(const TensorView& logits, const LogitsRules& rules) {
  check_logits(logits);
  check_output_rows(logits);
  const Device device = logits.device;
  check_matrix(rules.history, -1, -1, DType::i32, device);
  for (const TensorView* t : {&rules.history_row, &rules.history_len, &rules.prompt_len})
    check_vector(*t, logits.shape[0], DType::i32, device);
  check_optional_vector(rules.biases, -1, DType::f32, device);
  check_sequences(rules.bias_tokens, rules.bias_starts, device);
  if (rules.biases.numel() != std::max<int64_t>(rules.bias_starts.numel() - 1, 0))
    throw ValueError("biases: expected shape (" + std::to_string(std::max<int64_t>(rules.bias_starts.numel() - 1, 0)) +
                     ",), one entry a sequence of bias_starts, got " + shape_string(rules.biases));
  check_sequences(rules.banned_tokens, rules.banned_starts, device);
  for (const TensorView* t : {&rules.eos, &rules.forced_eos, &rules.suppressed, &rules.suppressed_at_begin})
    check_optional_vector(*t, -1, DType::i32, device);
  if (!(rules.repetition_penalty > 0.0f && std::isfinite(rules.repetition_penalty)))
    throw ValueError("repetition_penalty: expected a finite number above 0, got " +
                     std::to_string(rules.repetition_penalty));
  if (rules.no_repeat_ngram_size < 0)
    throw ValueError("no_repeat_ngram_size: expected at least 0, got " + std::to_string(rules.no_repeat_ngram_size));
  if (!std::isfinite(rules.decay_factor))
    throw ValueError("decay_factor: expected a finite number, got " + std::to_string(rules.decay_factor));
}

void check_advance(const TensorView& tokens, const TensorView& seq_lens, const TensorView& remaining,
                   const TensorView& step, const TensorView& history, const HostRing& ring, const TensorView& sampled,
                   const TensorView& eos) {
  check_shape(sampled, {-1});
  const int64_t rows = sampled.shape[0];
  for (const TensorView* t : {&tokens, &sampled}) {
    check_dtype(*t, {DType::i64});
    check_shape(*t, {rows});
  }
  for (const TensorView* t : {&seq_lens, &remaining}) {
    check_dtype(*t, {DType::i32});
    check_shape(*t, {rows});
  }
  check_dtype(step, {DType::i64});
  check_shape(step, {1});
  check_dtype(eos, {DType::i64});
  check_shape(eos, {-1});
  for (const TensorView* t : {&tokens, &sampled, &seq_lens, &remaining, &step, &eos}) {
    check_contiguous(*t);
    check_device(*t, sampled.device);
  }
  check_matrix(history, rows, -1, DType::i32, sampled.device);
  check_output_rows(history);
  check_dtype(ring.slots, {DType::i64});
  check_shape(ring.slots, {-1, 1 + rows});
  check_contiguous(ring.slots);
  if (ring.slots.shape[0] < 1) throw ValueError("slots: expected at least one");
}

void check_copy_pages(const BackendRules& rules, const KVCache& cache, const TensorView& source,
                      const TensorView& destination) {
  rules.check_page_type(cache.pages);
  check_shape(cache.pages, {-1, rules.kv_page_size(), -1});
  check_contiguous(cache.pages);
  check_alignment(cache.pages, rules.copied_page_alignment);
  for (const TensorView* t : {&source, &destination})
    check_vector(*t, source.shape[0], DType::i32, cache.pages.device);
}

}  // namespace codegen_fast
