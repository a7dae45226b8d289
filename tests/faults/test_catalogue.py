"""Every fault still fits the sources. Whether the suite sees them is for ``python -m tests.faults``, which takes longer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .catalogue import FAULTS
from .patch import Fault, StaleFault

ROOT = Path(__file__).resolve().parents[2]


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_still_fits(fault: Fault, tmp_path: Path) -> None:
    copy = tmp_path / fault.file
    copy.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / fault.file, copy)
    before = fault.plant(tmp_path)
    assert before == (ROOT / fault.file).read_text() != copy.read_text()
    if copy.suffix == ".py":
        compile(copy.read_text(), fault.file, "exec")


def test_a_stale_fault_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = (x +\n     1)\ny = x\n")
    assert Fault("fits", "a.py", "y=(x + 1)", "y = 2", "").plant(tmp_path).startswith("x = 1")
    assert (tmp_path / "a.py").read_text() == "x = 1\ny = 2\ny = x\n"
    for old in ("y = 3", "x"):
        with pytest.raises(StaleFault, match="expected once"):
            Fault("stale", "a.py", old, "", "").plant(tmp_path)
