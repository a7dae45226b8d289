"""The same values in other memory. What surrounds them is poison, so that a stray read shows."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "step2", "half", "offset", "expanded", "expanded_rows")
FAR = 2**31 + 7


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory whose every byte is 255: NaN in the floating dtypes, -1 in the integers."""
    out = torch.empty(shape, dtype=dtype, device=device)
    out.reshape(-1).view(torch.uint8).fill_(255)
    return out


def relayout(t: Tensor, layout: str) -> Tensor:
    """A detached copy of ``t`` in this layout.

    ``expanded`` and ``expanded_rows`` first make the tensor constant along its last or first dimension, because they
    then step through it with stride 0. ``far`` puts the rows of a tensor of two rows more than 2**31 elements apart;
    its memory is reserved but hardly touched.
    """
    t = t.detach()
    shape = tuple(t.shape)
    if layout == "contiguous" or t.dim() == 0:
        return t.contiguous().clone()
    if layout == "transposed":
        order = tuple(reversed(range(t.dim())))
        return t.permute(order).contiguous().permute(order).clone(memory_format=torch.preserve_format)
    if layout == "step2":
        view = poisoned(tuple(2 * n for n in shape), t.dtype, t.device)[(slice(None, None, 2),) * t.dim()]
    elif layout == "half":
        d = min(1, t.dim() - 1)
        view = poisoned((*shape[:d], 2 * shape[d] + 1, *shape[d + 1 :]), t.dtype, t.device)
        view = view.narrow(d, shape[d], shape[d])
    elif layout == "offset":
        view = poisoned((t.numel() + 18,), t.dtype, t.device)[3 : 3 + t.numel()].view(shape)
    elif layout in ("expanded", "expanded_rows"):
        d = 0 if layout == "expanded_rows" else t.dim() - 1
        return t.narrow(d, 0, min(1, shape[d])).contiguous().clone().expand(shape)
    elif layout == "far":
        if shape[0] != 2 or t.dim() < 2:
            return t.contiguous().clone()
        view = torch.empty(FAR + t.numel(), dtype=t.dtype, device=t.device)
        view = view.as_strided(shape, (FAR, *t[0].contiguous().stride()))
    else:
        raise ValueError(f"relayout: layout must be 'far' or one of {', '.join(LAYOUTS)}, got {layout!r}")
    return view.copy_(t)
