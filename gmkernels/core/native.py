"""Finds and loads the compiled cores, and keeps the reason when one is missing.

``cpu()`` is the pybind11 module of the C++ core. ``cuda()`` is the CUDA core, a plain shared library with the flat C
interface of ``csrc/include/gmk/abi.h``. Neither needs torch to be built, and the CUDA core loads without a driver.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).resolve().parent.parent / "_lib"

# Storage types by the numbers of gmk_dtype in abi.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def _note(name: str) -> str | None:
    """The reason a failed build left behind."""
    path = _FOLDER / name
    return path.read_text().strip() if path.exists() else None


@functools.cache
def _load_cpu() -> tuple[Any, str | None]:
    try:
        core = importlib.import_module("gmkernels._lib._cpu")
    except ImportError as error:
        return None, f"the C++ core is not built: {_note('BUILD_FAILED.txt') or error}"
    if (asked := os.environ.get("GMKERNELS_ISA")) and asked not in core.isas():
        usable = ", ".join(map(repr, core.isas()))
        raise ValueError(f"GMKERNELS_ISA: {asked!r} does not run here; expected one of {usable}")
    return core, None


@functools.cache
def takes_tensors() -> bool:
    """Whether the C++ core reads addresses and strides of a matrix from the tensor itself; not every PyTorch lets it."""
    return bool(cpu().take_tensors(getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)))


def cpu() -> Any:
    """The C++ core; raises if it is not there."""
    module, why = _load_cpu()
    if module is None:
        raise RuntimeError(why)
    return module


@functools.cache
def door() -> Any:
    """The C++ core as the eager door and argument checks ask it about tensors (csrc/door.h); None where it is not built."""
    core = _load_cpu()[0]
    if not hasattr(core, "open_door"):  # or was built from older sources
        return None
    core.open_door(torch.Tensor, torch.nn.Parameter)
    takes_tensors()
    return core


def cpu_error() -> str | None:
    return _load_cpu()[1]


@functools.cache
def _load_cuda() -> tuple[ctypes.CDLL | None, str | None]:
    path = _FOLDER / "libgmkernels_cuda.so"
    if not path.exists():
        why = _note("CUDA_BUILD_FAILED.txt") or "no nvcc was found when gmkernels was installed"
        return None, f"the CUDA core is not built: {why}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the CUDA core does not load: {error}"
    library.gmk_last_error.restype = ctypes.c_char_p
    if library.gmk_cuda_available() != 0:
        return library, f"no GPU: {library.gmk_last_error().decode()}"
    return library, None


def cuda_error() -> str | None:
    return _load_cuda()[1]


def cuda() -> ctypes.CDLL:
    """The CUDA core; raises if it, or a GPU, is not there."""
    library, why = _load_cuda()
    if why is not None or library is None:
        raise RuntimeError(why)
    return library


def cuda_check(status: int) -> None:
    """Turn a status code of the CUDA core into a RuntimeError with its text."""
    if status != 0:
        raise RuntimeError(f"gmkernels CUDA core: {cuda().gmk_last_error().decode()}")
