"""A matrix product that keeps its dtype under autocast, gradients included: for definitions.

Not under ``torch.compile`` and ``torch.func``, which have to see an ordinary product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .doors import transforming


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, differentiable any number of times."""
    plain = torch.compiler.is_compiling() or transforming()
    y = torch.mm(x, weight.mT) if plain else _Product.apply(x, weight.mT)
    return y if bias is None else y + bias


class _Product(torch.autograd.Function):
    """PyTorch's own gradient of a product is a product that autocast rounds."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with torch.autocast(a.device.type, enabled=False):
            return torch.mm(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return (
            _Product.apply(grad, b.mT) if ctx.needs_input_grad[0] else None,
            _Product.apply(a.mT, grad) if ctx.needs_input_grad[1] else None,
        )
