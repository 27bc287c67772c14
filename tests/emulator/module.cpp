// codegen_fast._C_emulated: the bindings of codegen_fast._C, in which tensors on the CPU go to the CUDA ops.
//
// While an op runs, its kernels may touch the memory of its arguments and nothing else: inputs only to be read, and
// before dependency_wait() only what no kernel before it in a chain writes.
#include <pybind11/pybind11.h>

#include <string_view>

#include "../../csrc/bind/backend.h"
#include "../../csrc/bind/define.h"
#include "../../csrc/cpu/float_environment.h"
#include "../../csrc/cuda/graph.h"
#include "../../csrc/cuda/launch.h"
#include "engine/grid.h"

#ifdef CODEGEN_FAST_EMULATOR_PARTIAL
// Ops whose source did not compile or does not exist yet are null.
namespace codegen_fast::cuda {
#define CODEGEN_FAST_WEAK(op) decltype(op) op __attribute__((weak));
CODEGEN_FAST_FOR_EACH_OP(CODEGEN_FAST_WEAK)
CODEGEN_FAST_FOR_EACH_SIZE(CODEGEN_FAST_WEAK)
#undef CODEGEN_FAST_WEAK
}  // namespace codegen_fast::cuda
#endif

const int codegen_fast::emulator::kArchitecture = CODEGEN_FAST_EMULATED_SM;

