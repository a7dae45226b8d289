"""Feature matching: plain PyTorch, since a mean over the batch leaves nothing to fuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import checks

__all__ = ["feature_matching_loss"]


def feature_matching_loss(
    real_features: Tensor | Sequence[Tensor], fake_features: Tensor | Sequence[Tensor], *, detach_real: bool = True
) -> Tensor:
    """The squared distance of the batch means of a critic's features, for training a generator.

    ``|| mean over the batch of f(x) - mean over the batch of f(G(z)) ||^2`` (Salimans et al., "Improved techniques for
    training GANs", 2016, section 3.1), added up over layers. Not the mean of distances of pairs, by which real and fake
    images would be matched one to one.

    Args:
        real_features: floating tensor (batch, ...), or a list of them, one per layer.
        fake_features: the same for generated images; the batches may differ in size.
        detach_real: no gradient flows to the real side.

    Returns:
        A 0-d tensor in float32, or float64 for float64 features. Any number of times differentiable.

    Raises:
        TypeError: something is not a floating tensor.
        ValueError: different numbers of layers, shapes that differ beyond the batch, an empty batch, or two devices.
    """
    op = "feature_matching_loss"
    real, fake = _layers(real_features), _layers(fake_features)
    if len(real) != len(fake) or not real:
        raise ValueError(
            f"{op}: real and fake features must be lists of one length, at least 1, got {len(real)} and {len(fake)}"
        )
    for a, b in zip(real, fake, strict=True):
        checks.floating(op, "real_features", a)
        checks.floating(op, "fake_features", b)
        checks.same_device(op, real_features=a, fake_features=b)
        if a.dim() == 0 or a.shape[1:] != b.shape[1:] or 0 in (*a.shape[:1], *b.shape[:1]):
            raise ValueError(
                f"{op}: features must be (batch, ...) and alike but for the batch, got real {tuple(a.shape)} "
                f"and fake {tuple(b.shape)}"
            )
    gaps = [_mean(a.detach() if detach_real else a) - _mean(b) for a, b in zip(real, fake, strict=True)]
    return torch.stack([gap.square().sum() for gap in gaps]).sum()


def _layers(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=0, dtype=torch.promote_types(x.dtype, torch.float32))
