// The state of the block that runs, shared by the engine's files.
//
// A thread of the block is a fiber; one runs at a time. It goes on until it waits for something (a barrier, the other
// lanes of its warp) or is preempted, then pick() chooses another. A fault abandons all fibers of the block.
#pragma once

#include <array>
#include <bit>
#include <string>
#include <vector>

#include "../engine.h"
#include "grid.h"
#include "races.h"

namespace codegen_fast::emulator {

constexpr int kLanes = 32;
constexpr int kMaxWarps = 32;
constexpr int kNamedBarriers = 16;
constexpr size_t kSharedLimit = 227 * 1024;
constexpr unsigned char kPoison = 0xFF;  // NaN as float32, float16 and bfloat16

struct Copy {  // a copy_async16 that this thread issued
  char* to;
  const char* from;
  bool valid;
  int group;
  Where where;
};

struct Fiber {
  void* stack_pointer = nullptr;
  uintptr_t stack_begin = 0, stack_end = 0;
  int thread = 0;
  bool exited = false;
  bool depends = false;             // dependency_wait() is behind this thread, its own or one that it was ordered after
  const char* waits_for = nullptr;  // null: could run
  int waits_at = 0;                 // named barrier's number, or mbarrier's place in shared memory
  Where where;
  std::vector<Copy> copies;         // under way, oldest first
  int group = 0;                    // of the next commit

  int warp() const { return thread / kLanes; }
  int lane() const { return thread % kLanes; }
};

struct Warp {
  uint32_t runnable = 0, exited = 0;
  // the collective that lanes are waiting in
  uint32_t arrived = 0;
  const char* collective = nullptr;
  Where where;
  std::array<uint64_t, kLanes> value, result;
  std::array<int, kLanes> argument;
  std::array<const void*, kLanes> a, b;
  std::array<void*, kLanes> d;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  bool depends = false;
  Clock clock = {};
  std::array<uint32_t, kMaxWarps> waiting = {};
};

// An mbarrier; the 8 bytes in shared memory only hold a mark and its index.
struct MemoryBarrier {
  uint32_t place;  // offset in shared memory
  uint32_t expected, pending;
  int64_t bytes = 0;  // that copies still have to deliver in this phase
  uint32_t phase = 0;
  bool fenced = false, depends = false;
  uint32_t copied = 0, observed = 0;  // phases that must be waited for because they copy, and that have been
  Clock arriving = {}, complete = {};  // of arrivals, and of those in phases that are complete
  std::array<uint32_t, kMaxWarps> waiting = {};
};

// Something that happens at a time of its own: a bulk copy arriving, or a lane's copies being complete.
struct Event {
  int barrier;
  char* to = nullptr;
  const char* from = nullptr;
  uint32_t bytes = 0;
  Fiber* fiber = nullptr;  // of the lane whose copies are to be complete, up to and with `copies`
  size_t copies = 0;
  Clock clock = {};        // of the lane when it asked for that
};

struct State {
  // what every access is compared with
  uintptr_t stack_begin = 0;
  size_t stack_bytes = 0;
  uintptr_t shared_begin = 0;
  size_t shared_bytes = 0;
  int until_preemption = 1;

  const GridLaunch* launch = nullptr;
  Fiber* current = nullptr;
  void* main_stack_pointer = nullptr;
  int num_threads = 0, num_warps = 0, alive = 0;
  uint32_t runnable_warps = 0;
  std::vector<Fiber> fibers;
  std::array<Warp, kMaxWarps> warps;
  std::array<NamedBarrier, kNamedBarriers> named;
  std::vector<MemoryBarrier> barriers;
  std::vector<Event> events;
  uint64_t random_state = 1;
  uint64_t preemptions = 0;

  bool failed = false;
  std::string error;
};
inline State g;
// Whether this host thread is inside a kernel.
inline thread_local bool t_in_kernel __attribute__((tls_model("initial-exec"))) = false;

inline uint32_t random_bits() {
  g.random_state ^= g.random_state << 13;
  g.random_state ^= g.random_state >> 7;
  g.random_state ^= g.random_state << 17;
  return static_cast<uint32_t>(g.random_state >> 32);
}
inline uint32_t random_below(uint32_t n) { return static_cast<uint32_t>(uint64_t{random_bits()} * n >> 32); }

// Ends the launch with a KernelError: what, of the thread that runs. For all faults.
[[noreturn]] void fail(const std::string& what, const std::string& at);
std::string place_of(const Where& where);
std::string hex(uintptr_t address);

// The thread that runs waits until it is woken.
void wait_for(const char* what, int at, Where where);
void wake(int warp, uint32_t lanes);
// The thread that runs lets others go first.
void yield();
void preempt();

// Faults unless this access is legal. return_address or where tell the line.
void check_other(uintptr_t address, size_t bytes, Access kind, const void* return_address, const Where* where);
inline void check_access(uintptr_t address, size_t bytes, Access kind, const void* return_address, const Where* where) {
  if (--g.until_preemption <= 0) preempt();
  if (address - g.stack_begin <= g.stack_bytes - bytes) return;
  check_other(address, bytes, kind, return_address, where);
}
void check_aligned(uintptr_t address, size_t alignment, const char* what, const Where& where);
// The offset in the block's shared memory; faults where the bytes are not in it.
uint32_t shared_offset(const void* p, size_t bytes, const char* what, const Where& where);
void check_regions();  // a launch begins: forget what was remembered of the one before

// Fills shared memory that an asynchronous copy will write.
void poison(char* to, size_t bytes);
// Delivers one event; false if there is none.
bool deliver_event();
void deliver_copies(Fiber& fiber, size_t count);
std::string describe_barrier(int place);

}  // namespace codegen_fast::emulator
