"""RealNVPs of normflows, nflows and FrEIA from the weights of the case: ``(model, log_prob, gradients)``.

``gradients`` puts the gradients of the model's parameters, in their order, into that of the case's weights; log-scale
comes first in the case's last layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..case import Inputs, peer

HALF, HIDDEN, COUPLINGS = 32, 128, 8
Made = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Sequence[Tensor]], Sequence[Tensor]]]


def _rows(layout: str) -> Tensor:
    """Which of the case's outputs is the i-th of the peer's."""
    scale, shift = torch.arange(HALF), torch.arange(HALF, 2 * HALF)
    if layout == "interleaved":  # shift, log-scale, shift, ...
        return torch.stack([shift, scale], 1).flatten()
    return torch.cat([shift, scale]) if layout == "shift first" else torch.cat([scale, shift])


def _fill(linear: Sequence[nn.Linear], inputs: Inputs, coupling: int, rows: Tensor) -> None:
    for j, layer in enumerate(linear):
        order = rows if j == 2 else slice(None)
        with torch.no_grad():
            layer.weight.copy_(inputs[f"{coupling}.weight{j}"][order])
            layer.bias.copy_(inputs[f"{coupling}.bias{j}"][order])


def _ordered(model: nn.Module, nets: Sequence[Sequence[nn.Linear]], rows: Tensor) -> Callable[..., list[Tensor]]:
    places = {id(p): i for i, p in enumerate(p for p in model.parameters() if p.requires_grad)}

    def gradients(grads: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for net in nets:
            for j, layer in enumerate(net):
                back = rows.argsort() if j == 2 else slice(None)
                found += [grads[places[id(p)]][back] for p in (layer.weight, layer.bias)]
        return found

    return gradients


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def normflows(inputs: Inputs) -> Made:
    """log_prob goes through the flows from the last to the first, so that the case's first coupling comes last."""
    nf = peer("normflows")
    blocks = [nf.flows.AffineCouplingBlock(nf.nets.MLP([HALF, HIDDEN, HIDDEN, 2 * HALF])) for _ in range(COUPLINGS)]
    flows = [step for block in blocks for step in (nf.flows.Permute(2 * HALF, mode="swap"), block)]
    model = nf.NormalizingFlow(nf.distributions.base.DiagGaussian(2 * HALF, trainable=False), flows).to(inputs["x"])
    nets, rows = [_linear(block) for block in reversed(blocks)], _rows("interleaved")
    for i, net in enumerate(nets):
        _fill(net, inputs, i, rows)
    return model, model.log_prob, _ordered(model, nets, rows)


class _Net(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = (nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        self.net = nn.Sequential(*layers, nn.Linear(HIDDEN, outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x)


def nflows(inputs: Inputs) -> Made:
    transforms = peer("nflows", "nflows.transforms")
    half = torch.tensor([-1.0] * HALF + [1.0] * HALF)  # positive: transformed
    steps = [transforms.AffineCouplingTransform((-1) ** i * half, _Net) for i in range(COUPLINGS)]
    normal = peer("nflows", "nflows.distributions.normal").StandardNormal([2 * HALF])
    model = peer("nflows", "nflows.flows").Flow(transforms.CompositeTransform(steps), normal).to(inputs["x"])
    nets, rows = [_linear(step) for step in steps], _rows("shift first")
    for i, net in enumerate(nets):
        _fill(net, inputs, i, rows)
    return model, model.log_prob, _ordered(model, nets, rows)


def freia(inputs: Inputs) -> Made:
    """Its permutations are set to the reversal of the features, so that both sides know them."""
    framework, modules = peer("FrEIA", "FrEIA.framework"), peer("FrEIA", "FrEIA.modules")
    model = framework.SequenceINN(2 * HALF)
    for _ in range(COUPLINGS):
        model.append(modules.AllInOneBlock, subnet_constructor=_Net, permute_soft=False)
    blocks: list[Any] = list(model.module_list)
    turned = torch.eye(2 * HALF).flip(0)
    for block in blocks:
        with torch.no_grad():
            block.w_perm.copy_(turned)
            block.w_perm_inv.copy_(turned)
    model.to(inputs["x"])
    nets, rows = [_linear(block.subnet) for block in blocks], _rows("scale first")
    for i, net in enumerate(nets):
        _fill(net, inputs, i, rows)
    constant = 0.5 * 2 * HALF * math.log(2 * math.pi)

    def log_prob(x: Tensor) -> Tensor:
        z, logdet = model(x)
        return logdet - 0.5 * z.square().sum(1) - constant

    return model, log_prob, _ordered(model, nets, rows)


class Mixing(nn.Module):
    """What FrEIA's block does after its coupling: a global scale and shift, and then the permutation."""

    def __init__(self, dtype: torch.dtype, _: int = 0) -> None:
        super().__init__()
        # FrEIA starts at a scale of one: 0.1 softplus(beta = 0.5) of this.
        self.scale = nn.Parameter(torch.full((1, 2 * HALF), 2 * math.log(math.exp(0.5 * 10.0) - 1), dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(1, 2 * HALF, dtype=dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = 0.1 * F.softplus(self.scale, beta=0.5)
        return (x * scale + self.shift).flip(1), scale.log().sum()


def mixing(dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    step = Mixing(dtype)
    return lambda x: step(x)
