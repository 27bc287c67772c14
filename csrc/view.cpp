#include "view.h"

namespace codegen_fast {

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int i = 0; i < ndim; ++i) n *= shape[i];
  return n;
}

bool TensorView::is_contiguous() const {
  int64_t expected = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] == 0) return true;
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::i8: return "int8";
    case DType::u8: return "uint8";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
    case DType::i4: return "int4";
  }
  return "?";
}

int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::i8:
    case DType::u8: return 1;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::f32:
    case DType::i32: return 4;
    case DType::i64: return 8;
    case DType::i4: break;  // less than a byte
  }
  return 0;
}

std::string device_name(Device device) {
  if (device.type == DeviceType::cpu) return "cpu";
  return "cuda:" + std::to_string(device.index);
}

namespace {
std::string list_string(const int64_t* values, int n) {
  std::string s = "(";
  for (int i = 0; i < n; ++i) s += (i ? ", " : "") + (values[i] < 0 ? std::string("any") : std::to_string(values[i]));
  return s + (n == 1 ? ",)" : ")");
}
}  // namespace

std::string shape_string(const TensorView& t) { return list_string(t.shape, t.ndim); }

void check_shape(const TensorView& t, std::initializer_list<int64_t> expected) {
  bool same = t.ndim == static_cast<int>(expected.size());
  int i = 0;
  for (int64_t e : expected) {
    if (same && e >= 0 && t.shape[i] != e) same = false;
    ++i;
  }
  if (!same)
    throw ValueError(std::string(t.name) + ": expected shape " +
                     list_string(expected.begin(), static_cast<int>(expected.size())) + ", got " + shape_string(t));
}

void check_dtype(const TensorView& t, std::initializer_list<DType> allowed) {
  for (DType a : allowed)
    if (t.dtype == a) return;
  std::string names;
  for (DType a : allowed) names += (names.empty() ? "" : " or ") + std::string(dtype_name(a));
  throw TypeError(std::string(t.name) + ": expected dtype " + names + ", got " + dtype_name(t.dtype));
}

void check_contiguous(const TensorView& t) {
  if (!t.is_contiguous())
    throw ValueError(std::string(t.name) + ": expected a contiguous tensor of shape " + shape_string(t) +
                     ", got strides " + list_string(t.strides, t.ndim) + "; call .contiguous()");
}

void check_rows_contiguous(const TensorView& t) {
  const int last = t.ndim - 1;
  if (t.ndim == 0 || t.numel() == 0) return;
  bool bad = t.shape[last] > 1 && t.strides[last] != 1;
  for (int i = 0; i < last; ++i) bad = bad || t.strides[i] < 0;
  if (bad)
    throw ValueError(std::string(t.name) + ": expected rows of adjacent elements, got strides " +
                     list_string(t.strides, t.ndim) + "; call .contiguous()");
}

void check_output_rows(const TensorView& t) {
  check_rows_contiguous(t);
  if (t.ndim != 2 || t.numel() == 0) return;
  if (t.shape[0] > 1 && t.strides[0] < t.shape[1])
    throw ValueError(std::string(t.name) + ": rows of " + std::to_string(t.shape[1]) + " elements overlap (strides " +
                     list_string(t.strides, t.ndim) + "); an output needs rows of its own");
}

void check_alignment(const TensorView& t, int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(t.data) % bytes)
    throw ValueError(std::string(t.name) + ": expected memory that begins on a multiple of " + std::to_string(bytes) +
                     " bytes");
}

void check_device(const TensorView& t, Device expected) {
  if (!(t.device == expected))
    throw ValueError(std::string(t.name) + ": expected device " + device_name(expected) + ", got " +
                     device_name(t.device));
}

}  // namespace codegen_fast
