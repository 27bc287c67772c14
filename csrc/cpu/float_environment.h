// The floating-point mode of the CPU ops: round to nearest, subnormals kept.
//
// The mode belongs to a thread. A caller who changed it (torch.set_flush_denormal) would otherwise get other bits from
// the panels that its own thread took than from those of the pool.
#pragma once

#include <cfenv>

namespace codegen_fast::cpu {

class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&before_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace codegen_fast::cpu
