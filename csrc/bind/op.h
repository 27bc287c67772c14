// def_op: binds one op of the contract. Arguments are converted by their C++ types, all tensors must lie on one
// device, that device's backend is called, and the GIL is free meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <tuple>
#include <utility>

#include "backend.h"
#include "operands.h"

namespace codegen_fast::bind {

// How an argument of an op arrives from Python: From is the parameter's type in the binding, make() its C++ value.
template <class A>
struct Argument;

template <>
struct Argument<TensorView> {
  using From = py::handle;
  static TensorView make(From from, const char* name) { return view(from, name); }
  static const TensorView* device_of(const TensorView& v) { return &v; }
  static const TensorView* inner_tensor(const TensorView&) { return nullptr; }
};

template <>
struct Argument<KVCache> {
  using From = py::handle;
  static KVCache make(From from, const char* name) { return {view(from, name)}; }
  static const TensorView* device_of(const KVCache& v) { return &v.pages; }
  static const TensorView* inner_tensor(const KVCache&) { return nullptr; }
};

template <class T, class Bound, T Bound::*Member>
struct BoundArgument {
  using From = Bound&;
  static T& make(From from, const char*) { return from.*Member; }
  static const TensorView* device_of(const T&) { return nullptr; }  // the op compares its members
  // Decides the backend where an op has no other tensor.
  static const TensorView* inner_tensor(const T& v) {
    if constexpr (std::is_same_v<T, PackedWeight>) return &v.data;
    else return nullptr;
  }
};
template <> struct Argument<PackedWeight> : BoundArgument<PackedWeight, BoundWeight, &BoundWeight::weight> {};
template <> struct Argument<Norm> : BoundArgument<Norm, BoundNorm, &BoundNorm::norm> {};
template <> struct Argument<Batch> : BoundArgument<Batch, BoundBatch, &BoundBatch::batch> {};
template <>
struct Argument<SamplingParams> : BoundArgument<SamplingParams, BoundSamplingParams, &BoundSamplingParams::params> {};
template <>
struct Argument<LogitsRules> : BoundArgument<LogitsRules, BoundLogitsRules, &BoundLogitsRules::rules> {};
template <> struct Argument<HostRing> : BoundArgument<HostRing, BoundHostRing, &BoundHostRing::ring> {};

template <class T>
struct PlainArgument {
  using From = T;
  static T make(From from, const char*) { return from; }
  static const TensorView* device_of(const T&) { return nullptr; }
  static const TensorView* inner_tensor(const T&) { return nullptr; }
};
template <> struct Argument<int64_t> : PlainArgument<int64_t> {};
template <>
struct Argument<Phase> {
  using From = bool;  // decode?
  static Phase make(From decode, const char*) { return decode ? Phase::decode : Phase::prefill; }
  static const TensorView* device_of(const Phase&) { return nullptr; }
  static const TensorView* inner_tensor(const Phase&) { return nullptr; }
};

template <class A>
using Plain = Argument<std::remove_cvref_t<A>>;

// While set, ops return as soon as their arguments are converted: what is left is the cost of Python and binding.
inline std::atomic<bool> g_dry_run{false};

// While set, the time that ops run for is added up, recorded ones too. A GPU's run for longer than their calls.
inline std::atomic<bool> g_timed{false};
template <auto Op>
inline std::atomic<int64_t> g_nanoseconds{0};
struct OpTime {
  const char* op;
  std::atomic<int64_t>* nanoseconds;
};
inline std::vector<OpTime> g_op_times;  // of every op that is bound

template <auto Op, class Body>
void run_op(Body&& body) {
  if (g_dry_run.load(std::memory_order_relaxed)) return;
  if (!g_timed.load(std::memory_order_relaxed)) return body();
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  body();
  g_nanoseconds<Op> += std::chrono::nanoseconds(Clock::now() - begin).count();
}

inline void same_device(const TensorView*& first, const TensorView* next) {
  if (!next) return;
  if (!first) first = next;
  else check_device(*next, first->device);
}

template <auto Op, class... A, size_t... I>
void def_op_indexed(py::module_& m, const char* op, void (*Backend::*)(A...),
                    const std::array<const char*, sizeof...(A)>& names, std::index_sequence<I...>) {
  g_op_times.push_back({op, &g_nanoseconds<Op>});
  m.def(
      op,
      [op, names](typename Plain<A>::From... from) {
        std::tuple<decltype(Plain<A>::make(from, ""))...> values{Plain<A>::make(from, names[I])...};
        const TensorView* device = nullptr;
        (same_device(device, Plain<A>::device_of(std::get<I>(values))), ...);
        if (!device) ((device = device ? device : Plain<A>::inner_tensor(std::get<I>(values))), ...);
        const Backend& backend = g_backends.of(device->device.type, device->name);
        py::gil_scoped_release release;
        if (RecordedOps* recording = backend.recording()) {
          recording->push_back([&backend, values]() mutable {
            run_op<Op>([&] { (backend.*Op)(std::get<I>(values)...); });
          });
          return;
        }
        auto body = [&] { run_op<Op>([&] { (backend.*Op)(std::get<I>(values)...); }); };
        backend.run(device->device, &body, [](void* context) { (*static_cast<decltype(body)*>(context))(); });
      },
      py::arg(names[I])...);
}

// Op: a pointer to the op's member of Backend.
template <auto Op, size_t N>
void def_op(py::module_& m, const char* op, const std::array<const char*, N>& names) {
  def_op_indexed<Op>(m, op, Op, names, std::make_index_sequence<N>{});
}

}  // namespace codegen_fast::bind
