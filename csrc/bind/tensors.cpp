#include "tensors.h"

#include "dlpack.h"

namespace codegen_fast::bind {
namespace {

struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  const dlpack::ExchangeAPI* api = nullptr;
  PyObject* requires_grad = nullptr;  // interned names
  PyObject* is_neg = nullptr;
};
Torch g_torch;

constexpr const char* kNeeds = "codegen_fast needs torch 2.10 or newer (DLPack C exchange API, version 1.x)";

DType dtype_of(dlpack::DLDataType t, const char* name, py::handle object) {
  if (t.lanes == 1) {
    if (t.code == dlpack::kFloat && t.bits == 32) return DType::f32;
    if (t.code == dlpack::kFloat && t.bits == 16) return DType::f16;
    if (t.code == dlpack::kBfloat && t.bits == 16) return DType::bf16;
    if (t.code == dlpack::kInt && t.bits == 8) return DType::i8;
    if (t.code == dlpack::kUInt && t.bits == 8) return DType::u8;
    if (t.code == dlpack::kInt && t.bits == 32) return DType::i32;
    if (t.code == dlpack::kInt && t.bits == 64) return DType::i64;
  }
  throw TypeError(std::string(name) + ": dtype " + py::str(object.attr("dtype")).cast<std::string>() +
                  " is not supported; expected float32, float16, bfloat16, int8, uint8, int32 or int64");
}

bool is_true(PyObject* value) {  // steals the reference
  if (!value) throw py::error_already_set();
  const bool truth = value == Py_True;
  Py_DECREF(value);
  return truth;
}

}  // namespace

void bind_torch(py::type tensor, py::type parameter, py::object capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api"))
    throw py::import_error(std::string("torch.Tensor.__dlpack_c_exchange_api__ is not a 'dlpack_exchange_api' capsule: ") + kNeeds);
  auto* header = static_cast<const dlpack::ExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header && header->version.major != 1) header = header->prev_api;
  if (!header) throw py::import_error(std::string("this torch offers no version 1.x of the API: ") + kNeeds);
  auto* api = reinterpret_cast<const dlpack::ExchangeAPI*>(header);
  if (!api->dltensor_from_py_object_no_sync)
    throw py::import_error(std::string("this torch's API lacks dltensor_from_py_object_no_sync: ") + kNeeds);
  // The types and the capsule live as long as the process: views may be made until its very end.
  capsule.inc_ref();
  tensor.inc_ref();
  parameter.inc_ref();
  g_torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.ptr());
  g_torch.parameter = reinterpret_cast<PyTypeObject*>(parameter.ptr());
  g_torch.api = api;
  g_torch.requires_grad = PyUnicode_InternFromString("requires_grad");
  g_torch.is_neg = PyUnicode_InternFromString("is_neg");
}

TensorView view(py::handle object, const char* name) {
  if (!g_torch.api) throw py::import_error("call bind_torch first");
  const PyTypeObject* type = Py_TYPE(object.ptr());
  // Exactly these types: a subclass may stand for something else than its memory (fake, functional, sharded tensors).
  if (type != g_torch.tensor && type != g_torch.parameter)
    throw TypeError(std::string(name) + ": expected a torch.Tensor, got " + type->tp_name);
  if (is_true(PyObject_GetAttr(object.ptr(), g_torch.requires_grad)))
    throw ValueError(std::string(name) + ": requires grad, and nothing here computes gradients; pass .detach()");
  if (is_true(PyObject_CallMethodNoArgs(object.ptr(), g_torch.is_neg)))
    throw ValueError(std::string(name) + ": is a lazily negated view; pass .resolve_neg()");

  dlpack::DLTensor t;
  if (g_torch.api->dltensor_from_py_object_no_sync(object.ptr(), &t) != 0) {
    py::error_already_set cause;  // takes torch's error out of the interpreter
    throw TypeError(std::string(name) + ": torch cannot share this tensor: " + cause.what());
  }
  TensorView v;
  v.name = name;
  if (t.device.device_type == dlpack::kCPU || t.device.device_type == dlpack::kCUDAHost) v.device = {DeviceType::cpu, 0};
  else if (t.device.device_type == dlpack::kCUDA) v.device = {DeviceType::cuda, t.device.device_id};
  else throw TypeError(std::string(name) + ": device " + py::str(object.attr("device")).cast<std::string>() +
                       " is not supported; expected cpu or cuda");
  v.dtype = dtype_of(t.dtype, name, object);
  if (t.ndim > kMaxDims) throw ValueError(std::string(name) + ": has " + std::to_string(t.ndim) + " dimensions, at most 6 are supported");
  v.ndim = t.ndim;
  for (int i = 0; i < t.ndim; ++i) {
    v.shape[i] = t.shape[i];
    v.strides[i] = t.strides ? t.strides[i] : 0;
  }
  if (!t.strides)
    for (int64_t i = t.ndim - 1, n = 1; i >= 0; n *= t.shape[i--]) v.strides[i] = n;
  v.data = v.numel() == 0 ? nullptr : static_cast<char*>(t.data) + t.byte_offset;
  if (!v.data && v.numel() != 0) throw ValueError(std::string(name) + ": holds no memory (a meta or fake tensor?)");
  return v;
}

void* current_stream(Device device) {
  if (device.type == DeviceType::cpu) return nullptr;
  void* stream = nullptr;
  if (!g_torch.api || !g_torch.api->current_work_stream ||
      g_torch.api->current_work_stream(dlpack::kCUDA, device.index, &stream) != 0)
    throw std::runtime_error("torch does not tell its current stream of " + device_name(device) + ": " + kNeeds);
  return stream;
}

}  // namespace codegen_fast::bind
