"""Normalising flows. The transforms inside follow nflows (``forward(x, context) -> (z, logabsdet)``); the names outside
are zuko's (``log_prob``, ``sample``, ``rsample_and_log_prob``)."""

from .adapters import FlowDistribution, as_torch_transform
from .autoregressive import IAF, MADE, MAF
from .flow import Flow, four_corners
from .gaussian import Gaussian
from .interop import from_nflows, from_normflows, from_zuko
from .planar import PlanarFlow
from .realnvp import RealNVP, checkerboard
from .wavenet import ParallelWaveNet, WaveNet

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "Flow",
    "FlowDistribution",
    "Gaussian",
    "ParallelWaveNet",
    "PlanarFlow",
    "RealNVP",
    "WaveNet",
    "as_torch_transform",
    "checkerboard",
    "four_corners",
    "from_nflows",
    "from_normflows",
    "from_zuko",
]
