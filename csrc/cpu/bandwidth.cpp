#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

#include "dispatch.h"
#include "huge_pages.h"
#include "layout.h"
#include "pool.h"

namespace codegen_fast::cpu {

double read_bandwidth(int64_t bytes, double seconds) {
  using clock = std::chrono::steady_clock;
  constexpr int64_t kPiece = 1 << 18;  // floats that a thread takes at a time: 1 MB
  const int64_t pieces = std::max<int64_t>(bytes / 4 / kPiece, 1);
  // As weights lie: on huge pages.
  const std::unique_ptr<float, decltype(&std::free)> memory(
      static_cast<float*>(std::aligned_alloc(kHugePage, round_up(pieces * kPiece * 4, kHugePage))), &std::free);
  if (!memory) throw std::bad_alloc();
  float* const buffer = memory.get();
  prefer_huge_pages(buffer, pieces * kPiece * 4);
  parallel_for(pieces, grain_for(pieces), [&](int64_t begin, int64_t end) {
    // Different everywhere: pages of equal content may be merged below a virtual machine.
    for (int64_t i = begin * kPiece; i < end * kPiece; ++i)
      buffer[i] = 1.0f + static_cast<float>(static_cast<uint32_t>(i) * 2654435761u >> 9) * 0x1p-23f;
  });

  std::atomic<int64_t> sink{0};  // keeps the reads from being left out
  double best = 0.0;
  const auto start = clock::now();
  do {
    const auto from = clock::now();
    parallel_for(pieces, grain_for(pieces), [&](int64_t begin, int64_t end) {
      const float sum = kernels().read(&buffer[begin * kPiece], (end - begin) * kPiece);
      sink.fetch_add(static_cast<int64_t>(sum), std::memory_order_relaxed);
    });
    const double took = std::chrono::duration<double>(clock::now() - from).count();
    best = std::max(best, static_cast<double>(pieces * kPiece) * 4 / took);
  } while (std::chrono::duration<double>(clock::now() - start).count() < seconds);
  return sink.load() > 0 ? best : 0.0;
}

}  // namespace codegen_fast::cpu
