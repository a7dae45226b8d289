"""Masked linear layers, degrees in ascending order.

``IxO-100``: outputs of 100 samples, and in ``fwd+bwd`` the gradients of input, weight and bias for a fixed random
cotangent. ``eager`` multiplies the weight by a mask at every call, as the libraries of flows do; ``dense`` multiplies by
all weights, masked beforehand, which is as fast as stock PyTorch can be, but leaves gradients on masked weights (they
are masked for the check). ``compile`` is ``eager`` under ``torch.compile``.

Operations are those of the weights that the mask leaves: 2 for each and sample forward, twice that backward.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, differentiate, leaf, plain

BATCH = 100


def _degrees(count: int, features: int) -> Tensor:
    return 1 + torch.arange(count) * (features - 1) // count


def _mask(inputs: Inputs) -> Tensor:
    before, after = inputs["in_degree"], inputs["out_degree"]
    return (before <= after[:, None]).to(inputs["x"])


def _inputs(features: int, into: int, out: int, setting: Setting) -> Inputs:
    normal = setting.stream()
    degrees = [_degrees(n, features).to(setting.device) for n in (into, out)]
    tensors = {"x": normal(BATCH, into), "weight": normal(out, into, scale=into**-0.5), "bias": normal(out, scale=0.1)}
    return Inputs({**tensors, "in_degree": degrees[0], "out_degree": degrees[1]}, (normal(BATCH, out),))


def _leaves(inputs: Inputs) -> list[Tensor]:
    return [leaf(inputs[name]) for name in ("x", "weight", "bias")]


def _ours(inputs: Inputs, mode: str) -> Program:
    x, weight, bias = _leaves(inputs)
    layer = gmk.nn.MaskedLinear(inputs["in_degree"], inputs["out_degree"]).to(x)
    layer.weight, layer.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
    leaves = [x, layer.weight, layer.bias]
    return Program(lambda: [layer(x)], leaves, backend=backend_of(gmk.masked_linear, x))


def _masked(mask: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [linear(x, weight * mask, bias)]


def _dense(inputs: Inputs, mode: str) -> Program:
    mask = _mask(inputs)
    x, weight, bias = _leaves(inputs)
    weight = leaf(weight.detach() * mask)
    return Program(
        lambda: [linear(x, weight, bias)], [x, weight, bias], lambda grads: [grads[0], grads[1] * mask, grads[2]]
    )


def _compiled(inputs: Inputs, mode: str) -> Built:
    return compiled({"": functools.partial(_masked, _mask(inputs))}, _leaves(inputs))


def _truth(inputs: Inputs, maths: str, mode: str) -> Sequence[Tensor]:
    tensors = [inputs[name] for name in ("x", "weight", "bias")]
    return differentiate(functools.partial(_masked, _mask(inputs).double()), tensors, inputs, mode)


def _case(features: int, into: int, out: int) -> Case:
    seen = int((_degrees(into, features) <= _degrees(out, features)[:, None]).sum())
    return Case(
        family="masked_linear",
        name=f"{into}x{out}-{BATCH}",
        shape=f"batch {BATCH}, {into} to {out}, degrees up to {features - 1}",
        inputs=functools.partial(_inputs, features, into, out),
        truth=_truth,
        providers=[
            Provider("gmkernels", _ours),
            Provider("eager", lambda inputs, mode: plain(functools.partial(_masked, _mask(inputs)), _leaves(inputs))),
            Provider("dense", _dense),
            Provider("compile", _compiled),
        ],
        flops={"fwd": 2 * BATCH * seen, "fwd+bwd": 6 * BATCH * seen},
        accounting="2 operations an unmasked weight and sample forward, twice that backward",
    )


CASES = (_case(63, 512, 512), _case(784, 1024, 1024))
