"""Functions of single elements as rules, by their first and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .rules import Rule

aten = torch.ops.aten


class Activation(Rule):
    """``phi(h)`` for each element, by its first and second derivative.

    Args:
        phi: the function; ``slope(a, s)`` is ``a phi'``, ``second(s)`` is ``phi''`` or None where it is 0 throughout.
        result: whether ``s``, what these two see, is the output rather than the input.
        inside: ``phi`` in place.
    """

    fresh = True

    def __init__(
        self,
        phi: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor, Tensor], Tensor],
        second: Callable[[Tensor], Tensor] | None = None,
        *,
        inside: Callable[[Tensor], Tensor] | None = None,
        result: bool = True,
    ) -> None:
        self.phi, self.slope, self.second, self.inside, self.result = phi, slope, second, inside, result
        self.curved = second is not None
        self.fresh = not result

    def value(self, p, h, *, dtype, overwrite):
        y = self.inside(h) if overwrite and self.inside is not None and self.result else self.phi(h)
        return y, y if self.result else h

    def pull(self, p, saved, a):
        return (self.slope(a, saved),)

    def push(self, p, saved, t):
        return self.slope(t, saved)

    def bend(self, p, saved, a, t):
        return (None if self.second is None else self.second(saved) * a * t,)


def leaky_relu(slope: float) -> Activation:
    if slope < 0:  # its output does not tell the sign of its input
        return Activation(
            lambda h: F.leaky_relu(h, slope), lambda a, h: aten.leaky_relu_backward(a, h, slope, False), result=False
        )
    return Activation(
        lambda h: F.leaky_relu(h, slope),
        lambda a, y: aten.leaky_relu_backward(a, y, slope, True),
        inside=lambda h: aten.leaky_relu_(h, slope),
    )


def relu() -> Activation:
    return Activation(torch.relu, lambda a, y: aten.threshold_backward(a, y, 0), inside=torch.relu_)


def tanh() -> Activation:
    return Activation(torch.tanh, aten.tanh_backward, lambda y: -2.0 * y * (1.0 - y * y), inside=torch.tanh_)


def sigmoid() -> Activation:
    return Activation(
        torch.sigmoid, aten.sigmoid_backward, lambda y: y * (1.0 - y) * (1.0 - 2.0 * y), inside=torch.sigmoid_
    )


def elu(alpha: float) -> Activation:
    return Activation(
        lambda h: F.elu(h, alpha),
        lambda a, h: aten.elu_backward(a, alpha, 1.0, 1.0, False, h),
        lambda h: torch.where(h > 0, 0.0, alpha * torch.exp(h.clamp(max=0.0))),
        result=False,
    )


def silu() -> Activation:
    def second(h: Tensor) -> Tensor:
        s = torch.sigmoid(h)
        return s * (1.0 - s) * (2.0 + h * (1.0 - 2.0 * s))

    return Activation(F.silu, aten.silu_backward, second, result=False)


def softplus(beta: float, threshold: float) -> Activation:
    def second(h: Tensor) -> Tensor:
        s = torch.sigmoid(beta * h)
        return torch.where(beta * h > threshold, 0.0, beta * s * (1.0 - s))

    return Activation(
        lambda h: F.softplus(h, beta, threshold),
        lambda a, h: aten.softplus_backward(a, h, beta, threshold),
        second,
        result=False,
    )


def gelu() -> Activation:
    def second(h: Tensor) -> Tensor:
        return torch.exp(-0.5 * h * h) * (2.0 - h * h) / math.sqrt(2.0 * math.pi)

    return Activation(F.gelu, lambda a, h: aten.gelu_backward(a, h), second, result=False)
