// Barriers of the block, mbarriers, and the asynchronous copies that complete them.
//
// The destination of a copy is poisoned when it is issued, and the data comes when it is waited for or at a seeded
// earlier time, in any order: whoever reads too early sees NaN.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace codegen_fast::emulator {
namespace {

constexpr uint64_t kMark = 0xBA221E2'0000'0000ull;

void name_barrier_arrive(int id, int threads, Where where) {
  Fiber& f = *g.current;
  NamedBarrier& b = g.named[id];
  if (b.arrived && b.expected != threads)
    fail("waits at barrier " + std::to_string(id) + " with " + std::to_string(threads) + " threads, others with " +
         std::to_string(b.expected), place_of(where));
  b.expected = threads;
  b.depends |= f.depends;
  release(f.warp(), b.clock);
  b.waiting[f.warp()] |= 1u << f.lane();
  if (++b.arrived < threads) {
    wait_for("sync_threads", id, where);
    return;
  }
  const NamedBarrier done = b;
  b = {};
  for (int w = 0; w < g.num_warps; ++w) {
    for (uint32_t left = done.waiting[w]; left; left &= left - 1)
      g.fibers[w * kLanes + std::countr_zero(left)].depends |= done.depends;
    if (!done.waiting[w]) continue;
    acquire(w, done.clock);
    order_lanes(w);
    wake(w, done.waiting[w]);
  }
  yield();
}

int find_barrier(const uint64_t* b, const char* what, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(b), 8, what, where);
  const uint32_t place = shared_offset(b, 8, what, where);
  for (size_t i = 0; i < g.barriers.size(); ++i)
    if (g.barriers[i].place == place) {
      check_access(reinterpret_cast<uintptr_t>(b), 8, Access::atomic, nullptr, &where);
      if (*b == kMark + i) return static_cast<int>(i);
      fail(std::string(what) + ": the mbarrier at shared memory + " + std::to_string(place) + " has been overwritten",
           place_of(where));
    }
  fail(std::string(what) + ": no barrier_init() of shared memory + " + std::to_string(place) + " (or not yet)",
      place_of(where));
}

// Ends the phase when all have arrived and all bytes are there.
void try_complete(MemoryBarrier& b) {
  if (b.pending || b.bytes) return;
  b.pending = b.expected;
  ++b.phase;
  join(b.complete, b.arriving);
  for (int w = 0; w < g.num_warps; ++w) {
    wake(w, b.waiting[w]);
    b.waiting[w] = 0;
  }
}

void arrive(MemoryBarrier& b, const Where* where) {
  if (b.pending == 0)
    fail("more arrivals in a phase of the mbarrier at shared memory + " + std::to_string(b.place) + " than its " +
         std::to_string(b.expected), where ? place_of(*where) : "");
  --b.pending;
  b.depends |= g.current && g.current->depends;
}

void deliver_copy(const Copy& c) {
  if (c.valid) std::memcpy(c.to, c.from, 16);
  else std::memset(c.to, 0, 16);
}

}  // namespace

void sync_threads(Where where) {
  if (g.alive != g.num_threads)
    fail("sync_threads while " + std::to_string(g.num_threads - g.alive) + " threads of the block have exited",
        place_of(where));
  name_barrier_arrive(0, g.num_threads, where);
}

void sync_threads(int id, int threads, Where where) {
  if (id < 1 || id >= kNamedBarriers)
    fail("sync_threads of barrier " + std::to_string(id) + ", expected 1 to 15", place_of(where));
  if (threads <= 0 || threads % kLanes || threads > g.num_threads)
    fail("sync_threads of " + std::to_string(threads) + " threads in a block of " + std::to_string(g.num_threads) +
         ", expected a multiple of 32", place_of(where));
  name_barrier_arrive(id, threads, where);
}

void copy_async16(void* shared, const void* global, bool valid, Where where) {
  Fiber& f = *g.current;
  check_aligned(reinterpret_cast<uintptr_t>(shared), 16, "copy_async16 to", where);
  shared_offset(shared, 16, "copy_async16 to", where);
  check_access(reinterpret_cast<uintptr_t>(shared), 16, Access::write, nullptr, &where);
  if (valid) {
    check_aligned(reinterpret_cast<uintptr_t>(global), 16, "copy_async16 from", where);
    check_access(reinterpret_cast<uintptr_t>(global), 16, Access::read, nullptr, &where);
  }
  poison(static_cast<char*>(shared), 16);
  f.copies.push_back({static_cast<char*>(shared), static_cast<const char*>(global), valid, f.group, where});
}

void copy_async_commit() {
  Fiber& f = *g.current;
  ++f.group;
  if (g.events.empty() && random_below(8) == 0 && !f.copies.empty())
    deliver_copies(f, 1 + random_below(static_cast<uint32_t>(f.copies.size())));
}

void copy_async_wait(int pending) {
  Fiber& f = *g.current;
  size_t n = 0;
  while (n < f.copies.size() && f.copies[n].group < f.group - pending) ++n;
  for (size_t i = 0; i < n; ++i) {
    const Copy& c = f.copies[i];
    note_shared(shared_offset(c.to, 16, "", c.where), 16, Access::write, nullptr, &c.where);
  }
  deliver_copies(f, n);
}

