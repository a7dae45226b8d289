"""Fréchet distance of two sets of features: from their means and covariances on, all of it in float64.

* ``gmkernels`` is ``genmodels.metrics``: a Cholesky factor, a product that knows what is triangular and symmetric, and
  the eigenvalues of a symmetric matrix; of fewer samples than features, the singular values of a product of samples;
* ``eager`` is the strongest formulation in a few lines of PyTorch: the first two of these as plain products;
* ``torch-fidelity`` and ``torchmetrics`` take the eigenvalues of the product of the covariances;
* ``scipy`` is its square root of that product, as pytorch-fid and clean-fid have it.

The truth is the sum of the singular values of L1^T L2, which takes no square root of a rounding error. Features are
rectified, correlated, and of very unequal scale, as those of networks are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genmodels.metrics.frechet import Moments, distance

from .case import Case, Inputs, Program, Provider, Setting
from .peers import fid


def _inputs(samples: int, width: int, setting: Setting) -> Inputs:
    normal = setting.stream()
    mix, scale = normal(width, width, scale=width**-0.5), torch.logspace(0, -2, width).to(setting.device, setting.dtype)
    real = (normal(samples, width) @ mix + 0.3).relu() * scale
    fake = (normal(samples, width) @ mix.flip(0) + 0.5).relu() * scale
    return Inputs({"real": real, "fake": fake}, ())


def _both(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["real"].double(), inputs["fake"].double()


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dim=0), x.mT.cov()


def _truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    roots, total = [], torch.zeros((), dtype=torch.float64)
    for x in _both(inputs):
        centred = (x - x.mean(dim=0)) / math.sqrt(len(x) - 1)
        roots.append(torch.linalg.qr(centred, mode="r")[1])
        total = total + centred.square().sum()
    gap = _both(inputs)[0].mean(dim=0) - _both(inputs)[1].mean(dim=0)
    return [(gap.square().sum() + total - 2.0 * torch.linalg.svdvals(roots[0] @ roots[1].mT).sum()).reshape(1)]


def _number(value: Tensor | float) -> Sequence[Tensor]:
    return (torch.as_tensor(value, dtype=torch.float64).reshape(1),)


def _ours(inputs: Inputs, mode: str) -> Program:
    sides = []
    for x in _both(inputs):
        moments = Moments()
        moments.add(x)
        sides.append(moments.gaussian())
    return Program(lambda: _number(distance(*sides)))


def _eager(inputs: Inputs, mode: str) -> Program:
    (m1, s1), (m2, s2) = (_statistics(x) for x in _both(inputs))

    def call() -> Sequence[Tensor]:
        factor, failed = torch.linalg.cholesky_ex(s1)
        if failed:
            values, vectors = torch.linalg.eigh(s1)
            factor = vectors * values.clamp(min=0.0).sqrt()
        roots = torch.linalg.eigvalsh(factor.mT @ s2 @ factor).clamp(min=0.0).sqrt()
        return _number((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2.0 * roots.sum())

    return Program(call)


def _torch_fidelity(inputs: Inputs, mode: str) -> Program:
    call = fid.torch_fidelity_distance(*_both(inputs))
    return Program(lambda: _number(call()))


def _torchmetrics(inputs: Inputs, mode: str) -> Program:
    call = fid.torchmetrics_distance(*(t for x in _both(inputs) for t in _statistics(x)))
    return Program(lambda: _number(call()))


def _scipy(inputs: Inputs, mode: str) -> Program:
    call = fid.scipy_distance(*(t for x in _both(inputs) for t in _statistics(x)))
    return Program(lambda: _number(call()))


def _case(samples: int, width: int) -> Case:
    return Case(
        family="metrics",
        name=f"frechet-{width}" if samples > width else f"frechet-{width}-few",
        shape=f"2 x {samples} samples of {width} features",
        inputs=functools.partial(_inputs, samples, width),
        truth=_truth,
        providers=[
            Provider("gmkernels", _ours),
            Provider("eager", _eager),
            Provider("torch-fidelity", _torch_fidelity, package="torch-fidelity"),
            Provider("torchmetrics", _torchmetrics, package="torchmetrics"),
            Provider("scipy", _scipy, package="scipy"),
        ],
        modes=("fwd",),
        accounting="d^3/3 operations for the factor, 4d^3/3 for the product, 4d^3/3 for the eigenvalues, in float64",
    )


CASES = (_case(5000, 2048), _case(2500, 512), _case(500, 2048))
