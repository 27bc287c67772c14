// The machine's own limit: bytes a second that its threads can read from memory.
#pragma once

#include <cstdint>

namespace codegen_fast::cpu {

// Reads a buffer of `bytes` over and over for about `seconds` on all threads; returns the best pass in bytes/s.
// The buffer should be several times the last cache (1 GB is plenty). Throws std::bad_alloc where there is no room.
double read_bandwidth(int64_t bytes, double seconds);

}  // namespace codegen_fast::cpu
