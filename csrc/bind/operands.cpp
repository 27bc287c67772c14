#include "operands.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "backend.h"

namespace codegen_fast::bind {
namespace {

// Keeps an operand and its view. optional: None is a view of no elements.
void take(std::vector<py::object>& kept, TensorView& to, py::object& from, const char* name, bool optional = false) {
  if (optional && from.is_none()) {
    to = {};
    to.name = name;
    to.ndim = 1;
    to.strides[0] = 1;
    return;
  }
  to = view(from, name);
  kept.push_back(std::move(from));
}

}  // namespace

PackedWeight weight_shape(const std::string& kind, const std::vector<int64_t>& sections,
                          const std::vector<int64_t>& segments) {
  PackedWeight w;
  if (kind == "float32") w.dtype = DType::f32;
  else if (kind == "float16") w.dtype = DType::f16;
  else if (kind == "bfloat16") w.dtype = DType::bf16;
  else if (kind == "int8") w.dtype = DType::i8;
  else if (kind == "int8-g32") w.dtype = DType::i8, w.group_cols = 32;
  else if (kind == "int4") w.dtype = DType::i4, w.group_cols = 32;
  else if (kind == "int4-g64") w.dtype = DType::i4, w.group_cols = 64;
  else if (kind == "int4-g128") w.dtype = DType::i4, w.group_cols = 128;
  else throw ValueError("kind: '" + kind + "' is no type of weights; expected float32, float16, bfloat16, int8, "
                        "int8-g32, int4, int4-g64 or int4-g128");
  if (sections.empty() || sections.size() > PackedWeight::kMaxSections)
    throw ValueError("sections: expected 1 to 4 of them, got " + std::to_string(sections.size()));
  if (segments.empty() || segments.size() > PackedWeight::kMaxSegments)
    throw ValueError("segments: expected 1 or 2 of them, got " + std::to_string(segments.size()));
  constexpr int64_t kLargest = int64_t{1} << 28;  // far above any model, and no product of sizes overflows
  w.num_sections = static_cast<int>(sections.size());
  w.num_segments = static_cast<int>(segments.size());
  for (size_t i = 0; i < sections.size(); ++i) {
    if (sections[i] < 1 || sections[i] > kLargest)
      throw ValueError("sections: expected sizes from 1 to 2^28, got " + std::to_string(sections[i]));
    w.section_rows[i] = sections[i];
  }
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i] < 1 || segments[i] > kLargest)
      throw ValueError("segments: expected sizes from 1 to 2^28, got " + std::to_string(segments[i]));
    w.segment_cols[i] = segments[i];
  }
  return w;
}

BoundWeight::BoundWeight(const std::string& kind_, const std::vector<int64_t>& sections,
                         const std::vector<int64_t>& segments, py::object data_, py::object scales_)
    : weight(weight_shape(kind_, sections, segments)), kind(kind_), data(std::move(data_)), scales(std::move(scales_)) {
  weight.data = view(data, "data");
  weight.scales.name = "scales";
  if (weight.dtype == DType::i8) weight.scales = view(scales, "scales");
}

BoundNorm::BoundNorm(py::object w, py::object b, double eps) : weight(std::move(w)), bias(std::move(b)) {
  norm.weight = view(weight, "norm.weight");
  norm.bias = view(bias, "norm.bias");
  norm.eps = static_cast<float>(eps);
}

BoundBatch::BoundBatch(py::object query_start, py::object seq_lens, py::object page_table, int64_t num_tokens,
                       int64_t max_seq_len) {
  take(kept, batch.query_start, query_start, "query_start");
  take(kept, batch.seq_lens, seq_lens, "seq_lens");
  take(kept, batch.page_table, page_table, "page_table");
  if (batch.seq_lens.ndim != 1) throw ValueError("seq_lens: expected one dimension, got shape " + shape_string(batch.seq_lens));
  batch.num_tokens = num_tokens;
  batch.max_seq_len = max_seq_len;
}