namespace codegen_fast::bind {
namespace {

namespace py = pybind11;
using emulator::Region;
using emulator::Regions;

// The device whose number is its multiprocessors; 0 is the default.
int g_device = 0;
uint64_t g_seed = 0;

// Operands that are weights: no kernel writes them.
bool is_weight(std::string_view name) {
  for (const char* weight : {"wte", "bias_in", "bias_out", "bias_lm", "rotary"})
    if (name == weight) return true;
  return false;
}

void add(Regions& regions, const TensorView& t, bool writable, bool early = false) {
  if (!t.data) return;
  const size_t element = static_cast<size_t>(dtype_bytes(t.dtype));
  // How far the elements reach, and the dense part at the end of the shape.
  size_t last = 0, dense = 1;
  int outer = 0;  // dimensions that are not part of the dense run
  bool running = true;
  size_t outer_stride = 0, outer_length = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    const size_t length = static_cast<size_t>(t.shape[i]), stride = static_cast<size_t>(t.strides[i]);
    last += (length - 1) * stride;
    if (length == 1) continue;
    if (running && stride == dense) {
      dense *= length;
      continue;
    }
    running = false;
    if (!outer) outer_stride = stride;
    outer += !outer || stride != outer_stride * outer_length;
    outer_length *= length;
  }
  Region r{.name = t.name, .begin = reinterpret_cast<uintptr_t>(t.data), .writable = writable,
           .early = !writable && (early || is_weight(t.name))};
  r.end = r.begin + (last + 1) * element;
  if (outer == 1 && outer_stride > dense) {
    r.row_bytes = dense * element;
    r.period = outer_stride * element;
  }
  regions.push_back(std::move(r));
}

void add_argument(Regions& r, TensorView& t) { add(r, t, true); }
void add_argument(Regions& r, const TensorView& t) { add(r, t, false); }
void add_argument(Regions& r, const PackedWeight& w, bool writable) {
  add(r, w.data, writable, true);
  add(r, w.scales, writable, true);
}
void add_argument(Regions& r, PackedWeight& w) { add_argument(r, w, true); }
void add_argument(Regions& r, const PackedWeight& w) { add_argument(r, w, false); }
void add_argument(Regions& r, const Norm& n) {
  add(r, n.weight, false, true);
  add(r, n.bias, false, true);
}
// A chain of kernels begins with embed(), which waits for all work before it: the batch, and what earlier calls put
// into the cache, are there when any kernel of the chain starts. (That attention takes the new keys only after
// dependency_wait() cannot be seen from the address.)
void add_argument(Regions& r, const Batch& b) {
  for (const TensorView* t : {&b.query_start, &b.seq_lens, &b.page_table}) add(r, *t, false, true);
}
void add_argument(Regions& r, KVCache& c) { add(r, c.pages, true); }
void add_argument(Regions& r, const KVCache& c) { add(r, c.pages, false, true); }
void add_argument(Regions& r, HostRing& ring) { add(r, ring.slots, true); }
void add_argument(Regions& r, const SamplingParams& p) {
  for (const TensorView* t : {&p.temperature, &p.top_k, &p.top_p, &p.seed, &p.sample_index, &p.position, &p.min_p,
                              &p.typical_p, &p.epsilon_cutoff, &p.eta_cutoff})
    add(r, *t, false);
}
void add_argument(Regions& r, const LogitsRules& rules) {
  for (const TensorView* t : {&rules.history, &rules.history_row, &rules.history_len, &rules.prompt_len,
                              &rules.bias_tokens, &rules.bias_starts, &rules.biases, &rules.banned_tokens,
                              &rules.banned_starts, &rules.eos, &rules.forced_eos, &rules.suppressed,
                              &rules.suppressed_at_begin})
    add(r, *t, false);
}
void add_argument(Regions&, int64_t) {}
void add_argument(Regions&, Phase) {}

template <auto Op, class Signature = decltype(Op)>
struct Checked;
template <auto Op, class R, class... A>
struct Checked<Op, R (*)(A...)> {
  static R run(A... arguments) {
#ifdef CODEGEN_FAST_EMULATOR_PARTIAL
    if (!Op) throw std::runtime_error("this op is not in the emulator (partial build)");
#endif
    Regions regions;
    (add_argument(regions, arguments), ...);
    const emulator::MemoryScope scope(std::move(regions));
    return Op(arguments...);
  }
};

void run_emulated(Device, void* context, void (*body)(void*)) {
  const cpu::FloatEnvironment standard;
  if (cuda::StreamScope::chained()) return body(context);
  const cuda::StreamScope scope(g_device, nullptr);
  body(context);
}

bool finished(Device) { return cuda::stream_finished(nullptr); }

class EmulatedGraph : public Graph {
 public:
  EmulatedGraph() : graph_(g_device) {}
  void begin() override { graph_.begin(); }
  void end() override { graph_.end(); }
  void abandon() noexcept override { graph_.abandon(); }
  void replay() override {
    const cpu::FloatEnvironment standard;
    graph_.replay(nullptr);
  }

 private:
  cuda::StepGraph graph_;
};

std::unique_ptr<Graph> new_graph(Device) { return std::make_unique<EmulatedGraph>(); }

RecordedOps* recording() { return nullptr; }

#define CODEGEN_FAST_CHECKED(op) Checked<&cuda::op>::run,
const Backend kEmulatedBackend = {"cuda", run_emulated, finished, new_graph, recording,
                                  CODEGEN_FAST_FOR_EACH_OP(CODEGEN_FAST_CHECKED)
                                  CODEGEN_FAST_FOR_EACH_SIZE(CODEGEN_FAST_CHECKED)};
#undef CODEGEN_FAST_CHECKED

}  // namespace
}  // namespace codegen_fast::bind

PYBIND11_MODULE(_C_emulated, m) {
  using namespace codegen_fast;
  m.doc() = "The CUDA ops of codegen_fast, emulated on the CPU. Use tests/emulator.";
  bind::define(m, {&bind::kEmulatedBackend, nullptr});
  m.def("settings", [] { return std::pair(bind::g_seed, bind::g_device); });
  m.def("set_settings", [](uint64_t seed, int multiprocessors) {
    emulator::set_seed(bind::g_seed = seed);
    bind::g_device = multiprocessors;
  }, pybind11::arg("seed"), pybind11::arg("multiprocessors"));
}
