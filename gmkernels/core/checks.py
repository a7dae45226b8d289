"""Argument checks shared by the operators: one sentence each, with what was got and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import native

INTEGERS = (int, torch.SymInt)
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# alike(tensor, ...): whether these are certainly plain tensors of one floating dtype and one shape on one device, so that
# nothing need be checked one by one. Not for torch.compile, which cannot look into it.
alike = getattr(native.door(), "alike", lambda *tensors: False)


def tensor(op: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be dense (torch.strided), got {value.layout}")
    return value


def floating(op: str, name: str, value: object) -> None:
    dtype = tensor(op, name, value).dtype
    if dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {dtype}")


def same_device(op: str, **tensors: Tensor | None) -> None:
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {found}")


def same_dtype(op: str, **tensors: Tensor) -> None:
    dtypes = {name: t.dtype for name, t in tensors.items()}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{op}: the tensors must share one dtype, got {found}")


def shape(op: str, name: str, value: Tensor, expected: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} must have shape {tuple(expected)}, got {tuple(value.shape)}")


def dims(op: str, name: str, value: Tensor, count: int, meaning: str) -> None:
    if value.dim() != count:
        raise ValueError(f"{op}: {name} must have {count} dimensions {meaning}, got shape {tuple(value.shape)}")


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def key(op: str, value: object, first: object) -> None:
    found = tensor(op, "key", value)
    if found.dtype != torch.int64 or found.shape != (2,):
        raise ValueError(
            f"{op}: key must be an int64 tensor of shape (2,) as made by gmkernels.random.key, "
            f"got {found.dtype} of shape {tuple(found.shape)}"
        )
    if not isinstance(first, INTEGERS) or first < 0:
        raise ValueError(f"{op}: first must be a non-negative int, got {first!r}")
