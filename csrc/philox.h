// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), for every backend.
//
// A counter-based generator has no state: the draw for (seed, sample, position) is a function of these three, so a
// token's randomness depends neither on the batch it was drawn in nor on the order of rows.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CODEGEN_FAST_HOST_DEVICE __host__ __device__
#else
#define CODEGEN_FAST_HOST_DEVICE
#endif

namespace codegen_fast {

struct Philox4x32 {
  uint32_t v[4];
};

CODEGEN_FAST_HOST_DEVICE inline Philox4x32 philox4x32_10(uint64_t key, Philox4x32 counter) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.v[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.v[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.v[1] ^ k0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// A uniform draw in [0, 1) with 53 random bits. Key: the seed. Counter: (position, sample_index, 0, 0).
CODEGEN_FAST_HOST_DEVICE inline double philox_uniform(uint64_t seed, uint32_t sample_index, uint32_t position) {
  const Philox4x32 r = philox4x32_10(seed, {{position, sample_index, 0, 0}});
  const uint64_t bits = (uint64_t{r.v[1]} << 32 | r.v[0]) >> 11;
  return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

}  // namespace codegen_fast
