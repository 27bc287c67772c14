#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace codegen_fast::emulator {

char* new_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, page, PROT_NONE);
  return static_cast<char*>(p) + page;
}

#ifdef __x86_64__

// Callee-saved registers go onto the stack that is left. The floating-point modes are the same for all fibers.
asm(R"(
.text
.type codegen_fast_switch_stack, @function
codegen_fast_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size codegen_fast_switch_stack, .-codegen_fast_switch_stack
)");
extern "C" __attribute__((visibility("hidden"))) void codegen_fast_switch_stack(void** save, void* to);

void switch_stack(void** save, void* to) { codegen_fast_switch_stack(save, to); }

void* prepare_stack(char* stack, int colour, void (*entry)()) {
  // Stacks lie a multiple of a page apart; the colour keeps their tops from sharing a set of the cache.
  uintptr_t top = reinterpret_cast<uintptr_t>(stack) + kStackBytes - 64 - colour % 16 * 192;
  top &= ~uintptr_t{15};
  uintptr_t* p = reinterpret_cast<uintptr_t*>(top);
  *--p = 0;  // where a debugger's backtrace ends; entry() begins as if called from here
  *--p = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--p = 0;
  return p;
}

#else

namespace {
struct Context {
  ucontext_t context;
};
}  // namespace

void switch_stack(void** save, void* to) {
  Context here;
  *save = &here;
  swapcontext(&here.context, &static_cast<Context*>(to)->context);
}

void* prepare_stack(char* stack, int, void (*entry)()) {
  Context* c = new (stack + kStackBytes - (sizeof(Context) + 63) / 64 * 64) Context;
  getcontext(&c->context);
  c->context.uc_stack.ss_sp = stack;
  c->context.uc_stack.ss_size = kStackBytes - (sizeof(Context) + 63) / 64 * 64;
  c->context.uc_link = nullptr;
  makecontext(&c->context, entry, 0);
  return c;
}

#endif

}  // namespace codegen_fast::emulator
