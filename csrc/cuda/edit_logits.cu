// The rules that change a row's logits before its token is chosen. One block a row, a barrier after every rule.
//
// What is to happen once for every token of a list is done by the position that finds its own number in claims[token]
// after all positions of that token have written theirs there: which of them wins differs from run to run, what it does
// does not. Only entries that were written are read, so that nothing is cleared and only rules 6 and 7 take time with
// the vocabulary.
#include <algorithm>

#include "checks.h"
#include "intrinsics.h"
#include "launch.h"
#include "row_blocks.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kThreads = 512;

struct List {
  const int32_t* tokens;
  int count;
};

struct Sequences {
  List list;
  const int32_t* starts;
  int count;  // of sequences
};

struct Params {
  float* logits;
  int64_t stride;
  int rows, vocab_size;
  const int32_t* history;
  int64_t history_stride;
  int history_rows, columns;
  const int32_t* history_row;
  const int32_t* history_len;
  const int32_t* prompt_len;
  Sequences biased;
  const float* biases;
  float repetition_penalty;
  int64_t ngram_size;
  Sequences banned;
  List eos;
  int64_t min_new_tokens;
  List forced_eos;
  int64_t forced_eos_after;
  bool remove_invalid_values;
  int64_t decay_start;
  double decay_factor;
  List suppressed, suppressed_at_begin;
  char* workspace;
  int64_t block_bytes;
};

struct Shared {
  int targets[kThreads];
  float biases[kThreads];
};

struct Row {
  float* logits;
  int vocab_size;
  List history;
  int64_t num_new;  // n of the contract
  // (vocab_size,) scratch each
  int32_t* claims;
  float* sums;

  CODEGEN_FAST_DEVICE bool has(int32_t token) const { return token >= 0 && token < vocab_size; }
};

// The target of sequence i; -1 if there is no such sequence, it does not match, or the vocabulary lacks the target.
CODEGEN_FAST_DEVICE int32_t target_of(const Row& row, const Sequences& s, int i) {
  if (i >= s.count) return -1;
  const int begin = s.starts[i], end = s.starts[i + 1];
  if (begin < 0 || begin >= end || end > s.list.count) return -1;
  const int past = end - begin - 1;
  if (past > row.history.count) return -1;
  const int32_t* tail = row.history.tokens + (row.history.count - past);
  for (int k = past - 1; k >= 0; --k)
    if (s.list.tokens[begin + k] != tail[k]) return -1;
  const int32_t target = s.list.tokens[end - 1];
  return row.has(target) ? target : -1;
}

// f(token) once for every token of the list that the vocabulary has.
template <class F>
CODEGEN_FAST_DEVICE void for_each_once(const Row& row, const List& list, F f) {
  for (int i = threadIdx.x; i < list.count; i += kThreads)
    if (row.has(list.tokens[i])) row.claims[list.tokens[i]] = i;
  sync_threads();
  for (int i = threadIdx.x; i < list.count; i += kThreads)
    if (row.has(list.tokens[i]) && row.claims[list.tokens[i]] == i) f(list.tokens[i]);
  sync_threads();
}

CODEGEN_FAST_DEVICE void set(const Row& row, const List& list, float value) {
  for (int i = threadIdx.x; i < list.count; i += kThreads)
    if (row.has(list.tokens[i])) row.logits[list.tokens[i]] = value;
  sync_threads();
}

