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
        backend: passed to :func:`gmkernels.affine_coupling`.

    ``forward(x, context=None)`` returns ``(y, logdet)``; ``inverse(y, context=None)`` returns ``(x, logdet)`` of the
    inverse. Twice differentiable.
    """

    mask: Tensor | None

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        split: int | None = None,
        mask: Tensor | None = None,
        scale_map: str = "tanh",
        clamp: float | None = None,
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

    def extra_repr(self) -> str:
        what = f"split={self.split}" if self.mask is None else f"mask={tuple(self.mask.shape)}"
        return f"{what}, scale_map={self.scale_map!r}, clamp={self.clamp}"

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

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
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
                backend=self.backend,
            )
        kept, changed = self._parts(x)
        y, logdet = self._transform(changed, self._condition(kept, changed, context), inverse)
        return self._whole(kept, y), logdet

    def pull_back(
        self, y: Tensor, context: Tensor | None, used: tuple[Tensor, ...], grad_y: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, Grads]:
        """From the output and its gradients to the input, its gradient, and the gradients of parameters and context.

        For :class:`Reversible`. What conditions is the same on both sides, so that one evaluation of the conditioner
        serves the inversion and the gradient.
        """
        kept, changed = self._parts(y)
        with torch.enable_grad():
            leaf = kept.detach().requires_grad_()
            params = self._condition(leaf, changed, context)
        log_scale, shift = (p.detach().requires_grad_() for p in params)
        x = self._transform(changed, (log_scale, shift), inverse=True)[0].detach()
        part, direct = self._parts(grad_y)[::-1] if self.split is not None else (grad_y, None)
        with torch.enable_grad():
            again = self._transform(x.requires_grad_(), (log_scale, shift), inverse=False)
            inner = torch.autograd.grad(again, [x, log_scale, shift], (part, grad_logdet))
        grads = pull(params, inner[1:], [leaf, *sources(self, context)])
        through = grads.pop(leaf, torch.zeros_like(leaf))
        x = x.detach()
        if direct is None:
            return x, inner[0] + torch.where(self.mask, through, 0.0), grads  # type: ignore[arg-type]
        return self._whole(kept, x), self._whole(direct + through, inner[0]), grads

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, context, inverse=True)


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
