"""Triton launchers of the family."""

from __future__ import annotations

from .rbm_triton import (
    rbm_conditional,
    rbm_gibbs,
    rbm_softplus_sum,
    rbm_softplus_sum_backward,
    rbm_softplus_sum_double_backward,
)

__all__ = [
    "rbm_conditional",
    "rbm_gibbs",
    "rbm_softplus_sum",
    "rbm_softplus_sum_backward",
    "rbm_softplus_sum_double_backward",
]
