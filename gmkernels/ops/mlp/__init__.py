"""Whole multilayer perceptrons, such as condition couplings, encode and decode, or judge; and the coupling, and the
likelihood of a decoder, with its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gmkernels.core import checks
from gmkernels.ops.coupling import clamp_of

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
    reference,
)

__all__ = ["affine_coupling_mlp", "bernoulli_log_likelihood_mlp", "mlp"]

_NAMES = tuple(reference.ACTIVATIONS)


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    activation: str = "relu",
    each: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Linear layers with one activation between them, in one call and one autograd node.

    ``h_0 = x``, ``a_l = weights[l] h_l + biases[l]``, ``h_(l+1) = activation(a_l)``, and the result is the last ``a``.
    In small networks, such as condition flows, most of the time of layer after layer goes into calling them.

    Args:
        x: floating tensor (batch, inputs), any strides: the half of a coupling is read where it is.
        weights: 1 to 4 tensors (outputs, inputs) in the dtype of ``x``, each with the last one's outputs as inputs.
        biases: as many tensors (outputs) or Nones; None for no bias anywhere.
        activation: ``relu``, ``silu`` (x sigmoid(x)) or ``tanh``.
        each: (rows, inputs) in the dtype of ``x``: the perceptron reads ``activation(x_i + each_j)`` instead, for every
            pair. So a layer before it that takes an image with one of several classes, ``W [image; onehot(j)] =
            W_image image + W_class[:, j]``, is multiplied out once for an image, all of whose classes are enumerated
            (as by Kingma et al., "Semi-supervised learning with deep generative models", 2014). None for no such rows.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        (batch, outputs) in the dtype of ``x``, contiguous; with ``each`` (batch, rows, outputs).

    Differentiable any number of times in all tensors; beyond the first derivative layer by layer. The C++ core keeps the
    hidden layers for backward, sums in float32 (float64 for float64) in one fixed order, and is
    row-wise: a sample's result does not depend on the rest of the batch, nor do bits depend on threads or vector width
    (but second derivatives rest on PyTorch's own activations, which in large tensors depend on threads).
    Consumes no randomness. Non-finite values propagate as in PyTorch. Autocast changes nothing.

    Raises:
        TypeError: an argument is not a tensor or has an unsupported dtype, or dtypes differ.
        ValueError: shapes, devices, or the number of layers do not fit, or the activation is unknown.
        BackendError: an explicitly requested backend cannot run.
    """
    parameters = _checked("mlp", x, None, weights, biases, activation)
    if each is None:
        return library.mlp(x, *parameters, None, activation, backend)[0]
    checks.floating("mlp", "each", each)
    checks.dims("mlp", "each", each, 2, "(rows, inputs)")
    checks.shape("mlp", "each", each, (each.shape[0], x.shape[1]))
    checks.same_dtype("mlp", x=x, each=each)
    checks.same_device("mlp", x=x, each=each)
    return library.mlp(x, *parameters, each, activation, backend)[0].view(
        x.shape[0], each.shape[0], weights[-1].shape[0]
    )


def bernoulli_log_likelihood_mlp(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    x: Tensor,
    activation: str = "relu",
    backend: str = "auto",
) -> Tensor:
    """``log p(x|z)`` of a decoder that is a perceptron with Bernoulli pixels, in one call and one autograd node.

    :func:`bernoulli_log_likelihood` of ``x`` under the logits that :func:`mlp` makes of ``z`` (Kingma and Welling,
    "Auto-encoding variational Bayes", 2014, appendix C.1), bit for bit, gradients of the last layer included: below
    it, the cotangent multiplies finished sums. Forward replaces the logits by the derivatives ``x - sigmoid(logits)`` while
    they are at hand, so that backward neither evaluates the likelihood again nor stores another array of their size.

    Args:
        z: floating tensor (batch, latents), any strides.
        weights, biases, activation: of the perceptron, as for :func:`mlp`.
        x: (images, features) in the dtype of ``z``: the targets, from 0 to 1, not looked at. The batch is a multiple of
            the images, and so many samples in turn are judged by one image: several draws of it, or several classes.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        (batch,) in float32, or float64 for float64.

    Twice differentiable in all tensors; the gradient by ``x`` evaluates the perceptron once more. Everything else is as
    for :func:`mlp`.
    """
    op = "bernoulli_log_likelihood_mlp"
    parameters = _checked(op, z, None, weights, biases, activation, "z")
    checks.floating(op, "x", x)
    checks.dims(op, "x", x, 2, "(images, features)")
    checks.shape(op, "x", x, (x.shape[0], weights[-1].shape[0]))
    checks.same_dtype(op, z=z, x=x)
    checks.same_device(op, z=z, x=x)
    if z.shape[0] % max(x.shape[0], 1) or z.shape[0] and not x.shape[0]:
        raise ValueError(f"{op}: the batch must be a multiple of the images, got {z.shape[0]} samples of {x.shape[0]}")
    return library.bernoulli_log_likelihood_mlp(z, *parameters, x, activation, backend)[0]