BoundSamplingParams::BoundSamplingParams(py::object temperature, py::object top_k, py::object top_p, py::object seed,
                                         py::object sample_index, py::object position, py::object min_p,
                                         py::object typical_p, py::object epsilon_cutoff, py::object eta_cutoff,
                                         int64_t min_tokens_to_keep) {
  take(kept, params.temperature, temperature, "temperature");
  take(kept, params.top_k, top_k, "top_k");
  take(kept, params.top_p, top_p, "top_p");
  take(kept, params.seed, seed, "seed");
  take(kept, params.sample_index, sample_index, "sample_index");
  take(kept, params.position, position, "position");
  take(kept, params.min_p, min_p, "min_p", true);
  take(kept, params.typical_p, typical_p, "typical_p", true);
  take(kept, params.epsilon_cutoff, epsilon_cutoff, "epsilon_cutoff", true);
  take(kept, params.eta_cutoff, eta_cutoff, "eta_cutoff", true);
  params.min_tokens_to_keep = min_tokens_to_keep;
}

BoundLogitsRules::BoundLogitsRules(py::object history, py::object history_row, py::object history_len,
                                   py::object prompt_len, py::object bias_tokens, py::object bias_starts,
                                   py::object biases, double repetition_penalty, int64_t no_repeat_ngram_size,
                                   py::object banned_tokens, py::object banned_starts, py::object eos,
                                   int64_t min_new_tokens, py::object forced_eos, int64_t forced_eos_after,
                                   bool remove_invalid_values, int64_t decay_start, double decay_factor,
                                   py::object suppressed, py::object suppressed_at_begin) {
  take(kept, rules.history, history, "history");
  take(kept, rules.history_row, history_row, "history_row");
  take(kept, rules.history_len, history_len, "history_len");
  take(kept, rules.prompt_len, prompt_len, "prompt_len");
  take(kept, rules.bias_tokens, bias_tokens, "bias_tokens", true);
  take(kept, rules.bias_starts, bias_starts, "bias_starts", true);
  take(kept, rules.biases, biases, "biases", true);
  rules.repetition_penalty = static_cast<float>(repetition_penalty);
  rules.no_repeat_ngram_size = no_repeat_ngram_size;
  take(kept, rules.banned_tokens, banned_tokens, "banned_tokens", true);
  take(kept, rules.banned_starts, banned_starts, "banned_starts", true);
  take(kept, rules.eos, eos, "eos", true);
  rules.min_new_tokens = min_new_tokens;
  take(kept, rules.forced_eos, forced_eos, "forced_eos", true);
  rules.forced_eos_after = forced_eos_after;
  rules.remove_invalid_values = remove_invalid_values;
  rules.decay_start = decay_start;
  rules.decay_factor = decay_factor;
  take(kept, rules.suppressed, suppressed, "suppressed", true);
  take(kept, rules.suppressed_at_begin, suppressed_at_begin, "suppressed_at_begin", true);
}

BoundHostRing::BoundHostRing(py::object slots) : kept(std::move(slots)) { ring.slots = view(kept, "slots"); }

bool BoundHostRing::wait(int64_t number, py::handle on, double seconds) const {
  using Clock = std::chrono::steady_clock;
  using namespace std::chrono_literals;
  const TensorView& slots = ring.slots;
  check_dtype(slots, {DType::i64});
  check_shape(slots, {-1, -1});
  check_contiguous(slots);
  if (slots.device.type != DeviceType::cpu || slots.numel() == 0)
    throw ValueError("slots: expected memory of the host with at least one slot, got shape " + shape_string(slots));
  if (number < 1) throw ValueError("number: expected at least 1, got " + std::to_string(number));
  const Device device = view(on, "on").device;
  const Backend& backend = g_backends.of(device.type, "on");

  int64_t& written = slots.as<int64_t>()[(number - 1) % slots.shape[0] * slots.shape[1]];
  auto arrived = [&] {
    const int64_t n = std::atomic_ref<int64_t>(written).load(std::memory_order_acquire);
    if (n > number) throw ValueError("number: the slot of step " + std::to_string(number) + " holds step " + std::to_string(n));
    return n == number;
  };
  if (arrived()) return true;
  py::gil_scoped_release release;
  const Clock::time_point start = Clock::now();
  Clock::time_point asked = start, signalled = start;
  while (!arrived()) {
    const Clock::time_point now = Clock::now();
    if (now - start > std::chrono::duration<double>(seconds)) return false;
    // A step takes 0.1 ms or much more, and the steps after it are enqueued: a late look costs nothing.
    if (now - start > 50us) std::this_thread::sleep_for(20us);
    if (now - asked > 1ms) {
      asked = now;
      if (backend.finished(device) && !arrived())
        throw std::runtime_error("the device has finished its work, and step " + std::to_string(number) + " was not in it");
    }
    if (now - signalled > 20ms) {
      signalled = now;
      py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }
  return true;
}

}  // namespace codegen_fast::bind
