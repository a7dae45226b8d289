"""Virtual batch normalisation: each example mixed with given statistics of the reference, normalised, scaled.

* ``eager`` is the strongest stock formulation: one pass for an example's mean and variance, the algebra of channels, and
  one multiply-add over the batch; on examples of one position, where their mean is the example itself, less still;
* ``compile`` is that under ``torch.compile``.

torchgan's layer of this name computes another function: it forgets the reference after one use and never mixes in the
example's own statistics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, differentiate, leaf, plain

_EXAMPLES, _EPS = 64, 1e-5
_NAMES = ("x", "mean", "var", "weight", "bias")


def _inputs(shape: tuple[int, ...], setting: Setting) -> Inputs:
    normal = setting.stream()
    channels = {name: normal(shape[1], scale=0.3, wide=True) for name in ("mean", "weight", "bias")}
    tensors = {"x": normal(*shape), **channels, "var": 0.5 + normal(shape[1], wide=True).square()}
    return Inputs({name: tensors[name] for name in _NAMES}, (normal(*shape),))


def _eager(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
    own, rest = 1.0 / (_EXAMPLES + 1), _EXAMPLES / (_EXAMPLES + 1)
    if x.dim() == 2:
        shift = x - mean
        return (
            torch.addcmul(bias, rest * shift, weight * torch.rsqrt(rest * var + own * rest * shift * shift + _EPS)),
        )
    mean, var, weight, bias = (t.view(-1, *[1] * (x.dim() - 2)) for t in (mean, var, weight, bias))
    spread, centre = torch.var_mean(x, dim=tuple(range(2, x.dim())), correction=0, keepdim=True)
    shift = centre - mean
    scale = weight * torch.rsqrt(rest * var + own * (spread + rest * shift * shift) + _EPS)
    return (torch.addcmul(bias - (mean + own * shift) * scale, x, scale),)


def _leaves(inputs: Inputs) -> list[Tensor]:
    return [leaf(inputs[name]) for name in _NAMES]


def _truth(inputs: Inputs, maths: str, mode: str) -> Sequence[Tensor]:
    return differentiate(_eager, [inputs[name] for name in _NAMES], inputs, mode)


def _ours(inputs: Inputs, mode: str) -> Program:
    leaves = _leaves(inputs)
    backend = backend_of(gmk.virtual_batch_norm, *leaves)
    return Program(lambda: (gmk.virtual_batch_norm(*leaves, examples=_EXAMPLES, eps=_EPS),), leaves, backend=backend)


def _compile(inputs: Inputs, mode: str) -> Built:
    return compiled({"": _eager}, _leaves(inputs))


def _case(*shape: int) -> Case:
    elements = math.prod(shape)
    return Case(
        family="virtual_batch_norm",
        name="x".join(map(str, shape)),
        shape=f"{shape[0]} examples of {shape[1]} channels x {math.prod(shape[2:])}",
        inputs=functools.partial(_inputs, shape),
        truth=_truth,
        providers=[
            Provider("gmkernels", _ours),
            Provider("eager", lambda inputs, mode: plain(_eager, _leaves(inputs))),
            Provider("compile", _compile),
        ],
        # Forward reads x and writes y; backward reads x and the gradient and writes one.
        elements={"fwd": 2 * elements, "fwd+bwd": 5 * elements},
        accounting="x read and y written; the gradient and x read, the gradient of x written",
    )


CASES = (_case(64, 64, 14, 14), _case(64, 128, 16, 16), _case(64, 512, 4, 4), _case(64, 1024))
