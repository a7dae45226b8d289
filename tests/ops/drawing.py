"""Keys, backends and numbers of draws for the tests of random streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gmkernels.core import backends

from . import support

KEY = (20240229, 7)
KEYS = (KEY, (0, 0), (2**63 - 1, 2**63 - 1), (2**64 - 1, 2**63), (0xFFFFFFFF, 2**32))

available = [name for name in backends.BACKENDS if backends.unavailable(name) is None]


def on(*names: str, dtypes: tuple[torch.dtype, ...] = (), doubles: bool = False):
    """Parametrise over those of the named backends (all but the reference by default) that run here.

    With ``dtypes``, over the pairs that exist: Triton takes no float64 tensors (``doubles``: but makes them), and its
    interpreter computes bfloat16 wrongly.
    """
    found = []
    for name in available:
        if name not in (names or ("cpu", "triton", "cuda")):
            continue
        marks = [pytest.mark.triton] if name == "triton" else []
        kept = [dtype for dtype in dtypes if support.runs(name, dtype) or (doubles and dtype == torch.float64)]
        found += [pytest.param(name, *pair, marks=marks) for pair in ([(dtype,) for dtype in kept] if dtypes else [()])]
    return pytest.mark.parametrize("backend,dtype" if dtypes else "backend", found)


def key(backend: str = "cpu", words: tuple[int, int] = KEY) -> Tensor:
    signed = [word - 2**64 if word >= 2**63 else word for word in words]
    return torch.tensor(signed, dtype=torch.int64, device=support.device(backend))


def draws(backend: str) -> int:
    """How many draws a test can afford."""
    return 1 << 12 if backend == "triton" and support.INTERPRETER else 1 << 20
