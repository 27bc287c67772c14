// Which memory a kernel may touch, and the check of every access. The kernels' own loads and stores come here because
// they are compiled with -fsanitize=thread, whose calls are answered by this file instead of ThreadSanitizer.
#include <cxxabi.h>
#include <link.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>

#include "state.h"

namespace codegen_fast::emulator {
namespace {

thread_local std::shared_ptr<const Regions> t_memory;
std::mutex g_allocations_mutex;
std::map<uintptr_t, Region> g_allocations;

// The last regions that were hit: most accesses go to one of two.
const Region* g_last[2];

bool inside(const Region& r, uintptr_t a, size_t n) {
  if (a < r.begin || a + n > r.end) return false;
  return !r.period || (a - r.begin) % r.period + n <= r.row_bytes;
}

// Segments of this extension that hold data or constants.
struct Segments {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  Segments() {
    dl_iterate_phdr([](dl_phdr_info* info, size_t, void* self) {
      std::vector<std::pair<uintptr_t, uintptr_t>> found;
      bool mine = false;
      for (int i = 0; i < info->dlpi_phnum; ++i) {
        const ElfW(Phdr)& p = info->dlpi_phdr[i];
        if (p.p_type != PT_LOAD) continue;
        const uintptr_t begin = info->dlpi_addr + p.p_vaddr;
        found.emplace_back(begin, begin + p.p_memsz);
        const uintptr_t me = reinterpret_cast<uintptr_t>(&g);
        mine |= me >= begin && me < begin + p.p_memsz;
      }
      if (mine) static_cast<Segments*>(self)->ranges = found;
      return mine ? 1 : 0;
    }, this);
  }
  bool hold(uintptr_t a, size_t n) const {
    for (const auto& [begin, end] : ranges)
      if (a >= begin && a + n <= end) return true;
    return false;
  }
};

std::string bytes_string(uintptr_t n) { return std::to_string(n) + (n == 1 ? " byte" : " bytes"); }

// Where an illegal address lies, next to what its author may have meant.
std::string describe(uintptr_t a, size_t n) {
  if (a < 4096) return a == 0 ? "a null pointer" : "a null pointer + " + std::to_string(a);
  for (int i = 0; i < g.num_threads; ++i)
    if (a >= g.fibers[i].stack_begin && a < g.fibers[i].stack_end)
      return "the stack of thread " + std::to_string(i) + " (a local variable's address given to another thread?)";

  std::string nearest;
  uintptr_t best = ~uintptr_t{0};
  auto consider = [&](const std::string& name, uintptr_t begin, uintptr_t end) {
    const std::string of = name + " (" + bytes_string(end - begin) + ")";
    const bool below = a < begin, across = a < end && a + n > end;
    const uintptr_t distance = below ? begin - a : across ? 0 : a - end;
    if (distance >= best) return;
    best = distance;
    if (below) nearest = bytes_string(distance) + " before the beginning of " + of;
    else if (across) nearest = "across the end of " + of;
    else nearest = (distance ? bytes_string(distance) + " past" : "at") + std::string(" the end of ") + of;
  };
  consider("the block's shared memory", g.shared_begin, g.shared_begin + g.shared_bytes);
  for (const Region& r : *g.launch->memory) {
    if (r.period && a >= r.begin && a < r.end)
      return bytes_string((a - r.begin) % r.period + n - r.row_bytes) + " past the end of row " +
             std::to_string((a - r.begin) / r.period) + " of '" + r.name + "' (rows of " +
             bytes_string(r.row_bytes) + ", " +
             std::to_string(r.period) + " apart)";
    consider("'" + r.name + "'", r.begin, r.end);
  }
  const std::lock_guard lock(g_allocations_mutex);
  for (const auto& [begin, r] : g_allocations) consider(r.name, r.begin, r.end);
  return (best > 1 << 20 ? "far from all memory of this launch, " : "") + nearest;
}

}  // namespace

MemoryScope::MemoryScope(Regions regions) : before_(t_memory) {
  if (before_) regions.insert(regions.end(), before_->begin(), before_->end());
  t_memory = std::make_shared<const Regions>(std::move(regions));
}
MemoryScope::~MemoryScope() { t_memory = before_; }

std::shared_ptr<const Regions> current_memory() {
  static const auto kNone = std::make_shared<const Regions>();
  return t_memory ? t_memory : kNone;
}

void add_allocation(Region region) {
  const std::lock_guard lock(g_allocations_mutex);
  const uintptr_t begin = region.begin;
  g_allocations[begin] = std::move(region);
}
void remove_allocation(const void* begin) {
  const std::lock_guard lock(g_allocations_mutex);
  g_allocations.erase(reinterpret_cast<uintptr_t>(begin));
}

void check_regions() { g_last[0] = g_last[1] = nullptr; }

std::string hex(uintptr_t address) {
  char s[24];
  std::snprintf(s, sizeof s, "0x%llx", static_cast<unsigned long long>(address));
  return s;
}

void check_aligned(uintptr_t address, size_t alignment, const char* what, const Where& where) {
  if (address % alignment)
    fail(std::string(what) + " " + (alignment == 16 && address < 1 << 20 ? std::to_string(address) : hex(address)) +
         ", not a multiple of " + std::to_string(alignment) + " bytes", place_of(where));
}

uint32_t shared_offset(const void* p, size_t bytes, const char* what, const Where& where) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (a < g.shared_begin || a + bytes > g.shared_begin + g.shared_bytes)
    fail(std::string(what) + " " + bytes_string(bytes) + " at " + hex(a) + ", not in the block's shared memory: " +
         describe(a, bytes), place_of(where));
  return static_cast<uint32_t>(a - g.shared_begin);
}

