// Every PTX instruction and intrinsic that the CUDA kernels use, as small device functions. Kernels contain none of
// their own, use no __shared__ variable (shared_memory() is all they have) and are launched by launch.h alone.
//
// The same kernels are executed without a GPU: tests/emulator defines these functions over again for g++, and that is
// the only place where a build of the emulator differs.
#pragma once

#include <cstdint>

#ifdef CODEGEN_FAST_EMULATED
#include "emulated_intrinsics.h"
#else

#include <cuda_runtime.h>

#define CODEGEN_FAST_DEVICE __device__ __forceinline__

namespace codegen_fast::cuda {

// ---- Types -------------------------------------------------------------------------------------

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

struct alignas(16) Bytes16 { uint32_t v[4]; };  // what a 128-bit load carries
struct alignas(8) Bytes8 { uint32_t v[2]; };

using Barrier = uint64_t;  // an mbarrier, in shared memory

// ---- Conversions -------------------------------------------------------------------------------

CODEGEN_FAST_DEVICE float to_float(float x) { return x; }
CODEGEN_FAST_DEVICE float to_float(f16 x) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
}
CODEGEN_FAST_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest even. pack2 puts `low` into the lower 16 bits, which is the element at the lower address.
template <class T> CODEGEN_FAST_DEVICE T from_float(float x);
template <> CODEGEN_FAST_DEVICE float from_float<float>(float x) { return x; }
template <> CODEGEN_FAST_DEVICE f16 from_float<f16>(float x) {
  f16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
template <> CODEGEN_FAST_DEVICE bf16 from_float<bf16>(float x) {
  bf16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
template <class T> CODEGEN_FAST_DEVICE uint32_t pack2(float low, float high);
template <> CODEGEN_FAST_DEVICE uint32_t pack2<f16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <> CODEGEN_FAST_DEVICE uint32_t pack2<bf16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <class T> CODEGEN_FAST_DEVICE float low_float(uint32_t pair) { return to_float(T{static_cast<uint16_t>(pair)}); }
template <class T> CODEGEN_FAST_DEVICE float high_float(uint32_t pair) { return to_float(T{static_cast<uint16_t>(pair >> 16)}); }

CODEGEN_FAST_DEVICE float bits_to_float(uint32_t b) { return __uint_as_float(b); }
CODEGEN_FAST_DEVICE uint32_t float_to_bits(float f) { return __float_as_uint(f); }

// Four int8 (bytes 0..3 of `q`) -> four T, exact: out[0] holds bytes 0 and 1, out[1] bytes 2 and 3.
template <class T> CODEGEN_FAST_DEVICE void dequantize4(uint32_t q, uint32_t out[2]);
template <> CODEGEN_FAST_DEVICE void dequantize4<f16>(uint32_t q, uint32_t out[2]) {
  // 0x6400 | u is 1024 + u in float16; u = q + 128, so 1152 is taken off
  const uint32_t u = q ^ 0x80808080u;
  asm("{\n"
      ".reg .b32 lo, hi, offset;\n"
      "mov.b32 offset, 0x64806480;\n"
      "prmt.b32 lo, %2, 0x64646464, 0x4140;\n"
      "prmt.b32 hi, %2, 0x64646464, 0x4342;\n"
      "sub.rn.f16x2 %0, lo, offset;\n"
      "sub.rn.f16x2 %1, hi, offset;\n"
      "}\n" : "=r"(out[0]), "=r"(out[1]) : "r"(u));
}
template <> CODEGEN_FAST_DEVICE void dequantize4<bf16>(uint32_t q, uint32_t out[2]) {
  // 0x4300 | u is 128 + u in bfloat16 for u < 128: the lower seven bits, less 128 or, for negative numbers, 256
  asm("{\n"
      ".reg .b32 lo, hi, a, b, minus_one;\n"
      "mov.b32 minus_one, 0xbf80bf80;\n"
      "prmt.b32 lo, %2, 0, 0x4140;\n"
      "prmt.b32 hi, %2, 0, 0x4342;\n"
      "lop3.b32 a, lo, 0x007f007f, 0x43004300, 0xea;\n"  // (x & mask) | base
      "lop3.b32 b, lo, 0x00800080, 0x43004300, 0xea;\n"
      "fma.rn.bf16x2 %0, b, minus_one, a;\n"
      "lop3.b32 a, hi, 0x007f007f, 0x43004300, 0xea;\n"
      "lop3.b32 b, hi, 0x00800080, 0x43004300, 0xea;\n"
      "fma.rn.bf16x2 %1, b, minus_one, a;\n"
      "}\n" : "=r"(out[0]), "=r"(out[1]) : "r"(q));
}

// ---- Arithmetic --------------------------------------------------------------------------------
// The build passes -fmad=false: products and sums are fused where fmaf() says so and nowhere else.

CODEGEN_FAST_DEVICE float exp2_fast(float x) {  // 2 ulp; 0 for -infinity
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
CODEGEN_FAST_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
CODEGEN_FAST_DEVICE float square_root(float a) { return __fsqrt_rn(a); }
CODEGEN_FAST_DEVICE int round_to_int(float x) { return __float2int_rn(x); }  // nearest even

// ---- Threads and warps -------------------------------------------------------------------------

constexpr int kWarp = 32;
CODEGEN_FAST_DEVICE int lane_id() { return threadIdx.x & 31; }
CODEGEN_FAST_DEVICE int warp_id() { return threadIdx.x >> 5; }

CODEGEN_FAST_DEVICE void sync_threads() { __syncthreads(); }
// Of the `threads` threads (whole warps) that use barrier `id`, 1 to 15.
CODEGEN_FAST_DEVICE void sync_threads(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
CODEGEN_FAST_DEVICE void sync_warp() { __syncwarp(); }

// All 32 lanes take part in each of these. T: int, uint32_t, float, double, int64_t.
template <class T> CODEGEN_FAST_DEVICE T shuffle_xor(T v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <class T> CODEGEN_FAST_DEVICE T shuffle_up(T v, int delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
template <class T> CODEGEN_FAST_DEVICE T shuffle(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
CODEGEN_FAST_DEVICE uint32_t ballot(bool p) { return __ballot_sync(0xffffffffu, p); }
CODEGEN_FAST_DEVICE bool any_lane(bool p) { return __any_sync(0xffffffffu, p); }
CODEGEN_FAST_DEVICE int count_bits(uint32_t x) { return __popc(x); }
CODEGEN_FAST_DEVICE int first_bit(uint32_t x) { return __ffs(x) - 1; }

// ---- Memory ------------------------------------------------------------------------------------

// The block's dynamic shared memory, 128-byte aligned: the only shared memory there is.
CODEGEN_FAST_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char dynamic_shared_memory[];
  return dynamic_shared_memory;
}
// The pointer, as a value that the compiler cannot work out again: it stays in a register.
template <class T> CODEGEN_FAST_DEVICE T* in_register(T* p) {
  asm volatile("" : "+l"(p));
  return p;
}
CODEGEN_FAST_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 128 and 64 bits from or to aligned global or shared memory.
CODEGEN_FAST_DEVICE Bytes16 load16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
CODEGEN_FAST_DEVICE void store16(void* p, Bytes16 b) { *static_cast<uint4*>(p) = make_uint4(b.v[0], b.v[1], b.v[2], b.v[3]); }
CODEGEN_FAST_DEVICE Bytes8 load8(const void* p) {
  const uint2 v = *static_cast<const uint2*>(p);
  return {{v.x, v.y}};
}
CODEGEN_FAST_DEVICE void store8(void* p, Bytes8 b) { *static_cast<uint2*>(p) = make_uint2(b.v[0], b.v[1]); }
CODEGEN_FAST_DEVICE uint32_t load4(const void* p) { return *static_cast<const uint32_t*>(p); }
CODEGEN_FAST_DEVICE void store4(void* p, uint32_t v) { *static_cast<uint32_t*>(p) = v; }

CODEGEN_FAST_DEVICE int32_t atomic_add(int32_t* p, int32_t v) { return atomicAdd(p, v); }  // global or shared
CODEGEN_FAST_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
CODEGEN_FAST_DEVICE uint32_t atomic_max(uint32_t* p, uint32_t v) { return atomicMax(p, v); }

// For values that the host polls: everything that this thread wrote before is visible when the value is.
CODEGEN_FAST_DEVICE void store_release_system(int64_t* p, int64_t v) {
  asm volatile("fence.acq_rel.sys;\n st.relaxed.sys.global.s64 [%0], %1;" :: "l"(p), "l"(v) : "memory");
}

// ---- Asynchronous copies -----------------------------------------------------------------------
// 16 bytes from global to shared memory, both aligned; with valid == false zeros are written and nothing is read.

CODEGEN_FAST_DEVICE void copy_async16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
CODEGEN_FAST_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's latest groups are under way.
template <int Pending> CODEGEN_FAST_DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(Pending) : "memory"); }

// ---- mbarriers and the weight stream -----------------------------------------------------------

CODEGEN_FAST_DEVICE void barrier_init(Barrier* b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(shared_address(b)), "r"(arrivals) : "memory");
}
// After barrier_init by one thread, before sync_threads: makes it visible to asynchronous copies.
CODEGEN_FAST_DEVICE void barrier_init_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
CODEGEN_FAST_DEVICE void barrier_arrive(Barrier* b) {
  asm volatile("{\n.reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" :: "r"(shared_address(b)) : "memory");
}
// Waits until the phase of this parity has completed; a fresh barrier is in phase 0, so waiting for parity 1 returns.
CODEGEN_FAST_DEVICE void barrier_wait(Barrier* b, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\n mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(shared_address(b)), "r"(parity) : "memory");
#else
    asm volatile("{\n.reg .pred p;\n mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(shared_address(b)), "r"(parity) : "memory");
#endif
  }
}

// stream_copy: all 32 lanes of one warp copy `bytes` (a multiple of 16, both ends 16-byte aligned) that are read once,
// and complete one phase of `b`, which was initialised with kStreamArrivals. From sm_90 on the bulk copy engine does
// it, below that cp.async of the lanes.
#if __CUDA_ARCH__ >= 900
constexpr uint32_t kStreamArrivals = 1;
CODEGEN_FAST_DEVICE void stream_copy(Barrier* b, void* shared, const void* global, uint32_t bytes) {
  if (lane_id() == 0) {
    uint64_t evict_first;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(evict_first));
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(shared_address(b)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(b)), "l"(evict_first) : "memory");
  }
  __syncwarp();
}
#else
constexpr uint32_t kStreamArrivals = 32;
CODEGEN_FAST_DEVICE void stream_copy(Barrier* b, void* shared, const void* global, uint32_t bytes) {
  for (uint32_t at = lane_id() * 16; at < bytes; at += 32 * 16)
    copy_async16(static_cast<char*>(shared) + at, static_cast<const char*>(global) + at);
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(shared_address(b)) : "memory");
}
#endif

