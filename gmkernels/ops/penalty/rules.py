"""Layers as the first-order penalty sees them: a value, and linear maps of tangents and cotangents around it.

A critic is a chain of steps ``y = f(h; p)``. With ``J`` the derivative of ``f`` by ``h``, a rule can

* ``value``:  compute ``y``, and what the rest needs;
* ``pull``:   ``J^T a``, a cotangent from its output to its inputs;
* ``push``:   ``J t``, a tangent from its inputs to its output;
* ``bend``:   the gradient of ``<a, J t>`` by ``h``, for those that are ``curved``; None stands for 0;
* ``weigh``:  the gradients of ``<a, J t>`` by ``p``;
* ``credit``: the gradients of ``<b, f(h; p)>`` by ``p``.

Nothing here records for autograd. ``dtype`` is autocast's, for products, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
Gradients = Sequence[Tensor | None]


class Rule:
    """A step without parameters whose derivative is constant, unless a subclass says otherwise.

    Arguments are ``p``, the parameters, and ``saved``, what ``value`` keeps, before those named above; tensors of several
    inputs follow one another. ``overwrite``: the input may be lost.
    """

    curved = False
    fresh = False
    """The output is a new tensor at which nothing here looks again: the next step may overwrite it."""

    def value(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """``value(p, *h, dtype, overwrite)``: the output, and what to keep."""
        raise NotImplementedError

    def pull(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """``pull(p, saved, a)``: a cotangent of each input."""
        raise NotImplementedError

    def push(self, *args: Any, **kwargs: Any) -> Tensor:
        """``push(p, saved, *t)``: the tangent of the output."""
        raise NotImplementedError

    def bend(self, *args: Any, **kwargs: Any) -> Gradients:
        """``bend(p, saved, a, *t)``: a gradient for each input."""
        return ()

    def weigh(self, *args: Any, **kwargs: Any) -> Gradients:
        """``weigh(p, saved, a, t)``: a gradient for each parameter."""
        return ()

    def credit(self, *args: Any, **kwargs: Any) -> Gradients:
        """``credit(p, saved, b)``: a gradient for each parameter."""
        return ()


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


class Linear(Rule):
    """``h W^T + c``."""

    fresh = True

    def value(self, p, h, *, dtype, overwrite):
        weight, bias = p
        h, weight = h.to(dtype or h.dtype), weight.to(dtype or weight.dtype)
        return F.linear(h, weight, None if bias is None else bias.to(h.dtype)), (h, weight)

    def pull(self, p, saved, a):
        return (a.to(saved[1].dtype) @ saved[1],)

    def push(self, p, saved, t):
        return F.linear(t.to(saved[1].dtype), saved[1])

    def weigh(self, p, saved, a, t):
        return _rows(a.to(saved[1].dtype)).t() @ _rows(t.to(saved[1].dtype)), None

    def credit(self, p, saved, b):
        b = b.to(saved[1].dtype)
        return _rows(b).t() @ _rows(saved[0]), None if p[1] is None else _rows(b).sum(0)


class Convolution(Rule):
    """A convolution of any number of dimensions, or a transposed one. Every pass is one of the library's own kernels."""

    fresh = True

    def __init__(self, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int):
        self.how = (stride, padding, dilation, transposed, output_padding, groups)

    def value(self, p, h, *, dtype, overwrite):
        weight, bias = p
        h, weight = h.to(dtype or h.dtype), weight.to(dtype or weight.dtype)
        if h.dim() == 4 and h.is_cpu:
            # oneDNN reads and writes channels_last as they are, and would reorder the others in every pass.
            h, weight = (t.contiguous(memory_format=torch.channels_last) for t in (h, weight))
        return aten.convolution(h, weight, None if bias is None else bias.to(h.dtype), *self.how), (h, weight)

    def _backward(self, a: Tensor, h: Tensor, weight: Tensor, *wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
        a = a.to(weight.dtype)
        if a.dim() == 4 and a.is_cpu:
            a = a.contiguous(memory_format=torch.channels_last)
        found: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward(
            a, h, weight, [a.shape[1]], *self.how, list(wanted)
        )
        return found

    def pull(self, p, saved, a):
        return (self._backward(a, *saved, True, False, False)[0],)

    def push(self, p, saved, t):
        return aten.convolution(t.to(saved[1].dtype), saved[1], None, *self.how)

    def weigh(self, p, saved, a, t):
        return self._backward(a, t.to(saved[1].dtype), saved[1], False, True, False)[1], None

    def credit(self, p, saved, b):
        bias = p[1] is not None
        found = self._backward(b, *saved, False, True, bias)
        return found[1], found[2] if bias else None


class Normalise(Rule):
    """``(h - mean) / sqrt(var + eps)`` over groups of a sample's elements, times ``p[0]``, plus ``p[1]``.

    ``groups(shape)`` gives the number of groups in all, each of neighbouring elements. With P the projection
    ``P t = t - mean(t) - u mean(u t)`` on what is left after both statistics, u the normalised values and s the
    deviation, ``J t = P t / s`` is symmetric, and the gradient of ``<w, P t> / s`` by ``h`` is
    ``-(u mean(w P t) + mean(u t) P w + mean(u w) P t) / s^2``.
    """

    curved = True
    fresh = True

    def __init__(self, groups: Callable[[torch.Size], int], eps: float, channelwise: bool) -> None:
        self.groups, self.eps, self.channelwise = groups, eps, channelwise

    def _broadcast(self, p: Tensor, like: Tensor) -> Tensor:
        """A parameter in a shape that multiplies h: of channels, or of the last dimensions."""
        return p.reshape(-1, *[1] * (like.dim() - 2)) if self.channelwise else p

    def _affine(self, p: Sequence[Any], u: Tensor) -> Tensor:
        return u if p[0] is None else u * self._broadcast(p[0], u).to(u.dtype)

    def value(self, p, h, *, dtype, overwrite):
        if dtype is not None:
            h = h.float()
        shape = h.shape
        grouped = h.reshape(self.groups(shape), -1)
        variance, mean = torch.var_mean(grouped, 1, correction=0, keepdim=True)
        rate = torch.rsqrt(variance + self.eps)
        u = (grouped - mean) * rate
        y = self._affine(p, u.reshape(shape))
        if p[1] is not None:
            y = y + self._broadcast(p[1], y).to(y.dtype)
        elif p[0] is None:
            y = y.clone()
        return y, (u, rate, shape)

    @staticmethod
    def _project(u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        along = (u * t).mean(1, keepdim=True)
        return t - t.mean(1, keepdim=True) - u * along, along

    def pull(self, p, saved, a):
        u, rate, shape = saved
        a = self._affine(p, a.to(u.dtype)).reshape(u.shape)
        return ((self._project(u, a)[0] * rate).reshape(shape),)

    def push(self, p, saved, t):
        u, rate, shape = saved
        return self._affine(p, (self._project(u, t.to(u.dtype).reshape(u.shape))[0] * rate).reshape(shape))

    def bend(self, p, saved, a, t):
        u, rate, shape = saved
        w = self._affine(p, a.to(u.dtype)).reshape(u.shape)
        (pw, uw), (pt, ut) = self._project(u, w), self._project(u, t.to(u.dtype).reshape(u.shape))
        source = u * (w * pt).mean(1, keepdim=True) + ut * pw + uw * pt
        return ((-rate * rate * source).reshape(shape),)

    def _total(self, p: Tensor, t: Tensor) -> Tensor:
        return t.sum_to_size(self._broadcast(p, t).shape).reshape(p.shape)

    def weigh(self, p, saved, a, t):
        if p[0] is None:
            return None, None
        u, rate, shape = saved
        pushed = (self._project(u, t.to(u.dtype).reshape(u.shape))[0] * rate).reshape(shape)
        return self._total(p[0], a * pushed), None

    def credit(self, p, saved, b):
        by_weight = None if p[0] is None else self._total(p[0], b * saved[0].reshape(saved[2]))
        return by_weight, None if p[1] is None else self._total(p[1], b)


class Scale(Rule):
    """``h p[0] + p[1]`` with broadcasting; a factor is a number or a tensor, an offset or None."""

    fresh = True

    def value(self, p, h, *, dtype, overwrite):
        y = h if p[0] is None else h * p[0]
        y = y if p[1] is None else y + p[1]
        if y.shape[0] != h.shape[0]:
            raise ValueError("a constant of the critic has more samples than its input")
        return y.clone() if y is h else y, h

    def pull(self, p, saved, a):
        return ((a if p[0] is None else a * p[0]).sum_to_size(saved.shape),)

    def push(self, p, saved, t):
        t = t if p[0] is None else t * p[0]
        return (
            t if p[1] is None or not isinstance(p[1], Tensor) else t.expand(torch.broadcast_shapes(t.shape, p[1].shape))
        )

    def weigh(self, p, saved, a, t):
        return (a * t).sum_to_size(p[0].shape) if isinstance(p[0], Tensor) else None, None

    def credit(self, p, saved, b):
        by_factor = (b * saved).sum_to_size(p[0].shape) if isinstance(p[0], Tensor) else None
        return by_factor, b.sum_to_size(p[1].shape) if isinstance(p[1], Tensor) else None


class Sum(Rule):
    """``h0 + sign * h1``, two branches of the critic."""

    fresh = True

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def value(self, p, h, k, *, dtype, overwrite):
        return torch.add(h, k, alpha=self.sign), (h.shape, k.shape)

    def pull(self, p, saved, a):
        return a.sum_to_size(saved[0]), (a if self.sign == 1 else a * self.sign).sum_to_size(saved[1])

    def push(self, p, saved, t, s):
        return torch.add(t, s, alpha=self.sign)


class Product(Rule):
    """``h0 * h1``, two branches of the critic."""

    curved = True
    fresh = True

    def value(self, p, h, k, *, dtype, overwrite):
        return h * k, (h, k)

    def pull(self, p, saved, a):
        h, k = saved
        return (a * k).sum_to_size(h.shape), (a * h).sum_to_size(k.shape)

    def push(self, p, saved, t, s):
        return t * saved[1] + s * saved[0]

    def bend(self, p, saved, a, t, s):
        return (a * s).sum_to_size(saved[0].shape), (a * t).sum_to_size(saved[1].shape)


class Reshape(Rule):
    """The same elements in another shape; ``shape(h, *p)`` gives it."""

    def __init__(self, shape: Callable[..., Sequence[int]]) -> None:
        self.shape = shape

    def value(self, p, h, *, dtype, overwrite):
        shape = self.shape(h, *p)
        return h.reshape(shape), (h.shape, shape)

    def pull(self, p, saved, a):
        return (a.reshape(saved[0]),)

    def push(self, p, saved, t):
        return t.reshape(saved[1])


class Concatenate(Rule):
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def value(self, p, *h, dtype, overwrite):
        return torch.cat(h, self.dim), [t.shape[self.dim] for t in h]

    def pull(self, p, saved, a):
        return a.split(saved, self.dim)

    def push(self, p, saved, *t):
        return torch.cat(t, self.dim)


class Map(Rule):
    """A linear map without parameters, such as a pooling: ``forward(h)`` and its transpose ``back(a, h)``."""

    def __init__(self, forward: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.forward, self.back = forward, back

    def value(self, p, h, *, dtype, overwrite):
        return self.forward(h), h

    def pull(self, p, saved, a):
        return (self.back(a.to(saved.dtype), saved),)

    def push(self, p, saved, t):
        return self.forward(t)


class Dropout(Rule):
    """Zeros at random; every pass sees the same ones."""

    fresh = True

    def __init__(self, rate: float, whole_channels: bool) -> None:
        self.rate, self.whole_channels = rate, whole_channels

    def value(self, p, h, *, dtype, overwrite):
        ones = h.new_ones(*h.shape[:2], *[1] * (h.dim() - 2)) if self.whole_channels else torch.ones_like(h)
        mask = F.dropout(ones, self.rate)
        return h * mask, mask

    def pull(self, p, saved, a):
        return (a * saved,)

    def push(self, p, saved, t):
        return t * saved


class MaxPool(Rule):
    """The largest element of each window; which one it is does not change under a small change of the input."""

    def __init__(self, how: Sequence[Any]) -> None:
        self.how = tuple(how)  # kernel, stride, padding, dilation, ceil

    def value(self, p, h, *, dtype, overwrite):
        y, at = aten.max_pool2d_with_indices(h, *self.how)
        return y, (h, at)

    def pull(self, p, saved, a):
        return (aten.max_pool2d_with_indices_backward(a.to(saved[0].dtype), saved[0], *self.how, saved[1]),)

    def push(self, p, saved, t):
        return t.flatten(-2).gather(-1, saved[1].flatten(-2)).reshape(saved[1].shape)