def affine_coupling_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    split: int,
    activation: str = "relu",
    scale_map: str = "exp",
    clamp: float | None = None,
    inverse: bool = False,
    actnorm: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A whole coupling layer of vectors, conditioner included, in one call and one autograd node.

    One part of ``x`` passes through and, by :func:`mlp`, gives log-scale and shift (the two halves of its output) of the
    affine transformation of the other part, which is that of :func:`affine_coupling` (Dinh et al., "Density
    estimation using Real NVP", 2017, section 3).

    Args:
        x: floating tensor (batch, features), any strides.
        weights, biases, activation: of the perceptron, as for :func:`mlp`. It takes ``|split|`` numbers to
            ``2 * (features - |split|)``.
        split: k > 0 lets the first k features pass, k < 0 the last |k|.
        scale_map, clamp, inverse: as for :func:`affine_coupling`.
        actnorm: ``(log_scale, shift)``, each (features,) in the dtype of ``x``: the result ``y`` becomes
            ``y * exp(log_scale) + shift``, and its log-determinant grows by the sum of ``log_scale`` (Kingma and Dhariwal,
            "Glow: generative flow with invertible 1x1 convolutions", 2018, section 3.1). It follows the coupling also
            if ``inverse``. None for none.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        ``y`` (batch, features) in the dtype of ``x``, and ``logdet`` (batch,) in float32, or float64 for float64.

    Twice differentiable in all tensors. Everything else is as for :func:`mlp`.
    """
    op = "affine_coupling_mlp"
    limit = clamp_of(op, scale_map, clamp)
    checks.flag(op, "inverse", inverse)
    if checks.tensor(op, "x", x).dim() != 2 or not 0 < abs(split) < x.shape[1]:
        raise ValueError(
            f"{op}: x must have shape (batch, features) and split must leave some features on both sides, got "
            f"{tuple(x.shape)} and {split}"
        )
    parameters = _checked(op, x, abs(split), weights, biases, activation)
    outputs, expected = weights[-1].shape[0], 2 * (x.shape[1] - abs(split))
    if outputs != expected:
        raise ValueError(f"{op}: the perceptron must give {expected} numbers (log-scale and shift), got {outputs}")
    norm = (None, None) if actnorm is None else _norm(op, x, *actnorm)
    return library.affine_coupling_mlp(x, *parameters, *norm, split, activation, scale_map, limit, inverse, backend)[:2]


def _norm(op: str, x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    named = {"actnorm's log_scale": log_scale, "actnorm's shift": shift}
    for name, t in named.items():
        checks.floating(op, name, t)
        checks.shape(op, name, t, (x.shape[1],))
    checks.same_dtype(op, x=x, **named)
    checks.same_device(op, x=x, **named)
    return log_scale, shift


def _checked(
    op: str,
    x: Tensor,
    width: int | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    activation: str,
    name: str = "x",
) -> list[Tensor | None]:
    """Weights and biases in turn, filled up with None, once all is found to fit. ``width``: how much of x is read."""
    for kind, given in (("weights", weights), ("biases", biases)):
        if (isinstance(given, Tensor) or not hasattr(given, "__len__")) and not (kind == "biases" and given is None):
            raise TypeError(f"{op}: {kind} must be a sequence of tensors, got {type(given).__name__}")
    count = len(weights)
    biases = (None,) * count if biases is None else biases
    if not (1 <= count <= library.LAYERS and len(biases) == count):
        raise ValueError(
            f"{op}: expected 1 to {library.LAYERS} weights and as many biases, got {count} and {len(biases)}"
        )
    if activation not in _NAMES:
        checks.choice(op, "activation", activation, _NAMES)
    parameters: list[Tensor | None] = [t for pair in zip(weights, biases, strict=True) for t in pair]
    if not _fit(x, width, parameters):
        _explain(op, name, x if width is None else x[:, :width], weights, biases)
    return parameters + [None] * (2 * (library.LAYERS - count))


def _fit(x: Tensor, width: int | None, parameters: Sequence[Tensor | None]) -> bool:
    """Whether nothing is wrong: the usual case, looked at quickly."""
    try:
        dtype, on_cpu, (_, features) = x.dtype, x.is_cpu, x.shape
        if dtype not in checks.FLOATING:
            return False
        width = features if width is None else width
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            if weight is None:
                return False
            outputs, inputs = weight.shape
            if inputs != width or bias is not None and bias.shape != (outputs,):
                return False
            for t in (weight, bias):
                if t is not None and (
                    t.dtype is not dtype or t.is_cpu is not on_cpu or not on_cpu and t.device != x.device
                ):
                    return False
            width = outputs
    except (AttributeError, IndexError, ValueError):
        return False
    return True


def _explain(op: str, name: str, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    """Raises the error that says what does not fit."""
    named = {name: x} | {f"weights[{i}]": w for i, w in enumerate(weights)}
    named |= {f"biases[{i}]": b for i, b in enumerate(biases) if b is not None}
    for key, value in named.items():
        checks.floating(op, key, value)
    checks.dims(op, name, x, 2, "(batch, inputs)")
    checks.same_dtype(op, **named)
    checks.same_device(op, **named)
    width = x.shape[1]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        checks.dims(op, f"weights[{i}]", weight, 2, "(outputs, inputs)")
        checks.shape(op, f"weights[{i}]", weight, (weight.shape[0], width))
        width = weight.shape[0]
        if bias is not None:
            checks.shape(op, f"biases[{i}]", bias, (width,))
