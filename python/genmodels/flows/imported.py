"""What imported flows are built of: the networks of other libraries, and their weights in our layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from .transforms import Permute, Standardise


class Unsupported(ValueError):
    """A model has a part that cannot be taken over exactly."""


class Network(nn.Module):
    """A conditioner ``net([x, context])`` that ends in a linear layer."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    @property
    def last(self) -> nn.Linear:
        return self.net[-1]  # type: ignore[return-value]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x if context is None else torch.cat([x, context], 1))


class Residuals(nn.Module):
    """``h + W2 act(W1 act(h))`` between two linear layers, as nflows and normflows have it.

    A context enters the first layer, and gates what each block adds: ``h + v sigmoid(C context)``.
    """

    def __init__(
        self,
        first: nn.Linear,
        blocks: Sequence[Sequence[nn.Linear]],
        last: nn.Linear,
        activation: Callable[[Tensor], Tensor],
        gates: Sequence[nn.Linear] = (),
    ) -> None:
        super().__init__()
        self.first, self.last, self.activation = linear(first), linear(last), activation
        self.blocks = nn.ModuleList(nn.ModuleList(map(linear, pair)) for pair in blocks)
        self.gates = nn.ModuleList(map(linear, gates))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(x if context is None else torch.cat([x, context], 1))
        for i, pair in enumerate(self.blocks):
            into, out = cast(nn.ModuleList, pair)
            step = out(self.activation(into(self.activation(h))))
            h = h + (step if context is None else step * self.gates[i](context).sigmoid())
        return self.last(h)


class Pair(nn.Module):
    """Log-scale and shift from two networks, either of which may be missing and is then zero."""

    def __init__(self, scale: nn.Module | None, shift: nn.Module | None) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.cat([torch.zeros_like(x) if net is None else net(x) for net in (self.scale, self.shift)], 1)


def linear(layer: Any) -> nn.Linear:
    """A copy of any dense layer that keeps ``weight`` (outputs, inputs) and ``bias``."""
    if getattr(layer, "weight", torch.empty(0)).dim() != 2:
        raise Unsupported(f"a {type(layer).__name__} is no dense layer of a vector")
    outputs, inputs = layer.weight.shape
    new = nn.Linear(inputs, outputs, layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(layer.weight)
        if layer.bias is not None:
            new.bias.copy_(layer.bias)
    return new


def sequential(layers: Sequence[Any]) -> Network:
    """Dense layers and elementwise activations, dropout left out; it must end in a dense layer."""
    kept: list[nn.Module] = []
    for layer in layers:
        if hasattr(layer, "weight"):
            kept.append(linear(layer))
        elif type(layer).__module__ == "torch.nn.modules.activation":
            kept.append(copy.deepcopy(layer))
        elif not isinstance(layer, nn.Dropout):
            raise Unsupported(f"a network with a {type(layer).__name__} is not supported")
    if not kept or not isinstance(kept[-1], nn.Linear):
        raise Unsupported("a network that does not end in a dense layer is not supported")
    return Network(nn.Sequential(*kept))


def pick_rows(network: Any, scale: Tensor | None, shift: Tensor) -> Any:
    """Let a network give log-scales and then shifts: these outputs of its last layer, without ``scale`` zeros."""
    last = network.last
    none = torch.zeros_like(shift)
    rows = torch.cat([none if scale is None else scale, shift])
    with torch.no_grad():
        weight, bias = last.weight[rows].clone(), last.bias[rows].clone()
        if scale is None:
            weight[: len(shift)], bias[: len(shift)] = 0.0, 0.0
        last.weight, last.bias = nn.Parameter(weight), nn.Parameter(bias)
        last.out_features = len(rows)
    return network


def coupling(network: nn.Module, kept: Tensor, changed: Tensor, scale_map: str, clamp: float | None) -> list[nn.Module]:
    """A coupling of any subset of the features: ``kept`` conditions ``changed``."""
    order = torch.cat([kept, changed])
    layer = gmk.nn.AffineCoupling(network, split=len(kept), scale_map=scale_map, clamp=clamp)
    return [Permute(len(order), order=order), layer, Permute(len(order), order=order.argsort())]


def merged(steps: Sequence[nn.Module]) -> list[nn.Module]:
    """The same steps, neighbouring permutations made one."""
    found: list[nn.Module] = []
    for step in steps:
        if isinstance(step, Permute) and found and isinstance(found[-1], Permute):
            step = Permute(len(step.order), order=found.pop().order[step.order])  # type: ignore[index]
        found.append(step)
    natural = [isinstance(s, Permute) and torch.equal(s.order.sort().values, s.order) for s in found]
    return [step for step, idle in zip(found, natural, strict=True) if not idle]


def affine(log_scale: Tensor, shift: Tensor) -> Standardise:
    """``z = x exp(log_scale) + shift`` for each feature."""
    step = Standardise(log_scale.shape).to(log_scale)
    with torch.no_grad():
        step.log_scale.copy_(log_scale)
        step.shift.copy_(shift)
    return step


@dataclass
class Masked:
    """A MADE of another library: its weights unmasked or not, units in its own order.

    ``order`` (D) and ``hidden`` are degrees as :class:`gmkernels.nn.MADE` counts them, ``layers`` weight and bias of
    each layer from first to last, the last one's rows all log-scales and then all shifts.
    """

    order: Tensor
    hidden: list[Tensor]
    layers: list[tuple[Tensor, Tensor]]
    residual: bool
    activation: str
    context: Tensor | None = None

    def build(self, scale_map: str, clamp: float | None) -> gmk.nn.MaskedAffineAutoregressive:
        """The same layer of ours; where its masks differ from the given weights', nothing says so."""
        first = self.layers[0][0]
        features = len(self.order)
        made = gmk.nn.MADE(
            features,
            [len(d) for d in self.hidden],
            contexts=0 if self.context is None else self.context.shape[1],
            residual=self.residual,
            activation=self.activation,
            order=self.order,
            hidden_degrees=self.hidden,
            device=first.device,
            dtype=first.dtype,
        )
        places = self.order.argsort()
        units = [d.argsort(stable=True) for d in self.hidden]
        both = torch.cat([places, places + features])
        if self.residual:
            # The stream, the inside of the first block, the stream again, ...
            outs = [units[0], *(u for inner in units[1:] for u in (inner, units[0])), both]
        else:
            outs = [*units, both]
        with torch.no_grad():
            for ours, (weight, bias), rows, columns in zip(
                made.linears(), self.layers, outs, [places, *outs[:-1]], strict=True
            ):
                ours.weight.copy_(weight[rows][:, columns])
                assert ours.bias is not None
                ours.bias.copy_(bias[rows])
            if made.context_weight is not None and self.context is not None:
                made.context_weight.copy_(self.context[units[0]])
        return gmk.nn.MaskedAffineAutoregressive(made, scale_map, clamp)


def activation_name(function: Any) -> str:
    """``relu`` or ``tanh``, from a function or a module."""
    for name, known in (("relu", (F.relu, torch.relu, nn.ReLU)), ("tanh", (F.tanh, torch.tanh, nn.Tanh))):
        if function in known or isinstance(function, known[-1]):
            return name
    raise Unsupported(f"the activation of an autoregressive network must be relu or tanh, got {function!r}")
