#include "dispatch.h"

#include <atomic>
#include <cstdlib>

namespace codegen_fast::cpu {
namespace {

std::vector<const Kernels*> executable_tables() {
  std::vector<const Kernels*> tables;
#ifdef CODEGEN_FAST_HAVE_AVX2
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    tables.push_back(&kernels_avx2());
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
