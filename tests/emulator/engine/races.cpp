#include "races.h"

#include <algorithm>
#include <vector>

#include "state.h"

namespace codegen_fast::emulator {
namespace {

constexpr size_t kUnit = 16;  // bytes of shared memory that share a list of accesses
constexpr int kKept = 16;     // accesses kept of each; of more, an arbitrary one is forgotten

constexpr uint8_t kSeveralLanes = 255;  // read the same bytes

struct Seen {
  uint32_t clock;   // of the warp
  uint32_t stretch; // between two waits of the warp's lanes for each other
  uint16_t bytes;   // bit i: byte i of the unit
  uint8_t warp, lane;   // or kSeveralLanes
  Access kind;
  const void* return_address;
  Where where;
};
struct Unit {
  uint64_t block = 0;
  int count = 0;
  std::array<Seen, kKept> seen;
};

std::array<Clock, kMaxWarps> g_clocks;
std::array<uint32_t, kMaxWarps> g_stretch;
uint64_t g_block = 0;
std::vector<Unit> g_units;

const char* name_of(Access kind) {
  return kind == Access::read ? "read" : kind == Access::write ? "write" : "atomic access";
}

[[noreturn]] void fail_race(uint32_t offset, const Seen& before, const Seen& now) {
  auto place = [](const Seen& s) { return s.return_address ? source_line(s.return_address) : place_of(s.where); };
  const int bit = std::countr_zero(static_cast<uint32_t>(before.bytes & now.bytes));
  const uint32_t byte = offset / kUnit * kUnit + static_cast<uint32_t>(bit);
  fail("race on shared memory + " + std::to_string(byte) + ": this " + name_of(now.kind) +
           " and the " + name_of(before.kind) + " by " +
           (before.lane == kSeveralLanes ? "several threads of warp " + std::to_string(before.warp)
                                         : "thread " + std::to_string(before.warp * kLanes + before.lane)) + " at " +
           place(before) + ", with no " + (before.warp == now.warp ? "sync_warp or barrier" : "barrier") +
           " between them",
       place(now));
}

}  // namespace

void reset_races() {
  ++g_block;
  g_units.resize(kSharedLimit / kUnit);
  for (int w = 0; w < kMaxWarps; ++w) {
    g_clocks[w].fill(0);
    g_clocks[w][w] = 1;
    g_stretch[w] = 0;
  }
}

void note_shared(uint32_t offset, size_t bytes, Access kind, const void* return_address, const Where* where) {
  const Fiber& f = *g.current;
  const int warp = f.warp(), lane = f.lane();
  const Clock& known = g_clocks[warp];
  Seen now{.clock = known[warp], .stretch = g_stretch[warp], .bytes = 0, .warp = static_cast<uint8_t>(warp),
           .lane = static_cast<uint8_t>(lane), .kind = kind, .return_address = return_address,
           .where = where ? *where : Where()};
  for (uint32_t end = offset + static_cast<uint32_t>(bytes); offset < end; offset = (offset / kUnit + 1) * kUnit) {
    const uint32_t first = offset % kUnit, n = std::min<uint32_t>(kUnit - first, end - offset);
    now.bytes = static_cast<uint16_t>(((1u << n) - 1) << first);
    Unit& u = g_units[offset / kUnit];
    if (u.block != g_block) {
      u.block = g_block;
      u.count = 0;
    }
    bool merged = false;
    for (int i = 0; i < u.count;) {
      Seen& s = u.seen[i];
      const bool mine = s.warp == warp && s.lane == lane;
      if (s.bytes & now.bytes) {
        const bool ordered = mine || (s.warp == warp ? s.stretch != now.stretch : s.clock <= known[s.warp]);
        const bool conflict = (kind != s.kind || kind == Access::write);
        if (!ordered && conflict) fail_race(offset, s, now);
        // Whatever would race with the one before races with this one too: it need not be kept.
        if (ordered && !(s.bytes & ~now.bytes) && (kind == s.kind || kind == Access::write || s.kind == Access::read)) {
          s = u.seen[--u.count];
          continue;
        }
      }
      if (s.warp == warp && s.clock == now.clock && s.stretch == now.stretch && s.kind == kind) {
        if (mine) {
          s.bytes |= now.bytes;
          merged = true;
        } else if (kind == Access::read && s.bytes == now.bytes) {
          s.lane = kSeveralLanes;
          merged = true;
        }
      }
      ++i;
    }
    if (merged) continue;
    u.seen[u.count < kKept ? u.count++ : static_cast<int>(random_below(kKept))] = now;
  }
}

void release(int warp, Clock& clock) {
  join(clock, g_clocks[warp]);
  ++g_clocks[warp][warp];
}
void acquire(int warp, const Clock& clock) { join(g_clocks[warp], clock); }
void join(Clock& to, const Clock& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}
void order_lanes(int warp) { ++g_stretch[warp]; }

}  // namespace codegen_fast::emulator
