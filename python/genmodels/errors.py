"""Errors a user can act on: one sentence, saying what to do. The command line prints them without a traceback."""

from __future__ import annotations

import importlib
import math
import struct
import zipfile
import zlib
from types import ModuleType

DAMAGED = (OSError, EOFError, ValueError, SyntaxError, zlib.error, struct.error, zipfile.BadZipFile)
"""What reading a damaged, truncated or foreign file may raise."""


class GenmodelsError(Exception):
    """Base of the errors that the command line prints as one line."""


class DataError(GenmodelsError):
    """A data set is missing or unreadable."""


class CheckpointError(GenmodelsError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class NonFiniteError(GenmodelsError, ArithmeticError):
    """Something that must be a number is NaN or infinite."""


class MissingPackage(GenmodelsError, ImportError):
    """An optional package is not installed."""


def at_least(option: str, value: float | None, least: int) -> None:
    """Refuse a command's option that is less than ``least``, NaN or infinite."""
    if value is not None and not least <= value < math.inf:
        raise GenmodelsError(f"--{option.replace('_', '-')} must be {least} or more, got {value}")


def need(module: str, purpose: str, extra: str = "models") -> ModuleType:
    """Import an optional module, or say which extra of this distribution brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingPackage(f"{purpose} needs {error.name}: pip install '.[{extra}]'") from None
