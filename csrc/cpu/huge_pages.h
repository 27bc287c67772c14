// Memory on pages of 2 MB, so that streaming through it translates few addresses.
#pragma once

#include <cstdint>

namespace codegen_fast::cpu {

constexpr int64_t kHugePage = 2 << 20;

// Asks the system to back whole huge pages of these bytes by such pages, before they are first touched. A hint: where it
// can't be had (other systems, /sys/kernel/mm/transparent_hugepage/enabled says never) nothing happens.
void prefer_huge_pages(void* data, int64_t bytes) noexcept;

}  // namespace codegen_fast::cpu
