// Which instruction set the CPU backend runs on: chosen once, forced by CODEGEN_FAST_ISA.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace codegen_fast::cpu {

const Kernels& kernels();                  // the table in force
std::vector<std::string> available_isas(); // those built in that this machine executes, best first
void force_isa(const std::string& name);   // ValueError lists what is available

}  // namespace codegen_fast::cpu
