"""Coupling layers and planar flows as modules: ``forward`` and ``inverse`` return ``(output, logdet)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmkernels.ops.coupling import affine_coupling, planar_flow


class AffineCoupling(nn.Module):
    """Affine coupling layer (Dinh et al., "Density estimation using Real NVP", 2017, section 3).

    One part of a sample is kept and conditions an affine transformation of the rest:
    ``y = x * exp(a) + t`` where ``a`` and ``t`` come from ``conditioner``.

    Args:
        conditioner: a module. With ``split``, maps the conditioning part (batch, k, ...) to (batch, 2 * rest, ...);
            with ``mask``, maps ``x * mask`` (batch, C, ...) to (batch, 2 * C, ...). The first half along dimension 1
            is the raw log-scale, the second the shift. Called ``conditioner(part, context)`` if a context is given.
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
        self.conditioner, self.split = conditioner, split
        self.scale_map, self.clamp, self.backend = scale_map, clamp, backend
        self.register_buffer("mask", mask)

    def extra_repr(self) -> str:
        what = f"split={self.split}" if self.mask is None else f"mask={tuple(self.mask.shape)}"
        return f"{what}, scale_map={self.scale_map!r}, clamp={self.clamp}"

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.mask is not None:
            kept, changed = torch.where(self.mask, x, 0.0), x
        elif self.split is not None and 0 < abs(self.split) < x.shape[1]:
            left, right = x.tensor_split((self.split,), dim=1)
            kept, changed = (left, right) if self.split > 0 else (right, left)
        else:
            raise ValueError(
                f"AffineCoupling: split={self.split} leaves nothing to transform of shape {tuple(x.shape)}"
            )
        params = self.conditioner(kept) if context is None else self.conditioner(kept, context)
        if params.shape[1] != 2 * changed.shape[1]:
            raise ValueError(
                f"AffineCoupling: the conditioner must return {2 * changed.shape[1]} features in dimension 1 "
                f"(log-scale and shift), got shape {tuple(params.shape)}"
            )
        log_scale, shift = params.chunk(2, dim=1)
        y, logdet = affine_coupling(
            changed,
            log_scale,
            shift,
            scale_map=self.scale_map,
            clamp=self.clamp,
            inverse=inverse,
            mask=self.mask,
            backend=self.backend,
        )
        if self.mask is not None:
            return y, logdet
        return torch.cat((kept, y) if self.split > 0 else (y, kept), dim=1), logdet  # type: ignore[operator]

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
