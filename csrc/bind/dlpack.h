// DLPack's C exchange API, ABI 1.x: the part of dlpack.h (github.com/dmlc/dlpack, Apache-2.0) that the binding calls,
// declared after its specification. Layouts are fixed by the standard.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codegen_fast::dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3 };  // kCUDAHost: pinned memory of the host
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ExchangeAPIHeader {
  Version version;
  ExchangeAPIHeader* prev_api;  // an older API of the same producer, or null
};

struct ExchangeAPI {
  ExchangeAPIHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void* py_object, DLTensor* out);  // may be null
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out_stream);
};

static_assert(sizeof(void*) == 8, "the declarations above are for 64-bit platforms");
static_assert(sizeof(DLTensor) == 48 && offsetof(DLTensor, shape) == 24, "DLTensor's layout is fixed by DLPack");
static_assert(offsetof(ExchangeAPI, dltensor_from_py_object_no_sync) == 40, "ExchangeAPI's layout is fixed by DLPack");

}  // namespace codegen_fast::dlpack
