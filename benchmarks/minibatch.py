"""Minibatch discrimination: ``o_ib = sum over j != i of exp(-||m_ib - m_jb||_1)`` of ``m`` (batch, kernels, dims).

* ``eager`` writes every pair to memory, as the paper's and torchgan's code do;
* ``cdist`` is the strongest stock formulation in eager PyTorch;
* ``compile`` is the better of the two under ``torch.compile``;
* ``torchgan`` is its layer, given ``m`` (see ``peers/gan.py``).

Operations, counted once per unordered pair and kernel, since the distance is symmetric: 2 per dimension (the absolute
value is free), 1 for exp, 2 to add it to both samples; the gradient adds 2 for its weight and 2 per dimension.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import native

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, leaf, plain
from .peers import gan


def _broadcast(m: Tensor) -> tuple[Tensor]:
    distance = (m.unsqueeze(0) - m.unsqueeze(1)).abs().sum(dim=3)
    return (torch.exp(-distance).sum(dim=1) - 1.0,)


def _cdist(m: Tensor) -> tuple[Tensor]:
    by_kernel = m.permute(1, 0, 2).contiguous()
    return ((torch.exp(-torch.cdist(by_kernel, by_kernel, p=1)).sum(dim=2) - 1.0).t(),)


def _truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    """The definition in float64, some samples against all at a time, so that the pairs fit into memory."""
    m = inputs["m"].double().requires_grad_(mode == "fwd+bwd")
    rows = max(1, (16 << 20) // (m.numel() * 8))
    outputs, gradient = [], torch.zeros_like(m)
    for start in range(0, m.shape[0], rows):
        part = m[start : start + rows]
        distance = (part.unsqueeze(1) - m).abs().sum(dim=3)
        output = torch.exp(-distance).sum(dim=1) - 1.0
        outputs.append(output.detach())
        if mode == "fwd+bwd":
            gradient += torch.autograd.grad(output, m, inputs.cotangents[0][start : start + rows].double())[0]
    return [torch.cat(outputs), gradient] if mode == "fwd+bwd" else [torch.cat(outputs)]


def _inputs(batch: int, kernels: int, dims: int, setting: Setting) -> Inputs:
    # Distances of about 3 whatever the dimension: exp neither vanishes nor saturates.
    normal = setting.stream()
    return Inputs({"m": normal(batch, kernels, dims, scale=3.0 / dims)}, (normal(batch, kernels),))


def _ours(inputs: Inputs, mode: str) -> Program:
    m = leaf(inputs["m"])
    backend = backend_of(gmk.minibatch_discrimination, m)
    return Program(lambda: (gmk.minibatch_discrimination(m),), [m], backend=backend)


def _compile(inputs: Inputs, mode: str) -> Built:
    return compiled({"broadcast, ": _broadcast, "cdist, ": _cdist}, [leaf(inputs["m"])])


def _case(batch: int, kernels: int, dims: int) -> Case:
    pairs, dense = batch * (batch - 1) // 2 * kernels, 4 * batch * batch * kernels * dims

    def written(mode: str) -> int:
        # The difference is kept for backward, where its sign and the gradient of the absolute value join it.
        return dense * (3 if mode == "fwd+bwd" else 2)

    return Case(
        family="minibatch",
        name=f"{batch}x{kernels}x{dims}",
        shape=f"{batch} samples x {kernels} kernels x {dims} dims",
        inputs=functools.partial(_inputs, batch, kernels, dims),
        truth=_truth,
        providers=[
            # Without a kernel ours is the definition, which writes pairs too.
            Provider("gmkernels", _ours, needs=lambda mode: 0 if native.cpu_error() is None else written(mode)),
            Provider("eager", lambda inputs, mode: plain(_broadcast, [leaf(inputs["m"])]), needs=written),
            Provider("cdist", lambda inputs, mode: plain(_cdist, [leaf(inputs["m"])])),
            Provider("compile", _compile),
            Provider(
                "torchgan", lambda inputs, mode: gan.torchgan_layer(inputs["m"]), package="torchgan", needs=written
            ),
        ],
        flops={"fwd": pairs * (2 * dims + 3), "fwd+bwd": pairs * (4 * dims + 5)},
        accounting="2C + 3 operations per pair and kernel forward, 2C + 2 backward",
    )


CASES = tuple(_case(*size) for size in ((64, 50, 5), (256, 100, 5), (1024, 100, 5), (256, 300, 50)))
