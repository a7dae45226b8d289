"""Minibatch discrimination (Salimans et al., "Improved techniques for training GANs", 2016, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)

__all__ = ["minibatch_discrimination"]


def minibatch_discrimination(m: Tensor, *, backend: str = "auto") -> Tensor:
    """How close each sample of a batch is to the others, in every one of ``num_kernels`` feature spaces.

    ``o[i, b] = sum over j != i of exp(-||m[i, b] - m[j, b]||_1)`` (Salimans et al. 2016, section 3.2; the paper's sum
    includes j = i, a constant 1 that is left out here).

    Args:
        m: floating tensor (batch, num_kernels, kernel_dim), any strides, any sizes including 0.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        (batch, num_kernels) in the dtype of ``m``; float16 and bfloat16 are accumulated in float32.

    Pairs are never written to memory: forward, backward and double backward need O(batch) memory. Twice
    differentiable; sign(0) = 0, as in ``torch.abs``. Consumes no randomness. Not row-wise: every sample depends on
    the whole batch, so a per-sample gradient penalty through it is not a per-sample quantity.

    Raises:
        TypeError: ``m`` is not a floating tensor.
        ValueError: ``m`` does not have three dimensions.
        BackendError: an explicitly requested backend cannot run.
    """
    checks.floating("minibatch_discrimination", "m", m)
    checks.dims("minibatch_discrimination", "m", m, 3, "(batch, num_kernels, kernel_dim)")
    return library.minibatch_discrimination(m, backend)
