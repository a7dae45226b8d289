"""What a run leaves behind while it goes: JSON lines always, TensorBoard when installed, a bar on a terminal."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """``log.jsonl``, appended line by line and never rewritten; TensorBoard files and a progress bar beside it."""

    def __init__(self, folder: Path, *, bar: bool = True) -> None:
        self.path = folder / "log.jsonl"
        torn = self.path.exists() and self.path.stat().st_size and self.path.read_bytes()[-1:] != b"\n"
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)
        if torn:
            # A line cut short by a kill must not swallow the next one.
            self._file.write("\n")
        self._board = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))
        self._bar = None
        if bar and sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; numbers that JSON cannot hold become null."""
        line: dict[str, Any] = {"event": event, "step": step, **values}
        for name, value in values.items():
            if isinstance(value, float):
                line[name] = round(value, 6) if math.isfinite(value) else None
                if self._board is not None:
                    self._board.add_scalar(f"{event}/{name}", value, step)
        self._file.write(json.dumps(line) + "\n")

    def progress(self, fraction: float, step: int, shown: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.n = round(100 * min(fraction, 1.0), 1)
            self._bar.set_postfix({"step": step, **{name: f"{value:.3f}" for name, value in shown.items()}})

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run as if it had never been interrupted.

    Steps that a resumed run did again replace the first attempt; a line cut short by a kill is passed over.
    """
    lines: list[dict[str, Any]] = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["event"] == "resume":
            lines = [kept for kept in lines if kept["step"] <= line["step"]]
        lines.append(line)
    return lines
