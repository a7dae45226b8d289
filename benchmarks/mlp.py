"""Multilayer perceptrons, whole.

``IxHx..xO-B``: outputs of B samples, and in ``fwd+bwd`` the gradients of input, weights and biases for a fixed random
cotangent. ``eager`` is ``torch.nn.functional.linear`` and the activation in turn, ``compile`` the same under
``torch.compile``. Small ones condition couplings, the large one is a VAE's encoder.

Operations are 2 for each weight and sample forward, twice that backward.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, differentiate, leaf, plain

_ACTIVATIONS = {"relu": F.relu, "silu": F.silu}


def _inputs(batch: int, widths: tuple[int, ...], setting: Setting) -> Inputs:
    normal = setting.stream()
    tensors = {"x": normal(batch, widths[0])}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        tensors[f"weight{i}"] = normal(outputs, inputs, scale=inputs**-0.5)
        tensors[f"bias{i}"] = normal(outputs, scale=0.1)
    return Inputs(tensors, (normal(batch, widths[-1]),))


def _ours(activation: str, backend: str, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    return [gmk.mlp(x, parameters[::2], parameters[1::2], activation=activation, backend=backend)]


def _stock(activation: str, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    for i, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        x = F.linear(_ACTIVATIONS[activation](x) if i else x, weight, bias)
    return [x]


def _leaves(inputs: Inputs) -> list[Tensor]:
    return [leaf(t) for t in inputs.tensors.values()]


def _program(activation: str, inputs: Inputs, mode: str) -> Program:
    leaves = _leaves(inputs)
    function = functools.partial(_ours, activation, "auto")
    return Program(lambda: function(*leaves), leaves, backend=backend_of(gmk.mlp, *leaves))


def _compiled(activation: str, inputs: Inputs, mode: str) -> Built:
    return compiled({"": functools.partial(_stock, activation)}, _leaves(inputs))


def _truth(activation: str, inputs: Inputs, maths: str, mode: str) -> Sequence[Tensor]:
    function = functools.partial(_ours, activation, "reference")
    return differentiate(function, list(inputs.tensors.values()), inputs, mode)


def _case(batch: int, widths: tuple[int, ...], activation: str) -> Case:
    flops = 2 * batch * sum(a * b for a, b in itertools.pairwise(widths))
    return Case(
        family="mlp",
        name=f"{'x'.join(map(str, widths))}-{batch}",
        shape=f"batch {batch}, {' x '.join(map(str, widths))}, {activation}",
        inputs=functools.partial(_inputs, batch, widths),
        truth=functools.partial(_truth, activation),
        providers=[
            Provider("gmkernels", functools.partial(_program, activation)),
            Provider("eager", lambda inputs, mode: plain(functools.partial(_stock, activation), _leaves(inputs))),
            Provider("compile", functools.partial(_compiled, activation)),
        ],
        flops={"fwd": flops, "fwd+bwd": 3 * flops},
        accounting="2 operations a weight and sample forward, twice that backward",
    )


CASES = (
    _case(100, (32, 128, 128, 64), "relu"),
    _case(512, (1, 64, 64, 2), "silu"),
    _case(128, (784, 400, 40), "relu"),
)
