// One kernel for each group of intrinsics: results go to buffers that the test compares with numpy.
#include "harness.h"

namespace codegen_fast::cuda {
namespace {

__global__ void __launch_bounds__(128) convert(Arguments p) {
  dependency_wait();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.number[0]) return;
  const float x = p.as<float>(0)[i];
  p.as<uint16_t>(1)[i] = from_float<f16>(x).bits;
  p.as<uint16_t>(2)[i] = from_float<bf16>(x).bits;
  p.as<int>(3)[i] = round_to_int(x);
  p.as<float>(4)[i] = exp2_fast(x);
  p.as<uint32_t>(5)[i] = pack2<f16>(x, 1.f);
}

// All 16-bit patterns to float32; all bytes dequantised.
__global__ void __launch_bounds__(128) widen(Arguments p) {
  dependency_wait();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  p.as<float>(0)[i] = to_float(f16{static_cast<uint16_t>(i)});
  p.as<float>(1)[i] = to_float(bf16{static_cast<uint16_t>(i)});
  if (i < 64) {
    const uint32_t q = p.as<uint32_t>(2)[i];
    dequantize4<f16>(q, p.as<uint32_t>(3) + 2 * i);
    dequantize4<bf16>(q, p.as<uint32_t>(4) + 2 * i);
  }
}

__global__ void __launch_bounds__(64) lanes(Arguments p) {
  dependency_wait();
  const int i = threadIdx.x;
  const int v = p.as<int>(0)[i];
  int* out = p.as<int>(1) + 8 * i;
  out[0] = shuffle_xor(v, 5);
  out[1] = shuffle_up(v, 3);
  out[2] = shuffle(v, (lane_id() * 7 + 1) % 32);
  out[3] = static_cast<int>(ballot(v % 3 == 0));
  out[4] = any_lane(v == p.as<int>(0)[40]);
  out[5] = count_bits(static_cast<uint32_t>(v));
  out[6] = first_bit(static_cast<uint32_t>(v));
  out[7] = warp_id();
  p.as<double>(2)[i] = shuffle_xor(v * 0.1, 16);
  p.as<int64_t>(3)[i] = shuffle_xor(int64_t{v} << 33, 1);
  p.as<float>(4)[i] = shuffle_up(v * 0.5f, 1);
}

// a (16, 16), b (16, 8) and d (16, 8) float32 as they are in memory, by the fragments' definition.
template <class T>
__device__ void multiply(const Arguments& p) {
  dependency_wait();
  const T *a = p.as<T>(0), *b = p.as<T>(1);
  float* d = p.as<float>(2);
  const int g = lane_id() / 4, t = lane_id() % 4;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    const T* at = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
    fa[i] = at[0].bits | static_cast<uint32_t>(at[1].bits) << 16;
  }
  for (int i = 0; i < 2; ++i) {
    const T* at = b + (2 * t + 8 * i) * 8 + g;
    fb[i] = at[0].bits | static_cast<uint32_t>(at[8].bits) << 16;
  }
  float fd[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t], d[(g + 8) * 8 + 2 * t + 1]};
  mma16x8x16<T>(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}
__global__ void __launch_bounds__(32) multiply_f16(Arguments p) { multiply<f16>(p); }
__global__ void __launch_bounds__(32) multiply_bf16(Arguments p) { multiply<bf16>(p); }

// a (16, 32), b (32, 8) int8, d (16, 8) int32.
__global__ void __launch_bounds__(32) multiply_s8(Arguments p) {
  dependency_wait();
  const uint8_t *a = p.as<uint8_t>(0), *b = p.as<uint8_t>(1);
  int32_t* d = p.as<int32_t>(2);
  const int g = lane_id() / 4, t = lane_id() % 4;
  uint32_t fa[4] = {}, fb[2] = {};
  for (int byte = 0; byte < 4; ++byte) {
    for (int i = 0; i < 4; ++i)
      fa[i] |= static_cast<uint32_t>(a[(g + i % 2 * 8) * 32 + 4 * t + byte + i / 2 * 16]) << 8 * byte;
    for (int i = 0; i < 2; ++i) fb[i] |= static_cast<uint32_t>(b[(4 * t + byte + 16 * i) * 8 + g]) << 8 * byte;
  }
  int32_t fd[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t], d[(g + 8) * 8 + 2 * t + 1]};
  mma16x8x32(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}

// source (32 rows of 16 bytes) into shared memory; row of lane i is order[i].
__global__ void __launch_bounds__(32) matrices(Arguments p) {
  dependency_wait();
  const int lane = lane_id();
  char* shared = shared_memory();
  store16(shared + lane * 16, load16(p.as<char>(0) + lane * 16));
  sync_warp();
  const char* row = shared + p.as<int>(1)[lane] * 16;
  uint32_t r[10];
  load_matrix4(r, row);
  load_matrix4_transposed(r + 4, row);
  load_matrix2(r + 8, row);
  for (int i = 0; i < 10; ++i) p.as<uint32_t>(2)[lane * 10 + i] = r[i];
}