CODEGEN_FAST_DEVICE void add_biases(Shared& s, const Row& row, const Sequences& biased, const float* biases) {
  for (int i = threadIdx.x; i < biased.count; i += kThreads) {
    const int32_t target = target_of(row, biased, i);
    if (target < 0) continue;
    row.claims[target] = i;
    row.sums[target] = 0.0f;
  }
  // kThreads sequences at a time: the first of a target in there adds up all of that target, in their order.
  for (int base = 0; base < biased.count; base += kThreads) {
    sync_threads();
    const int own = threadIdx.x;
    const int32_t target = target_of(row, biased, base + own);
    s.targets[own] = target;
    s.biases[own] = target < 0 ? 0.0f : biases[base + own];
    sync_threads();
    const int count = min(kThreads, biased.count - base);
    bool first = target >= 0;
    for (int i = 0; first && i < own; ++i) first = s.targets[i] != target;
    if (!first) continue;
    float sum = row.sums[target];
    for (int i = own; i < count; ++i)
      if (s.targets[i] == target) sum += s.biases[i];
    row.sums[target] = sum;
  }
  sync_threads();
  for (int i = threadIdx.x; i < biased.count; i += kThreads) {
    const int32_t target = target_of(row, biased, i);
    if (target >= 0 && row.claims[target] == i) row.logits[target] += row.sums[target];
  }
  sync_threads();
}

CODEGEN_FAST_DEVICE void penalize_repetition(const Row& row, float penalty) {
  for_each_once(row, row.history, [&](int32_t token) {
    const float l = row.logits[token];
    row.logits[token] = l < 0.0f ? l * penalty : divide(l, penalty);
  });
}

// A thread a position at which an n-gram could begin. 0 < n <= the history.
CODEGEN_FAST_DEVICE void forbid_repeated_ngrams(const Row& row, int n) {
  const int32_t* past = row.history.tokens + (row.history.count - (n - 1));
  for (int i = threadIdx.x; i + n <= row.history.count; i += kThreads) {
    const int32_t* ngram = row.history.tokens + i;
    bool repeats = row.has(ngram[n - 1]);
    for (int k = 0; repeats && k < n - 1; ++k) repeats = ngram[k] == past[k];
    if (repeats) row.logits[ngram[n - 1]] = minus_infinity();
  }
  sync_threads();
}

CODEGEN_FAST_DEVICE void forbid_sequences(const Row& row, const Sequences& banned) {
  for (int i = threadIdx.x; i < banned.count; i += kThreads) {
    const int32_t target = target_of(row, banned, i);
    if (target >= 0) row.logits[target] = minus_infinity();
  }
  sync_threads();
}

CODEGEN_FAST_DEVICE void force(const Row& row, const List& list) {
  for (int i = threadIdx.x; i < row.vocab_size; i += kThreads) row.logits[i] = minus_infinity();
  sync_threads();
  set(row, list, 0.0f);
}

CODEGEN_FAST_DEVICE void remove_invalid_values(const Row& row) {
  for (int i = threadIdx.x; i < row.vocab_size; i += kThreads) {
    const float l = row.logits[i];
    if (!(fabsf(l) <= kLargestFloat)) row.logits[i] = l > 0.0f ? kLargestFloat : l < 0.0f ? -kLargestFloat : 0.0f;
  }
  sync_threads();
}

// What is not finite stays as it is.
CODEGEN_FAST_DEVICE void decay_length(const Row& row, const List& eos, double decay_factor, int64_t steps) {
  const float factor = static_cast<float>(pow(decay_factor, static_cast<double>(steps)) - 1.0);
  for_each_once(row, eos, [&](int32_t token) {
    const float l = row.logits[token];
    if (fabsf(l) <= kLargestFloat) row.logits[token] = l + fabsf(l) * factor;
  });
}

CODEGEN_FAST_DEVICE void edit_row(Shared& s, const Row& row, const Params& p) {
  if (p.biased.count > 0) add_biases(s, row, p.biased, p.biases);
  if (p.repetition_penalty != 1.0f) penalize_repetition(row, p.repetition_penalty);
  if (p.ngram_size > 0 && p.ngram_size <= row.history.count)
    forbid_repeated_ngrams(row, static_cast<int>(p.ngram_size));
  if (p.banned.count > 0) forbid_sequences(row, p.banned);
  if (row.num_new < p.min_new_tokens) set(row, p.eos, minus_infinity());
  if (p.forced_eos.count > 0 && p.forced_eos_after >= 0 && row.num_new == p.forced_eos_after) force(row, p.forced_eos);
  if (p.remove_invalid_values) remove_invalid_values(row);
  if (p.decay_start >= 0 && row.num_new > p.decay_start && p.eos.count > 0)
    decay_length(row, p.eos, p.decay_factor, row.num_new - p.decay_start);
  set(row, p.suppressed, minus_infinity());
  if (row.num_new == 0) set(row, p.suppressed_at_begin, minus_infinity());
}

