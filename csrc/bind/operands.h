// Operands that Python makes once and passes many times: they keep their tensors alive and their views ready, so that
// a call with a dozen tensors costs a few conversions.
#pragma once

#include <string>
#include <vector>

#include "../ops.h"
#include "tensors.h"

namespace codegen_fast::bind {

struct BoundWeight {
  PackedWeight weight;
  std::string kind;
  py::object data, scales;

  BoundWeight(const std::string& kind, const std::vector<int64_t>& sections, const std::vector<int64_t>& segments,
              py::object data, py::object scales);
};

struct BoundNorm {
  Norm norm;
  py::object weight, bias;

  BoundNorm(py::object weight, py::object bias, double eps);
};

struct BoundBatch {
  Batch batch;
  std::vector<py::object> kept;

  BoundBatch(py::object query_start, py::object seq_lens, py::object page_table, int64_t num_tokens,
             int64_t max_seq_len);
};

struct BoundSamplingParams {
  SamplingParams params;
  std::vector<py::object> kept;

  // None for a filter: it is left out.
  BoundSamplingParams(py::object temperature, py::object top_k, py::object top_p, py::object seed,
                      py::object sample_index, py::object position, py::object min_p, py::object typical_p,
                      py::object epsilon_cutoff, py::object eta_cutoff, int64_t min_tokens_to_keep);
};

struct BoundLogitsRules {
  LogitsRules rules;
  std::vector<py::object> kept;

  // None for a list: it is empty.
  BoundLogitsRules(py::object history, py::object history_row, py::object history_len, py::object prompt_len,
                   py::object bias_tokens, py::object bias_starts, py::object biases, double repetition_penalty,
                   int64_t no_repeat_ngram_size, py::object banned_tokens, py::object banned_starts, py::object eos,
                   int64_t min_new_tokens, py::object forced_eos, int64_t forced_eos_after,
                   bool remove_invalid_values, int64_t decay_start, double decay_factor, py::object suppressed,
                   py::object suppressed_at_begin);
};

struct BoundHostRing {
  HostRing ring;
  py::object kept;

  explicit BoundHostRing(py::object slots);

  // Waits until the slot of the step with this number (counted from 1) has been written, the GIL free meanwhile.
  // `on`: any tensor of the device that writes it, on whose current stream the step was enqueued. False after `seconds`.
  // Throws if the work on that stream failed or is done without that step, and what Ctrl-C makes Python raise.
  bool wait(int64_t number, py::handle on, double seconds) const;
};

// A weight's sizes alone, to ask how much memory it will take.
PackedWeight weight_shape(const std::string& kind, const std::vector<int64_t>& sections,
                          const std::vector<int64_t>& segments);

}  // namespace codegen_fast::bind
