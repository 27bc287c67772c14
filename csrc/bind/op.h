// def_op: binds one op of the contract. Arguments are converted by their C++ types, all tensors must lie on one
// device, that device's backend is called, and the GIL is free meanwhile.
#pragma once

#include <atomic>
#include <tuple>
#include <utility>

#include "../cpu/float_environment.h"
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
};

template <>
struct Argument<KVCache> {
  using From = py::handle;
  static KVCache make(From from, const char* name) { return {view(from, name)}; }
  static const TensorView* device_of(const KVCache& v) { return &v.pages; }
};

template <class T, class Bound, T Bound::*Member>
struct BoundArgument {
  using From = Bound&;
  static T& make(From from, const char*) { return from.*Member; }
  static const TensorView* device_of(const T&) { return nullptr; }  // the op compares its members
};
template <> struct Argument<PackedWeight> : BoundArgument<PackedWeight, BoundWeight, &BoundWeight::weight> {};
template <> struct Argument<Norm> : BoundArgument<Norm, BoundNorm, &BoundNorm::norm> {};
template <> struct Argument<Batch> : BoundArgument<Batch, BoundBatch, &BoundBatch::batch> {};
template <>
struct Argument<SamplingParams> : BoundArgument<SamplingParams, BoundSamplingParams, &BoundSamplingParams::params> {};

template <class T>
struct PlainArgument {
  using From = T;
  static T make(From from, const char*) { return from; }
  static const TensorView* device_of(const T&) { return nullptr; }
};
template <> struct Argument<int64_t> : PlainArgument<int64_t> {};
template <>
struct Argument<Phase> {
  using From = bool;  // decode?
  static Phase make(From decode, const char*) { return decode ? Phase::decode : Phase::prefill; }
  static const TensorView* device_of(const Phase&) { return nullptr; }
};

template <class A>
using Plain = Argument<std::remove_cvref_t<A>>;

// While set, ops return as soon as their arguments are converted: what is left is the cost of Python and binding.
inline std::atomic<bool> g_dry_run{false};

inline void same_device(const TensorView*& first, const TensorView* next) {
  if (!next) return;
  if (!first) first = next;
  else check_device(*next, first->device);
}

template <class... A, size_t... I>
void def_op_indexed(py::module_& m, const char* op, void (*op_on_cpu)(A...), const std::array<const char*, sizeof...(A)>& names,
                    std::index_sequence<I...>) {
  m.def(
      op,
      [op, op_on_cpu, names](typename Plain<A>::From... from) {
        std::tuple<decltype(Plain<A>::make(from, ""))...> values{Plain<A>::make(from, names[I])...};
        const TensorView* device = nullptr;
        (same_device(device, Plain<A>::device_of(std::get<I>(values))), ...);
        if (device && device->device.type == DeviceType::cuda)
          throw ValueError(std::string(device->name) + ": lies on " + device_name(device->device) +
                           ", and this build of codegen_fast has no CUDA kernels for " + op);
        py::gil_scoped_release release;
        if (g_dry_run.load(std::memory_order_relaxed)) return;
        const cpu::FloatEnvironment standard;
        op_on_cpu(std::get<I>(values)...);
      },
      py::arg(names[I])...);
}

template <class... A>
void def_op(py::module_& m, const char* op, void (*op_on_cpu)(A...), const std::array<const char*, sizeof...(A)>& names) {
  def_op_indexed(m, op, op_on_cpu, names, std::index_sequence_for<A...>{});
}

}  // namespace codegen_fast::bind
