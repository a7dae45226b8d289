"""Fully connected machines, Hopfield recall, and annealed importance sampling: the other cases of the family ``gibbs``.

* ``bm-794-b64``: ten sequential sweeps of 64 chains of a machine of 784 pixels and 10 labels, fitted to mnist5k by
  pseudo-likelihood in the set-up (seconds; kept in ``data/``), from chains that have run for 200 sweeps. ``eager`` is the loop over units, by the faster of a
  product for each unit and fields that are kept up to date. Checked: mean activity to five standard errors; ours has
  the bits of the definition.
* ``hopfield-1000-b40``: recall of 40 of 100 patterns from a tenth of noise, at most 20 sweeps. The couplings are
  integers, so all providers have to reach the same states. ``numpy`` and ``eager`` sweep the batch unit by unit, by
  the faster of the same two ways.
* ``ais-784x500``: 100 chains through 1,000 temperatures of the machine of ``machine.py``. ``eager`` and ``compile`` make two
  products per temperature. Checked: the mean log-weight to five standard errors; ours against the definition.

Operations of ``ais``: two dense products a temperature, 4 V H a chain.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

import gmkernels as gmk
from genmodels.data import mnist5k

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of
from .machine import machine

UNITS, CHAINS, SWEEPS = 794, 64, 10
CACHE = Path(__file__).resolve().parents[1] / "data" / f"boltzmann-{UNITS}.pt"
NEURONS, STORED, RECALLED, MOST = 1000, 100, 40, 20
ANNEALED, BETAS = 100, 1000


def _close(right: float, found: float, error: float) -> list[Tensor]:
    """The right number if this is as good as it, else what was found."""
    return [torch.tensor([right if abs(found - right) <= error else found], dtype=torch.float64)]


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def _fit() -> dict[str, Tensor]:
    train, generator = mnist5k().splits["train"], torch.Generator().manual_seed(0)
    pixels = torch.bernoulli(train.x.flatten(1) / 255.0, generator=generator)
    spins = 2.0 * torch.cat((pixels, one_hot(train.y.long(), 10)), 1) - 1.0
    couplings = torch.zeros(UNITS, UNITS, requires_grad=True)
    bias = torch.zeros(UNITS, requires_grad=True)
    optimizer = torch.optim.Adam((couplings, bias), lr=3e-3)
    for _ in range(150):
        x = spins[torch.randint(len(spins), (500,), generator=generator)]
        low = couplings.tril(-1)
        loss = softplus(-2.0 * x * (x @ (low + low.T) + bias)).sum(1).mean() + 2e-3 * low.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    low, bias = couplings.detach().tril(-1), bias.detach()
    # Chains that have forgotten where they started, as those of persistent training have.
    x = gmk.boltzmann_gibbs(spins[:CHAINS], low + low.T, bias, sweeps=200, key=gmk.random.key(seed=1))
    return {"x": x, "weight": low + low.T, "bias": bias}


@functools.cache
def _machine() -> dict[str, Tensor]:
    if not CACHE.exists():
        CACHE.parent.mkdir(exist_ok=True)
        partial = CACHE.with_suffix(".tmp")
        torch.save(_fit(), partial)
        partial.replace(CACHE)
    return torch.load(CACHE, weights_only=True)


def _sweep_inputs(setting: Setting) -> Inputs:
    return Inputs({name: t.to(setting.device, setting.dtype) for name, t in _machine().items()}, ())


@functools.cache
def _activity() -> tuple[float, float]:
    x, weight, bias = _machine().values()
    found = gmk.boltzmann_gibbs(x.repeat(8, 1), weight, bias, sweeps=SWEEPS, key=gmk.random.key(seed=99))
    each = (found > 0).float().mean(1)
    return each.mean().item(), 5.0 * each.std().item() * math.sqrt((1 + 1 / 8) / CHAINS)


def _active(results: Sequence[Tensor]) -> list[Tensor]:
    right, error = _activity()
    return _close(right, (results[0] > 0).double().mean().item(), error)


def _our_sweeps(inputs: Inputs, mode: str) -> Program:
    x, weight, bias = inputs.tensors.values()
    call = functools.partial(gmk.boltzmann_gibbs, x, weight, bias, key=gmk.random.key(seed=7, device=x.device))
    agrees = torch.equal(call(sweeps=1), call(sweeps=1, backend="reference"))
    return Program(
        lambda: (call(sweeps=SWEEPS),),
        results=lambda results: _active(results) if agrees else [torch.full((1,), math.nan)],
        backend=backend_of(gmk.boltzmann_gibbs, x),
    )


def _by_products(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
    x = x.clone()
    for _, i in itertools.product(range(SWEEPS), range(UNITS)):
        x[:, i] = 2.0 * torch.bernoulli(torch.sigmoid(2.0 * torch.addmv(bias[i], x, weight[i]))) - 1.0
    return (x,)


def _by_fields(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
    x = x.clone()
    field = torch.addmm(bias, x, weight)
    for _, i in itertools.product(range(SWEEPS), range(UNITS)):
        new = 2.0 * torch.bernoulli(torch.sigmoid(2.0 * field[:, i])) - 1.0
        field.addr_(new - x[:, i], weight[i])
        x[:, i] = new
    return (x,)


def _sweeps(inputs: Inputs, mode: str) -> Built:
    ways = {"a product a unit": _by_products, "kept fields": _by_fields}
    leaves = list(inputs.tensors.values())
    return {name: lambda way=way: Program(lambda: way(*leaves), results=_active) for name, way in ways.items()}


# ---- recall ----------------------------------------------------------------------------------------------------------


def _recall_inputs(setting: Setting) -> Inputs:
    generator = torch.Generator().manual_seed(setting.seed)
    patterns = torch.randint(2, (STORED, NEURONS), generator=generator).float() * 2 - 1
    flip = torch.rand(RECALLED, NEURONS, generator=generator) < 0.1
    x = torch.where(flip, -patterns[:RECALLED], patterns[:RECALLED])
    weight = (patterns.T @ patterns).fill_diagonal_(0.0)
    return Inputs({"x": x.to(setting.device), "weight": weight.to(setting.device)}, ())


def _recall_truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    x, weight = (t.double() for t in inputs.tensors.values())
    return [gmk.hopfield_recall(x, weight, max_sweeps=MOST, backend="reference")[0]]


def _our_recall(inputs: Inputs, mode: str) -> Program:
    x, weight = inputs.tensors.values()
    backend = backend_of(gmk.hopfield_recall, x)
    return Program(lambda: gmk.hopfield_recall(x, weight, max_sweeps=MOST)[:1], backend=backend)


def _numpy_products(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.copy()
    for _ in range(MOST):
        before = x.copy()
        for i in range(NEURONS):
            field = x @ weight[i]
            x[:, i] = np.where(field > 0, 1, np.where(field < 0, -1, x[:, i]))
        if (x == before).all():
            break
    return x


def _numpy_fields(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.copy()
    field = x @ weight
    for _ in range(MOST):
        still = True
        for i in range(NEURONS):
            wrong = np.flatnonzero(field[:, i] * x[:, i] < 0)
            if len(wrong):
                x[wrong, i] *= -1
                field[wrong] += 2 * x[wrong, i, None] * weight[i]
                still = False
        if still:
            break
    return x


def _numpy(inputs: Inputs, mode: str) -> Built:
    x, weight = (t.cpu().numpy() for t in inputs.tensors.values())
    ways = {"a product a unit": _numpy_products, "kept fields": _numpy_fields}
    return {
        name: lambda way=way: Program(lambda: (torch.from_numpy(way(x, weight)),)) for name, way in ways.items()
    }  # fmt: skip


def _eager_recall(inputs: Inputs, mode: str) -> Program:
    given, weight = inputs.tensors.values()

    def call() -> Sequence[Tensor]:
        x = given.clone()
        for _ in range(MOST):
            before = x.clone()
            for i in range(NEURONS):
                field = x @ weight[i]
                x[:, i] = torch.where(field == 0, x[:, i], field.sign())
            if torch.equal(x, before):
                break
        return (x,)

    return Program(call)


# ---- annealed importance sampling ------------------------------------------------------------------------------------


def _ais_inputs(setting: Setting) -> Inputs:
    known = machine()
    mean = mnist5k().splits["train"].x.flatten(1).float().mean(0) / 255.0
    tensors = {name: known[name] for name in ("weight", "visible_bias", "hidden_bias")}
    tensors["base"] = torch.logit(mean.clamp(0.01, 0.99))
    return Inputs({name: t.to(setting.device, setting.dtype) for name, t in tensors.items()}, ())


@functools.cache
def _level() -> tuple[float, float]:
    """The mean log-weight, and five standard errors of the mean of a call."""
    found = _anneal(_ais_inputs(Setting()), chains=4 * ANNEALED, seed=99, num_betas=BETAS)
    return found.mean().item(), 5.0 * found.std().item() * math.sqrt((1 + 1 / 4) / ANNEALED)


def _anneal(inputs: Inputs, *, chains: int, seed: int, num_betas: int, backend: str = "auto") -> Tensor:
    *machine, base = inputs.tensors.values()
    key = gmk.random.key(seed=seed, device=base.device)
    return gmk.ais_log_z(*machine, key=key, num_betas=num_betas, chains=chains, base_visible_bias=base, backend=backend)


def _levelled(results: Sequence[Tensor]) -> list[Tensor]:
    right, error = _level()
    return _close(right, results[0].double().mean().item(), error)


def _our_ais(inputs: Inputs, mode: str) -> Program:
    few = [_anneal(inputs, chains=4, seed=1, num_betas=20, backend=backend) for backend in ("auto", "reference")]
    agrees = torch.allclose(*few, atol=1e-2)
    return Program(
        lambda: (_anneal(inputs, chains=ANNEALED, seed=7, num_betas=BETAS),),
        results=lambda results: _levelled(results) if agrees else [torch.full((1,), math.nan)],
        backend=backend_of(gmk.ais_log_z, inputs["weight"]),
    )


def _ais_step(
    v: Tensor, old: Tensor, new: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, base: Tensor
) -> tuple[Tensor, Tensor]:
    field = torch.addmm(hidden_bias, v, weight)
    change = (new - old) * (v @ (visible_bias - base)) + (softplus(new * field) - softplus(old * field)).sum(1)
    h = torch.bernoulli(torch.sigmoid(new * field))
    mean = torch.sigmoid((1.0 - new) * base + new * torch.addmm(visible_bias, h, weight.T))
    return torch.bernoulli(mean), change


def _ais_loop(step: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs) -> Program:
    weight, base = inputs["weight"], inputs["base"]
    betas = torch.linspace(0.0, 1.0, BETAS, dtype=weight.dtype, device=weight.device).unbind()

    def call() -> Sequence[Tensor]:
        v = torch.bernoulli(torch.sigmoid(base).expand(ANNEALED, -1))
        total = torch.zeros(ANNEALED, dtype=torch.float64, device=weight.device)
        for old, new in itertools.pairwise(betas):
            v, change = step(v, old, new, *inputs.tensors.values())
            total += change
        return (total + softplus(base).sum() + weight.shape[1] * math.log(2.0),)

    return Program(call, results=_levelled)


CASES = (
    Case(
        family="gibbs",
        name=f"bm-{UNITS}-b{CHAINS}",
        shape=f"{CHAINS} chains x {SWEEPS} sweeps, {UNITS} units",
        inputs=_sweep_inputs,
        truth=lambda inputs, maths, mode: [torch.tensor([_activity()[0]], dtype=torch.float64)],
        providers=[Provider("gmkernels", _our_sweeps), Provider("eager", _sweeps)],
        modes=("fwd",),
    ),
    Case(
        family="gibbs",
        name=f"hopfield-{NEURONS}-b{RECALLED}",
        shape=f"{RECALLED} of {STORED} patterns, {NEURONS} units",
        inputs=_recall_inputs,
        truth=_recall_truth,
        providers=[
            Provider("gmkernels", _our_recall),
            Provider("numpy", _numpy, package="numpy"),
            Provider("eager", _eager_recall),
        ],
        modes=("fwd",),
    ),
    Case(
        family="gibbs",
        name="ais-784x500",
        shape=f"{ANNEALED} chains x {BETAS} temperatures, 784 x 500 units",
        inputs=_ais_inputs,
        truth=lambda inputs, maths, mode: [torch.tensor([_level()[0]], dtype=torch.float64)],
        providers=[
            Provider("gmkernels", _our_ais),
            Provider("eager", lambda inputs, mode: _ais_loop(_ais_step, inputs)),
            Provider(
                "compile",
                lambda inputs, mode: _ais_loop(torch.compile(_ais_step, fullgraph=True, dynamic=False), inputs),
            ),
        ],
        modes=("fwd",),
        flops={"fwd": 4 * 784 * 500 * (BETAS - 1) * ANNEALED},
        accounting="two dense products a temperature",
    ),
)
