"""Launching Triton kernels: on the device and stream of their tensors, with every switch that changes bits set.

Nothing is tuned at run time, because another tile can be another order of summation. Each family keeps a table of
tiles for sm_80 and sm_90, chosen by the shape of the problem alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

# The most lanes a program may number its elements with in 32 bits: the last tile may reach past the end.
INT32_SAFE = 2**31 - 2**16


def launch(
    kernel: Any, programs: int, *args: Any, warps: int, stages: int = 1, registers: int = 128, **constants: Any
) -> None:
    """Run ``programs`` instances of a kernel along grid axis 0, the only one that takes more than 65,535.

    The first argument is a tensor; its device is the one launched on. Multiplications and additions are fused only
    where the kernel says ``fma``, so that they give the same bits as the C++ core. ``registers`` is the most a thread
    may have: left to itself, the assembler prefers to spill a few for the sake of one more block at a time.
    """
    if programs == 0:
        return
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    options["maxnreg"] = min(registers, 65536 // (32 * warps))
    with _on(args[0].device):
        start(kernel, programs, args, constants, options)


def start(
    kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]
) -> None:
    """Compiles and runs; ``tools/triton_resources.py`` compiles only, by taking its place."""
    kernel[(programs,)](*args, **constants, **options)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def architecture(tensor: Tensor) -> int:
    """The table of tiles to use: 90 from Hopper on (and in the interpreter), else 80."""
    return architecture_of(tensor.device)


@functools.cache
def architecture_of(device: torch.device) -> int:
    return 80 if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 9 else 90


def single(value: float) -> float:
    """``value`` rounded to float32; the interpreter would compute with a Python float as it is."""
    return ctypes.c_float(value).value


def power_of_two(n: int) -> int:
    """The least power of two that is ``n`` or more."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)
