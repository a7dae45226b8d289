"""Drawing sound from a WaveNet of 20 layers (dilations 1 .. 512 twice, 64 channels, 256 of skip) and from a student.

``wavenet-20x64``: 2,400 samples of 256 levels, one sound.

* ``gmkernels`` is ``wavenet_sample``;
* ``naive`` runs the network over the receptive field of 2,047 samples for every new one. It draws the last 2 of the 2,400,
  and its time is multiplied by 1,200: every sample costs it the same;
* ``cached`` is a sampler in eager PyTorch with a ring of activations for each layer, and seven operations a layer.

All draw with the same key. What is checked is every decision, given the samples before it: the network's probabilities in
float64 must lead to the same levels from the same random words, except where a uniform is within 1e-4 of a cumulative
probability. (One decision inside that band may turn all that follow it, so sounds themselves are not compared.)

``student-2x10x16``: two seconds of real samples, at 8 kHz.

* ``gmkernels`` is ``genmodels.flows.ParallelWaveNet`` of two flows of ten layers of 16 channels, one pass;
* ``eager`` is the same in stock PyTorch;
* ``teacher`` is ``wavenet_sample`` of the network above with a Gaussian head: another model, narrower students being what
  Parallel WaveNet is about (van den Oord et al., 2017, section 5.1).

A student's samples are compared with those of its definition in float64; a teacher's with its own means and scales.

Operations are those of the products, each weight once a sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.ops.autoregressive import reference as draws
from gmkernels.ops.autoregressive import wavenet_cached as cached
from gmkernels.ops.autoregressive import wavenet_reference as reference
from gmkernels.ops.autoregressive.wavenet_network import HEADS, Stack

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of

TIME, DRAWN, BAND, SOUND = 2400, 2, 1e-4, 16000
DILATIONS = tuple(2**i for i in range(10)) * 2
NETWORKS = {
    name: Stack(1, 64, 64, 256, 256, outputs, HEADS.index(name), levels, 2, 2, 0, DILATIONS)
    for name, outputs, levels in (("categorical", 256, 256), ("gaussian", 2, 0))
}


def _inputs(head: str, setting: Setting) -> Inputs:
    """Random parameters that keep activations near 1."""
    normal = setting.stream()
    tensors = {
        label: normal(*shape, scale=torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.1)
        for label, shape in NETWORKS[head].parameters()
    }
    return Inputs(tensors, ())


def _key(inputs: Inputs) -> Tensor:
    return gmk.random.key(seed=7, device=inputs["first.weight"].device)


def _draw(head: str, time: int, inputs: Inputs) -> Tensor:
    return gmk.wavenet_sample(list(inputs.tensors.values()), (1, time), DILATIONS, key=_key(inputs), head=head)


def _values(net: Stack, x: Tensor) -> Tensor:
    return torch.linspace(-1.0, 1.0, net.levels, dtype=torch.float64, device=x.device)


def _found(net: Stack, inputs: Inputs, x: Tensor) -> Tensor:
    """The network's outputs (T, outputs) in float64 for finished samples (1, T)."""
    shown = reference.seen(x[:, :-1].double() if net.real else x[:, :-1], net, _values(net, x))
    return reference.outputs(shown, net, [t.double() for t in inputs.tensors.values()])[0].T


def _wrong(inputs: Inputs, results: Sequence[Tensor]) -> list[Tensor]:
    """One more than the decisions that do not follow from the samples before them."""
    net, x = NETWORKS["categorical"], results[0]
    logits = _found(net, inputs, x)
    word = reference.words(_key(inputs), 1, 0, 0, x.shape[1])[0][0]
    sums = draws.cumulative(logits, 1.0)
    near = (draws.uniform(word)[:, None] - sums / sums[:, -1:]).abs().amin(1) < BAND
    return [1.0 + ((draws.categorical(logits, word, 1.0) != x[0]) & ~near).sum().double()[None]]


def _ours(inputs: Inputs, mode: str) -> Program:
    return Program(
        lambda: (_draw("categorical", TIME, inputs),),
        results=functools.partial(_wrong, inputs),
        backend=backend_of(gmk.wavenet_sample, inputs["first.weight"]),
    )


def _cached(inputs: Inputs, mode: str) -> Program:
    net, flat = NETWORKS["categorical"], torch.cat([t.flatten() for t in inputs.tensors.values()])
    values, key = _values(net, flat).to(flat), _key(inputs)
    return Program(
        lambda: (cached.wavenet_sample(flat, values, key, None, None, None, None, [1, TIME], net.numbers),),
        results=functools.partial(_wrong, inputs),
    )


