"""Masked autoregressive layers of nflows, normflows, zuko and torchflows, with parameters of ours.

A layer is entered as a transform, in the direction that takes one evaluation of the network (``fast``) or one for each
feature (``slow``). (As flows, normflows' are the other way round: its ``log_prob`` is the slow direction.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..case import peer

LAYERS = 5
# maths -> scale map, clamp, activation of our layer that computes the same
MATHS: dict[str, tuple[str, float | None, str]] = {
    "softplus": ("softplus", None, "relu"),
    "soft_clip": ("soft_clip", None, "relu"),
    "sigmoid, c=0.001": ("sigmoid", 1e-3, "relu"),
    "exp, tanh units": ("exp", None, "tanh"),
}
Results = tuple[Tensor, Tensor]


def degrees(features: int, width: int) -> Tensor:
    """Those that all these libraries give hidden units, in ascending order."""
    return (torch.arange(width) % max(1, features - 1) + min(1, features - 1)).sort().values


@dataclass(frozen=True)
class Loaded:
    """A peer's layer.

    Args:
        parameters: weight and bias in turn.
        ours: their gradients, in our order.
        fast, slow: the two directions, with log-determinants.
        last: ``(z, x, passes)``: the last passes of ``slow``, from a finished x.
    """

    parameters: list[nn.Parameter]
    ours: Callable[[Sequence[Tensor]], list[Tensor]]
    fast: Callable[[Tensor], Results]
    slow: Callable[[Tensor], Results]
    last: Callable[[Tensor, Tensor, int], Results]


def _load(
    layers: Sequence[Any], parts: Sequence[Tensor], shift_first: bool, double: bool = False
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Gives a peer's linear layers our weights, and says how to bring their gradients into our order.

    A hidden unit's degree is read off the peer's masks: how many features it sees. Outputs of a feature lie side by side.
    """
    features = layers[0].mask.shape[1]
    before, degree = torch.arange(features), torch.arange(1, features + 1)
    places = []
    for layer in layers[:-1]:
        degree = (layer.mask.cpu().double() * degree).amax(1)
        after = torch.argsort(degree, stable=True)
        places.append((after, before))
        before = after
    s, t = torch.arange(2 * features).view(-1, 2).unbind(1)[:: -1 if shift_first else 1]
    places.append((torch.cat((s, t)), before))
    factor = torch.ones(2 * features, 1)
    factor[:features] = 2.0 if double else 1.0
    factors = [torch.ones(1, 1)] * (len(layers) - 1) + [factor]
    factors = [f.to(parts[0]) for f in factors]
    with torch.no_grad():
        for layer, (rows, columns), f, weight, bias in zip(
            layers, places, factors, parts[::2], parts[1::2], strict=True
        ):
            layer.weight.data = torch.empty_like(weight)
            layer.weight[rows[:, None], columns] = weight * f
            layer.bias.data = torch.empty_like(bias)
            layer.bias[rows] = bias * f[:, 0]
            layer.mask.data = layer.mask.to(weight.device)

    def ours(grads: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for (rows, columns), f, weight, bias in zip(places, factors, grads[::2], grads[1::2], strict=True):
            found += [weight[rows][:, columns] * f, bias[rows] * f[:, 0]]
        return found

    return ours


def _parameters(layers: Sequence[Any]) -> list[nn.Parameter]:
    return [p for layer in layers for p in (layer.weight, layer.bias)]


def _nflows_like(transform: Any, parts: Sequence[Tensor]) -> Loaded:
    net = transform.autoregressive_net
    layers = [net.initial_layer, *[block.linear for block in net.blocks], net.final_layer]
    ours = _load(layers, parts, shift_first=False)
    transform.to(parts[0]).eval()

    def last(z: Tensor, x: Tensor, passes: int) -> Results:
        logdet = x
        for _ in range(passes):
            x, logdet = transform._elementwise_inverse(z, net(x, None))
        return x, logdet

    return Loaded(_parameters(layers), ours, transform.forward, transform.inverse, last)


def nflows(parts: Sequence[Tensor]) -> Loaded:
    module = peer("nflows", "nflows.transforms.autoregressive")
    hidden, features = parts[0].shape
    make = module.MaskedAffineAutoregressiveTransform
    return _nflows_like(make(features, hidden, num_blocks=len(parts) // 2 - 2, use_residual_blocks=False), parts)


def normflows(parts: Sequence[Tensor]) -> Loaded:
    module = peer("normflows", "normflows.flows.affine.autoregressive")
    hidden, features = parts[0].shape
    make = module.MaskedAffineAutoregressive
    transform = make(features, hidden, num_blocks=len(parts) // 2 - 2, use_residual_blocks=False)
    loaded = _nflows_like(transform, parts)
    # Its network leaves the first layer linear. With the activation that all the others have, it is the same function.
    net = transform.autoregressive_net
    net.initial_layer = nn.Sequential(net.initial_layer, nn.ReLU())
    return loaded


def zuko(parts: Sequence[Tensor]) -> Loaded:
    module = peer("zuko", "zuko.flows.autoregressive")
    features, hidden = parts[0].shape[1], tuple(bias.shape[0] for bias in parts[1:-2:2])
    lazy = module.MaskedAutoregressiveTransform(features, hidden_features=hidden)
    layers = [m for m in lazy.hyper.modules() if isinstance(m, nn.Linear)]
    ours = _load(layers, parts, shift_first=True)
    lazy.to(parts[0]).eval()

    def slow(z: Tensor) -> Results:
        transform = lazy()
        x = transform.inv(z)
        return x, -transform.log_abs_det_jacobian(x, z)

    def last(z: Tensor, x: Tensor, passes: int) -> Results:
        transform = lazy()
        for _ in range(passes):
            x = transform.meta(x).inv(z)
        return x, -transform.log_abs_det_jacobian(x, z)

    return Loaded(_parameters(layers), ours, lambda x: lazy().call_and_ladj(x), slow, last)


def torchflows(parts: Sequence[Tensor]) -> Loaded:
    module = peer("torchflows", "torchflows.bijections.finite.autoregressive.layers")
    features, hidden = parts[0].shape[1], parts[0].shape[0]
    sizes = {"n_hidden": hidden, "n_layers": len(parts) // 2}
    layer = module.AffineForwardMaskedAutoregressive(event_shape=(features,), conditioner_kwargs=sizes)
    layers = [m for m in layer.conditioner_transform.sequential if isinstance(m, nn.Linear)]
    ours = _load(layers, parts, shift_first=False, double=True)  # its scale is exp(s / 2)
    layer.to(parts[0]).eval()

    def last(z: Tensor, x: Tensor, passes: int) -> Results:
        x, logdet = torch.cat((x[:, : features - passes], z[:, features - passes :]), 1), x
        for i in range(features - passes, features):
            found, logdet = layer.apply_conditioner_transformer(x.clone(), None, False)
            x[:, i] = found[:, i]
        return x, logdet

    return Loaded(_parameters(layers), ours, layer.forward, layer.inverse, last)


PEERS: dict[str, tuple[Callable[[Sequence[Tensor]], Loaded], str]] = {
    "nflows": (nflows, "softplus"),
    "zuko": (zuko, "soft_clip"),
    "normflows": (normflows, "sigmoid, c=0.001"),
    "torchflows": (torchflows, "exp, tanh units"),
}