__global__ void __launch_bounds__(kThreads) edit_rows(Params p) {
  dependency_wait();
  dependency_launch();
  Shared& s = *reinterpret_cast<Shared*>(shared_memory());
  int32_t* claims = reinterpret_cast<int32_t*>(p.workspace + blockIdx.x * p.block_bytes);
  for (int b = blockIdx.x; b < p.rows; b += gridDim.x) {
    const int of = p.history_row[b], length = p.history_len[b];
    if (length <= 0 || length > p.columns || of < 0 || of >= p.history_rows) continue;  // idle
    edit_row(s,
             {.logits = p.logits + b * p.stride,
              .vocab_size = p.vocab_size,
              .history = {p.history + of * p.history_stride, length},
              .num_new = int64_t{length} - p.prompt_len[b],
              .claims = claims,
              .sums = reinterpret_cast<float*>(claims + p.vocab_size)},
             p);
  }
}

int64_t block_bytes(int64_t vocab_size) { return round_up<int64_t>(2 * 4 * vocab_size, 64); }

List list_of(const TensorView& tokens) { return {tokens.as<int32_t>(), to_int(tokens.numel(), tokens.name)}; }
Sequences sequences_of(const TensorView& tokens, const TensorView& starts) {
  return {list_of(tokens), starts.as<int32_t>(), std::max(to_int(starts.numel(), starts.name) - 1, 0)};
}

}  // namespace

int64_t edit_logits_workspace(int64_t num_rows, int64_t vocab_size) {
  return row_blocks_bytes(num_rows, block_bytes(vocab_size));
}

void edit_logits(TensorView& logits, const LogitsRules& rules, TensorView& workspace) {
  // check
  check_edit_logits(logits, rules);
  const int64_t rows = logits.shape[0], vocab_size = logits.shape[1];
  check_workspace(workspace, edit_logits_workspace(rows, vocab_size), logits.device);

  // launch
  const TensorView& history = rules.history;
  launch("edit_logits", edit_rows,
         {dim3(row_blocks(rows)), kThreads, sizeof(Shared)},
         Params{.logits = logits.as<float>(),
                .stride = logits.strides[0],
                .rows = to_int(rows, "rows"),
                .vocab_size = to_int(vocab_size, "vocab_size"),
                .history = history.as<int32_t>(),
                .history_stride = history.strides[0],
                .history_rows = to_int(history.shape[0], "history"),
                .columns = to_int(history.shape[1], "history"),
                .history_row = rules.history_row.as<int32_t>(),
                .history_len = rules.history_len.as<int32_t>(),
                .prompt_len = rules.prompt_len.as<int32_t>(),
                .biased = sequences_of(rules.bias_tokens, rules.bias_starts),
                .biases = rules.biases.as<float>(),
                .repetition_penalty = rules.repetition_penalty,
                .ngram_size = rules.no_repeat_ngram_size,
                .banned = sequences_of(rules.banned_tokens, rules.banned_starts),
                .eos = list_of(rules.eos),
                .min_new_tokens = rules.min_new_tokens,
                .forced_eos = list_of(rules.forced_eos),
                .forced_eos_after = rules.forced_eos_after,
                .remove_invalid_values = rules.remove_invalid_values,
                .decay_start = rules.decay_start,
                .decay_factor = rules.decay_factor,
                .suppressed = list_of(rules.suppressed),
                .suppressed_at_begin = list_of(rules.suppressed_at_begin),
                .workspace = workspace.as<char>(),
                .block_bytes = block_bytes(vocab_size)});
}

}  // namespace codegen_fast::cuda
