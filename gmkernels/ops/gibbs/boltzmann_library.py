"""Schemas and fakes of the operators of fully connected machines, and of annealed importance sampling."""

from __future__ import annotations

import torch

from gmkernels.core.doors import Operator

from . import ais_reference, boltzmann_reference


def _fake_gibbs(x, weight, bias, key, beta, clamp, order, sweeps, first, spin):
    return x.new_empty(x.shape)


def _fake_recall(x, weight, bias, max_sweeps):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.int64)


def _fake_ais(weight, visible_bias, hidden_bias, key, betas, base_bias, reverse_from, chains, first):
    return weight.new_empty(chains)


boltzmann_gibbs = Operator(
    "gibbs",
    "boltzmann_gibbs(Tensor x, Tensor weight, Tensor bias, Tensor key, Tensor beta, Tensor? clamp, Tensor? order,"
    " SymInt sweeps, SymInt first, bool spin, str backend) -> Tensor",
    _fake_gibbs,
    boltzmann_reference.boltzmann_gibbs,
)
hopfield_recall = Operator(
    "gibbs",
    "hopfield_recall(Tensor x, Tensor weight, Tensor bias, SymInt max_sweeps, str backend) -> (Tensor, Tensor)",
    _fake_recall,
    boltzmann_reference.hopfield_recall,
)
ais_log_z = Operator(
    "gibbs",
    "ais_log_z(Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor key, Tensor betas, Tensor base_bias,"
    " Tensor? reverse_from, SymInt chains, SymInt first, str backend) -> Tensor",
    _fake_ais,
    ais_reference.ais_log_z,
)
