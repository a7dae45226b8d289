"""The Fréchet distance between two sets of features, from streamed sums.

For normal distributions with means m and covariances S (Fréchet, 1957; as a figure of merit: Heusel et al., "GANs
trained by a two time-scale update rule", 2017, equation 6)

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

The last trace is taken from a symmetric matrix: with S1 = L L^T it is the sum of the square roots of the eigenvalues of
L^T S2 L, which are real and not negative, so no imaginary part has to be thrown away as with a square root of the
product. With fewer samples than features it is the sum of the singular values of A B^T, A and B being the centred
samples over sqrt(n - 1) - a matrix as small as the samples are few.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import NonFiniteError
from .extractor import Extractor

SIDES = ("real", "fake")


@dataclass
class Moments:
    """The sums of x and of x x^T over samples x (d,), in float64; the samples themselves while they are at most d.

    ``n`` samples; either ``rows`` holds them all, or ``sums`` are those of x (d,) and x x^T (d, d). Both forms take no
    more memory than d x d.
    """

    n: int = 0
    rows: list[Tensor] = field(default_factory=list)
    sums: tuple[Tensor, Tensor] | None = None

    @property
    def width(self) -> int | None:
        """The number of features; None before the first."""
        return self.rows[0].shape[1] if self.rows else None if self.sums is None else len(self.sums[0])

    def add(self, x: Tensor) -> None:
        """Take in features (n, d), float64."""
        self.n += len(x)
        if self.sums is not None:
            self.sums = self.sums[0] + x.sum(dim=0), self.sums[1].addmm_(x.mT, x)
            return
        self.rows.append(x)
        if self.n > x.shape[1]:
            self.fold()

    def fold(self) -> None:
        """From samples to sums."""
        x = torch.cat(self.rows)
        self.rows, self.sums = [], (x.sum(dim=0), x.mT @ x)

    def join(self, other: Moments) -> None:
        """Take in what another has seen, as if its samples came after these. Both keep their own memory."""
        for rows in other.rows:
            self.add(rows)
        if other.sums is not None:
            if self.rows:
                self.fold()
            self.n += other.n
            a, b = other.sums
            self.sums = (a.clone(), b.clone()) if self.sums is None else (self.sums[0] + a, self.sums[1] + b)

    def gaussian(self) -> Gaussian:
        """Mean and covariance (by n - 1), or mean and centred samples over sqrt(n - 1)."""
        if self.sums is None:
            x = torch.cat(self.rows)
            mean = x.mean(dim=0)
            return Gaussian(mean, None, (x - mean) / math.sqrt(self.n - 1))
        total, outer = self.sums
        mean = total / self.n
        covariance = torch.addr(outer, mean, total, alpha=-1.0) / (self.n - 1)
        return Gaussian(mean, 0.5 * (covariance + covariance.mT), None)


@dataclass
class Gaussian:
    """A mean (d,) with either a covariance (d, d) or ``root`` (n, d), n <= d, where the covariance is root^T root."""

    mean: Tensor
    covariance: Tensor | None
    root: Tensor | None

    def trace(self) -> Tensor:
        if self.root is not None:
            return self.root.square().sum()
        assert self.covariance is not None
        return self.covariance.trace()


def distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians, never below zero."""
    cross = _cross(a, b)
    value = (a.mean - b.mean).square().sum() + a.trace() + b.trace() - 2.0 * cross
    return max(float(value), 0.0)


def _cross(a: Gaussian, b: Gaussian) -> Tensor:
    """tr (S1 S2)^(1/2)."""
    if a.root is not None and b.root is not None:
        return torch.linalg.svdvals(a.root @ b.root.mT).sum()
    if a.covariance is None or b.covariance is None:
        root, covariance = (a.root, b.covariance) if a.covariance is None else (b.root, a.covariance)
        assert root is not None and covariance is not None
        inner = root @ covariance @ root.mT
    else:
        inner = _congruent(a.covariance, b.covariance)
    return torch.linalg.eigvalsh(inner).clamp(min=0.0).sqrt().sum()


def _congruent(s1: Tensor, s2: Tensor) -> Tensor:
    """L^T S L with L L^T one of the covariances and S the other: its lower triangle, which is all that is looked at.

    A Cholesky factor costs a tenth of an eigendecomposition, and either covariance may give it; both are singular only
    where features depend on each other, and then the eigendecomposition is the exact way. A feature that is constant
    on one side (a dead unit) adds nothing to the trace and is left out.
    """
    alive = (s1.diagonal() > 0.0) & (s2.diagonal() > 0.0)
    if not alive.all():
        s1, s2 = (s[alive][:, alive] for s in (s1, s2))
    for one, other in ((s1, s2), (s2, s1)):
        factor, failed = torch.linalg.cholesky_ex(one)
        if not failed:
            return _triangular_product(factor, other)
    values, vectors = torch.linalg.eigh(s1)
    root = vectors * values.clamp(min=0.0).sqrt()
    return root.mT @ s2 @ root


def _triangular_product(lower: Tensor, s: Tensor, panel: int = 192) -> Tensor:
    """The lower triangle of L^T S L, panel by panel, without the products that L's zeros or symmetry make needless."""
    d = len(s)
    half, whole = torch.empty_like(s), torch.zeros_like(s)
    panels = [(start, min(start + panel, d)) for start in range(0, d, panel)]
    for start, stop in panels:
        torch.mm(s[:, start:], lower[start:, start:stop], out=half[:, start:stop])
    for start, stop in panels:
        torch.mm(lower[start:, start:stop].mT, half[start:, :stop], out=whole[start:stop, :stop])
    return whole


