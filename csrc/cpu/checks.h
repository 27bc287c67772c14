// What the CPU ops take.
#pragma once

#include "../checks.h"

namespace codegen_fast::cpu {

extern const BackendRules kRules;

}  // namespace codegen_fast::cpu
