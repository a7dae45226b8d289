"""Machines whose units are all connected: sequential Gibbs sweeps, and Hopfield recall at zero temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmkernels.core import checks

from . import boltzmann_library as library
from . import inputs, values

__all__ = ["boltzmann_gibbs", "hopfield_recall"]


def boltzmann_gibbs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    sweeps: int,
    key: Tensor,
    first: int = 0,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    spin: bool = True,
    order: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Sequential Gibbs sweeps of fully connected Boltzmann machines: a batch of chains, one unit of each at a time.

    The machine (D. H. Ackley, G. E. Hinton and T. J. Sejnowski, "A learning algorithm for Boltzmann machines", 1985)
    has the energy ``E(x) = -x W x / 2 - b . x`` and the law ``exp(-beta E(x)) / Z``. In a sweep every unit in turn is
    drawn given all others: with ``f_i = b_i + sum_j x_j W_ji``, it is on (1) with probability
    ``sigmoid(2 beta f_i)`` if the states are spins, -1 and 1, and ``sigmoid(beta f_i)`` if they are 0 and 1.

    Args:
        x: (chains, units), float32 or float64: the states to start from.
        weight: (units, units), symmetric with a zero diagonal, in the dtype of ``x``.
        bias: (units,), in that dtype.
        sweeps: how many, 0 or more.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of ``x``.
        first: logical index of the first chain, so that a batch cut in two draws the same as the whole.
        beta: inverse temperature, 0 or more: a number, or a floating tensor (chains,).
        clamp: bool tensor (units,) or (chains, units): units that keep their state.
        spin: whether the states are -1 and 1, or 0 and 1.
        order: int64 tensor (units,), a permutation: the units in the order in which a sweep visits them.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        The states after the sweeps, (chains, units) in the dtype of ``x``.

    Randomness: unit i of chain c in sweep t uses word ``i mod 4`` of the Philox counter ``(i div 4, first + c, t, low
    word of the offset)``, as in :func:`gmkernels.rbm_gibbs` with the sweep in the place of the half-step, and is on if
    its field exceeds ``log(u / (1 - u))``, ``u = (word + 1/2) / 2^32``. Not differentiable.

    Fields are summed in the order of the sweep and then kept up to date, change by change; every 64th sweep begins with
    fresh sums. So the result has the same bits whatever the batch split and the number of threads, and on every
    backend but for the last bit of the logarithm on the reference. A change costs the units one addition each, everything
    else is a comparison.

    Values are looked at (states, symmetry, finiteness) on the CPU only: on a GPU, looking would wait for the device. The
    weights of a call are not looked at again while they are the last ones and unchanged.

    Raises:
        TypeError: an argument has an unsupported type or dtype.
        ValueError: shapes or devices do not fit; a state, weight, beta or order is not what it has to be; ``sweeps`` or
            ``first`` is negative.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "boltzmann_gibbs"
    inputs.machine(op, x, weight, bias)
    inputs.chains(op, key, first, x.shape[0])
    checks.same_device(op, x=x, key=key)
    inputs.count(op, "sweeps", sweeps)
    inputs.states(op, "x", x, spin)
    slope = _beta(op, x, beta)
    if clamp is not None:
        clamp = _clamp(op, x, clamp)
    if order is not None:
        _order(op, x, order)
    return library.boltzmann_gibbs(
        x.detach(), weight.detach(), bias.detach(), key, slope, clamp, order, sweeps, first, bool(spin), backend
    )


def hopfield_recall(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, max_sweeps: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Recall of patterns by a Hopfield network: every unit in turn takes the sign of its field, until none changes.

    ``x_i <- sign(f_i)``, ``f_i = b_i + sum_j x_j W_ji``, asynchronously in the order of the units; a unit whose field is
    0 keeps its state (J. J. Hopfield, "Neural networks and physical systems with emergent collective computational
    abilities", 1982, equation 1, with states -1 and 1). Each change lowers ``E(x) = -x W x / 2 - b . x``, but for the
    rounding of a field next to 0. It is :func:`boltzmann_gibbs` at zero temperature.

    Args:
        x: (patterns, units) of -1 and 1, float32 or float64.
        weight: (units, units), symmetric with a zero diagonal, in the dtype of ``x``.
        bias: (units,) in that dtype; None for 0.
        max_sweeps: the most sweeps a pattern gets, 0 or more.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        The patterns reached, (patterns, units) in the dtype of ``x``, and the number of sweeps that changed each, int64
        (patterns,). A number below ``max_sweeps`` says that the pattern is a fixed point.

    Patterns do not depend on each other. Not differentiable; consumes no randomness. Order of sums, bits and checks as
    for :func:`boltzmann_gibbs`.

    Raises:
        TypeError: an argument has an unsupported type or dtype.
        ValueError: shapes or devices do not fit, a state or weight is not what it has to be, ``max_sweeps`` is negative.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "hopfield_recall"
    if bias is None:
        checks.tensor(op, "x", x)
        checks.dims(op, "x", x, 2, "(patterns, units)")
        bias = x.new_zeros(x.shape[1])
    inputs.machine(op, x, weight, bias)
    inputs.count(op, "max_sweeps", max_sweeps)
    inputs.states(op, "x", x, True)
    return library.hopfield_recall(x.detach(), weight.detach(), bias.detach(), max_sweeps, backend)


def _beta(op: str, x: Tensor, beta: float | Tensor) -> Tensor:
    if isinstance(beta, Tensor):
        checks.floating(op, "beta", beta)
        checks.shape(op, "beta", beta, x.shape[:1])
        checks.same_device(op, x=x, beta=beta)
        if values.visible_here(beta):
            values.inverse_temperature(op, beta, False)
        return beta.detach().to(x.dtype)
    if not isinstance(beta, (float, int, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{op}: beta must be a number or a tensor, got {type(beta).__name__}")
    if not 0.0 <= beta < math.inf:
        raise ValueError(f"{op}: beta must be 0 or more and finite, got {beta!r}")
    return x.new_full(x.shape[:1], beta)


def _clamp(op: str, x: Tensor, clamp: Tensor) -> Tensor:
    checks.tensor(op, "clamp", clamp)
    if clamp.dtype is not torch.bool:
        raise TypeError(f"{op}: clamp must be a bool tensor, got {clamp.dtype}")
    if clamp.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"{op}: clamp must have shape {tuple(x.shape[1:])} or {tuple(x.shape)}, got {tuple(clamp.shape)}"
        )
    checks.same_device(op, x=x, clamp=clamp)
    return clamp.expand(x.shape)


def _order(op: str, x: Tensor, order: Tensor) -> None:
    checks.tensor(op, "order", order)
    if order.dtype is not torch.int64:
        raise TypeError(f"{op}: order must be an int64 tensor, got {order.dtype}")
    checks.shape(op, "order", order, x.shape[1:])
    checks.same_device(op, x=x, order=order)
    if values.visible_here(order):
        missing = sorted(set(range(x.shape[1])) - set(order.tolist()))
        if missing:
            last = x.shape[1] - 1
            raise ValueError(
                f"{op}: order must be a permutation of the units 0 to {last}, got one without {missing[0]}"
            )