@dataclass(frozen=True)
class FrechetResult:
    """A Fréchet distance and what it was taken with. ``float(result)`` is the figure, ``str(result)`` all of it."""

    value: float
    real: int
    fake: int
    extractor: str
    split: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return (
            f"Fréchet distance {self.value:.4g} ({self.extractor}, N {self.real} real and {self.fake} fake, "
            f"split {self.split})"
        )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between features ``a`` (n, d) and ``b`` (m, d), in float64.

    Raises:
        ValueError: not two tables of one width, or a side without samples.
        NonFiniteError: a feature is NaN or infinite.

    Warns if a side has no more samples than features: its covariance is then singular and the figure is too high.
    """
    metric = FrechetDistance(sync=False)
    metric.update_features(a, real=True)
    metric.update_features(b, real=False)
    return float(metric.compute())


class FrechetDistance:
    """The Fréchet distance between real and generated images, from streamed float64 sums.

    Args:
        extractor: images to features; see :class:`genmodels.metrics.Extractor`. None if only features are given.
        split: what the real images are, in words, printed with every figure.
        sync: add up the sums of all processes when ``torch.distributed`` is initialised; then every process must call
            ``compute``, and each must have seen images of its own.

    ``compute`` may be called at any time and does not change the sums; ``reset("fake")`` keeps the real side, so that
    it need not be read again for each evaluation.
    """

    def __init__(self, extractor: Extractor | None = None, *, split: str = "not stated", sync: bool = True) -> None:
        self.extractor, self.split, self.sync = extractor, split, sync
        self.state: dict[str, Moments] = {side: Moments() for side in SIDES}

    def update(self, images: Tensor, real: bool) -> None:
        """Take in a batch of images (B, C, H, W), uint8 or floating in [0, 1].

        Raises:
            NonFiniteError: a feature is NaN or infinite, with the number of images that have one.
        """
        if self.extractor is None:
            raise ValueError("this FrechetDistance has no extractor: give it one, or call update_features")
        with torch.inference_mode():
            features = self.extractor(images)
        self.update_features(features, real)

    # The sums are added to in place, which tensors made in inference mode, the caller's too, allow nowhere else.
    @torch.inference_mode(False)
    def update_features(self, features: Tensor, real: bool) -> None:
        """Take in features (B, d) of real or generated images."""
        if features.dim() != 2:
            raise ValueError(f"features must have shape (B, d), got {tuple(features.shape)}")
        side, other = SIDES if real else SIDES[::-1]
        x = features.detach().to(torch.float64, copy=True)
        bad = int((~x.isfinite()).any(dim=1).sum())
        if bad:
            raise NonFiniteError(f"{bad} of {len(x)} {side} images have features that are NaN or infinite")
        for name in (side, other):
            width = self.state[name].width
            if width not in (None, x.shape[1]):
                raise ValueError(f"{side} features are {x.shape[1]} wide, the {name} ones before them {width}")
        if len(x):
            self.state[side].add(x)

    def reset(self, *sides: str) -> None:
        """Forget ``"real"``, ``"fake"``, or (by default) both."""
        for side in sides or SIDES:
            if side not in SIDES:
                raise ValueError(f"reset takes 'real' and 'fake', got {side!r}")
            self.state[side] = Moments()

    def compute(self) -> FrechetResult:
        """The distance between what has been taken in so far.

        Raises:
            ValueError: a side has no samples, or (over all processes) fewer than two.
        """
        real, fake = (gathered(self.state[side]) if self.sync else self.state[side] for side in SIDES)
        for side, moments in zip(SIDES, (real, fake), strict=True):
            if moments.n < 2:
                raise ValueError(f"a Fréchet distance needs two samples on each side at least, got {moments.n} {side}")
            width = moments.width or 0
            if moments.n <= width:
                warnings.warn(
                    f"{moments.n} {side} samples are too few for {width} features: their covariance is singular and the "
                    "Fréchet distance comes out too high; use several times as many samples as features",
                    stacklevel=2,
                )
        value = distance(real.gaussian(), fake.gaussian())
        name = "extractor not stated" if self.extractor is None else self.extractor.describe()
        return FrechetResult(value, real.n, fake.n, name, self.split)


def gathered(moments: Moments) -> Moments:
    """The moments of all processes together, in the order of their ranks; these themselves where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return moments
    here = moments.width
    device = moments.rows[0].device if moments.rows else None if moments.sums is None else moments.sums[0].device
    sent = Moments(moments.n, [row.cpu() for row in moments.rows])
    sent.sums = None if moments.sums is None else (moments.sums[0].cpu(), moments.sums[1].cpu())
    found: list[Moments] = [sent] * dist.get_world_size()
    dist.all_gather_object(found, sent)
    widths = {part.width for part in found} - {None, here}
    if here is not None and widths:
        raise ValueError(f"features are {here} wide in this process and {widths.pop()} in another")
    whole = Moments()
    for part in found:
        whole.join(part)
    if device is not None:
        whole.rows = [row.to(device) for row in whole.rows]
        whole.sums = None if whole.sums is None else (whole.sums[0].to(device), whole.sums[1].to(device))
    return whole
