#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>

#include "pool.h"

namespace codegen_fast::cpu {

double read_bandwidth(int64_t bytes, double seconds) {
  using clock = std::chrono::steady_clock;
  const int64_t words = std::max<int64_t>(bytes / 8, 1024);
  std::unique_ptr<uint64_t[]> buffer(new uint64_t[words]);
  const int64_t grain = grain_for(words);
  parallel_for(words, grain, [&](int64_t begin, int64_t end) { std::memset(&buffer[begin], 1, (end - begin) * 8); });

  std::atomic<uint64_t> sink{0};
  double best = 0.0;
  const auto start = clock::now();
  do {
    const auto from = clock::now();
    parallel_for(words, grain, [&](int64_t begin, int64_t end) {
      // Eight independent sums: the loads, not the additions, must be what takes the time.
      uint64_t sums[8] = {};
      int64_t i = begin;
      for (; i + 8 <= end; i += 8)
        for (int j = 0; j < 8; ++j) sums[j] += buffer[i + j];
      for (; i < end; ++i) sums[0] += buffer[i];
      uint64_t total = 0;
      for (uint64_t s : sums) total += s;
      sink.fetch_add(total, std::memory_order_relaxed);
    });
    const double took = std::chrono::duration<double>(clock::now() - from).count();
    best = std::max(best, static_cast<double>(words) * 8 / took);
  } while (std::chrono::duration<double>(clock::now() - start).count() < seconds);
  return sink.load() == 0 ? 0.0 : best;
}

}  // namespace codegen_fast::cpu
