"""Distances between probability laws: Jensen-Shannon of two densities, Wasserstein of two sets of samples."""

from __future__ import annotations

import torch
from torch import Tensor

import gmkernels as gmk

from ..errors import NonFiniteError


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of discrete laws, in nats: from 0 where they are equal to log 2 where disjoint.

    ``KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2`` (Lin, "Divergence measures based on the Shannon entropy",
    1991): what the original GAN minimises against a perfect discriminator, up to constants (Goodfellow et al., "Generative
    adversarial nets", 2014, theorem 1).

    Args:
        p, q: (..., K), not negative and adding up to 1 along the last dimension; shapes that broadcast.

    Returns:
        (...) in float64, differentiable.

    Raises:
        ValueError: something is not a law, or the shapes do not fit.
    """
    p, q = _law("p", p), _law("q", q)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"jensen_shannon: the laws must be of one length, got {p.shape[-1]} and {q.shape[-1]}")
    m = 0.5 * (p + q)
    # Where a law is 0 its term is 0, whatever the other; log of 1 there keeps the gradient from being 0 times infinity.
    terms = (law * torch.where(law > 0.0, law / m, 1.0).log() for law in (p, q))
    return 0.5 * sum(terms, torch.zeros((), dtype=m.dtype, device=m.device)).sum(dim=-1)


def _law(name: str, p: Tensor) -> Tensor:
    if p.dim() == 0 or not p.shape[-1]:
        raise ValueError(f"jensen_shannon: {name} must have shape (..., K), got {tuple(p.shape)}")
    p = p.to(torch.float64)
    total = p.sum(dim=-1)
    # Written so that a NaN fails.
    if not bool((p >= 0.0).all()) or not bool(((total - 1.0).abs() <= 1e-4).all()):
        raise ValueError(f"jensen_shannon: {name} must not be negative and must add up to 1 along the last dimension")
    return p / total.unsqueeze(-1)


def wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 1.0,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    directions: int = 256,
    key: Tensor | int = 0,
) -> Tensor:
    """The Wasserstein distance of order p between two sets of samples, exact in one dimension and sliced in more.

    In one dimension ``(integral over u of |F^-1(u) - G^-1(u)|^p)^(1/p)``, F and G being the distribution functions
    (Villani, "Topics in optimal transportation", 2003, theorem 2.18), for sets of any sizes and weights. In more, the mean
    of its p-th power over random directions, ``p``-th root taken at the end (Rabin et al., "Wasserstein barycenter and its
    application to texture mixing", 2012).

    Args:
        x: samples (n,) or (n, d); y: (m,) or (m, d).
        p: 1 or more, finite.
        x_weights: (n,), not negative, rescaled to add up to 1; None for equal ones. ``y_weights`` likewise.
        directions: how many, on d > 1.
        key: an int64 tensor (2,) made by :func:`gmkernels.random.key`, or its seed: the same key takes the same directions.

    Returns:
        A 0-d tensor in float64, differentiable in the samples; where it is 0 its gradient is 0 too.

    Raises:
        ValueError: shapes, weights, p or directions do not fit.
        NonFiniteError: a sample is NaN or infinite.
    """
    x, y = _samples("x", x), _samples("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"wasserstein: x has {x.shape[1]} dimensions and y {y.shape[1]}")
    if not 1.0 <= p < float("inf"):
        raise ValueError(f"wasserstein: p must be 1 or more and finite, got {p!r}")
    masses = _mass("x_weights", x_weights, x), _mass("y_weights", y_weights, y)
    if x.shape[1] > 1:
        axes = _axes(x.shape[1], directions, key).to(x)
        x, y = x @ axes, y @ axes
    gaps, mass = _transport(x.mT.contiguous(), y.mT.contiguous(), *masses)
    # Powers of gaps in units of the largest neither overflow nor vanish.
    unit = gaps.detach().max()
    unit = torch.where(unit > 0.0, unit, 1.0)
    cost = ((gaps / unit) ** p * mass).sum(dim=1).mean()
    # The root is infinitely steep at 0, and that times the 0 of the cost's own gradient would be NaN.
    return unit * torch.where(cost > 0.0, cost, 1.0) ** (1.0 / p) * (cost > 0.0)


def _samples(name: str, x: Tensor) -> Tensor:
    if x.dim() not in (1, 2) or 0 in x.shape:
        raise ValueError(f"wasserstein: {name} must have shape (n,) or (n, d) and not be empty, got {tuple(x.shape)}")
    x = x.to(torch.float64).reshape(len(x), -1)
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise NonFiniteError(f"wasserstein: {bad} of {len(x)} samples of {name} are NaN or infinite")
    return x


def _mass(name: str, weights: Tensor | None, x: Tensor) -> Tensor:
    if weights is None:
        return x.new_full((len(x),), 1.0 / len(x))
    w = weights.detach().to(x)
    if w.shape != x.shape[:1] or not bool((w >= 0.0).all()) or not 0.0 < float(w.sum()) < float("inf"):
        raise ValueError(
            f"wasserstein: {name} must be {len(x)} numbers, none negative or NaN and not all 0, got {tuple(w.shape)}"
        )
    return w / w.sum()


def _axes(dimensions: int, directions: int, key: Tensor | int) -> Tensor:
    """(d, directions), uniform on the sphere."""
    if directions < 1:
        raise ValueError(f"wasserstein: directions must be at least 1, got {directions}")
    key = gmk.random.key(seed=key) if isinstance(key, int) else key
    axes = gmk.random.normal(key, (directions, dimensions), dtype=torch.float64)
    return (axes / axes.norm(dim=1, keepdim=True)).mT


def _transport(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How far, and how much of it, the mass a (n,) of each row of x (L, n) goes to become b (m,) on the same row of y."""
    (x, i), (y, j) = x.sort(dim=1), y.sort(dim=1)
    if len(a) == len(b) and bool((a == a[0]).all()) and bool((b == b[0]).all()):
        return (x - y).abs(), a
    cumulated_x, cumulated_y = a[i].cumsum(dim=1), b[j].cumsum(dim=1)
    # Between neighbouring levels of either distribution function both quantiles are constant; they are looked up in
    # the middle, where no rounding of a level matters.
    levels = torch.cat((cumulated_x, cumulated_y), dim=1).sort(dim=1).values
    before = torch.cat((levels.new_zeros(len(levels), 1), levels[:, :-1]), dim=1)
    middle = 0.5 * (before + levels)
    at_x = torch.searchsorted(cumulated_x, middle).clamp_max(x.shape[1] - 1)
    at_y = torch.searchsorted(cumulated_y, middle).clamp_max(y.shape[1] - 1)
    return (x.gather(1, at_x) - y.gather(1, at_y)).abs(), levels - before
