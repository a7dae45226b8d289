"""Triton launchers of the family."""

from __future__ import annotations

from .ais_triton import ais_log_z
from .boltzmann_triton import boltzmann_gibbs, hopfield_recall
from .rbm_triton import (
    rbm_conditional,
    rbm_gibbs,
    rbm_softplus_sum,
    rbm_softplus_sum_backward,
    rbm_softplus_sum_double_backward,
)

__all__ = [
    "ais_log_z",
    "boltzmann_gibbs",
    "hopfield_recall",
    "rbm_conditional",
    "rbm_gibbs",
    "rbm_softplus_sum",
    "rbm_softplus_sum_backward",
    "rbm_softplus_sum_double_backward",
]