def _naive(inputs: Inputs, mode: str) -> Built:
    net, parameters = NETWORKS["categorical"], list(inputs.tensors.values())
    values, reach = _values(net, parameters[0]).to(parameters[0]), 2 + sum(DILATIONS)
    start = _draw("categorical", TIME, inputs)
    word = reference.words(_key(inputs), 1, 0, 0, TIME)[0]

    def call() -> Sequence[Tensor]:
        x = start.clone()
        for t in range(TIME - DRAWN, TIME):
            shown = reference.seen(x[:, t - reach : t], net, values)[:, :, 1:]
            x[:, t] = draws.categorical(reference.outputs(shown, net, parameters)[:, :, -1], word[:, t], 1.0)
        return (x,)

    times = TIME / DRAWN
    variant = f"{DRAWN} of {TIME} samples, time x {times:g}"
    return {variant: lambda: Program(call, results=functools.partial(_wrong, inputs), times=times)}


def _products(net: Stack) -> int:
    """Multiplications a sample."""
    return sum(torch.Size(shape).numel() for name, shape in net.parameters() if name.endswith("weight"))


# ---- the student -----------------------------------------------------------------------------------------------------


def _student(like: Tensor) -> torch.nn.Module:
    """A student with random weights, in the dtype and on the device of a tensor."""
    from genmodels.flows.wavenet import ParallelWaveNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ParallelWaveNet((DILATIONS[:10], DILATIONS[:10]), residual=16, skip=16)
        for flow in model.flows:
            torch.nn.init.normal_(flow.output.weight, 0.0, 0.1)
    return model.to(like)


def _off(inputs: Inputs, results: Sequence[Tensor]) -> list[Tensor]:
    """One more than the distance of a student's samples from their definition."""
    wide = _student(inputs["first.weight"].double())
    with gmk.use_backend("reference"), torch.no_grad():
        noise = gmk.random.normal(_key(inputs), results[0].shape, dtype=inputs["first.weight"].dtype)
        expected = wide(noise.double())[0]
    return [1.0 + ((results[0] - expected).abs().max() / expected.abs().max())[None]]


def _pass(backend: str, inputs: Inputs, mode: str) -> Program:
    model, key = _student(inputs["first.weight"]), _key(inputs)

    def call() -> Sequence[Tensor]:
        with gmk.use_backend(backend):
            return (model.sample(1, SOUND, key=key),)

    known = backend_of(gmk.causal_conv1d, inputs["first.weight"]) if backend == "auto" else None
    return Program(call, results=functools.partial(_off, inputs), backend=known)


def _surprising(inputs: Inputs, results: Sequence[Tensor]) -> list[Tensor]:
    """One more than the largest distance of a teacher's samples from what its means, its scales and the words make, if
    that is more than rounding carried through the network."""
    net, x = NETWORKS["gaussian"], results[0]
    mean, log_scale = _found(net, inputs, x).unbind(1)
    noise = reference.normal(tuple(w[0] for w in reference.words(_key(inputs), 1, 0, 0, x.shape[1])))
    distance = (x[0] - mean - log_scale.clamp(min=-7).exp() * noise).abs() / (1 + x[0].abs())
    return [1.0 + torch.relu(distance.max() - 1e-4)[None].double()]


def _teacher(inputs: Inputs, mode: str) -> Program:
    return Program(
        lambda: (_draw("gaussian", SOUND, inputs),),
        results=functools.partial(_surprising, inputs),
        backend=backend_of(gmk.wavenet_sample, inputs["first.weight"]),
    )


def _one(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    return [torch.ones(1, dtype=torch.float64)]


CASES = (
    Case(
        family="autoregressive",
        name="wavenet-20x64",
        shape=f"1 x {TIME}, 20 layers of 64 channels, skip 256, 256 levels",
        inputs=functools.partial(_inputs, "categorical"),
        truth=_one,
        providers=[Provider("gmkernels", _ours), Provider("naive", _naive), Provider("cached", _cached)],
        modes=("sample",),
        flops={"sample": 2 * _products(NETWORKS["categorical"]) * TIME},
        accounting="every weight once a sample",
    ),
    Case(
        family="autoregressive",
        name="student-2x10x16",
        shape=f"1 x {SOUND}, 2 flows of 10 layers of 16 channels; teacher 20 layers of 64",
        inputs=functools.partial(_inputs, "gaussian"),
        truth=_one,
        providers=[
            Provider("gmkernels", functools.partial(_pass, "auto")),
            Provider("eager", functools.partial(_pass, "reference")),
            Provider("teacher", _teacher, library=True),
        ],
        modes=("sample",),
    ),
)
