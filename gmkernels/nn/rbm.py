"""A restricted Boltzmann machine as a layer: its parameters, and the operators on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmkernels.core import checks
from gmkernels.ops.gibbs import rbm_free_energy, rbm_gibbs, rbm_sample_hidden, rbm_sample_visible


class RBM(nn.Module):
    """Weight (visible, hidden), visible_bias and hidden_bias of a restricted Boltzmann machine (Hinton 2010).

    ``forward(v)`` is the free energy, whose gradient trains the machine: ``(rbm(data) - rbm(samples)).mean()`` has the
    gradient of contrastive divergence.

    Args:
        visible, hidden: numbers of units.
        units: what the visible units are, ``"binary"`` or ``"gaussian"``.
        init_std: standard deviation of the initial weights (Hinton 2010, section 8); biases begin at 0.
        precision: of :meth:`gibbs`, ``"exact"`` or ``"fixed"``.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.
    """

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        units: str = "binary",
        init_std: float = 0.01,
        precision: str = "exact",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(visible, hidden) < 1:
            raise ValueError(f"RBM: visible and hidden must be positive, got {visible} and {hidden}")
        checks.choice("RBM", "units", units, ("binary", "gaussian"))
        checks.choice("RBM", "precision", precision, ("exact", "fixed"))
        if precision == "fixed" and units == "gaussian":
            raise ValueError("RBM: precision 'fixed' needs binary visible units, got units='gaussian'")
        self.visible, self.hidden, self.units = visible, hidden, units
        self.init_std, self.precision, self.backend = init_std, precision, backend
        self.weight = nn.Parameter(torch.empty(visible, hidden, device=device, dtype=dtype))
        self.visible_bias = nn.Parameter(torch.empty(visible, device=device, dtype=dtype))
        self.hidden_bias = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        nn.init.zeros_(self.visible_bias)
        nn.init.zeros_(self.hidden_bias)

    def extra_repr(self) -> str:
        return f"{self.visible}, {self.hidden}, units={self.units!r}, precision={self.precision!r}"

    def free_energy(self, v: Tensor) -> Tensor:
        """See :func:`gmkernels.rbm_free_energy`."""
        parameters = self.weight, self.visible_bias, self.hidden_bias
        return rbm_free_energy(v, *parameters, visible=self.units, backend=self.backend)

    forward = free_energy

    def sample_hidden(
        self, v: Tensor, key: Tensor, *, first: int = 0, beta: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A draw and its probabilities: see :func:`gmkernels.rbm_sample_hidden`."""
        return rbm_sample_hidden(
            v, self.weight, self.hidden_bias, key=key, first=first, beta=beta, backend=self.backend
        )  # fmt: skip

    def sample_visible(
        self, h: Tensor, key: Tensor, *, first: int = 0, beta: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A draw and its means: see :func:`gmkernels.rbm_sample_visible`."""
        return rbm_sample_visible(
            h, self.weight, self.visible_bias, key=key, first=first, beta=beta, visible=self.units, backend=self.backend
        )

    def gibbs(
        self,
        v: Tensor,
        steps: int,
        key: Tensor,
        *,
        first: int = 0,
        beta: Tensor | None = None,
        clamp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``steps`` block Gibbs steps: see :func:`gmkernels.rbm_gibbs`."""
        return rbm_gibbs(
            v, self.weight, self.visible_bias, self.hidden_bias, steps=steps, key=key, first=first, beta=beta,
            clamp=clamp, visible=self.units, precision=self.precision, backend=self.backend,
        )  # fmt: skip
