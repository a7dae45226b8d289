"""Couplings and planar flows of normflows, nflows, zuko and FrEIA.

Each is given its parameters ready-made by a network that returns them, and is entered where its coupling begins: after
the split, before the merge. That leaves out gathers and concatenations which nflows, zuko and FrEIA do around it, in
their favour. Each applies its own scale map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Program, peer

Results = tuple[Tensor, Tensor]


class Given(nn.Module):
    """A parameter network that has already been run."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Tensor:
        return self.value


def normflows_exp(x: Tensor, packed: Tensor, inverse: bool) -> Callable[[], Results]:
    """``packed`` interleaves shift and log-scale along dim 1."""
    flow = peer("normflows").flows.affine.coupling.AffineCoupling(Given(packed), scale_map="exp")
    step, halves = flow.inverse if inverse else flow.forward, [x, x]

    def call() -> Results:
        (_, y), logdet = step(halves)
        return y, logdet

    return call


def normflows_masked(x: Tensor, s: Tensor, t: Tensor, mask: Tensor, inverse: bool) -> Callable[[], Results]:
    flow = peer("normflows").flows.MaskedAffineFlow(mask.to(x.dtype), Given(t), Given(s)).to(x.device)
    step = flow.inverse if inverse else flow.forward
    return lambda: step(x)


def nflows_sigmoid(x: Tensor, packed: Tensor, inverse: bool) -> Callable[[], Results]:
    """``packed`` holds the shift in its first half and the log-scale in its second."""
    half = x.shape[1]
    transform = peer("nflows", "nflows.transforms").AffineCouplingTransform(
        [0] * half + [1] * half, lambda *_: nn.Identity()
    )
    step = transform._coupling_transform_inverse if inverse else transform._coupling_transform_forward
    return lambda: step(x, packed)


def zuko_soft_clip(x: Tensor, s: Tensor, t: Tensor, inverse: bool) -> Callable[[], Results]:
    zuko = peer("zuko", "zuko.transforms")

    def call() -> Results:
        transform = zuko.DependentTransform(zuko.MonotonicAffineTransform(t, s), 1)
        return (transform.inv if inverse else transform).call_and_ladj(x)

    return call


def freia_tanh(x: Tensor, s: Tensor, t: Tensor, inverse: bool) -> Callable[[], Results]:
    modules = peer("FrEIA", "FrEIA.modules")
    sizes = [(2 * x.shape[1], *x.shape[2:])]
    block = modules.RNVPCouplingBlock(
        sizes, subnet_constructor=lambda *_: nn.Identity(), clamp=2.0, clamp_activation="TANH"
    )
    block.subnet_s1, block.subnet_t1 = Given(s), Given(t)
    return lambda: block._coupling2(x, x, rev=inverse)


def normflows_planar(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Program:
    planar = peer("normflows").flows.Planar
    rows = zip(*(t.detach().clone().split(1) for t in (u, w, b)), strict=True)
    flows = [planar((z.shape[1],), u=u_k, w=w_k, b=b_k) for u_k, w_k, b_k in rows]
    parameters = [[getattr(flow, name) for flow in flows] for name in ("u", "w", "b")]

    def call() -> Results:
        y, logdet = z, torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
        for flow in flows:
            y, change = flow(y)
            logdet = logdet + change
        return y, logdet

    def stacked(grads: Any) -> tuple[Tensor, ...]:
        k = len(flows)
        return grads[0], *(torch.cat(grads[1 + i * k : 1 + (i + 1) * k]) for i in range(3))

    return Program(call, [z, *parameters[0], *parameters[1], *parameters[2]], stacked)
