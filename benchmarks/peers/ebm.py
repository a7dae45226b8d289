"""Restricted Boltzmann machines of scikit-learn, thrml and dwave-samplers, given the machine and the states to start from.

* scikit-learn: ``BernoulliRBM.gibbs``, once a step.
* thrml samples spins in {-1, 1}: with x = (s + 1) / 2, couplings are W / 4 and biases vb / 2 + sum_j W_ij / 4, and
  likewise for hidden units. The program is built and compiled beforehand. (pip install --no-deps thrml, with jax and
  equinox.)
* dwave-samplers knows no blocks: a sweep visits the units one by one, with the Gibbs rule at beta = 1. (pip install
  dwave-samplers.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..case import peer

Sampler = Callable[[], Tensor]


def sklearn_gibbs(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, steps: int) -> Sampler:
    machine = peer("scikit-learn", "sklearn.neural_network").BernoulliRBM(weight.shape[1], random_state=0)
    machine.components_ = np.ascontiguousarray(weight.T.numpy())
    machine.intercept_hidden_, machine.intercept_visible_ = hidden_bias.numpy(), visible_bias.numpy()
    start = v.numpy().astype(bool)

    def call() -> Tensor:
        states = start
        for _ in range(steps):
            states = machine.gibbs(states)
        return torch.from_numpy(states)

    return call


def thrml_gibbs(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, steps: int) -> Sampler:
    thrml, models, jax = peer("thrml"), peer("thrml", "thrml.models"), peer("jax")
    w, vb, hb = (t.double().numpy() for t in (weight, visible_bias, hidden_bias))
    visible, hidden = w.shape
    nodes = [thrml.SpinNode() for _ in range(visible + hidden)]
    seen, unseen = nodes[:visible], nodes[visible:]
    biases = np.concatenate((vb / 2 + w.sum(1) / 4, hb / 2 + w.sum(0) / 4)).astype(np.float32)
    energy = models.IsingEBM(
        nodes, [(a, b) for a in seen for b in unseen], jax.numpy.asarray(biases),
        jax.numpy.asarray((w / 4).ravel().astype(np.float32)), jax.numpy.array(1.0),
    )  # fmt: skip
    # The hidden units first, as they are drawn first.
    program = models.IsingSamplingProgram(energy, [thrml.Block(unseen), thrml.Block(seen)], [])
    schedule = thrml.SamplingSchedule(n_warmup=steps, n_samples=1, steps_per_sample=1)
    run = jax.jit(jax.vmap(lambda k, h, x: thrml.sample_states(k, program, schedule, [h, x], [], [thrml.Block(seen)])))
    keys = jax.random.split(jax.random.key(0), len(v))
    start = jax.numpy.asarray(v.numpy().astype(bool))
    none = jax.numpy.zeros((len(v), hidden), bool)

    def call() -> Tensor:
        return torch.from_numpy(np.array(run(keys, none, start)[0])).reshape(v.shape)

    return call


def dwave_gibbs(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, steps: int) -> Sampler:
    dimod, samplers = peer("dimod"), peer("dwave-samplers", "dwave.samplers")
    w = weight.double().numpy()
    visible, hidden = w.shape
    quadratic = np.zeros((visible + hidden,) * 2)
    quadratic[:visible, visible:] = -w
    linear = -np.concatenate((visible_bias.double().numpy(), hidden_bias.double().numpy()))
    model = dimod.BinaryQuadraticModel(linear, quadratic, 0.0, "BINARY")
    h = torch.sigmoid(hidden_bias + v @ weight) > 0.5
    start = (np.concatenate((v.numpy(), h.numpy()), axis=1).astype(np.int8), list(range(visible + hidden)))
    sampler = samplers.SimulatedAnnealingSampler()

    def call() -> Tensor:
        found = sampler.sample(
            model, num_reads=len(v), beta_schedule_type="custom", beta_schedule=[1.0] * steps, num_sweeps=steps,
            num_sweeps_per_beta=1, proposal_acceptance_criteria="Gibbs", seed=1, initial_states=start,
        )  # fmt: skip
        order = np.argsort(np.asarray(found.variables))
        return torch.from_numpy(found.record.sample[:, order][:, :visible].copy())

    return call
