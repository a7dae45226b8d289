"""Schemas and fakes of the multilayer perceptron, by itself and in a coupling, and of the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core.doors import Operator
from gmkernels.core.layout import contiguous_like

from . import reference

LAYERS = 4
_PARAMETERS = ", ".join(f"Tensor{'?' if i > 1 else ''} weight{i}, Tensor? bias{i}" for i in range(1, LAYERS + 1))
Parameters = Sequence[Tensor | None]
_GRADIENTS = ", ".join(["Tensor"] * (2 + 2 * LAYERS))


def wide(x: Tensor) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def outputs(x: Tensor, parameters: Parameters, each: Tensor | None) -> tuple[Tensor, Tensor]:
    """Room for the output and, in float32 or wider, for what the hidden layers hold: before activation, or after relu."""
    *hidden, last = (weight.shape[0] for weight in parameters[::2] if weight is not None)
    batch = x.shape[0] if each is None else x.shape[0] * each.shape[0]
    return x.new_empty(batch, last), x.new_empty(batch, sum(hidden), dtype=wide(x))


def coupling_outputs(x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the output, the log-determinant, and all that the layers hold before activation."""
    batch, dtype = x.shape[0], wide(x)
    kept = sum(weight.shape[0] for weight in parameters[: 2 * LAYERS : 2] if weight is not None)
    return contiguous_like(x), x.new_empty(batch, dtype=dtype), x.new_empty(batch, kept, dtype=dtype)


def likelihood_outputs(z: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the log-likelihoods, their derivatives by the logits, and what the hidden layers hold."""
    *hidden, last = (weight.shape[0] for weight in parameters[::2] if weight is not None)
    batch, dtype = z.shape[0], wide(z)
    slopes, kept = (z.new_empty(batch, width, dtype=dtype) for width in (last, sum(hidden)))
    return z.new_empty(batch, dtype=dtype), slopes, kept


def gradients(x: Tensor, parameters: Parameters, needs: int) -> tuple[Tensor, ...]:
    """Room for the gradients by x and the parameters; empty for those whose bit of ``needs`` is not set."""
    return tuple(
        contiguous_like(t) if t is not None and needs >> i & 1 else x.new_empty(0)
        for i, t in enumerate((x, *parameters))
    )


def _fake(x, *rest):
    return outputs(x, rest[:-2], rest[-2])


def _fake_backward(grad, hidden, x, *rest):
    return gradients(x, rest[:-2], rest[-1])


mlp = Operator(
    "mlp",
    f"mlp(Tensor x, {_PARAMETERS}, Tensor? each, str activation, str backend) -> (Tensor, Tensor)",
    _fake,
    reference.mlp,
    ("cpu",),
    internal=1,
)
mlp_backward = Operator(
    "mlp",
    f"mlp_backward(Tensor grad, Tensor hidden, Tensor x, {_PARAMETERS}, Tensor? each, str activation, int needs,"
    f" str backend) -> ({_GRADIENTS})",
    _fake_backward,
    backends=("cpu",),
)


def _fake_likelihood(z, *rest):
    return likelihood_outputs(z, rest[:-2])


def _fake_likelihood_backward(grad, slopes, hidden, z, *rest):
    return gradients(z, rest[:-3], rest[-1])


bernoulli_log_likelihood_mlp = Operator(
    "mlp",
    f"bernoulli_log_likelihood_mlp(Tensor z, {_PARAMETERS}, Tensor x, str activation, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_likelihood,
    reference.bernoulli_log_likelihood_mlp,
    ("cpu",),
    internal=2,
)
bernoulli_log_likelihood_mlp_backward = Operator(
    "mlp",
    f"bernoulli_log_likelihood_mlp_backward(Tensor grad, Tensor slopes, Tensor hidden, Tensor z, {_PARAMETERS}, Tensor x,"
    f" str activation, int needs, str backend) -> ({', '.join(['Tensor'] * (1 + 2 * LAYERS))})",
    _fake_likelihood_backward,
    backends=("cpu",),
)


_COUPLED = f"{_PARAMETERS}, Tensor? norm_log_scale, Tensor? norm_shift"
_COUPLING = "int split, str activation, str scale_map, float clamp, bool inverse"


def _fake_coupling(x, *rest):
    return coupling_outputs(x, rest[:-5])


def _fake_coupling_backward(grad, grad_logdet, hidden, x, *rest):
    return gradients(x, rest[:-6], rest[-1])


affine_coupling_mlp = Operator(
    "mlp",
    f"affine_coupling_mlp(Tensor x, {_COUPLED}, {_COUPLING}, str backend) -> (Tensor, Tensor, Tensor)",
    _fake_coupling,
    reference.affine_coupling_mlp,
    ("cpu",),
    internal=1,
)
affine_coupling_mlp_backward = Operator(
    "mlp",
    f"affine_coupling_mlp_backward(Tensor grad, Tensor grad_logdet, Tensor hidden, Tensor x, {_COUPLED}, {_COUPLING},"
    f" int needs, str backend) -> ({_GRADIENTS}, Tensor)",
    _fake_coupling_backward,
    backends=("cpu",),
)