// ---- Tensor cores ------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit elements (or 8 x 16 bytes): lane i gives the address of row i % 8 of matrix i / 8 and
// receives in r[m] the elements (row lane / 4, columns 2 (lane % 4) and one more) of matrix m; transposed: of its transpose.
CODEGEN_FAST_DEVICE void load_matrix4(uint32_t r[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
CODEGEN_FAST_DEVICE void load_matrix4_transposed(uint32_t r[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
// Two matrices: the addresses of lanes 0 to 15 count.
CODEGEN_FAST_DEVICE void load_matrix2(uint32_t r[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

// d (16 x 8, float32) += a (16 x 16) b (16 x 8). With g = lane / 4, t = lane % 4:
//   a[0]: row g, columns 2t, 2t+1; a[1]: row g+8; a[2]: row g, columns 2t+8, 2t+9; a[3]: row g+8, those columns
//   b[0]: rows (k) 2t, 2t+1 of column g; b[1]: rows 2t+8, 2t+9
//   d[0], d[1]: row g, columns 2t, 2t+1; d[2], d[3]: row g+8
template <class T> CODEGEN_FAST_DEVICE void mma16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2]);
template <> CODEGEN_FAST_DEVICE void mma16x8x16<f16>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> CODEGEN_FAST_DEVICE void mma16x8x16<bf16>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d (16 x 8, int32) += a (16 x 32) b (32 x 8) of int8: as above with bytes 4t .. 4t+3 in place of a pair of columns,
// and columns 4t+16 .. 4t+19 in a[2], a[3] and b[1].
CODEGEN_FAST_DEVICE void mma16x8x32(int32_t d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Programmatic dependent launch (sm_90 and later; nothing below) ----------------------------

// Waits until the kernel before this one has finished and its writes are visible. Every thread block of every kernel
// calls it before it reads or writes anything that another kernel of the chain writes, and before it exits: only then
// does waiting for the kernel before mean waiting for all before it. Read earlier may be what no kernel of a chain
// writes: weights, the batch (advance() changes it, but ends the chain), keys and values of earlier calls.
CODEGEN_FAST_DEVICE void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start when all thread blocks have called this or exited. It orders no memory.
CODEGEN_FAST_DEVICE void dependency_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace codegen_fast::cuda

#endif  // CODEGEN_FAST_EMULATED

namespace codegen_fast::cuda {

constexpr float kLargestFloat = 3.402823466e38f;
CODEGEN_FAST_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

}  // namespace codegen_fast::cuda