void check_other(uintptr_t a, size_t n, Access kind, const void* return_address, const Where* where) {
  const uintptr_t offset = a - g.shared_begin;
  if (offset < g.shared_bytes && n <= g.shared_bytes - offset)
    return note_shared(static_cast<uint32_t>(offset), n, kind, return_address, where);

  const bool write = kind != Access::read;
  const bool depends = g.current->depends;
  auto legal = [&](const Region& r) {
    return (!write || r.writable) && (depends || (r.early && !write)) && inside(r, a, n);
  };
  for (const Region* r : g_last)
    if (r && legal(*r)) return;
  const Region* read_only = nullptr;
  const Region* too_early = nullptr;
  for (const Region& r : *g.launch->memory) {
    if (!inside(r, a, n)) continue;
    if (legal(r)) {
      g_last[1] = g_last[0];
      g_last[0] = &r;
      return;
    }
    if (write && !r.writable) read_only = &r;
    else too_early = &r;
  }
  {
    const std::lock_guard lock(g_allocations_mutex);
    auto after = g_allocations.upper_bound(a);
    if (after != g_allocations.begin()) {
      const Region& r = std::prev(after)->second;
      if (inside(r, a, n)) {
        if (legal(r)) return;
        too_early = &r;
      }
    }
  }
  const uintptr_t arguments = reinterpret_cast<uintptr_t>(g.launch->call.arguments.get());
  if (!write && a >= arguments && a + n <= arguments + g.launch->call.argument_bytes) return;
  static const Segments segments;
  if (!write && segments.hold(a, n)) return;

  const std::string at = where ? place_of(*where) : source_line(return_address);
  const std::string access = std::string(write ? "write" : "read") + " of " + bytes_string(n) + " at " + hex(a);
  if (too_early) fail(access + ", in '" + too_early->name + "', before dependency_wait()", at);
  if (read_only) fail(access + ", in '" + read_only->name + "', which this op may only read", at);
  if (write && segments.hold(a, n)) fail(access + ", in a global variable", at);
  fail(access + ", " + describe(a, n), at);
}

// ---- Accesses that are intrinsics --------------------------------------------------------------

char* shared_memory() { return reinterpret_cast<char*>(g.shared_begin); }

