"""The inverse of a masked affine autoregressive layer (MAF, IAF), every hidden unit computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import backends, checks
from gmkernels.core.doors import transforming
from gmkernels.ops.coupling import SCALE_MAPS, clamp_of

from . import made_eager, made_library
from .made_network import ACTIVATIONS, Made, infer
from .validation import visible_here

_OP = "made_inverse"


def made_inverse(
    z: Tensor,
    parameters: Sequence[Tensor],
    hidden_degrees: Sequence[Tensor],
    *,
    order: Tensor | None = None,
    condition: Tensor | None = None,
    residual: bool = False,
    activation: str = "relu",
    scale_map: str = "soft_clip",
    clamp: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Inverts ``z = x * exp(a) + t`` with ``a = map(s)``, where a MADE makes ``s, t`` of ``x``; all features in one call.

    Feature i of x needs ``s_i`` and ``t_i``, which depend on features of lower degree only (G. Papamakarios, T. Pavlakou and
    I. Murray, "Masked autoregressive flow for density estimation", 2017, equations 3 and 4). The textbook runs the whole network
    for each feature. Here a hidden unit is computed once, when the last input that it sees is known: in all, half the
    work of one dense evaluation of the network.

    The network (M. Germain et al., "MADE", 2015) is ``h = W0 x + b0 + condition``; then layers ``h = W act(h) + b``, or
    with ``residual`` blocks ``h = h + W2 act(W1 act(h) + b1) + b2``; then ``s, t = W act(h) + b`` (``W h + b`` after residual
    blocks). Input and output i have a degree from 1 to D, hidden units from 0 to D - 1. A hidden unit sees what has
    its degree or less, an output hidden units of less than its own. Weights between others are never read.

    Args:
        z: float32 or float64 tensor (batch, D).
        parameters: weight and bias in turn, in the dtype of ``z``: (H0, D), (H0); two for each further hidden layer, or
            four for each block, W1 (inner, H0) and W2 (H0, inner); (2 D, H), (2 D), log-scales first.
        hidden_degrees: an int64 tensor for each hidden layer; with ``residual`` one for the stream and one for the inside of
            each block. Any assignment; if they ascend (and ``order`` is None), no weight has to be moved.
        order: int64 tensor (D), the degrees of the features: a permutation of 1 to D. None: 1, 2, ..., D.
        condition: (batch, H0) in the dtype of ``z``, added to the first layer: what a context gives, for example.
        activation: ``relu`` or ``tanh``.
        scale_map, clamp: as for :func:`gmkernels.affine_coupling`.
        backend: ``auto``, ``reference`` or ``cpu``. On a GPU ``auto`` takes the same one pass in PyTorch operations.

    Returns:
        ``x`` (batch, D) and ``logdet`` (batch,), that of z -> x: minus the sum of a. Both in the dtype of ``z``.

    Twice differentiable in ``z``, ``parameters`` and ``condition``. The gradient solves a triangular system by the same
    one pass, from the highest degree to the lowest, and keeps nothing of the D steps: memory does not grow with D. The second
    derivative builds the Jacobian (batch, D, D), in plain PyTorch. With ``reference``, autograd goes through all D
    evaluations. Consumes no randomness. Row-wise: a sample's result does not depend on the rest of the batch, on threads
    or on vector width.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or dtypes differ.
        ValueError: shapes, degrees or devices do not fit, a choice is unknown, or a feature of x is not finite (looked at
            on the CPU only).
        BackendError: an explicitly requested backend cannot run.
    """
    made = _validated(z, parameters, hidden_degrees, order, condition, residual, activation)
    checks.choice(_OP, "scale_map", scale_map, SCALE_MAPS)
    z_columns, back = _ordered(order)
    parameters, condition, degrees = _sorted(made, parameters, hidden_degrees, z_columns, condition)
    z = z if z_columns is None else z[:, z_columns]
    x, logdet = made_inverse_ascending(
        z, parameters, condition, degrees, made, z_columns, activation=activation, scale_map=scale_map, clamp=clamp,
        backend=backend,
    )  # fmt: skip
    return (x if back is None else x[:, back]), logdet


