// csrc/cuda/intrinsics.h for the emulator: the same functions with the same meaning, over the engine. Where a function
// takes a Where, it is filled in by the compiler and tells the engine the line of the kernel.
#pragma once

#include <cuda_runtime.h>

#include <math.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "engine.h"

#define CODEGEN_FAST_DEVICE inline

// What nvcc declares in the global namespace.
#define CODEGEN_FAST_MIN_MAX(T)                              \
  inline T min(T a, T b) { return b < a ? b : a; }           \
  inline T max(T a, T b) { return a < b ? b : a; }
CODEGEN_FAST_MIN_MAX(int)
CODEGEN_FAST_MIN_MAX(unsigned)
CODEGEN_FAST_MIN_MAX(long)
CODEGEN_FAST_MIN_MAX(unsigned long)
CODEGEN_FAST_MIN_MAX(long long)
CODEGEN_FAST_MIN_MAX(unsigned long long)
#undef CODEGEN_FAST_MIN_MAX
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

namespace codegen_fast::cuda {

using emulator::Where;

// ---- Types -------------------------------------------------------------------------------------

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

struct alignas(16) Bytes16 { uint32_t v[4]; };
struct alignas(8) Bytes8 { uint32_t v[2]; };

using Barrier = uint64_t;

// ---- Conversions -------------------------------------------------------------------------------

CODEGEN_FAST_DEVICE float bits_to_float(uint32_t b) { return std::bit_cast<float>(b); }
CODEGEN_FAST_DEVICE uint32_t float_to_bits(float f) { return std::bit_cast<uint32_t>(f); }

CODEGEN_FAST_DEVICE float to_float(float x) { return x; }
CODEGEN_FAST_DEVICE float to_float(f16 x) { return emulator::f16_to_float(x.bits); }
CODEGEN_FAST_DEVICE float to_float(bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

template <class T> CODEGEN_FAST_DEVICE T from_float(float x);
template <> CODEGEN_FAST_DEVICE float from_float<float>(float x) { return x; }
template <> CODEGEN_FAST_DEVICE f16 from_float<f16>(float x) { return {emulator::f16_from_float(x)}; }
template <> CODEGEN_FAST_DEVICE bf16 from_float<bf16>(float x) { return {emulator::bf16_from_float(x)}; }

template <class T> CODEGEN_FAST_DEVICE uint32_t pack2(float low, float high) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>);
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T> CODEGEN_FAST_DEVICE float low_float(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <class T> CODEGEN_FAST_DEVICE float high_float(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

template <class T> CODEGEN_FAST_DEVICE void dequantize4(uint32_t q, uint32_t out[2]) {
  float v[4];
  for (int i = 0; i < 4; ++i) v[i] = static_cast<int8_t>(q >> 8 * i);
  out[0] = pack2<T>(v[0], v[1]);
  out[1] = pack2<T>(v[2], v[3]);
}

// ---- Arithmetic --------------------------------------------------------------------------------

CODEGEN_FAST_DEVICE float exp2_fast(float x) { return emulator::exp2_flushed(x); }
CODEGEN_FAST_DEVICE float divide(float a, float b) { return a / b; }
CODEGEN_FAST_DEVICE float square_root(float a) { return sqrtf(a); }
CODEGEN_FAST_DEVICE int round_to_int(float x) { return emulator::round_to_int32(x); }

// ---- Threads and warps -------------------------------------------------------------------------

constexpr int kWarp = 32;
CODEGEN_FAST_DEVICE int lane_id() { return threadIdx.x & 31; }
CODEGEN_FAST_DEVICE int warp_id() { return threadIdx.x >> 5; }

CODEGEN_FAST_DEVICE void sync_threads(Where where = Where::current()) { emulator::sync_threads(where); }
CODEGEN_FAST_DEVICE void sync_threads(int id, int threads, Where where = Where::current()) {
  emulator::sync_threads(id, threads, where);
}
CODEGEN_FAST_DEVICE void sync_warp(Where where = Where::current()) { emulator::sync_warp(where); }

template <class T> CODEGEN_FAST_DEVICE T shuffle_bits(emulator::Shuffle kind, T v, int argument, Where where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(static_cast<Bits>(emulator::shuffle(kind, std::bit_cast<Bits>(v), argument, where)));
}
template <class T> CODEGEN_FAST_DEVICE T shuffle_xor(T v, int mask, Where where = Where::current()) {
  return shuffle_bits(emulator::Shuffle::exchange_xor, v, mask, where);
}
template <class T> CODEGEN_FAST_DEVICE T shuffle_up(T v, int delta, Where where = Where::current()) {
  return shuffle_bits(emulator::Shuffle::up, v, delta, where);
}
template <class T> CODEGEN_FAST_DEVICE T shuffle(T v, int lane, Where where = Where::current()) {
  return shuffle_bits(emulator::Shuffle::from, v, lane, where);
}
CODEGEN_FAST_DEVICE uint32_t ballot(bool p, Where where = Where::current()) { return emulator::ballot(p, where); }
CODEGEN_FAST_DEVICE bool any_lane(bool p, Where where = Where::current()) { return emulator::ballot(p, where) != 0; }
CODEGEN_FAST_DEVICE int count_bits(uint32_t x) { return std::popcount(x); }
CODEGEN_FAST_DEVICE int first_bit(uint32_t x) { return x ? std::countr_zero(x) : -1; }

// ---- Memory ------------------------------------------------------------------------------------

CODEGEN_FAST_DEVICE char* shared_memory() { return emulator::shared_memory(); }
template <class T> CODEGEN_FAST_DEVICE T* in_register(T* p) { return p; }
CODEGEN_FAST_DEVICE uint32_t shared_address(const void* p, Where where = Where::current()) {
  return emulator::shared_address(p, where);
}

template <class T> CODEGEN_FAST_DEVICE T load_as(const void* p, Where where) {
  T v;
  emulator::load(&v, p, sizeof v, where);
  return v;
}
CODEGEN_FAST_DEVICE Bytes16 load16(const void* p, Where where = Where::current()) { return load_as<Bytes16>(p, where); }
CODEGEN_FAST_DEVICE void store16(void* p, Bytes16 b, Where where = Where::current()) {
  emulator::store(p, &b, 16, where);
}
CODEGEN_FAST_DEVICE Bytes8 load8(const void* p, Where where = Where::current()) { return load_as<Bytes8>(p, where); }
CODEGEN_FAST_DEVICE void store8(void* p, Bytes8 b, Where where = Where::current()) { emulator::store(p, &b, 8, where); }
CODEGEN_FAST_DEVICE uint32_t load4(const void* p, Where where = Where::current()) {
  return load_as<uint32_t>(p, where);
}
CODEGEN_FAST_DEVICE void store4(void* p, uint32_t v, Where where = Where::current()) {
  emulator::store(p, &v, 4, where);
}

CODEGEN_FAST_DEVICE int32_t atomic_add(int32_t* p, int32_t v, Where where = Where::current()) {
  return static_cast<int32_t>(emulator::atomic_add(p, static_cast<uint32_t>(v), where));
}
CODEGEN_FAST_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t v, Where where = Where::current()) {
  return emulator::atomic_add(p, v, where);
}
CODEGEN_FAST_DEVICE uint32_t atomic_max(uint32_t* p, uint32_t v, Where where = Where::current()) {
  return emulator::atomic_max(p, v, where);
}
CODEGEN_FAST_DEVICE void store_release_system(int64_t* p, int64_t v, Where where = Where::current()) {
  emulator::store_release_system(p, v, where);
}

// ---- Asynchronous copies -----------------------------------------------------------------------

CODEGEN_FAST_DEVICE void copy_async16(void* shared, const void* global, bool valid = true,
                                      Where where = Where::current()) {
  emulator::copy_async16(shared, global, valid, where);
}
CODEGEN_FAST_DEVICE void copy_async_commit() { emulator::copy_async_commit(); }
template <int Pending> CODEGEN_FAST_DEVICE void copy_async_wait() { emulator::copy_async_wait(Pending); }

// ---- mbarriers and the weight stream -----------------------------------------------------------

CODEGEN_FAST_DEVICE void barrier_init(Barrier* b, uint32_t arrivals, Where where = Where::current()) {
  emulator::barrier_init(b, arrivals, where);
}
CODEGEN_FAST_DEVICE void barrier_init_fence() { emulator::barrier_init_fence(); }
CODEGEN_FAST_DEVICE void barrier_arrive(Barrier* b, Where where = Where::current()) {
  emulator::barrier_arrive(b, where);
}
CODEGEN_FAST_DEVICE void barrier_wait(Barrier* b, uint32_t parity, Where where = Where::current()) {
  emulator::barrier_wait(b, parity, where);
}

constexpr uint32_t kStreamArrivals = CODEGEN_FAST_EMULATED_SM >= 90 ? 1 : 32;
CODEGEN_FAST_DEVICE void stream_copy(Barrier* b, void* shared, const void* global, uint32_t bytes,
                                     Where where = Where::current()) {
  emulator::stream_copy(b, shared, global, bytes, kStreamArrivals == 32, where);
}

// ---- Tensor cores ------------------------------------------------------------------------------

CODEGEN_FAST_DEVICE void load_matrix4(uint32_t r[4], const void* row, Where where = Where::current()) {
  emulator::load_matrix(r, row, 4, false, where);
}
CODEGEN_FAST_DEVICE void load_matrix4_transposed(uint32_t r[4], const void* row, Where where = Where::current()) {
  emulator::load_matrix(r, row, 4, true, where);
}
CODEGEN_FAST_DEVICE void load_matrix2(uint32_t r[2], const void* row, Where where = Where::current()) {
  emulator::load_matrix(r, row, 2, false, where);
}

template <class T>
CODEGEN_FAST_DEVICE void mma16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2],
                                      Where where = Where::current()) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>);
  if constexpr (std::is_same_v<T, f16>) emulator::mma_f16(d, a, b, where);
  else emulator::mma_bf16(d, a, b, where);
}
CODEGEN_FAST_DEVICE void mma16x8x32(int32_t d[4], const uint32_t a[4], const uint32_t b[2],
                                      Where where = Where::current()) {
  emulator::mma_s8(d, a, b, where);
}

// ---- Programmatic dependent launch -------------------------------------------------------------

CODEGEN_FAST_DEVICE void dependency_wait() { emulator::dependency_wait(); }
CODEGEN_FAST_DEVICE void dependency_launch() {}

}  // namespace codegen_fast::cuda
