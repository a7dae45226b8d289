"""Normalising flows. The transforms inside follow nflows (``forward(x, context) -> (z, logabsdet)``); the names outside
are zuko's (``log_prob``, ``sample``, ``rsample_and_log_prob``)."""

from .flow import Flow, four_corners
from .realnvp import RealNVP, checkerboard

__all__ = ["Flow", "RealNVP", "checkerboard", "four_corners"]
