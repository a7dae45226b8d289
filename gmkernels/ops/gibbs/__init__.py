"""Restricted Boltzmann machines: block Gibbs sampling, the free energy, and the statistics of contrastive divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core import checks
from gmkernels.core.doors import ALIASES

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    inputs,
    library,
    reference,
)
from .ais import ais_log_z
from .boltzmann import boltzmann_gibbs, hopfield_recall

__all__ = [
    "ais_log_z",
    "boltzmann_gibbs",
    "cd_statistics",
    "hopfield_recall",
    "rbm_free_energy",
    "rbm_gibbs",
    "rbm_sample_hidden",
    "rbm_sample_visible",
]

ALIASES.update(
    rbm_sample_hidden="rbm_conditional", rbm_sample_visible="rbm_conditional", rbm_free_energy="rbm_softplus_sum"
)


def rbm_gibbs(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int,
    key: Tensor,
    first: int = 0,
    beta: Tensor | None = None,
    clamp: Tensor | None = None,
    visible: str = "binary",
    precision: str = "exact",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``steps`` block Gibbs steps of a restricted Boltzmann machine, for a batch of chains, in one call.

    A step draws all hidden units given the visible ones, ``p(h_j = 1) = sigmoid(beta (hb_j + v W_j))``, then all visible
    units given the hidden ones, ``p(v_i = 1) = sigmoid(beta (vb_i + W_i h))`` (Hinton, "A practical guide to training restricted Boltzmann
    machines", 2010, equations 7 and 8), or for Gaussian visible units ``v_i ~ N(vb_i + W_i h, 1 / beta)`` (section 13.2).

    Args:
        v: (chains, V), float32 or float64: the states to start from. 0 and 1, or any finite number for Gaussian units.
        weight, visible_bias, hidden_bias: (V, H), (V,) and (H,) in the dtype of ``v``; finite.
        steps: how many, 0 or more.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of ``v``.
        first: logical number of the batch's first chain, so that a batch cut in two draws the same as the whole. Chains
            are numbered in 32 bits.
        beta: (chains,), inverse temperature of each chain, for tempering: 0 or more, with Gaussian units more than 0.
            None is 1.
        clamp: bool, (chains, V) or (V,): True holds a visible unit where ``v`` has it.
        visible: ``"binary"`` or ``"gaussian"`` (of unit variance at ``beta`` = 1).
        precision: ``"exact"`` computes in the dtype of ``v``. ``"fixed"``, for binary units, rounds weights and biases
            once to integers in units of ``2**-bits`` and then makes no further rounding that depends on an order of
            summation: the samples are those of the rounded machine, and the same bits on every backend, the reference
            included. ``bits`` is the largest number up to 20 with which weights fit 16 bits, and sums of all the
            weights of a unit as well if that leaves 8 bits or more, else 32 bits. (A 784 x 500 machine trained on
            digits gets 9 bits; an error of weights of ``2**-bits / 2`` at most.)
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        ``(v, h)`` in the dtype of ``v``: the visible states after the last step, and the hidden states of the last step,
        from which those visible states were drawn. With ``steps=0``: ``v`` unchanged, and hidden states drawn from it.

    Randomness: one 32-bit word for each unit and half-step, by its place in the machine, the chain's number and the
    step (the layout is in ``reference.py``), never by thread, tile or device. Memory does not grow with ``steps``.
    ``precision="exact"`` on the C++ core adds up each sum in the order of the units, starting from the bias: the bits do
    not depend on the batch split, threads or instruction set. Between backends, an exact draw may differ where a
    word comes within a rounding error of its probability, about once in a million draws.

    Not differentiable. On a CPU, values that are not allowed raise; on a GPU, where looking would wait for the device,
    binary states count as ``v != 0``, and parameters that are not finite make all results NaN.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or the dtypes differ.
        ValueError: shapes or devices do not fit, or a value is out of range: states other than 0 and 1, parameters that
            are not finite, ``beta``, ``steps``, ``first``, an unknown name.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "rbm_gibbs"
    _states(op, "v", v, weight, 0)
    _machine(op, v, weight, visible_bias=(visible_bias, 0), hidden_bias=(hidden_bias, 1))
    _chains(op, v, key, first, beta)
    checks.choice(op, "visible", visible, ("binary", "gaussian"))
    checks.choice(op, "precision", precision, ("exact", "fixed"))
    if precision == "fixed" and visible == "gaussian":
        raise ValueError(f"{op}: precision 'fixed' needs binary visible units, got visible='gaussian'")
    if not isinstance(steps, checks.INTEGERS) or isinstance(steps, bool):
        raise TypeError(f"{op}: steps must be an int, got {type(steps).__name__}")
    if steps < 0 or steps >= 2**31:
        raise ValueError(f"{op}: steps must be from 0 to 2**31 - 1, got {steps}")
    if clamp is not None:
        checks.tensor(op, "clamp", clamp)
        if clamp.dtype != torch.bool:
            raise TypeError(f"{op}: clamp must be bool, got {clamp.dtype}")
        if tuple(clamp.shape) not in ((v.shape[1],), tuple(v.shape)):
            raise ValueError(
                f"{op}: clamp must have shape {tuple(v.shape)} or {(v.shape[1],)}, got {tuple(clamp.shape)}"
            )
        checks.same_device(op, v=v, clamp=clamp)
    return library.rbm_gibbs(
        v.detach(), weight.detach(), visible_bias.detach(), hidden_bias.detach(), key, _detached(beta), clamp,
        steps, first, visible == "gaussian", precision == "fixed", backend,
    )  # fmt: skip


def rbm_sample_hidden(
    v: Tensor,
    weight: Tensor,
    hidden_bias: Tensor,
    *,
    key: Tensor,
    first: int = 0,
    beta: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The hidden units given the visible ones: a draw, and the probabilities it was drawn with.

    ``p_j = sigmoid(beta (hb_j + v W_j))`` (Hinton 2010, equation 7). Contrastive divergence needs both: the draw to go
    on with, the probabilities for the statistics (section 3).

    Args:
        v: (batch, V), float32 or float64: states, or any finite numbers, such as the grey values of a picture.
        weight, hidden_bias: (V, H) and (H,) in the dtype of ``v``; finite.
        key, first, beta, backend: as for :func:`rbm_gibbs`.

    Returns:
        ``(h, p)``, both (batch, H) in the dtype of ``v``. ``h`` is the first draw of :func:`rbm_gibbs` with this key, to
        the bit; :func:`rbm_sample_visible` of it is the second.

    Everything else is as for :func:`rbm_gibbs` with ``precision="exact"``.
    """
    op = "rbm_sample_hidden"
    _states(op, "v", v, weight, 0)
    _machine(op, v, weight, hidden_bias=(hidden_bias, 1))
    _chains(op, v, key, first, beta)
    return library.rbm_conditional(
        v.detach(), weight.detach(), hidden_bias.detach(), key, _detached(beta), first, False, False, backend
    )


