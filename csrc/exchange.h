// A tensor's address, shape and strides in one call, by the table of C functions that PyTorch publishes for it
// (torch.Tensor.__dlpack_c_exchange_api__). Asked through Python, each of them is an object made and dropped.
//
// The declarations are the part of DLPack's C interface that is read here.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "gmk/abi.h"

namespace gmk::exchange {

struct Tensor {
  void* data;
  int32_t device[2];  // kind, number
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
constexpr uint8_t kFloat = 2, kBfloat = 4;  // codes

struct Api {
  struct {
    uint32_t major, minor;
    void* previous;
  } header;
  void *allocate, *managed_from_object, *object_from_managed;
  int (*tensor_from_object)(void* object, Tensor* out);  // what it points to lives as long as the object
  void* current_stream;
};
inline const Api* api = nullptr;

// Whether operands may come as tensors from now on. `capsule` is None where PyTorch has no table.
inline bool open(pybind11::handle capsule) {
  constexpr const char* kName = "dlpack_exchange_api";
  if (!PyCapsule_IsValid(capsule.ptr(), kName)) return false;
  const auto* found = static_cast<const Api*>(PyCapsule_GetPointer(capsule.ptr(), kName));
  if (found->header.major != 1 || !found->tensor_from_object) return false;
  api = found;
  return true;
}

inline gmk_rows matrix(PyObject* object) {
  if (!api) throw pybind11::type_error("this core was not told how to read tensors");
  Tensor t;
  if (api->tensor_from_object(object, &t) != 0) throw pybind11::error_already_set();
  const int32_t dtype = t.code == kBfloat ? GMK_BF16 : t.bits == 32 ? GMK_F32 : t.bits == 64 ? GMK_F64 : GMK_F16;
  return {static_cast<char*>(t.data) + t.byte_offset, dtype, t.strides[0], 0, t.strides[1]};
}

}  // namespace gmk::exchange
