"""Poisoned and guarded memory for what the package allocates.

A kernel that leaves part of its output unset usually finds zeros there in a test, and a kernel that writes past its
output usually hits padding. Under :func:`poison` unset memory is NaN, under :func:`redzones` there is nothing but
guards around it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .table import Case

_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


def _fill(t: Tensor) -> Tensor:
    storage = t.untyped_storage()
    if t.device.type == "cpu":
        # Not fill_: its threads hang in a forked child, and dispatch modes would see it.
        ctypes.memset(storage.data_ptr(), 255, storage.nbytes())
    else:
        torch.empty(0, dtype=torch.uint8, device=t.device).set_(storage).fill_(255)
    return t


@contextlib.contextmanager
def _allocating(treat: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass what modules of the package allocate through ``treat``."""

    def wrap(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(original)
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            out = original(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            ours = caller.startswith("gmkernels.") and not caller.startswith("gmkernels.testing")
            # Fake and functional tensors have no memory to speak of.
            return treat(out) if ours and type(out) is Tensor and out.device.type != "meta" else out

        return allocate

    before = [(owner, name, owner.__dict__.get(name), getattr(owner, name)) for owner, name in _ALLOCATORS]
    for owner, name, _, original in before:
        setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        for owner, name, own, _ in before:
            if own is None:
                delattr(owner, name)  # it was inherited
            else:
                setattr(owner, name, own)


def poison() -> contextlib.AbstractContextManager[None]:
    """Fill what the package allocates with NaN (-1 in integers)."""
    return _allocating(_fill)


class Redzones:
    """Tensors with guards on both sides of their memory."""

    def __init__(self, guard: int) -> None:
        self.guard = guard
        self._zones: list[tuple[Tensor, int, int]] = []

    def wrap(self, t: Tensor) -> Tensor:
        """A tensor of the same shape and strides in guarded, poisoned memory (its values are not copied)."""
        extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
        bulk = _fill(torch.empty(extent + 2 * self.guard, dtype=t.dtype, device=t.device))
        raw = torch.empty(0, dtype=torch.uint8, device=t.device)
        raw.set_(bulk.untyped_storage())
        self._zones.append((raw, self.guard * t.element_size(), (self.guard + extent) * t.element_size()))
        # Not a view: autograd treats the outputs of a Function that are views differently.
        return torch.empty(0, dtype=t.dtype, device=t.device).set_(
            bulk.untyped_storage(), self.guard, t.shape, t.stride()
        )

    def copy(self, t: Tensor) -> Tensor:
        """The values of ``t`` in guarded memory of the same layout."""
        out = self.wrap(t)
        if t.numel():
            # Expanded tensors overlap themselves, and may not be copied into but by one layer.
            once = tuple(slice(0, 1) if s == 0 else slice(None) for s in t.stride())
            out[once].copy_(t[once])
        return out

    def case(self, case: Case) -> Case:
        return case.map(self.copy)

    def check(self) -> None:
        """Raise ``AssertionError`` if a guard has been written to."""
        for raw, start, stop in self._zones:
            for side, zone in (("before", raw[:start]), ("after", raw[stop:])):
                if not bool((zone == 255).all()):
                    where = (zone != 255).nonzero().reshape(-1)
                    raise AssertionError(
                        f"{len(where)} bytes were written {side} a buffer of {stop - start} bytes, "
                        f"the first at offset {where[0].item() + (stop if side == 'after' else 0) - start}"
                    )


@contextlib.contextmanager
def redzones(guard: int = 2048) -> Iterator[Redzones]:
    """Surround what the package allocates by ``guard`` elements of poison, and check them at the end.

    ``zones.copy(t)`` puts an input into guarded memory as well: a read past its end meets NaN.
    """
    zones = Redzones(guard)
    with _allocating(zones.wrap):
        yield zones
    zones.check()