uint32_t shared_address(const void* p, Where where) { return shared_offset(p, 1, "shared_address of", where); }

void load(void* to, const void* p, unsigned bytes, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(p), bytes, "load from", where);
  check_access(reinterpret_cast<uintptr_t>(p), bytes, Access::read, nullptr, &where);
  std::memcpy(to, p, bytes);
}

void store(void* p, const void* from, unsigned bytes, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(p), bytes, "store to", where);
  check_access(reinterpret_cast<uintptr_t>(p), bytes, Access::write, nullptr, &where);
  std::memcpy(p, from, bytes);
}

uint32_t atomic_add(void* p, uint32_t v, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(p), 4, "atomic_add to", where);
  check_access(reinterpret_cast<uintptr_t>(p), 4, Access::atomic, nullptr, &where);
  uint32_t& at = *static_cast<uint32_t*>(p);
  const uint32_t before = at;
  at += v;
  return before;
}

uint32_t atomic_max(void* p, uint32_t v, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(p), 4, "atomic_max to", where);
  check_access(reinterpret_cast<uintptr_t>(p), 4, Access::atomic, nullptr, &where);
  uint32_t& at = *static_cast<uint32_t*>(p);
  const uint32_t before = at;
  at = before < v ? v : before;
  return before;
}

void store_release_system(int64_t* p, int64_t v, Where where) {
  check_aligned(reinterpret_cast<uintptr_t>(p), 8, "store to", where);
  check_access(reinterpret_cast<uintptr_t>(p), 8, Access::write, nullptr, &where);
  std::atomic_ref<int64_t>(*p).store(v, std::memory_order_release);
}

}  // namespace codegen_fast::emulator

// ---- What -fsanitize=thread calls --------------------------------------------------------------

namespace {
using namespace codegen_fast::emulator;

template <size_t N>
inline void access(const void* p, bool write, const void* from) {
  if (!t_in_kernel) return;
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (a % N)
    fail(std::string(write ? "write" : "read") + " of " + std::to_string(N) + " bytes at " + hex(a) +
             ", which is misaligned",
         source_line(from));
  check_access(a, N, write ? Access::write : Access::read, from, nullptr);
}

inline void access_range(const void* p, size_t n, bool write, const void* from) {
  if (!t_in_kernel || !n) return;
  check_access(reinterpret_cast<uintptr_t>(p), n, write ? Access::write : Access::read, from, nullptr);
}
}  // namespace

extern "C" {

#define ACCESS(N)                                                                                                   \
  void __tsan_read##N(void* p) { access<N>(p, false, __builtin_return_address(0)); }                                \
  void __tsan_write##N(void* p) { access<N>(p, true, __builtin_return_address(0)); }                                \
  void __tsan_unaligned_read##N(void* p) { access_range(p, N, false, __builtin_return_address(0)); }                \
  void __tsan_unaligned_write##N(void* p) { access_range(p, N, true, __builtin_return_address(0)); }                \
  void __tsan_volatile_read##N(void* p) { access<N>(p, false, __builtin_return_address(0)); }                       \
  void __tsan_volatile_write##N(void* p) { access<N>(p, true, __builtin_return_address(0)); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

void __tsan_read_range(void* p, size_t n) { access_range(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { access_range(p, n, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Host code of a .cu may use std::atomic and function statics; kernels may not.
#define ATOMIC(BITS, T)                                                                                                \
  T __tsan_atomic##BITS##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }              \
  void __tsan_atomic##BITS##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }              \
  T __tsan_atomic##BITS##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }    \
  T __tsan_atomic##BITS##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }    \
  T __tsan_atomic##BITS##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }    \
  T __tsan_atomic##BITS##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }    \
  T __tsan_atomic##BITS##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }      \
  T __tsan_atomic##BITS##_fetch_xor(volatile T* p, T v, int) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); }    \
  bool __tsan_atomic##BITS##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {                      \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
  }                                                                                                                    \
  bool __tsan_atomic##BITS##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {                        \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
  }
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
#undef ATOMIC
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