def made_inverse_ascending(
    z: Tensor,
    parameters: Sequence[Tensor],
    condition: Tensor | None,
    degrees: Tensor,
    made: Made,
    places: Tensor | None,
    *,
    activation: str,
    scale_map: str,
    clamp: float | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """:func:`made_inverse` of what is in order of degree already and known to fit.

    Args:
        degrees: of all hidden units, one layer after another.
        places: which feature comes at each place, for the error; None: the first, the second, ...
    """
    if z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_OP}: z must be float32 or float64, got {z.dtype}")
    checks.same_dtype(_OP, z=z, **{f"parameters[{i}]": t for i, t in enumerate(parameters)})
    condition = None if condition is None else condition.to(z.dtype)  # under autocast it may come in less
    flat = torch.cat([t.reshape(-1) for t in parameters])
    # Where only the definition would be left, but nobody asks for it.
    plain = z.is_cuda and backend == "auto" == backends.setting.name and not torch.compiler.is_compiling()
    given = (z, flat, condition, degrees, list(made.widths), made.residual, activation, scale_map)
    limit = clamp_of(_OP, scale_map, clamp)
    if plain and not transforming():
        x, logdet = made_eager.made_inverse(*given, limit)
    else:
        x, logdet = made_library.made_inverse(*given, limit, backend)
    if (bad := _not_finite(x)) is not None:
        if _not_finite(z) is not None:
            row = int((~z.detach().isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{_OP}: z must be finite, got row {row} that is not")
        feature = bad if places is None else int(places[bad])
        raise ValueError(f"{_OP}: x must be finite, got feature {feature} that is not: its scale or shift overflows")
    return x, logdet


def _not_finite(x: Tensor) -> int | None:
    """The first feature of x with a value that is not finite. A sum is quick, and finite only if all values are."""
    if not visible_here(x) or x.detach().sum().isfinite() or (fine := x.detach().isfinite().all(0)).all():
        return None
    return int((~fine).nonzero()[0])


def _ordered(order: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which feature comes at each place in order of degree, and the way back."""
    return (None, None) if order is None else (torch.argsort(order), order - 1)


def _sorted(
    made: Made,
    parameters: Sequence[Tensor],
    hidden: Sequence[Tensor],
    columns: Tensor | None,
    condition: Tensor | None,
) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """The same network with all units in ascending order of degree."""
    known = visible_here(*hidden)
    places = [
        None if known and bool((d[1:] >= d[:-1]).all()) else torch.argsort(d, stable=True) for d in hidden
    ] + [None if columns is None else torch.cat((columns, columns + made.features))]  # fmt: skip
    found = list(parameters)
    for i, (start, to) in enumerate(made.links()):
        before = columns if start < 0 else places[start]
        if before is not None:
            found[2 * i] = found[2 * i][:, before]
        if (after := places[to]) is not None:
            found[2 * i], found[2 * i + 1] = found[2 * i][after], found[2 * i + 1][after]
    if condition is not None and (first := places[0]) is not None:
        condition = condition[:, first]
    degrees = [d if p is None else d[p] for d, p in zip(hidden, places, strict=False)]
    return found, condition, torch.cat(degrees)


def _validated(
    z: Tensor,
    parameters: Sequence[Tensor],
    hidden: Sequence[Tensor],
    order: Tensor | None,
    condition: Tensor | None,
    residual: bool,
    activation: str,
) -> Made:
    checks.dims(_OP, "z", checks.tensor(_OP, "z", z), 2, "(batch, D)")
    if z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_OP}: z must be float32 or float64, got {z.dtype}")
    if z.shape[1] == 0:
        raise ValueError(f"{_OP}: z must have at least one feature, got shape {tuple(z.shape)}")
    checks.choice(_OP, "activation", activation, ACTIVATIONS)
    if not hidden:
        raise ValueError(f"{_OP}: hidden_degrees must have at least one layer, got none")
    for i, degree in enumerate(hidden):
        if checks.tensor(_OP, f"hidden_degrees[{i}]", degree).dtype != torch.int64:
            raise TypeError(f"{_OP}: hidden_degrees must be int64, got {degree.dtype}")
        checks.dims(_OP, f"hidden_degrees[{i}]", degree, 1, "(units)")
        check_degrees(_OP, f"hidden_degrees[{i}]", degree, z.shape[1])
    made = infer(z.shape[1], hidden, residual)
    shapes = [shape for out, into in made.shapes() for shape in ((out, into), (out,))]
    if len(parameters) != len(shapes):
        raise ValueError(
            f"{_OP}: {len(hidden)} hidden_degrees take {len(shapes)} parameters, weight and bias in turn, "
            f"got {len(parameters)}"
        )
    for i, (t, shape) in enumerate(zip(parameters, shapes, strict=True)):
        checks.shape(_OP, f"parameters[{i}]", checks.tensor(_OP, f"parameters[{i}]", t), shape)
    if condition is not None:
        checks.shape(_OP, "condition", checks.tensor(_OP, "condition", condition), (z.shape[0], made.widths[0]))
    if order is not None:
        if checks.tensor(_OP, "order", order).dtype != torch.int64:
            raise TypeError(f"{_OP}: order must be int64, got {order.dtype}")
        checks.shape(_OP, "order", order, (z.shape[1],))
        check_order(_OP, order)
    named = {f"parameters[{i}]": t for i, t in enumerate(parameters)}
    extra = {} if condition is None else {"condition": condition}
    checks.same_dtype(_OP, z=z, **named, **extra)
    checks.same_device(
        _OP, z=z, order=order, **{f"hidden_degrees[{i}]": d for i, d in enumerate(hidden)}, **named, **extra
    )
    return made


def check_degrees(op: str, name: str, degree: Tensor, features: int) -> None:
    """That some output sees a hidden unit, as far as its degree goes; values are looked at on the CPU only."""
    if visible_here(degree) and bool((outside := (degree < 0) | (degree >= features)).any()):
        raise ValueError(
            f"{op}: {name} must be 0 to {features - 1} for {features} features, got {degree[outside][0].item()}"
        )


def check_order(op: str, order: Tensor) -> None:
    if visible_here(order) and not torch.equal(order.sort().values, torch.arange(1, len(order) + 1)):
        raise ValueError(f"{op}: order must be a permutation of 1 to {len(order)}, got {order.tolist()}")
