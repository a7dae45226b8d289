"""What the project tests its operators with, for users who write operators of their own.

* :mod:`.table` - the operator table: one row per operator and variant, from which the suite is generated.
* :mod:`.evaluate` - a case to named results: outputs, gradients, second derivatives.
* :mod:`.budget` - errors in units of half an ULP, and budgets relative to PyTorch in the same dtype.
* :mod:`.layouts` - the same values in other memory.
* :mod:`.memory` - poisoned and guarded allocations.
* :mod:`.bands` - which random decisions a rounding error may flip.
* :mod:`.doors` - the dispatcher door by force, and a record of the operators that ran.

It needs torch only.
"""

from .bands import boundary_band
from .budget import ErrorBudget, error
from .doors import dispatcher_door
from .evaluate import digest, evaluate
from .layouts import LAYOUTS, relayout
from .memory import poison, redzones
from .table import Case, ErrorCase, OperatorRow, draw, rows

__all__ = [
    "LAYOUTS",
    "Case",
    "ErrorBudget",
    "ErrorCase",
    "OperatorRow",
    "boundary_band",
    "digest",
    "dispatcher_door",
    "draw",
    "error",
    "evaluate",
    "poison",
    "redzones",
    "relayout",
    "rows",
]
