// What the eager door asks about the tensors of a call (gmkernels/core/doors.py): whether their memory can be read as
// it is, and whether one of them wants a gradient. Asked one by one from Python, the answers are most of what the door
// adds to a call (benchmarks: overhead:call-8, operator-grad).
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>

#include "exchange.h"

namespace gmk::door {

inline PyObject *plain[2], *is_neg, *requires_grad;  // torch.Tensor and Parameter; a method; the name of an attribute

inline void open(pybind11::handle tensor, pybind11::handle parameter) {
  plain[0] = tensor.inc_ref().ptr(), plain[1] = parameter.inc_ref().ptr();
  is_neg = PyObject_GetAttrString(tensor.ptr(), "is_neg");
  requires_grad = PyUnicode_InternFromString("requires_grad");
}

// look(arguments, n): about the first n, tensors or None. None if one is a subclass, something else, or a tensor whose
// memory holds the opposite numbers (is_neg); else whether one of them requires a gradient.
inline PyObject* look(PyObject*, PyObject* const* given, Py_ssize_t) {
  const Py_ssize_t n = PyLong_AsSsize_t(given[1]);
  if (n > PyTuple_GET_SIZE(given[0])) Py_RETURN_NONE;
  PyObject* wanted = Py_False;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* t = PyTuple_GET_ITEM(given[0], i);
    if (t == Py_None) continue;
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(t));
    if (type != plain[0] && type != plain[1]) Py_RETURN_NONE;
    PyObject* opposite = PyObject_Vectorcall(is_neg, &t, 1, nullptr);
    if (!opposite) return nullptr;
    Py_DECREF(opposite);  // True and False live on
    if (opposite == Py_True) Py_RETURN_NONE;
    if (wanted == Py_True) continue;
    PyObject* wants = PyObject_GetAttr(t, requires_grad);
    if (!wants) return nullptr;
    Py_DECREF(wants);
    wanted = wants;
  }
  return Py_NewRef(wanted);
}

// alike(tensor, ...): whether these are certainly plain tensors of one floating dtype and one shape on one device.
inline PyObject* alike(PyObject*, PyObject* const* given, Py_ssize_t n) {
  exchange::Tensor first, t;
  for (Py_ssize_t i = 0; i < n; ++i) {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(given[i]));
    if (!exchange::api || (type != plain[0] && type != plain[1])) Py_RETURN_FALSE;
    if (exchange::api->tensor_from_object(given[i], &t) != 0) {  // no memory of its own, such as a batched tensor
      PyErr_Clear();
      Py_RETURN_FALSE;
    }
    if (i == 0) first = t;
    if ((t.code != exchange::kFloat && t.code != exchange::kBfloat) || t.code != first.code || t.bits != first.bits ||
        t.device[0] != first.device[0] || t.device[1] != first.device[1] || t.ndim != first.ndim ||
        !std::equal(t.shape, t.shape + t.ndim, first.shape))
      Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

template <PyObject* (*F)(PyObject*, PyObject* const*, Py_ssize_t)>
PyMethodDef method(const char* name, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(F)), METH_FASTCALL, doc};
}
inline PyMethodDef methods[] = {method<look>("look", "look(arguments, n): None, or whether a gradient is wanted"),
                                method<alike>("alike", "alike(tensor, ...): certainly of one dtype, shape and device"),
                                {}};

}  // namespace gmk::door
