"""Training: :func:`fit`, and the checkpoints and logs it writes."""

from .fit import Fit, Part, Result, fit, load_weights
from .log import read_log

__all__ = ["Fit", "Part", "Result", "fit", "load_weights", "read_log"]
