"""Coupling layers and planar flows as modules: ``forward`` and ``inverse`` return ``(output, logdet)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmkernels.ops.coupling import affine_coupling, clamp_of, planar_flow
from gmkernels.ops.mlp import affine_coupling_mlp

from .mlp import MLP
from .reversible import Grads, pull, sources


class AffineCoupling(nn.Module):
    """Affine coupling layer (Dinh et al., "Density estimation using Real NVP", 2017, section 3).

    One part of a sample is kept and conditions an affine transformation of the rest:
    ``y = x * exp(a) + t`` where ``a`` and ``t`` come from ``conditioner``.

    Args:
        conditioner: a module. With ``split``, maps the conditioning part (batch, k, ...) to (batch, 2 * rest, ...);
            with ``mask``, maps ``x * mask`` (batch, C, ...) to (batch, 2 * C, ...). The first half along dimension 1
            is the raw log-scale, the second the shift. Called ``conditioner(part, context)`` if a context is given.
            A :class:`gmkernels.nn.MLP` is fused with the coupling of vectors: :func:`gmkernels.affine_coupling_mlp`.
        split: k > 0 keeps the first k features of dimension 1, k < 0 the last |k|.
        mask: bool, broadcastable to one sample; True marks what is kept (the b of the paper's equation 9).
        scale_map, clamp: see :func:`gmkernels.affine_coupling`.
        actnorm: with the number of features, every feature is scaled and shifted after the coupling by parameters of
            its own (Kingma and Dhariwal, "Glow", 2018, section 3.1), ``log_scale`` and ``shift``, both zero at first.
            For vectors; with an :class:`gmkernels.nn.MLP` it is part of the same operator. None for no such step.
        backend: passed to :func:`gmkernels.affine_coupling`.

    ``forward(x, context=None)`` returns ``(y, logdet)``; ``inverse(y, context=None)`` returns ``(x, logdet)`` of the
    inverse. Twice differentiable.
    """

    mask: Tensor | None
    log_scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        split: int | None = None,
        mask: Tensor | None = None,
        scale_map: str = "tanh",
        clamp: float | None = None,
        actnorm: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if (split is None) == (mask is None):
            raise ValueError("AffineCoupling: give exactly one of split and mask")
        if split == 0:
            raise ValueError("AffineCoupling: split must not be 0, nothing would condition the layer")
        clamp_of("AffineCoupling", scale_map, clamp)
        self.conditioner, self.split = conditioner, split
        self.scale_map, self.clamp, self.backend = scale_map, clamp, backend
        self.register_buffer("mask", mask)
        if actnorm is not None and not (mask is None and actnorm > abs(split or 0)):
            raise ValueError(
                f"AffineCoupling: actnorm must be the number of features, more than those of split={split}, and takes no "
                f"mask, got {actnorm!r}"
            )
        for name in ("log_scale", "shift"):
            self.register_parameter(name, None if actnorm is None else nn.Parameter(torch.zeros(actnorm)))

    def extra_repr(self) -> str:
        what = f"split={self.split}" if self.mask is None else f"mask={tuple(self.mask.shape)}"
        actnorm = "" if self.log_scale is None else f", actnorm={len(self.log_scale)}"
        return f"{what}, scale_map={self.scale_map!r}, clamp={self.clamp}{actnorm}"

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What conditions, and what is transformed."""
        if self.mask is not None:
            return torch.where(self.mask, x, 0.0), x
        if self.split is not None and 0 < abs(self.split) < x.shape[1]:
            left, right = x.tensor_split((self.split,), dim=1)
            return (left, right) if self.split > 0 else (right, left)
        raise ValueError(f"AffineCoupling: split={self.split} leaves nothing to transform of shape {tuple(x.shape)}")

    def _whole(self, kept: Tensor, changed: Tensor) -> Tensor:
        if self.split is None:
            return changed
        return torch.cat((kept, changed) if self.split > 0 else (changed, kept), dim=1)

    def _condition(self, kept: Tensor, changed: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        params = self.conditioner(kept) if context is None else self.conditioner(kept, context)
        if params.shape[1] != 2 * changed.shape[1]:
            raise ValueError(
                f"AffineCoupling: the conditioner must return {2 * changed.shape[1]} features in dimension 1 "
                f"(log-scale and shift), got shape {tuple(params.shape)}"
            )
        log_scale, shift = params.chunk(2, dim=1)
        return log_scale, shift

    def _transform(self, x: Tensor, params: tuple[Tensor, Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling(
            x,
            *params,
            scale_map=self.scale_map,
            clamp=self.clamp,
            inverse=inverse,
            mask=self.mask,
            backend=self.backend,
        )

    def _actnorm(self) -> tuple[Tensor, Tensor] | None:
        return None if self.log_scale is None or self.shift is None else (self.log_scale, self.shift)

    def _couple(
        self, x: Tensor, context: Tensor | None, inverse: bool, actnorm: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        net = self.conditioner
        if self.split is not None and context is None and isinstance(net, MLP) and net.fused(x, self.backend):
            return affine_coupling_mlp(
                x,
                *net.parts(),
                split=self.split,
                activation=net.activation,
                scale_map=self.scale_map,
                clamp=self.clamp,
                inverse=inverse,
                actnorm=actnorm,
                backend=self.backend,
            )
        kept, changed = self._parts(x)
        y, logdet = self._transform(changed, self._condition(kept, changed, context), inverse)
        y = self._whole(kept, y)
        if actnorm is None:
            return y, logdet
        y, after = affine_coupling(y, *actnorm, backend=self.backend)
        return y, logdet + after

    def pull_back(
        self, y: Tensor, context: Tensor | None, used: tuple[Tensor, ...], grad_y: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, Grads]:
        """From the output and its gradients to the input, its gradient, and the gradients of parameters and context.

        For :class:`Reversible`. What conditions is the same on both sides, so that one evaluation of the conditioner
        serves the inversion and the gradient.
        """
        own: Grads = {}
        if (actnorm := self._actnorm()) is not None:
            y = affine_coupling(y, *actnorm, inverse=True, backend=self.backend)[0]
            with torch.enable_grad():
                between = y.detach().requires_grad_()
                normed = affine_coupling(between, *actnorm, backend=self.backend)
                own = pull(normed, (grad_y, grad_logdet), [between, *(p for p in actnorm if p.requires_grad)])
            grad_y = own.pop(between)
        kept, changed = self._parts(y)
        with torch.enable_grad():
            leaf = kept.detach().requires_grad_()
            params = self._condition(leaf, changed, context)
        log_scale, shift = (p.detach().requires_grad_() for p in params)
        x = self._transform(changed, (log_scale, shift), inverse=True)[0].detach()
        part, direct = self._parts(grad_y)[::-1] if self.mask is None else (grad_y, grad_y)
        with torch.enable_grad():
            again = self._transform(x.requires_grad_(), (log_scale, shift), inverse=False)
            inner = torch.autograd.grad(again, [x, log_scale, shift], (part, grad_logdet))
        grads = own | pull(params, inner[1:], [leaf, *sources(self, context)])
        through = grads.pop(leaf, torch.zeros_like(leaf))
        x = x.detach()
        if self.mask is not None:
            return x, inner[0] + torch.where(self.mask, through, 0.0), grads
        return self._whole(kept, x), self._whole(direct + through, inner[0]), grads

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, context, False, self._actnorm())

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        actnorm = self._actnorm()
        if actnorm is None:
            return self._couple(y, context, True)
        y, before = affine_coupling(y, *actnorm, inverse=True, backend=self.backend)
        x, logdet = self._couple(y, context, True)
        return x, before + logdet


class PlanarFlow(nn.Module):
    """A stack of planar flows (Rezende and Mohamed, 2015); see :func:`gmkernels.planar_flow`.

    Args:
        features: D, the size of a sample.
        num_flows: K, how many flows are applied in a row.

    ``forward(z)`` maps (batch, D) to ``(z_K, logdet)``. The inverse has no closed form and is not offered.
    """

    def __init__(
        self,
        features: int,
        num_flows: int,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features < 1 or num_flows < 0:
            raise ValueError(
                f"PlanarFlow: features must be positive and num_flows 0 or more, got {features}, {num_flows}"
            )
        self.features, self.num_flows, self.backend = features, num_flows, backend
        self.u = nn.Parameter(torch.empty(num_flows, features, device=device, dtype=dtype))
        self.w = nn.Parameter(torch.empty(num_flows, features, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.empty(num_flows, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Near the identity: small directions u, and hyperplanes of unit scale in random orientations."""
        nn.init.normal_(self.u, std=0.01)
        nn.init.normal_(self.w, std=1.0 / math.sqrt(self.features))
        nn.init.zeros_(self.b)

    def extra_repr(self) -> str:
        return f"features={self.features}, num_flows={self.num_flows}"

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if context is not None:
            raise ValueError("PlanarFlow: takes no context")
        return planar_flow(z, self.u, self.w, self.b, backend=self.backend)
