// A model of two layers through the ops of csrc/ops.h, as codegen_fast/decoder.py calls them, from C++: what a machine
// without this project's Python can run. Shapes are odd where they may be; every tensor is fenced.
#include <list>

#include "../../csrc/ops.h"
#include "checks.h"

namespace isa_test {
namespace {

constexpr int64_t kHeads = 3, kHeadDim = 80, kD = kHeads * kHeadDim, kRotary = 32, kInner = 500, kVocab = 1001;
constexpr int64_t kLayers = 2, kSteps = 3, kSequences = 2;

// Tensors that live as long as the model.
class Memory {
 public:
  TensorView empty(const char* name, DType type, std::initializer_list<int64_t> shape) {
    TensorView t;
    t.name = name;
    t.dtype = type;
    int64_t n = 1;
    for (int64_t size : shape) t.shape[t.ndim++] = size, n *= size;
    for (int64_t i = t.ndim, stride = 1; i-- > 0; stride *= t.shape[i]) t.strides[i] = stride;
    if (n) t.data = buffers_.emplace_back(n * dtype_bytes(type)).data();
    return t;
  }
  template <class T>
  TensorView of(const char* name, DType type, std::initializer_list<int64_t> shape, const std::vector<T>& values) {
    TensorView t = empty(name, type, shape);
    if (t.data) std::memcpy(t.data, values.data(), values.size() * sizeof(T));
    return t;
  }
  TensorView workspace(int64_t bytes) { return empty("workspace", DType::u8, {(bytes + 63) / 64 * 64}); }
  TensorView floats(const char* name, std::initializer_list<int64_t> shape, Numbers& numbers, float scale, float shift = 0) {
    TensorView t = empty(name, DType::f32, shape);
    for (int64_t i = 0; i < t.numel(); ++i) t.as<float>()[i] = shift + numbers.uniform(-scale, scale);
    return t;
  }

 private:
  std::list<Fenced<uint8_t>> buffers_;
};

PackedWeight packed(Memory& memory, Numbers& numbers, Weights weights, std::vector<int64_t> sections,
                    std::vector<int64_t> segments) {
  PackedWeight w;
  w.dtype = weights.type;
  w.group_cols = weights.group_cols;
  w.num_sections = static_cast<int>(sections.size());
  w.num_segments = static_cast<int>(segments.size());
  std::copy(sections.begin(), sections.end(), w.section_rows);
  std::copy(segments.begin(), segments.end(), w.segment_cols);
  w.data = memory.empty("data", DType::u8, {cpu::packed_weight_bytes(w)});
  if (const int64_t n = cpu::packed_weight_scales(w)) w.scales = memory.empty("scales", DType::f32, {n});
  cpu::clear_packed(w);
  const float scale = 1.7f / std::sqrt(static_cast<float>(w.in_features()));
  for (size_t section = 0; section < sections.size(); ++section)
    for (size_t segment = 0; segment < segments.size(); ++segment) {
      const TensorView source = memory.floats("source", {sections[section], segments[segment]}, numbers, scale);
      TensorView status = memory.of<int32_t>("status", DType::i32, {2}, {0, 0});
      cpu::pack(w, section, 0, segment, source, status);
      EXPECT(status.as<int32_t>()[0] == 0 && status.as<int32_t>()[1] == 0, "packing lost values");
    }
  return w;
}

Norm norm(Memory& memory, Numbers& numbers) {
  return {memory.floats("weight", {kD}, numbers, 0.2f, 1.0f), memory.floats("bias", {kD}, numbers, 0.1f), 1e-5f};
}

struct Layer {
  Norm ln;
  PackedWeight w_in, w_out;
  TensorView bias_in, bias_out;
  KVCache cache;
};

struct Model {
  Memory memory;
  Numbers numbers{31};
  TensorView wte, bias_lm, rotary;
  std::vector<Layer> layers;
  Norm ln_f;
  PackedWeight w_lm;

  Model(Weights weights, DType pages, int64_t positions, int64_t num_pages) {
    const DType stored = weights.type == DType::i8 || weights.type == DType::i4 ? DType::f16 : weights.type;
    const Typed embeddings(numbers.floats(kVocab * kD), stored);
    wte = memory.of("wte", stored, {kVocab, kD}, embeddings.bytes);
    // Angles by the multiplication of rotations: no library's sine, so that the bits are the same everywhere.
    rotary = memory.empty("rotary", DType::f32, {positions, kRotary});
    for (int64_t i = 0; i < kRotary / 2; ++i) {
      const double c = 1.0 - 0.4 / (1 << i / 2), s = std::sqrt(1 - c * c);
      double x = 1, y = 0;
      for (int64_t p = 0; p < positions; ++p) {
        rotary.as<float>()[p * kRotary + i] = static_cast<float>(x);
        rotary.as<float>()[p * kRotary + kRotary / 2 + i] = static_cast<float>(y);
        const double next = x * c - y * s;
        y = x * s + y * c, x = next;
      }
    }
    for (int64_t i = 0; i < kLayers; ++i) {
      Layer l;
      l.ln = norm(memory, numbers);
      l.w_in = packed(memory, numbers, weights, {kD, kD, kD, kInner}, {kD});
      l.bias_in = memory.floats("bias_in", {kInner}, numbers, 0.5f);
      l.w_out = packed(memory, numbers, weights, {kD}, {kD, kInner});
      l.bias_out = memory.floats("bias_out", {kD}, numbers, 0.5f);
      l.cache.pages = memory.empty("pages", pages, {num_pages, cpu::kv_page_size(), 2 * kD});
      layers.push_back(l);
    }
    ln_f = norm(memory, numbers);
    w_lm = packed(memory, numbers, weights, {kVocab}, {kD});
    bias_lm = memory.floats("bias_lm", {kVocab}, numbers, 0.5f);
  }

