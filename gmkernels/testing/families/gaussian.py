"""Rows for draws from Gaussian posteriors and for the likelihoods of decoders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.gaussian import (
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    gaussian_log_prob,
    reparameterize_kl,
)

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

FLOATS = (torch.float32, torch.float64)
LOW = (torch.float16, torch.bfloat16)
_Make = Callable[[Sizes, torch.dtype, torch.Generator], Case]

_COMMON: dict[str, Any] = dict(
    sizes=((3, 4), (2, 3, 4, 2), (1, 1), (0, 3), (3, 0), (17, 33), (5, 257), (64, 130)),
    ranks=(2, 3, 4),
    dynamic=((3, 8), (7, 12)),
    order=2,
)


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


# ---- draws -----------------------------------------------------------------------------------------------------------


def _posterior(**constants: Any) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        tensors = {
            "mu": draw(sizes, dtype, generator),
            "logvar": draw(sizes, dtype, generator),
            "key": torch.randint(0, 2**63 - 1, (2,), generator=generator),
        }
        # An odd first sample: rows of odd length then begin inside a pair of normals.
        return Case(tensors, {"first": 5, **constants})

    return make


def _posterior_part(case: Case, start: int, stop: int) -> Case:
    cut = narrow("mu", "logvar")(case, start, stop)
    return Case(cut.tensors, dict(case.constants, first=case.constants["first"] + start))


def _posterior_extremes(dtype: torch.dtype) -> Case:
    """One sample each; variances from nothing to overflow, and no noise so near 0 that its last digits are gone."""
    logvars = [0.0, 0.37, -1.0, 5.0, -17.3, 50.0, -87.0, 88.5, 89.0, -120.0, 120.0, 170.0, -1e4, 1e4]
    pairs = torch.tensor(list(itertools.product([0.0, 0.7, -1e3, 1e15], logvars)), dtype=torch.float64)
    mu, logvar = pairs.to(dtype).unsqueeze(2).unbind(1)
    return Case({"mu": mu, "logvar": logvar, "key": torch.tensor([3, 6])})


_POSTERIOR_ERRORS = (
    ErrorCase("mu is a list", _spoil(mu=[[1.0]]), TypeError, "mu must be a torch.Tensor, got list"),
    ErrorCase(
        "integer logvar", _spoil(logvar=torch.ones(3, 4, dtype=torch.int64)), TypeError, "logvar must be float.*int64"
    ),
    ErrorCase(
        "two dtypes", _spoil(logvar=torch.ones(3, 4, dtype=torch.float16)), TypeError, "share one dtype.*float16"
    ),
    ErrorCase(
        "one dimension", _spoil(mu=torch.ones(4), logvar=torch.ones(4)), ValueError, r"mu must have shape .*got \(4,\)"
    ),
    ErrorCase(
        "wrong shape", _spoil(logvar=torch.ones(3, 5)), ValueError, r"logvar must have shape \(3, 4\), got \(3, 5\)"
    ),
    ErrorCase("two devices", _spoil(logvar=torch.ones(3, 4, device="meta")), ValueError, "one device.*logvar on meta"),
    ErrorCase("key is an int", _spoil(key=3), TypeError, "key must be a torch.Tensor, got int"),
    ErrorCase("key of floats", _spoil(key=torch.zeros(2)), ValueError, "key must be an int64.*float32"),
    ErrorCase("key elsewhere", _spoil(key=torch.zeros(2, dtype=torch.int64, device="meta")), ValueError, "key on meta"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase("beta < 0", _spoil(beta=-1.0), ValueError, "beta must be 0 or more and finite, got -1.0"),
    ErrorCase("beta is a tensor", _spoil(beta=torch.ones(())), TypeError, "beta must be a number, got Tensor"),
    ErrorCase(
        "free_bits NaN", _spoil(free_bits=float("nan")), ValueError, "free_bits must be 0 or more and finite, got nan"
    ),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)


def _posterior_row(variant: str, **constants: Any) -> OperatorRow:
    plain = not constants
    return OperatorRow(
        name=f"reparameterize_kl[{variant}]",
        operator="reparameterize_kl",
        function=reparameterize_kl,
        outputs=("z", "kl"),
        make=_posterior(**constants),
        errors=_POSTERIOR_ERRORS if plain else (),
        differentiable=("mu", "logvar"),
        part=_posterior_part,
        batched=("mu", "logvar"),
        same_bits=("z", "kl", "grad_mu", "grad_logvar"),
        nonfinite=("mu", "logvar"),
        extremes=_posterior_extremes if plain else None,
        **_COMMON,
    )


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def _weight(form: str, sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    if form == "mask":  # of every sample alike
        return {"weight": torch.randint(2, sizes[1:], generator=generator) == 0}
    if form == "weight":
        return {"weight": draw(sizes, dtype, generator)}
    return {}


def _pixels(form: str) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        pixels = torch.randint(257, sizes, generator=generator) / 256  # exact in every dtype; 0 and 1 among them
        x = pixels.to(torch.float32 if form == "mixed" else dtype)
        tensors = {"logits": draw(sizes, dtype, generator, 2.5), "x": x}
        return Case(tensors | _weight(form, sizes, dtype, generator))

    return make


def _pixel_extremes(dtype: torch.dtype) -> Case:
    """One pixel a sample: probabilities that are next to 0 and 1, and logits of no size at all."""
    sizes = [0.0, 1e-30, 1e-5, 0.7, 1.0, 8.0, 16.0, 17.5, 20.5, 50.0, 88.0, 89.0, 104.0, 1e4, 1e30]
    logits = [sign * size for size in sizes for sign in (1.0, -1.0)]
    pairs = torch.tensor(list(itertools.product(logits, [0.0, 1.0, 0.25])), dtype=torch.float64)
    l, x = pairs.to(dtype).unsqueeze(2).unbind(1)
    return Case({"logits": l, "x": x})


_PIXEL_ERRORS = (
    ErrorCase("logits is None", _spoil(logits=None), TypeError, "logits must be a torch.Tensor, got NoneType"),
    ErrorCase("integer x", _spoil(x=torch.ones(3, 4, dtype=torch.uint8)), TypeError, "x must be float.*uint8"),
    ErrorCase(
        "one dimension", _spoil(logits=torch.ones(4), x=torch.ones(4)), ValueError, r"logits must have.*got \(4,\)"
    ),
    ErrorCase(
        "x too wide", _spoil(x=torch.ones(3, 5)), ValueError, r"x must have the shape of logits, \(3, 4\).*\(3, 5\)"
    ),
    ErrorCase("batch_dims 0", _spoil(batch_dims=0), ValueError, "batch_dims must be an int, 1 or more, got 0"),
    ErrorCase("batch_dims 2", _spoil(batch_dims=2), ValueError, r"logits must have.*more than 2 dim.*got \(3, 4\)"),
    ErrorCase("weight is a list", _spoil(weight=[1.0]), TypeError, "weight must be a torch.Tensor, got list"),
    ErrorCase(
        "integer weight", _spoil(weight=torch.ones(4, dtype=torch.int64)), TypeError, "weight must be float.*int64"
    ),
    ErrorCase("weight of 3", _spoil(weight=torch.ones(3)), ValueError, r"weight must have the shape of logits.*\(3,\)"),
    ErrorCase("two devices", _spoil(x=torch.ones(3, 4, device="meta")), ValueError, "one device.*x on meta"),
    ErrorCase("weight elsewhere", _spoil(weight=torch.ones(4, device="meta")), ValueError, "weight on meta"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _judged_together(make: _Make, *shared: str) -> _Make:
    """Several draws of an image, judged by one tensor (images, 1, ...)."""

    def several(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        case = make(sizes, dtype, generator)
        tensors = {k: v if k in shared else torch.stack([v, 0.25 - v], 1) for k, v in case.tensors.items()}
        for name in shared:
            tensors[name] = tensors[name].unsqueeze(1)
        return Case(tensors, {"batch_dims": 2})

    return several


def _draws(x: Tensor, mean: Tensor, **arguments: Any) -> Tensor:
    return gaussian_log_likelihood(x=x.expand_as(mean), mean=mean, **arguments)


def _pixel_row(form: str) -> OperatorRow:
    together = form == "draws"
    return OperatorRow(
        name=f"bernoulli_log_likelihood[{form}]",
        operator="bernoulli_log_likelihood",
        function=bernoulli_log_likelihood,
        outputs=("log_likelihood",),
        make=_judged_together(_pixels("weight"), "x", "weight") if together else _pixels(form),
        errors=_PIXEL_ERRORS if form == "plain" else (),
        dtypes=LOW if form == "mixed" else (*FLOATS, *LOW),
        differentiable=("logits", "x"),
        part=narrow("logits", "x", *["weight"] * (form in ("weight", "draws"))),
        batched=("logits", "x"),
        same_bits=("log_likelihood", "grad_logits", *["grad_x"] * (not together)),
        nonfinite=("logits",) if form == "plain" else (),
        extremes=_pixel_extremes if form == "plain" else None,
        **_COMMON,
    )


def _normal(form: str, *names: str) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        tensors = {name: draw(sizes, dtype, generator) for name in names}
        if form == "mixed":
            tensors["x"] = tensors["x"].float()
        if form == "broadcast":
            tensors["mean"], tensors["logvar"] = tensors["mean"][:1], draw((), dtype, generator)
        return Case(tensors | _weight(form, sizes, dtype, generator))

    return make


def _normal_extremes(dtype: torch.dtype) -> Case:
    """One dimension a sample: variances from nothing to overflow, at distances that are not nothing."""
    logvars = [0.0, 0.37, -1.0, 5.0, -17.3, 50.0, -50.0, -87.0, 88.0, -95.0, 120.0, -1e4, 1e4]
    triples = list(itertools.product([0.0, 0.7, -1e3], logvars, [1.5, -1e-3, 1e10]))
    mean, logvar, x = torch.tensor(triples, dtype=torch.float64).to(dtype).unsqueeze(2).unbind(1)
    return Case({"mean": mean, "logvar": logvar, "x": x})


_NORMAL_ERRORS = (
    ErrorCase("x is a float", _spoil(x=1.0), TypeError, "x must be a torch.Tensor, got float"),
    ErrorCase("no mean", _spoil(mean=None), TypeError, "mean must be a torch.Tensor, got NoneType"),
    ErrorCase(
        "integer logvar", _spoil(logvar=torch.ones(3, 4, dtype=torch.int64)), TypeError, "logvar must be float.*int64"
    ),
    ErrorCase("one dimension", _spoil(x=torch.ones(4)), ValueError, r"x must have shape \(batch, ...\).*got \(4,\)"),
    ErrorCase(
        "larger mean", _spoil(mean=torch.ones(2, 3, 4)), ValueError, r"mean must have the shape of x.*\(2, 3, 4\)"
    ),
    ErrorCase("logvar of 3", _spoil(logvar=torch.ones(3)), ValueError, r"logvar must have the shape of x.*got \(3,\)"),
    ErrorCase("complex weight", _spoil(weight=torch.ones(4) + 0j), TypeError, "weight must be float.*complex"),
    ErrorCase("two devices", _spoil(mean=torch.ones(3, 4, device="meta")), ValueError, "one device.*mean on meta"),
)


def _normal_row(form: str, function: Callable[..., Tensor], *names: str) -> OperatorRow:
    plain = form == "plain"
    return OperatorRow(
        name=f"{function.__name__}[{form}]",
        operator="gaussian_log_likelihood",
        function=_draws if form == "draws" else function,
        outputs=("log_likelihood",),
        make=_judged_together(_normal("weight", *names), "x") if form == "draws" else _normal(form, *names),
        errors=_NORMAL_ERRORS if plain else (),
        dtypes=LOW if form == "mixed" else (*FLOATS, *LOW),
        differentiable=names,
        part=narrow(*names, *["weight"] * (form in ("weight", "draws"))) if form != "broadcast" else None,
        batched=names,
        same_bits=("log_likelihood", *(f"grad_{name}" for name in names if form != "broadcast")),
        nonfinite=names if plain else (),
        extremes=_normal_extremes if plain else None,
        **_COMMON,
    )


ROWS = (
    _posterior_row("plain"),
    _posterior_row("beta", beta=4.0),
    _posterior_row("free bits", beta=0.5, free_bits=0.6),
    *(_pixel_row(form) for form in ("plain", "mask", "weight", "mixed", "draws")),
    *(
        _normal_row(form, gaussian_log_likelihood, "mean", "logvar", "x")
        for form in ("plain", "mask", "weight", "mixed", "broadcast", "draws")
    ),
    _normal_row("standard", gaussian_log_prob, "x"),
    _normal_row("full", gaussian_log_prob, "x", "mean", "logvar"),
    _normal_row("mean", gaussian_log_prob, "x", "mean"),
)
