// Operands, ops and sizes as Python sees them: one line an op.
#include "define.h"

#include <pybind11/stl.h>

#include "op.h"

namespace codegen_fast::bind {
namespace {

// "cpu" or "cuda": the type of a torch.device.
const Backend& backend_of(const std::string& device) {
  if (device != "cpu" && device != "cuda") throw ValueError("device: expected 'cpu' or 'cuda', got '" + device + "'");
  return g_backends.of(device == "cuda" ? DeviceType::cuda : DeviceType::cpu, "device");
}

const Backend& backend_of(const BoundWeight& w) {
  return g_backends.of(w.weight.data.device.type, "weight");
}

int64_t at_least_0(int64_t n, const char* name) {
  if (n < 0) throw ValueError(std::string(name) + ": expected at least 0, got " + std::to_string(n));
  return n;
}

void bind_operands(py::module_& m) {
  py::class_<BoundWeight>(m, "PackedWeight", py::module_local())
      .def(py::init<const std::string&, const std::vector<int64_t>&, const std::vector<int64_t>&, py::object, py::object>(),
           py::arg("kind"), py::arg("sections"), py::arg("segments"), py::arg("data"), py::arg("scales"))
      .def_readonly("kind", &BoundWeight::kind)
      .def_readonly("data", &BoundWeight::data)
      .def_readonly("scales", &BoundWeight::scales)
      .def_property_readonly("sections", [](const BoundWeight& w) {
        py::tuple t(w.weight.num_sections);
        for (int i = 0; i < w.weight.num_sections; ++i) t[i] = w.weight.section_rows[i];
        return t;
      })
      .def_property_readonly("segments", [](const BoundWeight& w) {
        py::tuple t(w.weight.num_segments);
        for (int i = 0; i < w.weight.num_segments; ++i) t[i] = w.weight.segment_cols[i];
        return t;
      })
      .def_property_readonly("out_features", [](const BoundWeight& w) { return w.weight.out_features(); })
      .def_property_readonly("in_features", [](const BoundWeight& w) { return w.weight.in_features(); })
      .def_property_readonly("nbytes", [](const BoundWeight& w) {
        return w.weight.data.numel() + (w.weight.dtype == DType::i8 ? 4 * w.weight.scales.numel() : 0);
      });
  py::class_<BoundNorm>(m, "Norm", py::module_local())
      .def(py::init<py::object, py::object, double>(), py::arg("weight"), py::arg("bias"), py::arg("eps"))
      .def_readonly("weight", &BoundNorm::weight)
      .def_readonly("bias", &BoundNorm::bias)
      .def_property_readonly("eps", [](const BoundNorm& n) { return n.norm.eps; });
  py::class_<BoundBatch>(m, "Batch", py::module_local())
      .def(py::init<py::object, py::object, py::object, int64_t, int64_t>(), py::arg("query_start"), py::arg("seq_lens"),
           py::arg("page_table"), py::arg("num_tokens"), py::arg("max_seq_len"))
      .def_property_readonly("num_seqs", [](const BoundBatch& b) { return b.batch.num_seqs(); })
      .def_property_readonly("num_tokens", [](const BoundBatch& b) { return b.batch.num_tokens; })
      .def_property_readonly("max_seq_len", [](const BoundBatch& b) { return b.batch.max_seq_len; });
  py::class_<BoundSamplingParams>(m, "SamplingParams", py::module_local())
      .def(py::init<py::object, py::object, py::object, py::object, py::object, py::object, py::object, py::object,
                    py::object, py::object, int64_t>(),
           py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("seed"), py::arg("sample_index"),
           py::arg("position"), py::arg("min_p") = py::none(), py::arg("typical_p") = py::none(),
           py::arg("epsilon_cutoff") = py::none(), py::arg("eta_cutoff") = py::none(),
           py::arg("min_tokens_to_keep") = 1);
  py::class_<BoundLogitsRules>(m, "LogitsRules", py::module_local())
      .def(py::init<py::object, py::object, py::object, py::object, py::object, py::object, py::object, double, int64_t,
                    py::object, py::object, py::object, int64_t, py::object, int64_t, bool, int64_t, double, py::object,
                    py::object>(),
           py::arg("history"), py::arg("history_row"), py::arg("history_len"), py::arg("prompt_len"), py::kw_only(),
           py::arg("bias_tokens") = py::none(), py::arg("bias_starts") = py::none(), py::arg("biases") = py::none(),
           py::arg("repetition_penalty") = 1.0, py::arg("no_repeat_ngram_size") = 0,
           py::arg("banned_tokens") = py::none(), py::arg("banned_starts") = py::none(), py::arg("eos") = py::none(),
           py::arg("min_new_tokens") = 0, py::arg("forced_eos") = py::none(), py::arg("forced_eos_after") = -1,
           py::arg("remove_invalid_values") = false, py::arg("decay_start") = -1, py::arg("decay_factor") = 1.0,
           py::arg("suppressed") = py::none(), py::arg("suppressed_at_begin") = py::none());
  py::class_<BoundHostRing>(m, "HostRing", py::module_local())
      .def(py::init<py::object>(), py::arg("slots"))
      .def_readonly("slots", &BoundHostRing::kept)
      .def("wait", &BoundHostRing::wait, py::arg("number"), py::arg("on"), py::arg("seconds") = 1e9);
}

void bind_graphs(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<Graph>(m, "Graph", py::module_local())
      .def("begin", &Graph::begin)
      .def("end", &Graph::end, Release())
      .def("abandon", &Graph::abandon)
      .def("replay", &Graph::replay, Release());
  // For ops on the device of this tensor.
  m.def("new_graph", [](py::handle on) {
    const Device device = view(on, "on").device;
    return g_backends.of(device.type, "on").new_graph(device);
  }, py::arg("on"));
}

void bind_ops(py::module_& m) {
  def_op<&Backend::pack>(m, "pack", std::array{"weight", "section", "row", "segment", "source", "status"});
  def_op<&Backend::clear_packed>(m, "clear_packed", std::array{"weight"});
  def_op<&Backend::pack_quantized>(m, "pack_quantized", std::array{"weight", "section", "row", "segment", "source", "scales"});
  def_op<&Backend::unpack>(m, "unpack", std::array{"out", "out_scales", "weight", "section", "row", "segment"});
  def_op<&Backend::quantize_activations>(m, "quantize_activations", std::array{"q", "scales", "x", "weight"});
  def_op<&Backend::embed>(m, "embed", std::array{"x", "ids", "wte"});
  def_op<&Backend::layer_norm>(m, "layer_norm", std::array{"out", "x", "norm"});
  def_op<&Backend::input_product>(m, "input_product",
         std::array{"q_out", "act", "cache", "x", "norm", "w_in", "bias_in", "rotary", "n_head", "batch", "decode", "workspace"});
  def_op<&Backend::attention>(m, "attention", std::array{"act", "q", "cache", "n_head", "batch", "decode", "workspace"});
  def_op<&Backend::output_product>(m, "output_product", std::array{"x", "act", "w_out", "bias_out", "decode", "workspace"});
  def_op<&Backend::lm_head>(m, "lm_head", std::array{"logits", "x", "rows", "norm", "w_lm", "bias_lm", "decode", "workspace"});
  def_op<&Backend::sample>(m, "sample", std::array{"out", "logits", "params", "workspace"});
  def_op<&Backend::filter_logits>(m, "filter_logits", std::array{"logits", "params", "workspace"});
  def_op<&Backend::edit_logits>(m, "edit_logits", std::array{"logits", "rules", "workspace"});
  def_op<&Backend::advance>(m, "advance",
         std::array{"tokens", "seq_lens", "remaining", "step", "history", "ring", "sampled", "eos"});
  def_op<&Backend::copy_pages>(m, "copy_pages", std::array{"cache", "source", "destination"});
}

void bind_sizes(py::module_& m) {
  using Sizes = std::vector<int64_t>;
  m.def("packed_weight_bytes", [](const std::string& kind, const Sizes& sections, const Sizes& segments, const std::string& device) {
    return backend_of(device).packed_weight_bytes(weight_shape(kind, sections, segments));
  }, py::arg("kind"), py::arg("sections"), py::arg("segments"), py::arg("device") = "cpu");
  m.def("packed_weight_scales", [](const std::string& kind, const Sizes& sections, const Sizes& segments, const std::string& device) {
    return backend_of(device).packed_weight_scales(weight_shape(kind, sections, segments));
  }, py::arg("kind"), py::arg("sections"), py::arg("segments"), py::arg("device") = "cpu");
  m.def("backend_name", [](const std::string& device) { return backend_of(device).name; }, py::arg("device") = "cpu");
  m.def("kv_page_size", [](const std::string& device) { return backend_of(device).kv_page_size(); }, py::arg("device") = "cpu");
  m.def("activation_group", [](const std::string& kind, const std::string& device) {
    return backend_of(device).activation_group(weight_shape(kind, {1}, {1}));
  }, py::arg("kind"), py::arg("device") = "cpu");
  m.def("activation_padding", [](const std::string& device) { return backend_of(device).activation_padding(); },
        py::arg("device") = "cpu");
  m.def("input_product_workspace", [](int64_t n, const BoundWeight& w) {
    return backend_of(w).input_product_workspace(at_least_0(n, "num_tokens"), w.weight);
  }, py::arg("num_tokens"), py::arg("w_in"));
  m.def("attention_workspace", [](int64_t num_tokens, int64_t n_head, int64_t head_dim, int64_t max_seq_len, const std::string& device) {
    return backend_of(device).attention_workspace(at_least_0(num_tokens, "num_tokens"), at_least_0(n_head, "n_head"),
                                                  at_least_0(head_dim, "head_dim"),
                                                  at_least_0(max_seq_len, "max_seq_len"));
  }, py::arg("num_tokens"), py::arg("n_head"), py::arg("head_dim"), py::arg("max_seq_len"), py::arg("device") = "cpu");
  m.def("output_product_workspace", [](int64_t n, const BoundWeight& w) {
    return backend_of(w).output_product_workspace(at_least_0(n, "num_tokens"), w.weight);
  }, py::arg("num_tokens"), py::arg("w_out"));
  m.def("lm_head_workspace", [](int64_t n, const BoundWeight& w) {
    return backend_of(w).lm_head_workspace(at_least_0(n, "num_rows"), w.weight);
  }, py::arg("num_rows"), py::arg("w_lm"));
  m.def("sample_workspace", [](int64_t num_rows, int64_t vocab_size, const std::string& device) {
    return backend_of(device).sample_workspace(at_least_0(num_rows, "num_rows"), at_least_0(vocab_size, "vocab_size"));
  }, py::arg("num_rows"), py::arg("vocab_size"), py::arg("device") = "cpu");
  m.def("edit_logits_workspace", [](int64_t num_rows, int64_t vocab_size, const std::string& device) {
    return backend_of(device).edit_logits_workspace(at_least_0(num_rows, "num_rows"), at_least_0(vocab_size, "vocab_size"));
  }, py::arg("num_rows"), py::arg("vocab_size"), py::arg("device") = "cpu");
}

}  // namespace

void define(py::module_& m, const Backends& backends) {
  g_backends = backends;
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
  m.def("bind_torch", &bind_torch, py::arg("tensor"), py::arg("parameter"), py::arg("capsule"));
  m.def("set_dry_run", [](bool on) { g_dry_run.store(on); }, py::arg("on"));
  m.def("set_timed", [](bool on) {
    for (const OpTime& each : g_op_times) *each.nanoseconds = 0;
    g_timed.store(on);
  }, py::arg("on"));
  m.def("op_seconds", [] {
    py::dict seconds;
    for (const OpTime& each : g_op_times) seconds[each.op] = static_cast<double>(*each.nanoseconds) * 1e-9;
    return seconds;
  });
  bind_operands(m);
  bind_graphs(m);
  bind_ops(m);
  bind_sizes(m);
}

}  // namespace codegen_fast::bind
