#include "../cpu/float_environment.h"
#include "backend.h"

namespace codegen_fast::bind {
namespace {

void run_on_cpu(Device, void* context, void (*body)(void*)) {
  const cpu::FloatEnvironment standard;
  body(context);
}

bool finished(Device) { return true; }

}  // namespace

#define CODEGEN_FAST_MEMBER(op) cpu::op,
const Backend kCpuBackend = {"cpu", run_on_cpu, finished, nullptr, CODEGEN_FAST_FOR_EACH_OP(CODEGEN_FAST_MEMBER)
                             CODEGEN_FAST_FOR_EACH_SIZE(CODEGEN_FAST_MEMBER)};
#undef CODEGEN_FAST_MEMBER

}  // namespace codegen_fast::bind
