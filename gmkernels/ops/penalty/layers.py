"""What becomes of the layers and functions that a critic is made of: a rule each, and where its parameters are."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from . import activations, rules
from .rules import Rule

aten = torch.ops.aten
Piece = tuple[Rule, tuple[Any, ...]]  # a rule and its parameters: an Attribute, a node of the graph, or a constant


class Unsupported(Exception):
    """Why a critic has no penalty of first order."""


class Attribute:
    """A parameter of the critic by its path from a layer, read anew whenever a penalty is computed."""

    def __init__(self, path: str, layer: str = "") -> None:
        self.path, self.layer = path, layer

    def of(self, layer: str) -> Attribute:
        return type(self)(self.path, layer)

    def read(self, critic: nn.Module) -> Any:
        return getattr(self.home(critic), self.path)

    def home(self, critic: nn.Module) -> Any:
        return attribute(critic, self.layer) if self.layer else critic


class _Folded(Attribute):
    """``factor`` or ``offset`` of a batch norm that uses its running statistics."""

    def read(self, critic: nn.Module) -> Tensor:
        m = self.home(critic)
        factor = torch.rsqrt(m.running_var + m.eps)
        factor = factor if m.weight is None else factor * m.weight
        offset = -m.running_mean * factor
        found = factor if self.path == "factor" else offset if m.bias is None else offset + m.bias
        return found.reshape(-1, *[1] * _SPATIAL[plain_type(m)])


def attribute(critic: nn.Module, path: str) -> Any:
    found: Any = critic
    for name in path.split("."):
        found = getattr(found, name)
    return found


_AFFINE = (Attribute("weight"), Attribute("bias"))


def _tuple(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)


def _convolution(dims: int, transposed: bool, how: Callable[[Any], dict[str, Any]]) -> Callable[[Any], list[Piece]]:
    def build(m: Any) -> list[Piece]:
        if m.padding_mode != "zeros":
            raise Unsupported(f"pads with {m.padding_mode!r}")
        return [(conv_rule(dims, transposed, **how(m)), _AFFINE)]

    return build


def conv_rule(
    dims: int, transposed: bool, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    output_padding: Any = 0, kernel: Sequence[int] | None = None,
) -> Rule:  # fmt: skip
    dilation = _tuple(dilation, dims)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        totals = [0] if kernel is None else [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if kernel is None or any(total % 2 for total in totals):
            raise Unsupported("pads one side more than the other")
        padding = [total // 2 for total in totals]
    shape = (_tuple(stride, dims), _tuple(padding, dims), dilation)
    return rules.Convolution(*shape, transposed, _tuple(output_padding, dims), groups)


def _of_module(m: Any) -> dict[str, Any]:
    return {
        "stride": m.stride, "padding": m.padding, "dilation": m.dilation, "groups": m.groups,
        "output_padding": m.output_padding, "kernel": m.kernel_size,
    }  # fmt: skip


def _norm(m: Any, groups: Callable[[torch.Size], int], channelwise: bool) -> list[Piece]:
    return [(rules.Normalise(groups, m.eps, channelwise), _AFFINE)]


def _instance_norm(m: Any) -> list[Piece]:
    if m.track_running_stats:
        raise Unsupported("tracks running statistics")
    return _norm(m, lambda shape: shape[0] * shape[1], True)


def _layer_norm(m: nn.LayerNorm) -> list[Piece]:
    dims = len(m.normalized_shape)
    return _norm(m, lambda shape: math.prod(shape[: len(shape) - dims]), False)


def _group_norm(m: nn.GroupNorm) -> list[Piece]:
    count = m.num_groups
    return _norm(m, lambda shape: shape[0] * count, True)


_SPATIAL: dict[type, int] = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def _batch_norm(m: Any) -> list[Piece]:
    if couples(m):
        raise Unsupported("couples the samples of a batch")
    if isinstance(m, nn.BatchNorm1d):
        raise Unsupported("has no rule")
    return [(rules.Scale(), (_Folded("factor"), _Folded("offset")))]


def _dropout(m: Any, whole: bool) -> list[Piece]:
    return [(rules.Dropout(m.p, whole), ())] if m.training and m.p > 0 else []


def _pad(pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Rule:
    if mode != "constant" or value:
        raise Unsupported("pads with something else than zeros")
    return rules.Map(lambda h: F.pad(h, pad), lambda a, h: F.pad(a, [-n for n in pad]))


def _drop(p: float = 0.5, training: bool = True, inplace: bool = False) -> Rule:
    return rules.Dropout(p, False) if training and p > 0 else rules.Map(lambda h: h, lambda a, h: a)


def _avg_pool(kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: int | None = None) -> Rule:  # fmt: skip
    stride = kernel if stride is None or stride == [] else stride
    how = (_tuple(kernel, 2), _tuple(stride, 2), _tuple(padding, 2), ceil_mode, count_include_pad, divisor_override)
    return rules.Map(lambda h: aten.avg_pool2d(h, *how), lambda a, h: aten.avg_pool2d_backward(a, h, *how))


def _adaptive_pool(size: Any) -> Rule:
    return rules.Map(
        lambda h: F.adaptive_avg_pool2d(h, size), lambda a, h: aten._adaptive_avg_pool2d_backward(a.contiguous(), h)
    )


def _max_pool(m: nn.MaxPool2d) -> list[Piece]:
    if m.return_indices:
        raise Unsupported("returns indices")
    how = [_tuple(value, 2) for value in (m.kernel_size, m.stride, m.padding, m.dilation)]
    return [(rules.MaxPool((*how, m.ceil_mode)), ())]


def _flat(shape: Sequence[int], start: int, end: int) -> list[int]:
    start, end = start % len(shape), end % len(shape)
    return [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]


def _flatten(start: int = 0, end: int = -1) -> Rule:
    return rules.Reshape(lambda h: _flat(h.shape, start, end))


def _unflatten(dim: int, sizes: Sequence[int]) -> Rule:
    return rules.Reshape(lambda h: h.unflatten(dim, sizes).shape)


def _gelu(approximate: str = "none") -> Rule:
    if approximate != "none":
        raise Unsupported("is the approximate GELU")
    return activations.gelu()


def _alone(make: Callable[[Any], Rule]) -> Callable[[Any], list[Piece]]:
    return lambda m: [(make(m), ())]


MODULES: dict[type, Callable[[Any], list[Piece]]] = {
    nn.Linear: lambda m: [(rules.Linear(), _AFFINE)],
    **{kind: _convolution(d, False, _of_module) for d, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)},
    **{
        kind: _convolution(d, True, _of_module)
        for d, kind in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)
    },
    nn.Identity: lambda m: [],
    nn.ReLU: _alone(lambda m: activations.relu()),
    nn.LeakyReLU: _alone(lambda m: activations.leaky_relu(m.negative_slope)),
    nn.Tanh: _alone(lambda m: activations.tanh()),
    nn.Sigmoid: _alone(lambda m: activations.sigmoid()),
    nn.ELU: _alone(lambda m: activations.elu(m.alpha)),
    nn.SiLU: _alone(lambda m: activations.silu()),
    nn.GELU: _alone(lambda m: _gelu(m.approximate)),
    nn.Softplus: _alone(lambda m: activations.softplus(m.beta, m.threshold)),
    nn.Flatten: _alone(lambda m: _flatten(m.start_dim, m.end_dim)),
    nn.Unflatten: _alone(lambda m: _unflatten(m.dim, m.unflattened_size)),
    nn.AvgPool2d: _alone(
        lambda m: _avg_pool(m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    ),
    nn.AdaptiveAvgPool2d: _alone(lambda m: _adaptive_pool(m.output_size)),
    nn.MaxPool2d: _max_pool,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    **dict.fromkeys(_SPATIAL, _batch_norm),
    nn.Dropout: lambda m: _dropout(m, False),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda m: _dropout(m, True)),
}


def plain_type(m: nn.Module) -> type:
    """A layer's class, seen through the one that ``torch.nn.utils.parametrize`` gives it."""
    return type(m).__mro__[1] if parametrize.is_parametrized(m) else type(m)


