"""Draws from Gaussian posteriors with their KL divergence, and the Bernoulli log-likelihood of a decoder.

* ``BxD``: ``z = mu + exp(logvar / 2) eps`` and ``kl`` of (B, D), noise included: our side makes a key per call, the
  others call ``torch.randn_like``. The noise differs from one provider to the next, so ``z`` itself is not compared; its
  part is taken out of the gradient by logvar, which is then the same for all (the tests of the library compare ``z``).
* ``bernoulli-BxD``: ``sum_d x l - softplus(l)`` of (B, D), differentiated by the logits.

``eager`` and ``compile`` take the faster of the textbook's formula and one with less work.

Bytes: a draw must read mu and logvar and write z (3 tensors), backward reads dz, mu, logvar and writes two gradients
(5). The likelihood reads logits and x (2), backward reads them again and writes one gradient (3).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, differentiate, leaf, plain

_Formulas = Mapping[str, Callable[..., Sequence[Tensor]]]


def _textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    return z, -0.5 * (1.0 + logvar - mu.pow(2) - logvar.exp()).sum(1)


def _one_exp(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    return torch.addcmul(mu, std, torch.randn_like(mu)), 0.5 * (mu * mu + (std * std - 1.0 - logvar)).sum(1)


def _cross_entropy(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (-binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1),)


def _by_softplus(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return ((x * logits - softplus(logits)).sum(1),)


def _stock(formulas: _Formulas, leaves: Sequence[Tensor]) -> Built:
    return {name.rstrip(", "): functools.partial(plain, formula, leaves) for name, formula in formulas.items()}


def _with_results(build: Callable[[], Program], form: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Program:
    return replace(build(), results=form)


def _without_noise(inputs: Inputs, results: Sequence[Tensor]) -> Sequence[Tensor]:
    z, *rest = results
    if len(rest) == 3:  # kl and the gradients by mu and logvar; dz/dlogvar is (z - mu) / 2
        rest[2] = rest[2] - 0.5 * inputs.cotangents[0] * (z.detach() - inputs["mu"])
    return rest


def _draw_case(batch: int, dim: int) -> Case:
    formulas = {"textbook, ": _textbook, "one exp, ": _one_exp}

    def inputs_of(setting: Setting) -> Inputs:
        normal = setting.stream()
        tensors = {"mu": normal(batch, dim), "logvar": normal(batch, dim)}
        return Inputs(tensors, (normal(batch, dim), normal(batch, wide=True)))

    def truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
        def definition(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
            return mu, 0.5 * (mu * mu + torch.exp(logvar) - 1.0 - logvar).sum(1)

        return differentiate(definition, list(inputs.tensors.values()), inputs, mode)[1:]

    def leaves(inputs: Inputs) -> list[Tensor]:
        return [leaf(t) for t in inputs.tensors.values()]

    def checked(inputs: Inputs, built: Built) -> Built:
        form = functools.partial(_without_noise, inputs)
        if isinstance(built, Program):
            return replace(built, results=form)
        return {name: functools.partial(_with_results, build, form) for name, build in built.items()}

    def ours(inputs: Inputs, mode: str) -> Built:
        mu, logvar = leaves(inputs)

        def call() -> Sequence[Tensor]:
            return gmk.reparameterize_kl(mu, logvar, gmk.random.key(device=mu.device))

        program = Program(call, [mu, logvar], backend=backend_of(gmk.reparameterize_kl, mu))
        return checked(inputs, program)

    size = batch * dim
    return Case(
        family="gaussian",
        name=f"{batch}x{dim}",
        shape=f"{batch} samples x {dim} dimensions",
        inputs=inputs_of,
        truth=truth,
        providers=[
            Provider("gmkernels", ours),
            Provider("eager", lambda inputs, mode: checked(inputs, _stock(formulas, leaves(inputs)))),
            Provider("compile", lambda inputs, mode: checked(inputs, compiled(formulas, leaves(inputs)))),
        ],
        elements={"fwd": 3 * size, "fwd+bwd": 8 * size},
        accounting="3 tensors forward, 5 backward",
    )


def _bernoulli_case(batch: int, dim: int) -> Case:
    formulas = {"cross-entropy, ": _cross_entropy, "softplus, ": _by_softplus}

    def inputs_of(setting: Setting) -> Inputs:
        normal = setting.stream()
        tensors = {"logits": normal(batch, dim, scale=3.0), "x": (normal(batch, dim) > 0).to(setting.dtype)}
        return Inputs(tensors, (normal(batch, wide=True),))

    def truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
        def definition(logits: Tensor) -> tuple[Tensor]:
            return (gmk.bernoulli_log_likelihood(logits, inputs["x"].double(), backend="reference"),)

        return differentiate(definition, [inputs["logits"]], inputs, mode)

    def with_data(inputs: Inputs, formula: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
        x = inputs["x"]
        return lambda logits: formula(logits, x)

    def stock(inputs: Inputs, enter: Callable[[_Formulas, Sequence[Tensor]], Built]) -> Built:
        given = {name: with_data(inputs, formula) for name, formula in formulas.items()}
        return enter(given, [leaf(inputs["logits"])])

    def ours(inputs: Inputs, mode: str) -> Program:
        logits, x = leaf(inputs["logits"]), inputs["x"]
        backend = backend_of(gmk.bernoulli_log_likelihood, logits)
        return Program(lambda: (gmk.bernoulli_log_likelihood(logits, x),), [logits], backend=backend)

    size = batch * dim
    return Case(
        family="gaussian",
        name=f"bernoulli-{batch}x{dim}",
        shape=f"{batch} samples x {dim} pixels",
        inputs=inputs_of,
        truth=truth,
        providers=[
            Provider("gmkernels", ours),
            Provider("eager", lambda inputs, mode: stock(inputs, _stock)),
            Provider("compile", lambda inputs, mode: stock(inputs, compiled)),
        ],
        elements={"fwd": 2 * size, "fwd+bwd": 5 * size},
        accounting="2 tensors forward, 3 backward",
    )


CASES = (_draw_case(128, 20), _draw_case(4096, 256), _bernoulli_case(128, 784))
