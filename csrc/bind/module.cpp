// codegen_fast._C: one line an op. Called only by codegen_fast/ops.py.
#include <pybind11/stl.h>

#include "../cpu/bandwidth.h"
#include "../cpu/dispatch.h"
#include "../cpu/pool.h"
#ifdef CODEGEN_FAST_HAVE_CUDA
#include "../cuda/devices.h"
#endif
#include "../philox.h"
#include "op.h"

namespace codegen_fast::bind {
namespace {

py::dict build_info() {
  py::dict d;
  d["compiler"] = CODEGEN_FAST_COMPILER;
  d["cuda"] = CODEGEN_FAST_CUDA_BUILD;
  d["cpu_isas"] = cpu::available_isas();
  return d;
}

// (list of GPUs, why there is none)
py::tuple cuda_devices() {
  py::list found;
  std::string why_none = std::string("built without CUDA: ") + CODEGEN_FAST_CUDA_BUILD;
#ifdef CODEGEN_FAST_HAVE_CUDA
  const cuda::Devices devices = cuda::devices();
  why_none = devices.why_none;
  for (const cuda::DeviceInfo& i : devices.found) {
    py::dict d;
    d["name"] = i.name;
    d["compute_capability"] = py::make_tuple(i.major, i.minor);
    d["memory_bytes"] = i.memory_bytes;
    d["memory_bytes_per_second"] = i.memory_bytes_per_second;
    found.append(d);
  }
#endif
  return py::make_tuple(found, why_none);
}

void bind_operands(py::module_& m) {
  py::class_<BoundWeight>(m, "PackedWeight")
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
  py::class_<BoundNorm>(m, "Norm")
      .def(py::init<py::object, py::object, double>(), py::arg("weight"), py::arg("bias"), py::arg("eps"))
      .def_readonly("weight", &BoundNorm::weight)
      .def_readonly("bias", &BoundNorm::bias)
      .def_property_readonly("eps", [](const BoundNorm& n) { return n.norm.eps; });
  py::class_<BoundBatch>(m, "Batch")
      .def(py::init<py::object, py::object, py::object, int64_t, int64_t>(), py::arg("query_start"), py::arg("seq_lens"),
           py::arg("page_table"), py::arg("num_tokens"), py::arg("max_seq_len"))
      .def_property_readonly("num_seqs", [](const BoundBatch& b) { return b.batch.num_seqs(); })
      .def_property_readonly("num_tokens", [](const BoundBatch& b) { return b.batch.num_tokens; })
      .def_property_readonly("max_seq_len", [](const BoundBatch& b) { return b.batch.max_seq_len; });
  py::class_<BoundSamplingParams>(m, "SamplingParams")
      .def(py::init<py::object, py::object, py::object, py::object, py::object, py::object>(), py::arg("temperature"),
           py::arg("top_k"), py::arg("top_p"), py::arg("seed"), py::arg("sample_index"), py::arg("position"));
}

void bind_ops(py::module_& m) {
  def_op(m, "pack", cpu::pack, {"weight", "section", "row", "segment", "source", "status"});
  def_op(m, "clear_packed", cpu::clear_packed, {"weight"});
  def_op(m, "pack_quantized", cpu::pack_quantized, {"weight", "section", "row", "segment", "source", "scales"});
  def_op(m, "unpack", cpu::unpack, {"out", "out_scales", "weight", "section", "row", "segment"});
  def_op(m, "quantize_activations", cpu::quantize_activations, {"q", "scales", "x", "weight"});
  def_op(m, "embed", cpu::embed, {"x", "ids", "wte"});
  def_op(m, "layer_norm", cpu::layer_norm, {"out", "x", "norm"});
  def_op(m, "input_product", cpu::input_product,
         {"q_out", "act", "cache", "x", "norm", "w_in", "bias_in", "rotary", "n_head", "batch", "decode", "workspace"});
  def_op(m, "attention", cpu::attention, {"act", "q", "cache", "n_head", "batch", "decode", "workspace"});
  def_op(m, "output_product", cpu::output_product, {"x", "act", "w_out", "bias_out", "decode", "workspace"});
  def_op(m, "lm_head", cpu::lm_head, {"logits", "x", "rows", "norm", "w_lm", "bias_lm", "decode", "workspace"});
  def_op(m, "sample", cpu::sample, {"out", "logits", "params", "workspace"});
  def_op(m, "copy_pages", cpu::copy_pages, {"cache", "source", "destination"});
}

void bind_sizes(py::module_& m) {
  using Sizes = std::vector<int64_t>;
  m.def("packed_weight_bytes", [](const std::string& kind, const Sizes& sections, const Sizes& segments) {
    return cpu::packed_weight_bytes(weight_shape(kind, sections, segments));
  }, py::arg("kind"), py::arg("sections"), py::arg("segments"));
  m.def("packed_weight_scales", [](const std::string& kind, const Sizes& sections, const Sizes& segments) {
    return cpu::packed_weight_scales(weight_shape(kind, sections, segments));
  }, py::arg("kind"), py::arg("sections"), py::arg("segments"));
  m.def("kv_page_size", cpu::kv_page_size);
  m.def("input_product_workspace", [](int64_t n, const BoundWeight& w) { return cpu::input_product_workspace(n, w.weight); },
        py::arg("num_tokens"), py::arg("w_in"));
  m.def("attention_workspace", cpu::attention_workspace, py::arg("num_tokens"), py::arg("n_head"), py::arg("head_dim"),
        py::arg("max_seq_len"));
  m.def("output_product_workspace", [](int64_t n, const BoundWeight& w) { return cpu::output_product_workspace(n, w.weight); },
        py::arg("num_tokens"), py::arg("w_out"));
  m.def("lm_head_workspace", [](int64_t n, const BoundWeight& w) { return cpu::lm_head_workspace(n, w.weight); },
        py::arg("num_rows"), py::arg("w_lm"));
  m.def("sample_workspace", cpu::sample_workspace, py::arg("num_rows"), py::arg("vocab_size"));
}

void bind_machine(py::module_& m) {
  m.def("bind_torch", &bind_torch, py::arg("tensor"), py::arg("parameter"), py::arg("capsule"));
  m.def("build_info", &build_info);
  m.def("cuda_devices", &cuda_devices);
  m.def("cpu_isa", [] { return cpu::kernels().name; });
  m.def("set_dry_run", [](bool on) { g_dry_run.store(on); }, py::arg("on"));
  m.def("force_isa", &cpu::force_isa, py::arg("name"));
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("n"), py::call_guard<py::gil_scoped_release>());
  m.def("num_threads", &cpu::num_threads);
  m.def("read_bandwidth", &cpu::read_bandwidth, py::arg("bytes"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>());
  m.def("philox_uniform", &philox_uniform, py::arg("seed"), py::arg("sample_index"), py::arg("position"));
}

}  // namespace
}  // namespace codegen_fast::bind

PYBIND11_MODULE(_C, m) {
  using namespace codegen_fast;
  m.doc() = "Kernels of codegen_fast. Use codegen_fast.ops.";
  pybind11::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
  bind::bind_operands(m);
  bind::bind_ops(m);
  bind::bind_sizes(m);
  bind::bind_machine(m);
}
