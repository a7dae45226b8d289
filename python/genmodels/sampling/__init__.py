"""Samplers of any density: Gibbs, importance sampling and Metropolis-Hastings, with diagnostics in one result.

All are plain PyTorch on the keys of ``gmkernels.random``: the same key gives the same samples, and chains run in two
batches (``first``) give the same as in one.
"""

from .colouring import colour
from .diagnostics import Diagnostics, autocorrelation, effective_sample_size, split_rhat
from .gibbs import gibbs
from .importance import WeightCollapse, importance_sampling
from .metropolis import metropolis_hastings
from .noise import Noise
from .proposals import langevin, random_walk, single_flip
from .result import Samples

__all__ = [
    "Diagnostics",
    "Noise",
    "Samples",
    "WeightCollapse",
    "autocorrelation",
    "colour",
    "effective_sample_size",
    "gibbs",
    "importance_sampling",
    "langevin",
    "metropolis_hastings",
    "random_walk",
    "single_flip",
    "split_rhat",
]
