"""The networks that read one part of a sample and give the scale and shift of the other.

Each ends in a layer of zeros, so that a new flow is the identity and deep stacks train from the first step.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

# Of the hidden units of a single input of mean 0 and deviation 1: how much steeper than PyTorch's, and where they bend.
_STEEP, _REACH = 5.0, 3.0


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class MLP(gmk.nn.MLP):
    """(B, inputs) and an optional context (B, contexts) to (B, outputs), through ``depth`` hidden layers of SiLU.

    ``dropout`` applies to the inputs and to every hidden layer. The hidden units of a single input start steep and
    with their bends spread over it; PyTorch's own start, which suits many inputs, gives functions of one number so
    smooth that training takes thousands of steps to put a corner into them.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int, depth: int = 2, contexts: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__(inputs + contexts, [hidden] * depth, outputs, activation="silu", dropout=dropout)
        layers = cast(list[nn.Linear], list(self.layers))
        first, last = layers[0], layers[-1]
        if inputs + contexts == 1 and depth:
            with torch.no_grad():
                first.weight.mul_(_STEEP)
                bends = torch.empty_like(first.bias).uniform_(-_REACH, _REACH)
                first.bias.copy_(-first.weight[:, 0] * bends)
        _zeroed(last)


class ResNet(nn.Module):
    """(B, C, H, W) to (B, outputs, H, W): a 3x3 convolution, residual blocks (3x3, 1x1), a 3x3 convolution.

    A context (B, contexts) enters as a bias of the first layer's channels.
    """

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int = 2, contexts: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.context = nn.Linear(contexts, width, bias=False) if contexts else None
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        self.last = _zeroed(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(x)
        if self.context is not None and context is not None:
            h = h + self.context(context)[:, :, None, None]
        return self.last(F.silu(self.blocks(h)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.pointwise(F.silu(self.spatial(F.silu(h))))
