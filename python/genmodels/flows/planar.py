"""Planar flows (Rezende and Mohamed, "Variational inference with normalizing flows", 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

from .flow import Flow
from .transforms import Chain, Standardise, Transform

# Enough for the flattest map that float64 can hold: near a triple root Newton's method gains a third of the way a step.
_STEPS = 120


class Planar(Transform):
    """K planar steps ``x = z + u tanh(w.z + b)`` from latents to samples, kept invertible as in appendix A.1.

    ``inverse`` (latents to samples) is one fused call, :func:`gmkernels.planar_flow`. ``forward`` (samples to latents)
    has no closed form, but each step comes down to one equation in one unknown: with ``a = w.z + b`` and ``c = w.u``,
    ``a + c tanh(a) = w.x + b``, whose left side grows with ``a`` because ``c > -1``. It is solved to rounding in
    float64, for the whole batch, one step after the other, and differentiated through the implicit function, twice if
    need be. That is one to two orders slower than the other direction.
    """

    def __init__(self, features: int, num_flows: int) -> None:
        super().__init__()
        self.steps = gmk.nn.PlanarFlow(features, num_flows)

    @torch.no_grad()
    def initialise(self) -> None:
        """Spread the bends over the latents, so that all steps have something to do from the start."""
        self.steps.w.normal_()
        self.steps.u.normal_(std=0.1)
        self.steps.b.uniform_(-2.0, 2.0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.steps(z, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if context is not None:
            raise ValueError("PlanarFlow: takes no context")
        u, w, b, y = (value.double() for value in (self.steps.u, self.steps.w, self.steps.b, x))
        logdet = y.new_zeros(len(y))
        for u_k, w_k, b_k in zip(u.flip(0), w.flip(0), b.flip(0), strict=True):
            direction, gain = _invertible(u_k, w_k)
            h = torch.tanh(_Root.apply(y @ w_k + b_k, gain - 1))
            y = y - h[:, None] * direction
            logdet = logdet - torch.log(h * h + (1 - h * h) * gain)
        return y.to(x.dtype), logdet.to(torch.promote_types(x.dtype, torch.float32))


def _invertible(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The direction ``u + (m(w.u) - w.u) w / |w|^2`` with ``m(a) = softplus(a) - 1``, and ``1 + w.direction > 0``."""
    overlap, norm = (u * w).sum(), (w * w).sum()
    if not norm > 0:
        return u, torch.ones_like(norm)
    return u + (F.softplus(-overlap) - 1) / norm * w, F.softplus(overlap)


class _Root(torch.autograd.Function):
    """``a`` in ``a + c tanh(a) = p`` for ``c > -1``."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, c: Tensor) -> Tensor:
        # The equation is odd, so take p >= 0. There its left side is concave for c > 0 and convex for c < 0: Newton's
        # method, started on the side where the curve bends away, walks to the root without ever passing it.
        target = p.abs()
        inner, outer = target / (1 + c), target - c
        a = torch.maximum(inner, outer) if c > 0 else torch.minimum(inner, outer)
        for _ in range(_STEPS):
            h = a.tanh()
            step = (a + c * h - target) / (1 + c * (1 - h * h))
            a = (a - step).clamp(min=0)
            if not (step.abs() > 4e-16 * a).any():
                break
        root = a.copysign(p)
        ctx.save_for_backward(root, c)
        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        root, c = ctx.saved_tensors
        h = root.tanh()
        share = grad / (1 + c * (1 - h * h))
        return share, -(share * h).sum()


class PlanarFlow(Flow):
    """A density made of ``flows`` planar steps, of vectors of ``features`` numbers.

    Sampling with its density (:meth:`sample`, :meth:`rsample_and_log_prob`) is one fused call, whatever the number of
    steps; so is training by reverse KL (:meth:`fit_to`), which is what planar flows are for. :meth:`log_prob` of given
    samples solves one equation a step (see :class:`Planar`): exact and differentiable, but 20 to 100 times slower.
    Takes no context.
    """

    def __init__(self, features: int, flows: int = 32) -> None:
        planar = Planar(features, flows)
        planar.initialise()
        super().__init__(Chain([Standardise((features,)), planar]), (features,), contexts=0)
