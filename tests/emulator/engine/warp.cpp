// What the 32 lanes of a warp do together: the last lane to arrive does the work of all.
#include <cstring>

#include "state.h"

namespace codegen_fast::emulator {
namespace {

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// The lanes wait here for each other; true for the last, which then does the work and calls leave().
// `aligned`: all lanes must be at the same instruction, and not only at the same kind of one.
bool meet(const char* name, bool aligned, Where where) {
  Fiber& f = *g.current;
  Warp& w = g.warps[f.warp()];
  if (w.exited)
    fail(std::string(name) + " while " + std::to_string(std::popcount(w.exited)) + " lanes of the warp have exited",
         place_of(where));
  if (!w.arrived) {
    w.collective = name;
    w.where = where;
  } else if (w.collective != name || (aligned && !same_place(w.where, where))) {
    fail(std::string("is in ") + name + " while other lanes of its warp are in " + w.collective + " at " +
             place_of(w.where),
         place_of(where));
  }
  w.arrived |= 1u << f.lane();
  if (~w.arrived) {
    wait_for(name, 0, where);
    return false;
  }
  return true;
}

void leave() {
  const int warp = g.current->warp();
  g.warps[warp].arrived = 0;
  wake(warp, ~0u);
  yield();
}

const char* const kSyncWarp = "sync_warp";
const char* const kShuffles[] = {"shuffle_xor", "shuffle_up", "shuffle"};
const char* const kBallot = "ballot";
const char* const kMatrices[] = {"load_matrix2", "load_matrix4", "load_matrix4_transposed"};
const char* const kMma[] = {"mma16x8x16<f16>", "mma16x8x16<bf16>", "mma16x8x32"};

// The operands of a product, put together from the lanes' fragments. Elements: row-major a (16 x K), b as (8 x K).
template <int K, class Element, class Unpack>
void gather(const Warp& w, Element (&a)[16][K], Element (&b)[8][K], Unpack unpack) {
  constexpr int kPer = K / 8;  // elements in 32 bits
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, t = lane % 4;
    const uint32_t* fa = static_cast<const uint32_t*>(w.a[lane]);
    const uint32_t* fb = static_cast<const uint32_t*>(w.b[lane]);
    for (int half = 0; half < 2; ++half) {
      const int column = kPer * t + half * K / 2;
      unpack(fa[2 * half], &a[group][column]);
      unpack(fa[2 * half + 1], &a[group + 8][column]);
      unpack(fb[half], &b[group][column]);
    }
  }
}

// Products and sums in float64, in the order of k, then one rounding to float32 with the accumulator in it. The
// products of 16-bit numbers are exact.
template <class Unpack>
void product_float(const Warp& w, Unpack unpack) {
  double a[16][16], b[8][16];
  gather<16>(w, a, b, unpack);
  double columns[16][8];  // b transposed: sums of 8 columns side by side
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < 8; ++n) columns[k][n] = b[n][k];
  for (int m = 0; m < 16; ++m) {
    double sum[8] = {};
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) sum[n] += a[m][k] * columns[k][n];
    for (int n = 0; n < 8; ++n) {
      float* d = static_cast<float*>(w.d[m % 8 * 4 + n / 2]) + m / 8 * 2 + n % 2;
      *d = static_cast<float>(*d + sum[n]);
    }
  }
}

template <class Unpack>
void mma_float(int kind, float* d, const uint32_t* a, const uint32_t* b, Where where, Unpack unpack) {
  Fiber& f = *g.current;
  Warp& w = g.warps[f.warp()];
  w.a[f.lane()] = a;
  w.b[f.lane()] = b;
  w.d[f.lane()] = d;
  if (!meet(kMma[kind], true, where)) return;
  product_float(w, unpack);
  leave();
}

}  // namespace

void sync_warp(Where where) {
  if (!meet(kSyncWarp, false, where)) return;
  bool depends = false;
  Fiber* first = &g.fibers[g.current->warp() * kLanes];
  for (int i = 0; i < kLanes; ++i) depends |= first[i].depends;
  for (int i = 0; i < kLanes; ++i) first[i].depends = depends;
  order_lanes(g.current->warp());
  leave();
}

