"""The definition of the masked linear layer: plain PyTorch, any floating dtype, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.product import linear


def mask(seen: Tensor, inputs: int) -> Tensor:
    """True (outputs, inputs) where an output sees an input."""
    return torch.arange(inputs, device=seen.device) < seen[:, None]


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, seen: Tensor, relu: bool) -> Tensor:
    allowed = torch.where(mask(seen, weight.shape[1]), weight, 0.0)
    return linear(x.relu() if relu else x, allowed, bias)
