// Stacks, and the switch from one to another.
#pragma once

#include <cstddef>

namespace codegen_fast::emulator {

constexpr size_t kStackBytes = 128 * 1024;

// The lowest address of a stack; below it lies a page that may not be touched.
char* new_stack();
// A stack pointer to switch to: entry() is then called on the stack, and must not return.
void* prepare_stack(char* stack, int colour, void (*entry)());
void switch_stack(void** save, void* to);

}  // namespace codegen_fast::emulator
