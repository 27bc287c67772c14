// Races on shared memory, found by what orders two accesses and not by when they happened to run.
//
// Between warps the order comes from barriers: every warp has a vector clock, which barriers and mbarriers pass on.
// Within a warp two lanes are ordered by sync_warp and by barriers, not by shuffles or products (as on the GPU). A race
// is two accesses to a byte, one of them a write, not both atomic, that nothing orders.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "../engine.h"

namespace codegen_fast::emulator {

using Clock = std::array<uint32_t, 32>;  // one entry a warp

void reset_races();  // a block begins
enum class Access : uint8_t { read, write, atomic };
// An access of the thread that runs. Faults where it races with an earlier one.
void note_shared(uint32_t offset, size_t bytes, Access kind, const void* return_address, const Where* where);

// What `warp` has done until now comes before whatever acquires this clock.
void release(int warp, Clock& clock);
void acquire(int warp, const Clock& clock);
void join(Clock& to, const Clock& from);
// The lanes of `warp` have waited for each other.
void order_lanes(int warp);

}  // namespace codegen_fast::emulator