def couples(m: nn.Module) -> bool:
    """Whether a layer lets the samples of a batch see each other, as it is now."""
    if isinstance(m, nn.modules.batchnorm._BatchNorm):
        return m.training or m.running_mean is None
    return any(kind.__name__ == "MinibatchDiscrimination" for kind in type(m).__mro__)


# Functions and methods: how their arguments after the first name a rule.
FUNCTIONS: dict[Any, Callable[..., Rule]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), lambda inplace=False: activations.relu()),
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: activations.leaky_relu(negative_slope),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), activations.tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), activations.sigmoid),
    F.pad: _pad,
    F.dropout: _drop,
    F.elu: lambda alpha=1.0, inplace=False: activations.elu(alpha),
    F.silu: lambda inplace=False: activations.silu(),
    F.gelu: lambda approximate="none": _gelu(approximate),
    F.softplus: lambda beta=1.0, threshold=20.0: activations.softplus(beta, threshold),
    F.avg_pool2d: lambda kernel_size, *rest, **named: _avg_pool(kernel_size, *rest, **named),
    F.adaptive_avg_pool2d: lambda output_size: _adaptive_pool(output_size),
    **dict.fromkeys((torch.flatten, "flatten"), lambda start_dim=0, end_dim=-1: _flatten(start_dim, end_dim)),
}


def _reduce(how: str) -> Callable[..., Rule]:
    def build(dim: Any = None, keepdim: bool = False) -> Rule:
        if dim is None or 0 in (dims := _tuple(dim, 1)):
            raise Unsupported(f"takes the {how} over the batch")

        def back(a: Tensor, h: Tensor) -> Tensor:
            if not keepdim:
                for d in sorted(d % h.dim() for d in dims):
                    a = a.unsqueeze(d)
            scale = math.prod(h.shape[d] for d in dims) if how == "mean" else 1
            return (a / scale).expand(h.shape)

        return rules.Map(lambda h: getattr(h, how)(dims, keepdim), back)

    return build


FUNCTIONS |= dict.fromkeys((torch.mean, "mean"), _reduce("mean")) | dict.fromkeys((torch.sum, "sum"), _reduce("sum"))

# How views name their new shape, from the input and whatever follows it.
VIEWS: dict[Any, Callable[..., Sequence[int]]] = {
    "view": lambda h, *s: h.reshape(*s).shape,
    **dict.fromkeys(("reshape", torch.reshape), lambda h, *s: h.reshape(*s).shape),
    **dict.fromkeys(("squeeze", torch.squeeze), lambda h, *d: h.squeeze(*d).shape),
    **dict.fromkeys(("unsqueeze", torch.unsqueeze), lambda h, d: h.unsqueeze(d).shape),
    "unflatten": lambda h, d, s: h.unflatten(d, s).shape,
}
ARITHMETIC: dict[Any, str] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "add"),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub"), "sub"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), "mul"),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div"), "div"),
}
OVERWRITING = (operator.iadd, operator.isub, operator.imul, operator.itruediv, "add_", "mul_", "relu_")
CONVOLUTIONS: dict[Any, tuple[tuple[str, ...], int]] = {
    convolution: (("weight", "bias", "stride", "padding", "dilation", "groups"), dims)
    for dims, convolution in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)
}
