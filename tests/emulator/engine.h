// What the emulated intrinsics ask of the engine. Everything here is called by threads of a running kernel, and is
// compiled without instrumentation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace codegen_fast::emulator {

using Where = std::source_location;  // of the call in the kernel

// Conversions, rounding to nearest even.
float f16_to_float(uint16_t h);
uint16_t f16_from_float(float x);
uint16_t bf16_from_float(float x);
float exp2_flushed(float x);
int32_t round_to_int32(float x);

// Threads and warps.
void sync_threads(Where where);
void sync_threads(int id, int threads, Where where);
void sync_warp(Where where);
enum class Shuffle { exchange_xor, up, from };
uint64_t shuffle(Shuffle kind, uint64_t value, int argument, Where where);
uint32_t ballot(bool predicate, Where where);

// Memory. Every access is checked like those of plain C++.
char* shared_memory();
uint32_t shared_address(const void* p, Where where);
void load(void* to, const void* p, unsigned bytes, Where where);   // aligned to `bytes`
void store(void* p, const void* from, unsigned bytes, Where where);
uint32_t atomic_add(void* p, uint32_t v, Where where);
uint32_t atomic_max(void* p, uint32_t v, Where where);
void store_release_system(int64_t* p, int64_t v, Where where);

// Asynchronous copies.
void copy_async16(void* shared, const void* global, bool valid, Where where);
void copy_async_commit();
void copy_async_wait(int pending);

// mbarriers and the weight stream.
void barrier_init(uint64_t* b, uint32_t arrivals, Where where);
void barrier_init_fence();
void barrier_arrive(uint64_t* b, Where where);
void barrier_wait(uint64_t* b, uint32_t parity, Where where);
// by_lanes: as below sm_90, by copies of the lanes; else one bulk copy.
void stream_copy(uint64_t* b, void* shared, const void* global, uint32_t bytes, bool by_lanes, Where where);

// Tensor cores.
void load_matrix(uint32_t* r, const void* row, int matrices, bool transposed, Where where);
void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], Where where);
void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], Where where);
void mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], Where where);

// Programmatic dependent launch.
void dependency_wait();

}  // namespace codegen_fast::emulator