  // The logits of the last new token of every sequence.
  TensorView forward(const std::vector<int32_t>& fresh, const std::vector<int32_t>& lens, const TensorView& table,
                     Phase phase) {
    std::vector<int32_t> starts{0}, last;
    for (int32_t n : fresh) starts.push_back(starts.back() + n), last.push_back(starts.back() - 1);
    const int64_t tokens = starts.back(), sequences = static_cast<int64_t>(fresh.size());
    std::vector<int64_t> ids(tokens);
    for (int64_t& id : ids) id = numbers.below(kVocab);
    Batch batch;
    batch.query_start = memory.of("query_start", DType::i32, {sequences + 1}, starts);
    batch.seq_lens = memory.of("seq_lens", DType::i32, {sequences}, lens);
    batch.page_table = table;
    batch.num_tokens = tokens;
    batch.max_seq_len = *std::max_element(lens.begin(), lens.end());

    TensorView x = memory.empty("x", DType::f32, {tokens, kD});
    cpu::embed(x, memory.of("ids", DType::i64, {tokens}, ids), wte);
    for (Layer& l : layers) {
      TensorView q = memory.empty("q", DType::f32, {tokens, kD}), act = memory.empty("act", DType::f32, {tokens, kD + kInner});
      TensorView space = memory.workspace(cpu::input_product_workspace(tokens, l.w_in));
      cpu::input_product(q, act, l.cache, x, l.ln, l.w_in, l.bias_in, rotary, kHeads, batch, phase, space);
      space = memory.workspace(cpu::attention_workspace(tokens, kHeads, kHeadDim, batch.max_seq_len));
      cpu::attention(act, q, l.cache, kHeads, batch, phase, space);
      space = memory.workspace(cpu::output_product_workspace(tokens, l.w_out));
      cpu::output_product(x, act, l.w_out, l.bias_out, phase, space);
    }
    TensorView logits = memory.empty("logits", DType::f32, {sequences, kVocab});
    TensorView space = memory.workspace(cpu::lm_head_workspace(sequences, w_lm));
    cpu::lm_head(logits, x, memory.of("rows", DType::i32, {sequences}, last), ln_f, w_lm, bias_lm, phase, space);
    return logits;
  }

  // One token a row, the first row's the best one, the others drawn.
  std::vector<int64_t> sample(const TensorView& logits, int32_t position) {
    const int64_t rows = logits.shape[0];
    SamplingParams params;
    std::vector<float> temperature(rows, 0.9f);
    temperature[0] = 0;
    params.temperature = memory.of("temperature", DType::f32, {rows}, temperature);
    params.top_k = memory.of("top_k", DType::i32, {rows}, std::vector<int32_t>(rows, 50));
    params.top_p = memory.of("top_p", DType::f32, {rows}, std::vector<float>(rows, 0.95f));
    params.seed = memory.of("seed", DType::i64, {rows}, std::vector<int64_t>(rows, 7));
    params.sample_index = memory.of("sample_index", DType::i32, {rows}, std::vector<int32_t>(rows, 1));
    params.position = memory.of("position", DType::i32, {rows}, std::vector<int32_t>(rows, position));
    for (TensorView* filter : {&params.min_p, &params.typical_p, &params.epsilon_cutoff, &params.eta_cutoff})
      *filter = memory.empty("filter", DType::f32, {0});
    TensorView out = memory.empty("out", DType::i64, {rows});
    TensorView space = memory.workspace(cpu::sample_workspace(rows, kVocab));
    cpu::sample(out, logits, params, space);
    return std::vector<int64_t>(out.as<int64_t>(), out.as<int64_t>() + rows);
  }
};

}  // namespace

ModelRun run_model(Weights weights, DType pages, int64_t prompt) {
  const int64_t page = cpu::kv_page_size(), longest = prompt + kSteps, columns = (longest + page - 1) / page;
  Model model(weights, pages, longest, kSequences * columns);
  std::vector<int32_t> ids(kSequences * columns);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(ids.size() - 1 - i);
  const TensorView table = model.memory.of("page_table", DType::i32, {kSequences, columns}, ids);

  ModelRun run;
  std::vector<int32_t> lens{static_cast<int32_t>(prompt), 5}, fresh = lens;
  for (int64_t step = 0; step <= kSteps; ++step) {
    const TensorView logits = model.forward(fresh, lens, table, step ? Phase::decode : Phase::prefill);
    run.logits.insert(run.logits.end(), logits.as<float>(), logits.as<float>() + logits.numel());
    for (int64_t token : model.sample(logits, lens[0])) run.tokens.push_back(token);
    fresh.assign(kSequences, 1);
    for (int32_t& n : lens) ++n;
  }
  return run;
}

}  // namespace isa_test
