#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "../view.h"
#include "float_environment.h"

namespace codegen_fast::cpu {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Between two ops of a decode step a few microseconds of Python pass; waking a sleeping thread costs tens.
constexpr int kSpins = 4000;
constexpr int kMaxThreads = 256;

class Pool {
 public:
  int size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int n) {
    if (n == wanted_.load(std::memory_order_relaxed)) return;  // asked before every step: without waiting for others
    std::lock_guard<std::mutex> lock(region_);
    stop();
    quit_.store(false);
    try {
      for (int i = 1; i < n; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {
      // The system gives no more threads: those there are do the work, and results are the same.
    }
    size_.store(static_cast<int>(workers_.size()) + 1);
    wanted_.store(n);
  }

  void run(int64_t n, int64_t grain, detail::Body body, void* context) {
    if (size() == 1 || n <= grain || !region_.try_lock()) {
      body(context, 0, n);
      return;
    }
    const int threads = size();
    for (int i = 0; i < threads; ++i) {
      shares_[i].next.store(n * i / threads, std::memory_order_relaxed);
      shares_[i].end = n * (i + 1) / threads;
    }
    grain_ = grain;
    body_ = body;
    context_ = context;
    open_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    take_pieces(0);
    // A worker that has not woken by now finds the region closed and never touches it.
    open_.store(false);
    for (int spins = 0; active_.load() != 0;) {
      if (++spins < kSpins) pause();
      else std::this_thread::yield();
    }
    region_.unlock();
  }

 private:
  // A share of the range, which its thread takes from the front, a stream of its own; who is done helps the others.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void take_pieces(int thread) {
    const int threads = size();
    for (int i = 0; i < threads; ++i) {
      Share& share = shares_[(thread + i) % threads];
      for (;;) {
        const int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= share.end) break;
        body_(context_, begin, std::min(begin + grain_, share.end));
      }
    }
  }

  void work(int thread) {
    const FloatEnvironment standard;
    uint64_t seen = 0;
    for (;;) {
      for (int spins = 0; generation_.load() == seen && spins < kSpins; ++spins) pause();
      generation_.wait(seen);
      seen = generation_.load();
      if (quit_.load()) return;
      active_.fetch_add(1);
      if (open_.load()) take_pieces(thread);
      active_.fetch_sub(1);
    }
  }

  void stop() {
    quit_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& w : workers_) w.join();
    workers_.clear();
  }

  std::mutex region_;  // held for the length of a parallel region
  std::vector<std::thread> workers_;
  std::atomic<int> wanted_{1};  // size_ is smaller where the system gave no more threads
  std::atomic<int> size_{1};
  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> open_{false};
  std::atomic<bool> quit_{false};
  std::atomic<int> active_{0};  // workers that may be reading the region below
  Share shares_[kMaxThreads];
  int64_t grain_ = 1;
  detail::Body body_ = nullptr;
  void* context_ = nullptr;
};

// Never destroyed: joining threads while the interpreter exits can hang.
std::atomic<Pool*> g_pool{new Pool};
// Threads don't survive a fork, and a lock may be held in the parent: the child gets a pool of its own.
const int g_at_fork = pthread_atfork(nullptr, nullptr, [] { g_pool.store(new Pool); });

Pool& pool() {
  (void)g_at_fork;
  return *g_pool.load(std::memory_order_acquire);
}

}  // namespace

void set_num_threads(int n) {
  if (n < 1) throw ValueError("num_threads: expected at least 1, got " + std::to_string(n));
  pool().resize(std::min(n, kMaxThreads));
}

int num_threads() { return pool().size(); }

namespace detail {
void parallel_for(int64_t n, int64_t grain, Body body, void* context) {
  if (n <= 0) return;
  pool().run(n, std::max<int64_t>(grain, 1), body, context);
}
}  // namespace detail

int64_t grain_for(int64_t n, int pieces) {
  const int64_t parts = static_cast<int64_t>(num_threads()) * pieces;
  return std::max<int64_t>(1, (n + parts - 1) / parts);
}

}  // namespace codegen_fast::cpu
