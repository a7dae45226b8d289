// What Python hands to an entry of the core: addresses, sizes, strided operands; and how a status comes back.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "exchange.h"
#include "gmk/dispatch.h"

namespace gmk {
namespace py = pybind11;

using Address = uintptr_t;
using Triple = std::array<int64_t, 3>;

template <class T = void> T* at(Address address) { return reinterpret_cast<T*>(address); }

// A strided operand: a matrix, as a tensor; any other as (address, dtype, strides).
inline gmk_rows rows(py::handle operand) {
  if (operand.is_none()) return {};
  if (!PyTuple_CheckExact(operand.ptr())) return exchange::matrix(operand.ptr());
  const auto t = py::reinterpret_borrow<py::tuple>(operand);
  const auto s = py::reinterpret_borrow<py::tuple>(t[2]);
  return {at(t[0].cast<Address>()), t[1].cast<int32_t>(), s[0].cast<int64_t>(), s[1].cast<int64_t>(),
          s[2].cast<int64_t>()};
}
inline gmk_sizes sizes(const py::tuple& t) {
  return {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
}
// (address, strides) of a batch of images.
inline gmk_image image(py::handle operand) {
  if (operand.is_none()) return {};
  const auto t = py::reinterpret_borrow<py::tuple>(operand);
  return {at(t[0].cast<Address>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int64_t>(),
          t[4].cast<int64_t>()};
}

// Below this much work, giving up the GIL costs more than it frees.
constexpr int64_t kLong = 4096;

template <class Args> void run(int (*entry)(const Args*), const Args& args, int64_t work) {
  int status;
  if (work < kLong) {
    status = entry(&args);
  } else {
    py::gil_scoped_release release;
    status = entry(&args);
  }
  if (status != 0) throw std::runtime_error(gmk_last_error());
}

// As run(), for entries that look at values: 0, or GMK_BAD_VALUES.
template <class Args> int look(int (*entry)(const Args*), const Args& args) {
  int status;
  {
    py::gil_scoped_release release;
    status = entry(&args);
  }
  if (status != 0 && status != GMK_BAD_VALUES) throw std::runtime_error(gmk_last_error());
  return status;
}

}  // namespace gmk
