// Floor 0: a tensor view and the checks made on it. No torch, no Python, no CUDA.
//
// A view owns nothing: whoever made it keeps the memory alive for the length of the call.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace codegen_fast {

// i4 is no type of a tensor: only the stored layout of a PackedWeight has it, two elements a byte.
enum class DType : uint8_t { f32, f16, bf16, i8, u8, i32, i64, i4 };

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

constexpr int kMaxDims = 6;

struct TensorView {
  const char* name = "tensor";  // the parameter's name, for error messages
  void* data = nullptr;         // null when numel() == 0
  DType dtype = DType::f32;
  Device device;
  int ndim = 0;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements

  int64_t numel() const;
  bool is_contiguous() const;
  template <class T> T* as() const { return static_cast<T*>(data); }
};

const char* dtype_name(DType dtype);
int64_t dtype_bytes(DType dtype);
std::string device_name(Device device);
std::string shape_string(const TensorView& t);

// Errors that the binding turns into Python's ValueError and TypeError.
struct ValueError : std::runtime_error { using std::runtime_error::runtime_error; };
struct TypeError : std::runtime_error { using std::runtime_error::runtime_error; };

// Each check names the tensor, what was expected and what it got.
void check_shape(const TensorView& t, std::initializer_list<int64_t> expected);  // -1: any length
void check_dtype(const TensorView& t, std::initializer_list<DType> allowed);
void check_contiguous(const TensorView& t);
void check_rows_contiguous(const TensorView& t);  // the last dimension is dense, rows may be strided
// An output: as above, and no two rows share memory.
void check_output_rows(const TensorView& t);
// The first element lies on a multiple of `bytes`.
void check_alignment(const TensorView& t, int64_t bytes);
void check_device(const TensorView& t, Device expected);

}  // namespace codegen_fast
