"""A fault is a change of text. Spaces and line breaks do not matter, so that formatting a source keeps its faults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


class StaleFault(Exception):
    """The source has moved on: the text that a fault replaces is gone, or no longer unique."""


@dataclass(frozen=True)
class Fault:
    """One planted mistake.

    Args:
        name: unique, short.
        file: the source it is planted in.
        old, new: the text and what it becomes; ``old`` must occur exactly once.
        select: the ``-k`` expression of the tests that have to see it.
        triton: a mistake of the Triton backend, whose tests run in the interpreter.
        tests: the files of these tests; empty for all of tests/ops.
    """

    name: str
    file: str
    old: str
    new: str
    select: str
    triton: bool = False
    tests: tuple[str, ...] = ()

    @property
    def compiled(self) -> bool:
        return self.file.startswith("csrc/")

    def plant(self, root: Path) -> str:
        """Change the file under ``root``; returns what it was."""
        path = root / self.file
        before = path.read_text()
        found = list(_pattern(self.old).finditer(before))
        if len(found) != 1:
            raise StaleFault(f"{self.name}: {self.old!r} occurs {len(found)} times in {self.file}, expected once")
        start, stop = found[0].span()
        path.write_text(before[:start] + self.new + before[stop:])
        return before


def _pattern(text: str) -> re.Pattern[str]:
    """The tokens of a text with any space between them; only an indentation that ``text`` has itself must be there."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return re.compile(r"\s*".join(re.escape(token) for token in tokens))
