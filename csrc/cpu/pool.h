// The one threading seam of the CPU backend: fork-join over a range, with workers that spin for a moment before
// they sleep. Which thread runs which piece never affects a result.
#pragma once

#include <cstdint>
#include <type_traits>

namespace codegen_fast::cpu {

// Number of threads that a parallel_for uses, the caller included. Values above 256 are cut to 256.
void set_num_threads(int n);
int num_threads();

namespace detail {
using Body = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t n, int64_t grain, Body body, void* context);
}  // namespace detail

// Calls f(begin, end) for disjoint pieces that cover [0, n). Every thread has a contiguous share of the range and takes
// pieces of `grain` items from its front; who is done with it takes from the others' shares. While another thread's parallel_for runs, the caller does all of it as one piece.
// f must neither throw nor call parallel_for.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  detail::parallel_for(
      n, grain,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<std::remove_reference_t<F>*>(context))(begin, end); },
      &f);
}

// A grain that gives every thread about `pieces` pieces: few enough to stream, enough to even out a stolen core.
int64_t grain_for(int64_t n, int pieces = 4);

}  // namespace codegen_fast::cpu
