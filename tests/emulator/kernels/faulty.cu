// Kernels with one fault each: x (64,) float32 is an input, out (64,) the output, 64 threads.
#include "harness.h"

namespace codegen_fast::cuda {
namespace {

__device__ float* words() { return reinterpret_cast<float*>(shared_memory()); }

__global__ void right(Arguments p) {
  dependency_wait();
  p.as<float>(1)[threadIdx.x] = p.as<float>(0)[threadIdx.x] + 1.f;
}

__global__ void deadlock(Arguments p) {
  dependency_wait();
  Barrier* b = reinterpret_cast<Barrier*>(shared_memory());
  if (threadIdx.x == 0) barrier_init(b, 1);
  sync_threads();
  if (warp_id() == 1) barrier_wait(b, 0);
  sync_threads();
}

__global__ void misaligned_vector(Arguments p) {
  dependency_wait();
  if (threadIdx.x == 1) store16(shared_memory(), load16(p.as<float>(0) + threadIdx.x));
}

__global__ void misaligned_word(Arguments p) {
  dependency_wait();
  if (threadIdx.x == 0) p.as<float>(1)[0] = *reinterpret_cast<float*>(p.as<char>(0) + 2);
}

__global__ void past_the_end(Arguments p) {
  dependency_wait();
  p.as<float>(1)[threadIdx.x] = p.as<float>(0)[threadIdx.x == 63 ? 65 : threadIdx.x];
}

__global__ void past_shared_memory(Arguments) {
  dependency_wait();
  words()[threadIdx.x] = 1.f;
}

__global__ void writes_an_input(Arguments p) {
  dependency_wait();
  p.as<float>(0)[threadIdx.x] = 1.f;
}

__global__ void null_pointer(Arguments p) {
  dependency_wait();
  p.as<float>(1)[threadIdx.x] = *p.as<float>(5);
}

__global__ void no_dependency_wait(Arguments) { words()[threadIdx.x] = 1.f; }

__global__ void early_read(Arguments p) {
  const float v = p.as<float>(0)[threadIdx.x];
  dependency_wait();
  p.as<float>(1)[threadIdx.x] = v;
}

__global__ void lanes_part(Arguments p) {
  dependency_wait();
  const float v = p.as<float>(0)[threadIdx.x];
  p.as<float>(1)[threadIdx.x] = lane_id() < 31 ? shuffle_xor(v, 1) : shuffle_up(v, 1);
}

__global__ void lanes_exit(Arguments p) {
  dependency_wait();
  if (lane_id() == 7) return;
  p.as<float>(1)[threadIdx.x] = ballot(true) ? 1.f : 0.f;
}

__global__ void stream_left_alone(Arguments p) {
  dependency_wait();
  Barrier* b = reinterpret_cast<Barrier*>(shared_memory());
  if (threadIdx.x == 0) {
    barrier_init(b, kStreamArrivals);
    barrier_init_fence();
  }
  sync_threads();
  if (warp_id() == 0) stream_copy(b, shared_memory() + 16, p.as<char>(0), 256);
}

__global__ void reads_before_copy_wait(Arguments p) {
  dependency_wait();
  if (threadIdx.x < 16) copy_async16(words() + 4 * threadIdx.x, p.as<float>(0) + 4 * threadIdx.x);
  copy_async_commit();
  sync_threads();
  p.as<float>(1)[threadIdx.x] = words()[threadIdx.x];
  copy_async_wait<0>();
}

__global__ void own_copy_too_early(Arguments p) {
  dependency_wait();
  copy_async16(words() + 4 * threadIdx.x, p.as<float>(0) + threadIdx.x / 4 * 4);
  p.as<float>(1)[threadIdx.x] = words()[4 * threadIdx.x];
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void reads_before_stream_wait(Arguments p) {
  dependency_wait();
  Barrier* b = reinterpret_cast<Barrier*>(shared_memory());
  if (threadIdx.x == 0) {
    barrier_init(b, kStreamArrivals);
    barrier_init_fence();
  }
  sync_threads();
  if (warp_id() == 0) stream_copy(b, shared_memory() + 16, p.as<char>(0), 256);
  if (warp_id() == 1) p.as<float>(1)[threadIdx.x] = words()[4 + threadIdx.x];
  barrier_wait(b, 0);
}

__global__ void lanes_without_sync_warp(Arguments p) {
  dependency_wait();
  words()[threadIdx.x] = 1.f;
  p.as<float>(1)[threadIdx.x] = words()[threadIdx.x ^ 1];
}

__global__ void another_threads_stack(Arguments p) {
  dependency_wait();
  float mine[4] = {1.f, 2.f, 3.f, 4.f};
  float** shared = reinterpret_cast<float**>(shared_memory());
  if (threadIdx.x == 0) *shared = mine + p.number[0];
  sync_threads();
  p.as<float>(1)[threadIdx.x] = (*shared)[1];
}

__global__ void never_ends(Arguments p) {
  dependency_wait();
  while (*static_cast<volatile float*>(p.as<float>(0)) > 0.f) {}
}

}  // namespace

#define KERNEL(name) {#name, name}
const NamedKernel kKernels[] = {
    KERNEL(right), KERNEL(deadlock), KERNEL(misaligned_vector), KERNEL(misaligned_word), KERNEL(past_the_end),
    KERNEL(past_shared_memory), KERNEL(writes_an_input), KERNEL(null_pointer), KERNEL(no_dependency_wait),
    KERNEL(early_read), KERNEL(lanes_part), KERNEL(lanes_exit), KERNEL(stream_left_alone),
    KERNEL(reads_before_copy_wait), KERNEL(own_copy_too_early), KERNEL(reads_before_stream_wait),
    KERNEL(lanes_without_sync_warp), KERNEL(another_threads_stack), KERNEL(never_ends),
    {nullptr, nullptr},
};

}  // namespace codegen_fast::cuda
