// threads_test NAME ...    the pool and generation from several threads at once, on these instruction sets
//
// Built for ThreadSanitizer, which sees every access of the threads and their order; what is expected here must hold
// without it too. Threads report through what they alone write, so that the test itself has no race.
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/pool.h"
#include "checks.h"

namespace isa_test {
namespace {

constexpr int kCallers = 4;

// f(i) for i in [0, kCallers) on threads of their own; how many of them said false.
template <class F>
int failures_of_callers(F f) {
  std::vector<char> right(kCallers, 0);
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) callers.emplace_back([&, i] { right[i] = f(i); });
  for (std::thread& caller : callers) caller.join();
  return static_cast<int>(std::count(right.begin(), right.end(), 0));
}

// Whether a region of n items gives every item to one thread, once, and what the threads wrote is there afterwards.
bool covers(int64_t n, int64_t grain) {
  std::vector<int> taken(n, 0);
  cpu::parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++taken[i];
  });
  return std::count(taken.begin(), taken.end(), 1) == n;
}

bool covers_every_size(int rounds) {
  bool right = true;
  for (int round = 0; round < rounds; ++round)
    for (int64_t n : {0, 1, 2, 7, 64, 1000}) right = covers(n, 1 + round % 5) && right;
  return right;
}

// Changes the number of threads over and over while others use them.
class Resizing {
 public:
  Resizing() : thread_([this] {
    for (int i = 0; !done_.load(); ++i) {
      cpu::set_num_threads(1 + i % 5);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }) {}
  ~Resizing() {
    done_.store(true);
    thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

void test_pool() {
  for (int threads : {1, 2, 5}) {
    cpu::set_num_threads(threads);
    EXPECT(covers_every_size(20), "%d threads, one caller", threads);
    EXPECT(failures_of_callers([](int) { return covers_every_size(20); }) == 0, "%d threads", threads);
  }
  const Resizing resizing;
  EXPECT(failures_of_callers([](int) { return covers_every_size(60); }) == 0, "a changing number of threads");
}

// A child has none of its parent's threads and gets its own, also where it was made in the middle of a region.
void test_forks() {
  cpu::set_num_threads(3);
  std::atomic<bool> done{false};
  std::thread busy([&] {
    while (!done.load()) covers(1000, 1);
  });
  for (int i = 0; i < 10; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      const bool alone = covers_every_size(1);
      cpu::set_num_threads(3);
      _exit(alone && covers_every_size(3) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "fork %d: the child ended with %d", i, status);
  }
  done.store(true);
  busy.join();
  EXPECT(covers_every_size(3), "after the forks");
}

// Callers generate at once, each with weights of another kind: the tokens and logits of every one are those it gets
// alone, whatever the number of threads is meanwhile.
void test_generation() {
  const Weights kinds[kCallers] = {{DType::f32}, {DType::i8}, {DType::i8, 32}, {DType::i4, 32}};
  const DType pages[kCallers] = {DType::f32, DType::f16, DType::bf16, DType::f32};
  std::vector<ModelRun> alone;
  cpu::set_num_threads(1);
  for (int i = 0; i < kCallers; ++i) alone.push_back(run_model(kinds[i], pages[i], 20));
  const auto same_as_alone = [&](int i) {
    const ModelRun run = run_model(kinds[i], pages[i], 20);
    return run.tokens == alone[i].tokens && run.logits.size() == alone[i].logits.size() &&
           std::memcmp(run.logits.data(), alone[i].logits.data(), run.logits.size() * sizeof(float)) == 0;
  };
  cpu::set_num_threads(3);
  EXPECT(failures_of_callers(same_as_alone) == 0, "%d generations at once, 3 threads", kCallers);
  const Resizing resizing;
  EXPECT(failures_of_callers(same_as_alone) == 0, "%d generations at once, a changing number of threads", kCallers);
}

}  // namespace
}  // namespace isa_test

int main(int argc, char** argv) {
  using namespace isa_test;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto start = std::chrono::steady_clock::now();
  const auto report = [&](const char* what) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s: %s (%.1f s)\n", what, g_failures ? "FAILED" : "passed", seconds);
  };
  g_isa = "pool";
  test_pool();
  report("pool");
  test_forks();
  report("forks");
  for (int i = 1; i < argc; ++i) {
    g_isa = argv[i];
    cpu::force_isa(g_isa);
    test_generation();
    report(argv[i]);
  }
  if (g_failures) std::fprintf(stderr, "%d expectations failed\n", g_failures);
  return g_failures ? 1 : 0;
}
