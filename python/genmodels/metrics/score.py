"""The inception score of class probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .extractor import Extractor


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits, and what they were taken with; unpacks as ``mean, std = score``."""

    mean: float
    std: float
    n: int
    splits: int
    extractor: str

    def __iter__(self) -> Iterator[float]:
        return iter((self.mean, self.std))

    def __str__(self) -> str:
        return f"Inception score {self.mean:.4g} ± {self.std:.2g} ({self.extractor}, N {self.n}, splits {self.splits})"


def inception_score(probabilities: Tensor, splits: int = 10, *, extractor: Extractor | None = None) -> InceptionScore:
    """exp of the mean divergence of each image's class probabilities from their average.

    ``exp(E_x KL(p(y|x) || p(y)))`` (Salimans et al., "Improved techniques for training GANs", 2016, section 4), taken
    on each of ``splits`` consecutive parts of the images. The standard deviation over the parts is that of the
    population (by ``splits``, as in the authors' code). Between 1 (all images alike) and the number of classes.

    Args:
        probabilities: (N, K), rows that add up to 1, as ``extractor.probabilities`` gives. Order matters: shuffle
            images that come class by class.
        splits: number of parts; the last images that do not fill one go to the parts before them one by one.
        extractor: named with the figure.

    Raises:
        ValueError: not (N, K), fewer images than splits, or rows that are not probabilities.
        NonFiniteError: a probability is NaN or infinite.

    Warns if a part has fewer images than there are classes: the score of n images is n at most, and of one always 1.
    """
    if probabilities.dim() != 2:
        raise ValueError(f"probabilities must have shape (N, K), got {tuple(probabilities.shape)}")
    n = len(probabilities)
    if not 1 <= splits <= n:
        raise ValueError(f"splits must be between 1 and the number of images, {n}, got {splits}")
    p = probabilities.detach().to(torch.float64)
    bad = int((~p.isfinite()).any(dim=1).sum())
    if bad:
        raise NonFiniteError(f"{bad} of {n} images have class probabilities that are NaN or infinite")
    if bool((p < 0.0).any()) or not torch.allclose(p.sum(1), p.new_ones(n), atol=1e-3):
        raise ValueError("rows of probabilities must not be negative and must add up to 1; are these logits?")
    if n // splits < p.shape[1]:
        warnings.warn(
            f"parts of {n // splits} images cannot show more than {n // splits} of {p.shape[1]} classes, and no score of "
            f"theirs can be above {n // splits}; use fewer splits or more images",
            stacklevel=2,
        )
    scores = torch.stack([_score(part) for part in p.tensor_split(splits)])
    name = "extractor not stated" if extractor is None else extractor.describe()
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)), n, splits, name)


def _score(p: Tensor) -> Tensor:
    # xlogy: a class of probability zero adds nothing, with no epsilon to change the others.
    divergence = torch.special.xlogy(p, p).sum(dim=1) - torch.special.xlogy(p, p.mean(dim=0)).sum(dim=1)
    return divergence.mean().exp()
