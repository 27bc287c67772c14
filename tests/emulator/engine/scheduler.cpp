// Runs grids: blocks in a seeded order, and in a block warps and lanes in a seeded order.
#include <cstring>
#include <mutex>
#include <numeric>

#include "fibers.h"
#include "state.h"

// The variables that cuda_runtime.h declares as constants, by the names that the linker knows.
uint3 g_thread_index asm("threadIdx");
uint3 g_block_index asm("blockIdx");
dim3 g_grid_size asm("gridDim");
dim3 g_block_size asm("blockDim");

namespace codegen_fast::emulator {
namespace {

std::mutex g_one_grid_at_a_time;
uint64_t g_seed = 0;
std::vector<char*> g_stacks;
char* g_shared = nullptr;

void go_on_with(Fiber* next) {
  g.current = next;
  g.stack_begin = next->stack_begin;
  g_thread_index.x = static_cast<unsigned>(next->thread);
}

void switch_to(Fiber* next) {
  Fiber* before = g.current;
  if (next == before) return;
  go_on_with(next);
  switch_stack(&before->stack_pointer, next->stack_pointer);
}

std::string describe_waiting() {
  std::string s;
  int listed = 0;
  for (int first = 0; first < g.num_threads && listed < 6;) {
    const Fiber& f = g.fibers[first];
    int last = first;
    auto same = [&](const Fiber& o) {
      return o.exited == f.exited && (f.exited || (o.waits_for == f.waits_for && o.waits_at == f.waits_at &&
                                                   o.where.line() == f.where.line()));
    };
    while (last + 1 < g.num_threads && same(g.fibers[last + 1])) ++last;
    s += "\n  " + (first == last ? "thread " + std::to_string(first)
                                 : "threads " + std::to_string(first) + " to " + std::to_string(last));
    if (f.exited) {
      s += first == last ? " has exited" : " have exited";
    } else {
      s += (first == last ? " waits for " : " wait for ") + std::string(f.waits_for) +
           (std::strcmp(f.waits_for, "mbarrier") == 0 ? " " + describe_barrier(f.waits_at) : "") +
           (f.waits_at && std::strcmp(f.waits_for, "sync_threads") == 0 ? " " + std::to_string(f.waits_at) : "") +
           " at " + place_of(f.where);
    }
    first = last + 1;
    ++listed;
  }
  return s;
}

// The thread to go on with: of this warp while it has some, and now and then of another.
Fiber* pick() {
  const int here = g.current ? g.current->warp() : -1;
  const uint32_t bits = random_bits();
  if (!g.events.empty() && bits % 8 == 0) deliver_event();
  int w = here;
  if (here < 0 || !g.warps[here].runnable || bits / 8 % 16 == 0) {
    while (!g.runnable_warps)
      if (!deliver_event()) fail("deadlock:" + describe_waiting(), "");
    int nth = static_cast<int>(random_below(std::popcount(g.runnable_warps)));
    uint32_t left = g.runnable_warps;
    while (nth--) left &= left - 1;
    w = std::countr_zero(left);
  }
  const uint32_t lanes = g.warps[w].runnable;
  const int turn = static_cast<int>(bits >> 27);
  const uint32_t turned = std::rotr(lanes, turn);
  const int lane = ((bits >> 26 & 1 ? std::countr_zero(turned) : 31 - std::countl_zero(turned)) + turn) % kLanes;
  return &g.fibers[w * kLanes + lane];
}

void stop_running(Fiber& f) {
  Warp& w = g.warps[f.warp()];
  w.runnable &= ~(1u << f.lane());
  if (!w.runnable) g.runnable_warps &= ~(1u << f.warp());
}

void leave_block() {
  Fiber& f = *g.current;
  Warp& w = g.warps[f.warp()];
  if (w.arrived)
    fail(std::string("exits while other lanes of its warp wait for it in ") + w.collective, place_of(w.where));
  if (g.named[0].arrived)
    fail("exits while other threads of the block wait for it in sync_threads", "");
  f.exited = true;
  g.preemptions = 0;
  w.exited |= 1u << f.lane();
  stop_running(f);
  --g.alive;
}

void fiber_entry() {
  const KernelCall& call = g.launch->call;
  call.call(call.arguments.get());
  leave_block();
  if (g.alive) {
    switch_to(pick());
  } else {
    void* unused;
    switch_stack(&unused, g.main_stack_pointer);
  }
  __builtin_unreachable();
}

void check_block_end() {
  for (const MemoryBarrier& b : g.barriers)
    if (b.copied > b.observed)
      fail("the block ends while a stream_copy is under way: nobody waited for its barrier", "");
  bool depends = false;
  for (int i = 0; i < g.num_threads; ++i) depends |= g.fibers[i].depends;
  if (!depends) fail("the block ends and none of its threads has called dependency_wait()", "");
}


void run_block(const GridLaunch& launch, uint3 block) {
  g_block_index = block;
  g_grid_size = launch.blocks;
  g_block_size = launch.threads;
  g.num_threads = static_cast<int>(launch.threads.x);
  g.num_warps = g.num_threads / kLanes;
  g.alive = g.num_threads;
  g.runnable_warps = g.num_warps == 32 ? ~0u : (1u << g.num_warps) - 1;
  g.shared_begin = reinterpret_cast<uintptr_t>(g_shared);
  g.shared_bytes = launch.shared_bytes;
  g.preemptions = 0;
  std::memset(g_shared, kPoison, launch.shared_bytes);
  for (int i = 0; i < g.num_warps; ++i) {
    g.warps[i].runnable = ~0u;
    g.warps[i].exited = g.warps[i].arrived = 0;
  }
  for (NamedBarrier& b : g.named) b = {};
  g.barriers.clear();
  g.events.clear();
  reset_races();
  for (int i = 0; i < g.num_threads; ++i) {
    Fiber& f = g.fibers[i];
    f.thread = i;
    f.exited = f.depends = false;
    f.waits_for = nullptr;
    f.copies.clear();
    f.group = 0;
    f.stack_begin = reinterpret_cast<uintptr_t>(g_stacks[i]);
    f.stack_end = f.stack_begin + kStackBytes;
    f.stack_pointer = prepare_stack(g_stacks[i], i, fiber_entry);
  }
  g.current = nullptr;
  Fiber* first = pick();
  go_on_with(first);
  switch_stack(&g.main_stack_pointer, first->stack_pointer);
  g.current = nullptr;
  if (g.failed) throw KernelError(g.error);
  check_block_end();
}

}  // namespace

void set_seed(uint64_t seed) { g_seed = seed; }

void fail(const std::string& what, const std::string& at) {
  std::string s = "kernel " + kernel_name(g.launch->call.kernel) + ", block (" + std::to_string(blockIdx.x) + "," +
                  std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) + ")";
  if (g.current) s += ", thread " + std::to_string(g.current->thread);
  s += ": " + what;
  if (!at.empty()) s += ", at " + at;
  g.failed = true;
  g.error = s;
  if (!g.current) throw KernelError(s);
  void* unused;
  switch_stack(&unused, g.main_stack_pointer);
  __builtin_unreachable();
}