void deliver_copies(Fiber& f, size_t count) {
  for (size_t i = 0; i < count; ++i) deliver_copy(f.copies[i]);
  f.copies.erase(f.copies.begin(), f.copies.begin() + static_cast<std::ptrdiff_t>(count));
  if (!count) return;
  for (Event& e : g.events)
    if (e.fiber == &f) e.copies -= std::min(e.copies, count);
}

void barrier_init(uint64_t* b, uint32_t arrivals, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(b), 8, "barrier_init", where);
  const uint32_t place = shared_offset(b, 8, "barrier_init", where);
  check_access(reinterpret_cast<uintptr_t>(b), 8, Access::write, nullptr, &where);
  if (arrivals < 1 || arrivals >= 1u << 20)
    fail("barrier_init with " + std::to_string(arrivals) + " arrivals", place_of(where));
  size_t i = 0;
  while (i < g.barriers.size() && g.barriers[i].place != place) ++i;
  if (i == g.barriers.size()) g.barriers.emplace_back();
  for (const uint32_t waiting : g.barriers[i].waiting)
    if (waiting) fail("barrier_init of an mbarrier that threads wait for", place_of(where));
  g.barriers[i] = {.place = place, .expected = arrivals, .pending = arrivals};
  *b = kMark + i;
}

void barrier_init_fence() {
  for (MemoryBarrier& b : g.barriers) b.fenced = true;
}

void barrier_arrive(uint64_t* b, Where where) {
  MemoryBarrier& m = g.barriers[find_barrier(b, "barrier_arrive", where)];
  arrive(m, &where);
  release(g.current->warp(), m.arriving);
  try_complete(m);
}

void barrier_wait(uint64_t* b, uint32_t parity, Where where) {
  if (parity > 1) fail("barrier_wait for parity " + std::to_string(parity), place_of(where));
  const int i = find_barrier(b, "barrier_wait", where);
  Fiber& f = *g.current;
  while ((g.barriers[i].phase & 1) == parity) {
    g.barriers[i].waiting[f.warp()] |= 1u << f.lane();
    wait_for("mbarrier", static_cast<int>(g.barriers[i].place), where);
  }
  f.depends |= g.barriers[i].depends;
  g.barriers[i].observed = g.barriers[i].phase;
  acquire(f.warp(), g.barriers[i].complete);
  order_lanes(f.warp());
}

void stream_copy(uint64_t* b, void* shared, const void* global, uint32_t bytes, bool by_lanes, Where where) {
  Fiber& f = *g.current;
  const int i = find_barrier(b, "stream_copy", where);
  if (!g.barriers[i].fenced)
    fail("stream_copy on an mbarrier without barrier_init_fence() after barrier_init()", place_of(where));
  check_aligned(reinterpret_cast<uintptr_t>(shared), 16, "stream_copy to", where);
  check_aligned(reinterpret_cast<uintptr_t>(global), 16, "stream_copy from", where);
  check_aligned(bytes, 16, "the size of a stream_copy", where);
  if (bytes == 0) fail("stream_copy of 0 bytes", place_of(where));
  shared_offset(shared, bytes, "stream_copy to", where);
  if (by_lanes) {
    for (uint32_t at = static_cast<uint32_t>(f.lane()) * 16; at < bytes; at += kLanes * 16)
      copy_async16(static_cast<char*>(shared) + at, static_cast<const char*>(global) + at, true, where);
    g.events.push_back({.barrier = i, .fiber = &f, .copies = f.copies.size()});
    release(f.warp(), g.events.back().clock);
    return;
  }
  if (f.lane() == 0) {
    check_access(reinterpret_cast<uintptr_t>(shared), bytes, Access::write, nullptr, &where);
    check_access(reinterpret_cast<uintptr_t>(global), bytes, Access::read, nullptr, &where);
    poison(static_cast<char*>(shared), bytes);
    MemoryBarrier& m = g.barriers[i];
    m.bytes += bytes;
    m.copied = m.phase + 1;
    arrive(m, &where);
    release(f.warp(), m.arriving);
    char* const to = static_cast<char*>(shared);
    g.events.push_back({.barrier = i, .to = to, .from = static_cast<const char*>(global), .bytes = bytes});
  }
  sync_warp(where);
}

bool deliver_event() {
  if (g.events.empty()) return false;
  const size_t n = random_below(static_cast<uint32_t>(g.events.size()));
  const Event e = g.events[n];
  g.events.erase(g.events.begin() + static_cast<std::ptrdiff_t>(n));
  MemoryBarrier& m = g.barriers[e.barrier];
  if (e.fiber) {
    deliver_copies(*e.fiber, std::min(e.copies, e.fiber->copies.size()));
    arrive(m, nullptr);
    join(m.arriving, e.clock);
  } else {
    std::memcpy(e.to, e.from, e.bytes);
    m.bytes -= e.bytes;
  }
  try_complete(m);
  return true;
}

void poison(char* to, size_t bytes) { std::memset(to, kPoison, bytes); }

std::string describe_barrier(int place) {
  for (const MemoryBarrier& b : g.barriers)
    if (static_cast<int>(b.place) == place)
      return "at shared memory + " + std::to_string(place) + " (" + std::to_string(b.phase) +
             " phases complete, in this one " +
             std::to_string(b.pending) + " of " + std::to_string(b.expected) + " arrivals" +
             (b.bytes ? " and " + std::to_string(b.bytes) + " bytes" : "") + " missing)";
  return "";
}

void dependency_wait() { g.current->depends = true; }

}  // namespace codegen_fast::emulator
