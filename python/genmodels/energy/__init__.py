"""Energy-based models: restricted and general Boltzmann machines, Hopfield networks.

``RBMTransformer``, the scikit-learn estimator, is imported when it is asked for: it needs scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .boltzmann import BoltzmannMachine
from .hopfield import Hopfield, Recall, capacity_curve
from .learning import Learning
from .partition import LogZ
from .rbm import RBM, IdleUnits

if TYPE_CHECKING:
    from .estimator import RBMTransformer

__all__ = [
    "RBM",
    "BoltzmannMachine",
    "Hopfield",
    "IdleUnits",
    "Learning",
    "LogZ",
    "RBMTransformer",
    "Recall",
    "capacity_curve",
]


def __getattr__(name: str) -> Any:
    if name == "RBMTransformer":
        from .estimator import RBMTransformer

        return RBMTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
