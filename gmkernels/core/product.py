"""A linear layer that keeps its dtype under autocast, gradients included: for definitions.

Not under ``torch.compile`` and ``torch.func``, which have to see an ordinary product.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .doors import transforming


def no_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """Autocast switched off for a tensor's device; the meta device has none."""
    return nullcontext() if t.is_meta else torch.autocast(t.device.type, enabled=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, differentiable any number of times."""
    if torch.compiler.is_compiling() or transforming():
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    """PyTorch's own gradient of a product is a product that autocast rounds. These are the same products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with no_autocast(x):
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            _Linear.apply(grad, weight.mT, None) if by_x else None,
            _Linear.apply(grad.mT, x.mT, None) if by_weight else None,
            grad.sum(0) if by_bias else None,
        )
