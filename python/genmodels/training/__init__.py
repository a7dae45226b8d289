"""Training: :func:`fit`, and the checkpoints and logs it writes."""

from .config import Best, Fit, Part, Result
from .fit import fit, write_down
from .log import read_log
from .weights import best_weights, load_weights

__all__ = ["Best", "Fit", "Part", "Result", "best_weights", "fit", "load_weights", "read_log", "write_down"]
