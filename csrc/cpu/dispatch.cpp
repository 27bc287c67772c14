#include "dispatch.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace codegen_fast::cpu {
namespace {

#if defined(__x86_64__) || defined(__i386__)

// __builtin_cpu_supports says yes to AVX2 and AVX-512 only where the operating system keeps the registers (XGETBV); of
// what it is not asked for (older Clangs don't know all names), the same registers make up the state.
bool has_avx2() {
  unsigned a, b, c = 0, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}

bool has_avx_vnni() {
  unsigned a = 0, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

#elif defined(__aarch64__)

bool has_dotprod() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;  // all of the program needs it, as on Apple's processors
#elif defined(__linux__)
  constexpr unsigned long kAsimdDp = 1 << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kAsimdDp;
#else
  return false;
#endif
}

#endif

std::vector<const Kernels*> executable_tables() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#endif
#ifdef CODEGEN_FAST_HAVE_AVX512
  if (has_avx2() && has_avx512()) tables.push_back(&kernels_avx512());
#endif
#ifdef CODEGEN_FAST_HAVE_AVX2_VNNI
  if (has_avx2() && has_avx_vnni()) tables.push_back(&kernels_avx2_vnni());
#endif
#ifdef CODEGEN_FAST_HAVE_AVX2
  if (has_avx2()) tables.push_back(&kernels_avx2());
#endif
#ifdef CODEGEN_FAST_HAVE_NEON_DOTPROD
  if (has_dotprod()) tables.push_back(&kernels_neon_dotprod());
#endif
#ifdef CODEGEN_FAST_HAVE_NEON
  tables.push_back(&kernels_neon());
#endif
  tables.push_back(&kernels_portable());
  return tables;
}

const Kernels* find(const std::string& name) {
  std::string names;
  for (const Kernels* t : executable_tables()) {
    if (name == t->name) return t;
    names += (names.empty() ? "" : ", ") + std::string(t->name);
  }
  throw ValueError("CODEGEN_FAST_ISA: '" + name + "' is not available here; this machine and build run: " + names);
}

std::atomic<const Kernels*> g_kernels{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = g_kernels.load(std::memory_order_acquire);
  if (!table) {
    const char* forced = std::getenv("CODEGEN_FAST_ISA");
    table = forced && *forced ? find(forced) : executable_tables().front();
    g_kernels.store(table, std::memory_order_release);
  }
  return *table;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* t : executable_tables()) names.emplace_back(t->name);
  return names;
}

void force_isa(const std::string& name) { g_kernels.store(find(name), std::memory_order_release); }

}  // namespace codegen_fast::cpu