// out = source, in pieces of 16 bytes a thread, two under way; the first number[1] pieces are valid.
__global__ void __launch_bounds__(64) copies(Arguments p) {
  dependency_wait();
  const int n = p.number[0], threads = blockDim.x;
  char* shared = shared_memory();
  auto issue = [&](int i) {
    if (i < n)
      copy_async16(shared + (i % 2 * threads + threadIdx.x) * 16, p.as<char>(0) + (i * threads + threadIdx.x) * 16,
                   i * threads + static_cast<int>(threadIdx.x) < p.number[1]);
    copy_async_commit();
  };
  issue(0);
  for (int i = 0; i < n; ++i) {
    issue(i + 1);
    copy_async_wait<1>();
    sync_threads();
    const int other = threads - 1 - threadIdx.x;
    store16(p.as<char>(1) + (i * threads + other) * 16, load16(shared + (i % 2 * threads + other) * 16));
    sync_threads();
  }
}

// A producer warp streams number[0] slots of 512 bytes through a ring of 3; the other warps add each slot's words.
__global__ void __launch_bounds__(96) ring(Arguments p) {
  constexpr int kSlots = 3, kBytes = 512, kConsumers = 2;
  char* shared = shared_memory();
  Barrier* full = reinterpret_cast<Barrier*>(shared);
  Barrier* empty = full + kSlots;
  char* slots = shared + 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(full + i, kStreamArrivals);
      barrier_init(empty + i, kConsumers);
    }
    barrier_init_fence();
  }
  sync_threads();
  if (warp_id() == kConsumers) {
    for (int i = 0; i < p.number[0]; ++i) {
      barrier_wait(empty + i % kSlots, (i / kSlots & 1) ^ 1);
      stream_copy(full + i % kSlots, slots + i % kSlots * kBytes, p.as<char>(0) + i * kBytes, kBytes);
    }
    dependency_wait();
    return;
  }
  dependency_wait();
  for (int i = 0; i < p.number[0]; ++i) {
    barrier_wait(full + i % kSlots, i / kSlots & 1);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(slots + i % kSlots * kBytes) + warp_id() * 64;
    uint32_t sum = words[lane_id()] + words[lane_id() + 32];
    for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
    sync_warp();
    if (lane_id() == 0) {
      barrier_arrive(empty + i % kSlots);
      p.as<uint32_t>(1)[i * kConsumers + warp_id()] = sum;
    }
  }
}

// Halves of a block take turns at two barriers of their own.
__global__ void __launch_bounds__(128) halves(Arguments p) {
  dependency_wait();
  int* words = reinterpret_cast<int*>(shared_memory());
  const int half = threadIdx.x / 64, i = threadIdx.x % 64;
  words[half * 64 + i] = p.as<int>(0)[half * 64 + i];
  sync_threads(1 + half, 64);
  p.as<int>(1)[half * 64 + i] = words[half * 64 + 63 - i];
}

__global__ void __launch_bounds__(64) counters(Arguments p) {
  dependency_wait();
  atomic_add(p.as<int32_t>(0), 2);
  atomic_max(p.as<uint32_t>(1), blockIdx.x * blockDim.x + threadIdx.x);
  uint32_t* in_block = reinterpret_cast<uint32_t*>(shared_memory());
  if (threadIdx.x == 0) *in_block = 0;
  sync_threads();
  atomic_add(in_block, 1u);
  sync_threads();
  if (threadIdx.x == 0) {
    p.as<uint32_t>(2)[blockIdx.x] = *in_block;
    store_release_system(p.as<int64_t>(3) + blockIdx.x, 5 + blockIdx.x);
  }
}

// y (n,) = weight (n,) + x (n,), the weight read while the kernel before may still run.
__global__ void __launch_bounds__(64) add(Arguments p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float w = i < p.number[0] ? p.as<float>(0)[i] : 0.f;
  dependency_wait();
  dependency_launch();
  if (i < p.number[0]) p.as<float>(2)[i] = w + p.as<float>(1)[i];
}

}  // namespace

const NamedKernel kKernels[] = {
    {"convert", convert}, {"widen", widen}, {"lanes", lanes}, {"multiply_f16", multiply_f16},
    {"multiply_bf16", multiply_bf16}, {"multiply_s8", multiply_s8}, {"matrices", matrices}, {"copies", copies},
    {"ring", ring}, {"halves", halves}, {"counters", counters}, {"add", add}, {nullptr, nullptr},
};

}  // namespace codegen_fast::cuda
