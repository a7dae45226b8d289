"""Minibatch discrimination as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmkernels.core import checks
from gmkernels.ops.minibatch import minibatch_discrimination


class MinibatchDiscrimination(nn.Module):
    """Appends to each sample how close it is to the rest of its batch (Salimans et al. 2016, section 3.2).

    ``M_i = x_i T`` with a learned ``T`` (in_features, num_kernels * kernel_dim), and
    ``o_ib = sum_{j != i} exp(-||M_ib - M_jb||_1)``; returns ``cat([x, o], dim=1)``.

    Args:
        in_features: A, the size of a sample.
        num_kernels: B, how many closeness features are added.
        kernel_dim: C, the size of the space each is measured in.
        init_std: standard deviation of the initial ``T``; the paper leaves it open, 0.05 is its code's.
        weight_scale: the original code's weight normalisation: the columns of ``T`` have unit length over
            ``in_features`` times a learned ``exp(log_scale)`` per kernel and coordinate.
        bias: the original code's bias added to ``o``, initially -1.

    ``forward(x)``: (batch, in_features) to (batch, in_features + num_kernels).
    """

    def __init__(
        self,
        in_features: int,
        num_kernels: int = 100,
        kernel_dim: int = 5,
        *,
        init_std: float = 0.05,
        weight_scale: bool = False,
        bias: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(in_features, num_kernels, kernel_dim) < 1:
            raise ValueError(
                "MinibatchDiscrimination: in_features, num_kernels and kernel_dim must be positive, "
                f"got {in_features}, {num_kernels}, {kernel_dim}"
            )
        self.in_features, self.num_kernels, self.kernel_dim = in_features, num_kernels, kernel_dim
        self.init_std, self.backend = init_std, backend
        self.weight = nn.Parameter(torch.empty(in_features, num_kernels * kernel_dim, device=device, dtype=dtype))
        self.log_scale = (
            nn.Parameter(torch.empty(num_kernels * kernel_dim, device=device, dtype=dtype)) if weight_scale else None
        )
        self.bias = nn.Parameter(torch.empty(num_kernels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        if self.log_scale is not None:
            nn.init.zeros_(self.log_scale)
        if self.bias is not None:
            nn.init.constant_(self.bias, -1.0)

    @torch.no_grad()
    def init_from_batch(self, x: Tensor) -> None:
        """The original code's data-dependent initialisation: scale the coordinates so that the mean distance between
        samples of this batch is 1, and centre ``o`` if there is a bias. Needs ``weight_scale=True``.
        """
        if self.log_scale is None:
            raise RuntimeError("init_from_batch needs MinibatchDiscrimination(..., weight_scale=True)")
        if len(x) < 2:
            raise ValueError(f"init_from_batch: distances need two samples at least, got {len(x)}")
        m = self._project(x)
        # One kernel at a time: all pairs of all kernels would fill the memory.
        mean = torch.stack([torch.pdist(one.double(), p=1).mean() for one in m.unbind(1)])
        self.log_scale.sub_(mean.clamp_min(1e-12).log().repeat_interleave(self.kernel_dim))
        if self.bias is not None:
            self.bias.copy_(-minibatch_discrimination(self._project(x), backend=self.backend).mean(0))

    def extra_repr(self) -> str:
        return f"{self.in_features}, num_kernels={self.num_kernels}, kernel_dim={self.kernel_dim}"

    def _project(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.log_scale is not None:
            weight = weight * (self.log_scale.exp() / weight.norm(dim=0))
        return (x @ weight).unflatten(1, (self.num_kernels, self.kernel_dim))

    def forward(self, x: Tensor) -> Tensor:
        checks.floating("MinibatchDiscrimination", "x", x)
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(
                f"MinibatchDiscrimination: x must have shape (batch, {self.in_features}), got {tuple(x.shape)}"
            )
        closeness = minibatch_discrimination(self._project(x), backend=self.backend)
        if self.bias is not None:
            closeness = closeness + self.bias
        return torch.cat((x, closeness.to(x.dtype)), dim=1)
