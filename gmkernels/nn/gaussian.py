"""The bottleneck of a variational autoencoder as a module."""

from __future__ import annotations

from torch import Tensor, nn

from gmkernels.ops.gaussian import reparameterize_kl
from gmkernels.ops.random import key as new_key


class Reparameterize(nn.Module):
    """Draw from Gaussian posteriors, with their divergence from the prior: :func:`gmkernels.reparameterize_kl`.

    Args:
        beta, free_bits, backend: passed to :func:`gmkernels.reparameterize_kl`. ``beta`` is an ordinary attribute,
            which a schedule may set.

    ``forward(mu, logvar, key=None)`` returns ``(z, kl)``; without a key it draws one, from torch's default generator of
    the device.
    """

    def __init__(self, *, beta: float = 1.0, free_bits: float | None = None, backend: str = "auto") -> None:
        super().__init__()
        self.beta, self.free_bits, self.backend = beta, free_bits, backend

    def extra_repr(self) -> str:
        return f"beta={self.beta}, free_bits={self.free_bits}"

    def forward(self, mu: Tensor, logvar: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        key = new_key(device=mu.device) if key is None else key
        return reparameterize_kl(mu, logvar, key, beta=self.beta, free_bits=self.free_bits, backend=self.backend)