std::string place_of(const Where& where) { return short_path(where.file_name()) + ":" + std::to_string(where.line()); }

void wait_for(const char* what, int at, Where where) {
  Fiber& f = *g.current;
  f.waits_for = what;
  f.waits_at = at;
  f.where = where;
  stop_running(f);
  g.preemptions = 0;
  switch_to(pick());
  f.waits_for = nullptr;
}

void wake(int warp, uint32_t lanes) {
  if (!lanes) return;
  g.warps[warp].runnable |= lanes;
  g.runnable_warps |= 1u << warp;
}

void yield() { switch_to(pick()); }

void preempt() {
  g.until_preemption = 1 + static_cast<int>(random_below(2048));
  // 300 million accesses and no thread has come to a barrier, a collective or its end
  if (++g.preemptions > 300'000) fail("does not come to an end: it polls memory, or loops", "");
  yield();
}

void run_grid(const GridLaunch& launch) {
  const std::lock_guard lock(g_one_grid_at_a_time);
  if (!g_shared) {
    // 128-byte aligned and no more
    static char* memory = new char[kSharedLimit + 4096];
    g_shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 1024) / 1024 * 1024 + 128);
  }
  g.fibers.resize(kMaxWarps * kLanes);
  while (g_stacks.size() < launch.threads.x) g_stacks.push_back(new_stack());
  g.launch = &launch;
  g.failed = false;
  g.stack_bytes = kStackBytes;
  g.random_state = (g_seed + 1) * 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < 4; ++i) random_below(2);
  g.until_preemption = 1 + static_cast<int>(random_below(2048));
  check_regions();

  const size_t count = size_t{launch.blocks.x} * launch.blocks.y * launch.blocks.z;
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_below(static_cast<uint32_t>(i))]);

  struct Inside {
    Inside() { t_in_kernel = true; }
    ~Inside() {
      t_in_kernel = false;
      g.launch = nullptr;
      g.current = nullptr;
    }
  } const inside;
  for (const uint32_t i : order)
    run_block(launch, {i % launch.blocks.x, i / launch.blocks.x % launch.blocks.y,
                       i / launch.blocks.x / launch.blocks.y});
}

}  // namespace codegen_fast::emulator