def rbm_sample_visible(
    h: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    *,
    key: Tensor,
    first: int = 0,
    beta: Tensor | None = None,
    visible: str = "binary",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The visible units given the hidden ones: a draw, and the means of what it was drawn from.

    ``p_i = sigmoid(beta (vb_i + W_i h))`` (Hinton 2010, equation 8), or ``N(vb_i + W_i h, 1 / beta)``.

    Args:
        h: (batch, H), float32 or float64: states, or any finite numbers.
        weight, visible_bias: (V, H) and (V,) in the dtype of ``h``; finite.
        key, first, beta, visible, backend: as for :func:`rbm_gibbs`.

    Returns:
        ``(v, mean)``, both (batch, V) in the dtype of ``h``.

    Everything else is as for :func:`rbm_sample_hidden`.
    """
    op = "rbm_sample_visible"
    _states(op, "h", h, weight, 1)
    _machine(op, h, weight, visible_bias=(visible_bias, 0))
    _chains(op, h, key, first, beta)
    checks.choice(op, "visible", visible, ("binary", "gaussian"))
    return library.rbm_conditional(
        h.detach(), weight.detach(), visible_bias.detach(), key, _detached(beta), first, True, visible == "gaussian",
        backend,
    )  # fmt: skip


def rbm_free_energy(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    visible: str = "binary",
    backend: str = "auto",
) -> Tensor:
    """The free energy of each sample: ``F(v) = -log sum_h exp(-E(v, h))``, so that ``p(v) = exp(-F(v)) / Z``.

    ``F(v) = -vb . v - sum_j softplus(hb_j + v W_j)`` (Hinton 2010, section 16.1), for Gaussian visible units
    ``|v - vb|^2 / 2`` in place of ``-vb . v``. The matrix product is PyTorch's, and follows its settings.

    Args:
        v: (batch, V), any floating dtype and any values.
        weight, visible_bias, hidden_bias: (V, H), (V,) and (H,) in the dtype of ``v``.
        visible: ``"binary"`` or ``"gaussian"``.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``, for the sum of softplus.

    Returns:
        (batch,) in float32, or float64 for float64 inputs.

    Twice differentiable in all four tensors. Consumes no randomness. Non-finite values propagate as in PyTorch.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or the dtypes differ.
        ValueError: shapes or devices do not fit, or ``visible`` is unknown.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "rbm_free_energy"
    checks.floating(op, "v", v)
    checks.floating(op, "weight", weight)
    _fits(op, "v", v, weight, 0)
    _machine(op, v, weight, visible_bias=(visible_bias, 0), hidden_bias=(hidden_bias, 1))
    checks.choice(op, "visible", visible, ("binary", "gaussian"))
    hidden = library.rbm_softplus_sum(torch.addmm(hidden_bias, v, weight), backend)
    wide = hidden.dtype
    if visible == "gaussian":
        return 0.5 * (v.to(wide) - visible_bias.to(wide)).square().sum(1) - hidden
    # Not a product that autocast would round to 16 bits.
    return -(v.to(wide) * visible_bias.to(wide)).sum(1) - hidden


def cd_statistics(v_pos: Tensor, h_pos: Tensor, v_neg: Tensor, h_neg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ascent direction of the log-likelihood, from samples of the data's phase and of the model's.

    ``<v h>_pos - <v h>_neg``, ``<v>_pos - <v>_neg`` and ``<h>_pos - <h>_neg`` (Hinton, "Training products of experts by
    minimizing contrastive divergence", 2002; 2010, equation 9): what to add to weight, visible and hidden bias, times a learning rate. States or probabilities alike.

    Args:
        v_pos, h_pos: (m, V) and (m, H), one floating dtype; ``m`` at least 1.
        v_neg, h_neg: (n, V) and (n, H), ``n`` at least 1: as many chains as you like.

    Returns:
        ``(weight, visible_bias, hidden_bias)``: (V, H), (V,) and (H,). The two phases share one product's memory.

    Plain PyTorch on any device, and differentiable. Consumes no randomness.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or the dtypes differ.
        ValueError: shapes or devices do not fit, or a phase is empty.
    """
    op = "cd_statistics"
    given = {"v_pos": v_pos, "h_pos": h_pos, "v_neg": v_neg, "h_neg": h_neg}
    for name, t in given.items():
        checks.floating(op, name, t)
        checks.dims(op, name, t, 2, "(samples, units)")
        if t.shape[0] == 0:
            raise ValueError(f"{op}: {name} must have one sample or more, got shape {tuple(t.shape)}")
    checks.same_dtype(op, **given)
    checks.same_device(op, **given)
    checks.shape(op, "h_pos", h_pos, (v_pos.shape[0], h_pos.shape[1]))
    checks.shape(op, "v_neg", v_neg, (v_neg.shape[0], v_pos.shape[1]))
    checks.shape(op, "h_neg", h_neg, (v_neg.shape[0], h_pos.shape[1]))
    return reference.cd_statistics(v_pos, h_pos, v_neg, h_neg)


def _fits(op: str, name: str, value: Tensor, weight: Tensor, side: int) -> None:
    checks.dims(op, "weight", weight, 2, "(visible, hidden)")
    if value.dim() != 2 or value.shape[1] != weight.shape[side]:
        raise ValueError(
            f"{op}: {name} must have shape (batch, {weight.shape[side]}) for a weight of shape "
            f"{tuple(weight.shape)}, got {tuple(value.shape)}"
        )


def _states(op: str, name: str, value: Tensor, weight: Tensor, side: int) -> None:
    inputs.floats(op, **{name: value, "weight": weight})
    _fits(op, name, value, weight, side)


def _machine(op: str, states: Tensor, weight: Tensor, **biases: tuple[Tensor, int]) -> None:
    for name, (bias, side) in biases.items():
        checks.floating(op, name, bias)
        checks.shape(op, name, bias, (weight.shape[side],))
    tensors = {"weight": weight, **{name: bias for name, (bias, _) in biases.items()}}
    checks.same_dtype(op, states=states, **tensors)
    checks.same_device(op, states=states, **tensors)


def _chains(op: str, states: Tensor, key: Tensor, first: int, beta: Tensor | None) -> None:
    batch = states.shape[0]
    inputs.chains(op, key, first, batch)
    checks.same_device(op, states=states, key=key)
    if beta is not None:
        checks.floating(op, "beta", beta)
        checks.shape(op, "beta", beta, (batch,))
        checks.same_dtype(op, states=states, beta=beta)
        checks.same_device(op, states=states, beta=beta)


def _detached(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach()
