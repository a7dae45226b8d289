"""Sampling of WaveNets, every activation computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gmkernels.core import backends
from gmkernels.core.doors import Operator

from . import wavenet_cached as cached
from . import wavenet_network as checked
from . import wavenet_reference as reference

OnChunk = Callable[[int, Tensor], object]


def _fake(parameters, values, key, x_init, condition, local, local_weight, shape, network, temperature, first):
    return parameters.new_empty(shape) if checked.Stack.of(network).real else key.new_empty(shape)


operator = Operator(
    "autoregressive",
    "wavenet_sample(Tensor parameters, Tensor values, Tensor key, Tensor? x_init, Tensor? condition, Tensor? local,"
    " Tensor? local_weight, SymInt[] shape, int[] network, float temperature, SymInt first, str backend) -> Tensor",
    _fake,
    reference.wavenet_sample,
    ("cpu",),
)


def wavenet_sample(
    parameters: Sequence[Tensor],
    shape: Sequence[int],
    dilations: Sequence[int],
    *,
    key: Tensor,
    head: str = "categorical",
    levels: int = 256,
    x_init: Tensor | None = None,
    condition: Tensor | None = None,
    local: Tensor | None = None,
    local_weight: Tensor | None = None,
    temperature: float = 1.0,
    first: int = 0,
    on_chunk: OnChunk | None = None,
    chunk: int = 1024,
    backend: str = "auto",
) -> Tensor:
    """Draws from a WaveNet, sample after sample, in one call.

    The network (A. van den Oord et al., "WaveNet: a generative model for raw audio", 2016, section 2 and figure 4) sees
    the samples before time t. A causal convolution makes R channels of them; then, layer by layer,

    ``z = gate(dilated(h) + condition + local_weight @ local)``, ``(r, s) = mix(z)``, ``h <- h + r``, ``skip <- skip + s``

    with ``gate(x) = tanh(x_1) * sigmoid(x_2)`` of the halves of x and ``dilated`` a causal convolution that looks back
    dilation x (taps - 1) samples; then relu, a 1x1 convolution ``head``, relu, and a 1x1 convolution ``output`` of the
    skip sum. There are zeros before the first sample, in every layer.

    Args:
        parameters: weight and bias in turn, float32 or float64, all finite: of ``first`` (R, inputs, taps); of
            ``dilated`` (2G, R, taps) and ``mix`` (R + S, G, 1) of every layer, of which the last has no residual and is
            (S, G, 1); of ``head`` (any, S, 1) and ``output`` (outputs, any, 1). The last tap is the newest. With one
            input the network sees levels spread evenly over [-1, 1], or the real sample itself; with ``levels`` inputs,
            one-hot vectors.
        shape: (batch, time).
        dilations: one for each layer.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of the parameters.
        head: what the outputs of a time are.

            * ``"categorical"``: ``levels`` logits, of mu-law levels for example.
            * ``"mixture"``: of ``n`` discretised logistics (T. Salimans et al., "PixelCNN++", 2017): n logits, n means, n
              log-scales, in units where the levels spread over [-1, 1]; log-scales are -7 or more.
            * ``"gaussian"``: a mean and a log-scale (W. Ping et al., "ClariNet", 2018), -7 or more; samples are real.

        levels: how many values a sample can take, 2 to 65536; not for ``"gaussian"``.
        x_init: (batch, any), the first samples, given: levels, or finite numbers in the dtype of the parameters.
        condition: (batch, layers, 2G) in the dtype of the parameters, finite: added before each gate, at all times.
        local: (batch, channels, time), likewise: a condition for each time. It needs ``local_weight``.
        local_weight: (layers, 2G, channels), likewise.
        temperature: more than 0. Logits are divided by it, scales are multiplied.
        first: logical number of the batch's first row, so that a batch cut in two draws the same as the whole. Rows are
            numbered in 32 bits.
        on_chunk: called as ``on_chunk(time, samples)`` with (batch, at most ``chunk``) new samples and the time of the
            first of them, as soon as they are there. An exception ends the sampling. Not inside ``torch.compile``.
        chunk: samples between two calls of ``on_chunk``.
        backend: ``auto``, ``reference`` or ``cpu``. The reference runs the whole network for every sample; the C++ core
            keeps the activations that a layer looks back on in a ring, and computes each once. On a GPU ``auto`` does so
            in PyTorch operations.

    Returns:
        (batch, time): levels in int64, or real samples in the dtype of the parameters. ``x_init`` is their beginning.

    Randomness: two 32-bit words for each sample, by its time and the number of its row (the layout is in
    ``wavenet_reference.py``). The C++ core adds up every sum in one fixed order: what it draws does not depend on batch
    split, threads, chunks or instruction set. Between backends, a level may differ where the uniform comes within a
    rounding error of a cumulative probability, and then so may all that follow it; real samples differ by rounding.

    Not differentiable. On a GPU the values of ``x_init``, the conditions and the parameters are not looked at.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or dtypes differ.
        ValueError: shapes, devices or dilations do not fit, a level is out of range, a number is not finite, or another
            value is out of range.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "wavenet_sample"
    net = checked.stack(op, parameters, dilations, head, levels, local)
    checked.sampling(op, parameters, net, shape, key, first, temperature, condition, local, local_weight)
    checked.start(op, net, x_init, shape, parameters)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"{op}: chunk must be a positive int, got {chunk!r}")
    values = torch.linspace(-1.0, 1.0, net.levels, dtype=torch.float64).to(parameters[0])
    flat = torch.cat([t.detach().reshape(-1) for t in parameters])
    x_init = None if x_init is None else x_init.detach() if net.real else x_init.long()
    conditions = (None if t is None else t.detach() for t in (condition, local, local_weight))
    given = (flat, values, key, x_init, *conditions, list(shape), net.numbers, float(temperature), first)
    return _run(given, on_chunk, chunk, backend)


def _run(given: tuple[Any, ...], on_chunk: OnChunk | None, chunk: int, backend: str) -> Tensor:
    """Through the doors, if they can take the call."""
    launch: Any = cached.wavenet_sample
    tensors = [t for t in given[: operator.tensors] if t is not None]
    automatic = backend == "auto" == backends.setting.name
    if automatic and tensors[0].is_cuda and not torch.compiler.is_compiling():
        return launch(*given, on_chunk, chunk)
    if on_chunk is None:
        return operator(*given, backend)
    name = backends.resolve("wavenet_sample", backend, tensors, operator.backends)
    launch = reference.wavenet_sample if name == "reference" else operator.launcher(name)
    return launch(*given, on_chunk, chunk)
