// The GPUs of this machine, as the CUDA runtime linked into this build sees them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace codegen_fast::cuda {

struct DeviceInfo {
  std::string name;
  int major, minor;      // compute capability
  int64_t memory_bytes;
  int64_t memory_bytes_per_second;  // 0 where the driver does not tell
};

struct Devices {
  std::vector<DeviceInfo> found;
  std::string why_none;  // one clause, empty where there are some
};

// Asks the driver; creates no context on any GPU.
Devices devices();

// One clause that says why the kernels of this build cannot run on a GPU; empty where they can. Makes a context on it.
std::string why_unusable(int device);

}  // namespace codegen_fast::cuda
