"""Chains of Boltzmann machines: 100 block Gibbs steps of a 784 x 500 restricted machine that has learned mnist5k, and more.

The machine is trained in the set-up (persistent contrastive divergence, 100 chains, half a minute) and kept in
``data/``; all providers begin with the same binarised digits.

* ``gmkernels`` is ``precision="exact"``, float32; ``fixed`` is ``precision="fixed"``, integers;
* ``eager`` and ``compile`` are two products, two sigmoids and two ``torch.bernoulli`` a step; ``compile`` is the
  faster of one step compiled and ten steps compiled;
* peers: see ``peers/ebm.py``.

Every provider has random numbers of its own, so what is checked before timing is the mean activity of the visible units
after the last step, to five standard errors of the batch. Our two are held to the definition as well: after one step
(``gmkernels``) and after all steps (``fixed``), the first chains have its bits.

Operations: two dense products a step, 4 V H a chain. The kernels do fewer: they add the rows of the units that are on, or
that have changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import gmkernels as gmk

from . import boltzmann
from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of
from .machine import HIDDEN, VISIBLE, machine
from .peers import ebm as peers

STEPS = 100
_LOOKED_AT = 4  # chains that are compared with the definition


def _inputs(chains: int, setting: Setting) -> Inputs:
    known = machine()
    tensors = {name: t.to(setting.device, setting.dtype) for name, t in known.items()}
    tensors["v"] = tensors["v"][:chains]
    return Inputs(tensors, ())


@functools.cache
def _activity(chains: int) -> tuple[float, float]:
    """The mean activity that the batch should have at the end, and five standard errors of it."""
    known = machine()
    repeats = 8
    start = known["v"][:chains].repeat(repeats, 1)
    v, _ = gmk.rbm_gibbs(start, *list(known.values())[1:], steps=STEPS, key=gmk.random.key(seed=99))
    each = v.mean(1)
    spread = each.std().item() if len(each) > 1 else 0.0
    return each.mean().item(), 5.0 * spread / chains**0.5 * (1.0 + 1.0 / repeats) ** 0.5


def _truth(chains: int, inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    return [torch.tensor([_activity(chains)[0]], dtype=torch.float64)]


def _seen(chains: int, agrees: bool, results: Sequence[Tensor]) -> list[Tensor]:
    """The right activity if this is as good as it, else what was found; NaN if bits are wrong."""
    right, error = _activity(chains)
    found = results[0].double().mean().item()
    if not agrees:
        found = float("nan")
    return [torch.tensor([right if abs(found - right) <= error else found], dtype=torch.float64)]


def _ours(precision: str, inputs: Inputs, mode: str) -> Program:
    tensors = list(inputs.tensors.values())
    chains = len(tensors[0])
    key = gmk.random.key(seed=7, device=tensors[0].device)
    first = [tensors[0][:_LOOKED_AT], *tensors[1:]]
    steps = 1 if precision == "exact" else STEPS
    found, defined = (
        gmk.rbm_gibbs(*first, steps=steps, key=key, precision=precision, backend=backend)
        for backend in ("auto", "reference")
    )
    agrees = all(torch.equal(a, b) for a, b in zip(found, defined, strict=True))
    return Program(
        lambda: gmk.rbm_gibbs(*tensors, steps=STEPS, key=key, precision=precision),
        results=functools.partial(_seen, chains, agrees),
        backend=backend_of(gmk.rbm_gibbs, tensors[0]),
    )


def _step(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.bernoulli(torch.sigmoid(torch.addmm(hidden_bias, v, weight)))
    return torch.bernoulli(torch.sigmoid(torch.addmm(visible_bias, h, weight.T))), h


def _ten_steps(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> tuple[Tensor, Tensor]:
    h = v
    for _ in range(10):
        v, h = _step(v, weight, visible_bias, hidden_bias)
    return v, h


def _loop(step: Callable[..., tuple[Tensor, Tensor]], times: int, inputs: Inputs) -> Program:
    v, *parameters = inputs.tensors.values()

    def call() -> Sequence[Tensor]:
        states = h = v
        for _ in range(times):
            states, h = step(states, *parameters)
        return states, h

    return Program(call, results=functools.partial(_seen, len(v), True))


def _compiled(inputs: Inputs, mode: str) -> Built:
    def build(step: Callable[..., tuple[Tensor, Tensor]], times: int) -> Callable[[], Program]:
        return lambda: _loop(torch.compile(step, fullgraph=True, dynamic=False), times, inputs)

    return {"one step": build(_step, STEPS), "ten steps": build(_ten_steps, STEPS // 10)}


def _peer(sampler: Callable[..., peers.Sampler], inputs: Inputs, mode: str) -> Program:
    v, *parameters = (t.cpu() for t in inputs.tensors.values())
    call = sampler(v, *parameters, STEPS)
    return Program(lambda: (call(),), results=functools.partial(_seen, len(v), True))


def _case(chains: int) -> Case:
    return Case(
        family="gibbs",
        name=f"rbm-{VISIBLE}x{HIDDEN}-b{chains}",
        shape=f"{chains} chains x {STEPS} steps, {VISIBLE} x {HIDDEN} units",
        inputs=functools.partial(_inputs, chains),
        truth=functools.partial(_truth, chains),
        providers=[
            Provider("gmkernels", functools.partial(_ours, "exact")),
            Provider("fixed", functools.partial(_ours, "fixed"), library=True),
            Provider("eager", lambda inputs, mode: _loop(_step, STEPS, inputs)),
            Provider("compile", _compiled),
            Provider("sklearn", functools.partial(_peer, peers.sklearn_gibbs), package="scikit-learn"),
            Provider("thrml", functools.partial(_peer, peers.thrml_gibbs), package="thrml"),
            Provider("dwave", functools.partial(_peer, peers.dwave_gibbs), package="dwave-samplers"),
        ],
        modes=("fwd",),
        flops={"fwd": 4 * VISIBLE * HIDDEN * STEPS * chains},
        accounting="two dense products a step",
    )


CASES = (*(_case(chains) for chains in (1, 64, 512)), *boltzmann.CASES)
