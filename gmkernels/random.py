"""``gmkernels.random``: the project's one random stream. See :mod:`gmkernels.ops.random`."""

from gmkernels.ops.random import bernoulli, bits, key, normal, uniform

__all__ = ["key", "bits", "uniform", "normal", "bernoulli"]
