// The rules that change a row's logits before its token is chosen.
//
// All rules but 6 and 7 touch the few tokens that they name, and scratch is cleared where it is used and nowhere else:
// a row costs what its history and its lists are long, not what the vocabulary is.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "../checks.h"
#include "lanes.h"

namespace codegen_fast::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

using Tokens = std::span<const int32_t>;

Tokens tokens_of(const TensorView& t) { return {t.as<int32_t>(), static_cast<size_t>(t.numel())}; }

struct Row {
  float* logits;  // (vocab_size,)
  int64_t vocab_size;
  Tokens history;
  int64_t num_new;  // n of the contract
  float* sums;      // (vocab_size,) scratch
  uint64_t* marks;  // a bit a token, scratch

  static int64_t scratch_bytes(int64_t vocab_size) {
    return round_up(vocab_size * 4, 64) + round_up((vocab_size + 63) / 64 * 8, 64);
  }
  bool has(int64_t token) const { return token >= 0 && token < vocab_size; }

  // f(token) for every token of the list that the vocabulary has, once.
  template <class F>
  void for_each_once(Tokens list, F f) const {
    for (const int32_t token : list)
      if (has(token)) marks[token / 64] &= ~(uint64_t{1} << token % 64);
    for (const int32_t token : list) {
      if (!has(token) || (marks[token / 64] >> token % 64 & 1)) continue;
      marks[token / 64] |= uint64_t{1} << token % 64;
      f(token);
    }
  }

  // f(i, target) for every sequence i that matches and whose target the vocabulary has, in order.
  template <class F>
  void for_each_match(const TensorView& sequences, const TensorView& starts, F f) const {
    const Tokens tokens = tokens_of(sequences), start = tokens_of(starts);
    for (size_t i = 0; i + 1 < start.size(); ++i) {
      const int64_t begin = start[i], end = start[i + 1];
      if (begin < 0 || begin >= end || end > static_cast<int64_t>(tokens.size())) continue;
      const Tokens past = tokens.subspan(begin, end - 1 - begin);
      if (has(tokens[end - 1]) && past.size() <= history.size() &&
          std::equal(past.rbegin(), past.rend(), history.rbegin()))
        f(i, tokens[end - 1]);
    }
  }

  void set(Tokens list, float value) const {
    for (const int32_t token : list)
      if (has(token)) logits[token] = value;
  }
};

void add_biases(const Row& row, const LogitsRules& rules) {
  auto for_each = [&](auto f) { row.for_each_match(rules.bias_tokens, rules.bias_starts, f); };
  for_each([&](size_t, int32_t target) { row.sums[target] = 0.0f; });
  for_each([&](size_t i, int32_t target) { row.sums[target] += rules.biases.as<float>()[i]; });
  for_each([&](size_t, int32_t target) {
    row.logits[target] += row.sums[target];
    row.sums[target] = 0.0f;  // the next of the same target adds nothing
  });
}

void penalize_repetition(const Row& row, float penalty) {
  row.for_each_once(row.history, [&](int32_t token) {
    float& l = row.logits[token];
    l = l < 0.0f ? l * penalty : l / penalty;
  });
}

void forbid_repeated_ngrams(const Row& row, int64_t ngram_size) {
  if (ngram_size > static_cast<int64_t>(row.history.size())) return;
  const Tokens past = row.history.last(ngram_size - 1);
  for (size_t i = 0; i + ngram_size <= row.history.size(); ++i) {
    const int32_t target = row.history[i + ngram_size - 1];
    if (row.has(target) && std::equal(past.begin(), past.end(), row.history.begin() + i))
      row.logits[target] = -kInfinity;
  }
}

void remove_invalid_values(const Row& row) {
  for (int64_t i = 0; i < row.vocab_size; ++i) {
    const float l = row.logits[i];
    row.logits[i] = l == l ? std::clamp(l, -kLargest, kLargest) : 0.0f;
  }
}

// What is not finite stays as it is.
void decay_length(const Row& row, const LogitsRules& rules) {
  const float factor =
      static_cast<float>(std::pow(rules.decay_factor, static_cast<double>(row.num_new - rules.decay_start)) - 1.0);
  row.for_each_once(tokens_of(rules.eos), [&](int32_t token) {
    float& l = row.logits[token];
    if (std::isfinite(l)) l += std::fabs(l) * factor;
  });
}

void edit_row(const Row& row, const LogitsRules& rules) {
  add_biases(row, rules);
  if (rules.repetition_penalty != 1.0f) penalize_repetition(row, rules.repetition_penalty);
  if (rules.no_repeat_ngram_size > 0) forbid_repeated_ngrams(row, rules.no_repeat_ngram_size);
  row.for_each_match(rules.banned_tokens, rules.banned_starts,
                     [&](size_t, int32_t target) { row.logits[target] = -kInfinity; });
  if (row.num_new < rules.min_new_tokens) row.set(tokens_of(rules.eos), -kInfinity);
  if (rules.forced_eos_after >= 0 && row.num_new == rules.forced_eos_after && rules.forced_eos.numel() != 0) {
    std::fill_n(row.logits, row.vocab_size, -kInfinity);
    row.set(tokens_of(rules.forced_eos), 0.0f);
  }
  if (rules.remove_invalid_values) remove_invalid_values(row);
  if (rules.decay_start >= 0 && row.num_new > rules.decay_start) decay_length(row, rules);
  row.set(tokens_of(rules.suppressed), -kInfinity);
  if (row.num_new == 0) row.set(tokens_of(rules.suppressed_at_begin), -kInfinity);
}

}  // namespace

int64_t edit_logits_workspace(int64_t num_rows, int64_t vocab_size) {
  return lanes_bytes(num_rows, Row::scratch_bytes(vocab_size));
}

void edit_logits(TensorView& logits, const LogitsRules& rules, TensorView& workspace) {
  // check
  check_edit_logits(logits, rules);
  const int64_t rows = logits.shape[0], vocab_size = logits.shape[1];
  check_workspace(workspace, edit_logits_workspace(rows, vocab_size), logits.device);

  const TensorView& history = rules.history;
  for_each_row(rows, Row::scratch_bytes(vocab_size), workspace.as<char>(), [&](int64_t b, char* scratch) {
    const int64_t of = rules.history_row.as<int32_t>()[b], length = rules.history_len.as<int32_t>()[b];
    if (length <= 0 || length > history.shape[1] || of < 0 || of >= history.shape[0]) return;  // idle
    edit_row({.logits = logits.as<float>() + b * logits.strides[0],
              .vocab_size = vocab_size,
              .history = {history.as<int32_t>() + of * history.strides[0], static_cast<size_t>(length)},
              .num_new = length - rules.prompt_len.as<int32_t>()[b],
              .sums = reinterpret_cast<float*>(scratch),
              .marks = reinterpret_cast<uint64_t*>(scratch + round_up(vocab_size * 4, 64))},
             rules);
  });
}

}  // namespace codegen_fast::cpu