uint64_t shuffle(Shuffle kind, uint64_t value, int argument, Where where) {
  Fiber& f = *g.current;
  const int lane = f.lane();
  const char* name = kShuffles[static_cast<int>(kind)];
  if (argument < 0 || argument >= kLanes)
    fail(std::string(name) + " with " + std::to_string(argument) + ", expected 0 to 31", place_of(where));
  Warp& w = g.warps[f.warp()];
  w.value[lane] = value;
  w.argument[lane] = argument;
  if (meet(name, true, where)) {
    for (int i = 0; i < kLanes; ++i) {
      const int n = w.argument[i];
      const int from = kind == Shuffle::exchange_xor ? i ^ n : kind == Shuffle::from ? n : i >= n ? i - n : i;
      w.result[i] = w.value[from];
    }
    leave();
  }
  return w.result[lane];
}

uint32_t ballot(bool predicate, Where where) {
  Fiber& f = *g.current;
  const int lane = f.lane();
  Warp& w = g.warps[f.warp()];
  w.value[lane] = predicate;
  if (meet(kBallot, true, where)) {
    uint32_t votes = 0;
    for (int i = 0; i < kLanes; ++i) votes |= static_cast<uint32_t>(w.value[i]) << i;
    w.result.fill(votes);
    leave();
  }
  return static_cast<uint32_t>(w.result[lane]);
}

void load_matrix(uint32_t* r, const void* row, int matrices, bool transposed, Where where) {
  Fiber& f = *g.current;
  const int lane = f.lane();
  const char* name = kMatrices[transposed ? 2 : matrices == 4];
  if (lane < 8 * matrices) {
    check_aligned(reinterpret_cast<uintptr_t>(row), 16, name, where);
    shared_offset(row, 16, name, where);
    check_access(reinterpret_cast<uintptr_t>(row), 16, Access::read, nullptr, &where);
  }
  Warp& w = g.warps[f.warp()];
  w.a[lane] = row;
  w.d[lane] = r;
  if (!meet(name, true, where)) return;
  for (int m = 0; m < matrices; ++m) {
    uint16_t matrix[8][8];
    for (int i = 0; i < 8; ++i) std::memcpy(matrix[i], w.a[8 * m + i], 16);
    for (int i = 0; i < kLanes; ++i) {
      const int x = i / 4, y = i % 4 * 2;
      const uint32_t low = transposed ? matrix[y][x] : matrix[x][y];
      const uint32_t high = transposed ? matrix[y + 1][x] : matrix[x][y + 1];
      static_cast<uint32_t*>(w.d[i])[m] = low | high << 16;
    }
  }
  leave();
}

void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], Where where) {
  mma_float(0, d, a, b, where, [](uint32_t pair, double* to) {
    to[0] = f16_to_float(static_cast<uint16_t>(pair));
    to[1] = f16_to_float(static_cast<uint16_t>(pair >> 16));
  });
}

void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], Where where) {
  mma_float(1, d, a, b, where, [](uint32_t pair, double* to) {
    to[0] = std::bit_cast<float>(pair << 16);
    to[1] = std::bit_cast<float>(pair & 0xFFFF0000u);
  });
}

void mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], Where where) {
  Fiber& f = *g.current;
  Warp& w = g.warps[f.warp()];
  w.a[f.lane()] = a;
  w.b[f.lane()] = b;
  w.d[f.lane()] = d;
  if (!meet(kMma[2], true, where)) return;
  int16_t rows[16][32], columns[8][32];
  gather<32>(w, rows, columns, [](uint32_t four, int16_t* to) {
    for (int i = 0; i < 4; ++i) to[i] = static_cast<int8_t>(four >> 8 * i);
  });
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += rows[m][k] * columns[n][k];
      int32_t* to = static_cast<int32_t*>(w.d[m % 8 * 4 + n / 2]) + m / 8 * 2 + n % 2;
      *to = static_cast<int32_t>(static_cast<uint32_t>(*to) + static_cast<uint32_t>(sum));
    }
  leave();
}

}  // namespace codegen_fast::emulator
