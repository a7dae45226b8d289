"""Tables of numbers: one file or three, fixed splits, and one clear error when something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genmodels import data
from genmodels.data import Table
from genmodels.errors import DataError


def _save(path: Path, rows: object) -> Path:
    np.save(path, np.asarray(rows))
    return path


def _three(folder: Path, *widths: int) -> Path:
    for name, width in zip(("train", "valid", "test"), widths, strict=True):
        _save(folder / f"{name}.npy", np.zeros((9, width)))
    return folder


def test_one_file_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.npy", np.arange(200.0).reshape(100, 2))
    found = data.load(str(path))
    assert isinstance(found, Table)
    assert found.shape == (2,)
    sizes = {name: len(split.x) for name, split in found.splits.items()}
    assert sizes == {"train": 80, "valid": 10, "test": 10}
    rows = torch.cat([split.x for split in found.splits.values()])
    assert rows[:, 0].sort().values.tolist() == list(range(0, 200, 2))
    assert rows[:, 0].tolist() != list(range(0, 200, 2))
    again = data.load(str(path)).splits["test"].x
    assert torch.equal(again, found.splits["test"].x)
    epoch = found.stream(20, seed=1)
    assert torch.cat([next(epoch).x for _ in range(4)]).sort(0).values.equal(found.splits["train"].x.sort(0).values)
    assert torch.cat([batch.x for batch in found.batches("valid", 3)]).equal(found.splits["valid"].x)


def test_three_files_are_used_as_they_are(tmp_path: Path) -> None:
    for name, n in (("train", 30), ("val", 5), ("test", 6)):
        _save(tmp_path / f"{name}.npy", np.full((n, 3), n, np.float64))
    found = data.load(str(tmp_path))
    assert isinstance(found, Table)
    assert {name: split.x[:, 0].tolist() for name, split in found.splits.items()} == {
        "train": [30.0] * 30,
        "valid": [5.0] * 5,
        "test": [6.0] * 6,
    }


def test_the_gaussian_that_flows_are_compared_with(tmp_path: Path) -> None:
    """On its own training rows it is the entropy of the fitted Gaussian, but for the factor (n - 1) / n of the variance."""
    x = np.random.default_rng(0).standard_normal((4000, 2)) @ np.array([[3.0, 1.0], [0.0, 0.5]])
    found = data.table(_save(tmp_path / "a.npy", x))
    cov = torch.cov(found.splits["train"].x.double().t())
    expected = float(0.5 * cov.logdet()) + np.log(2 * np.pi) + 3199 / 3200
    assert found.gaussian_nats("train") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "none.npy", r"cannot read .*none\.npy"),
        (lambda d: _save(d / "a.npy", np.zeros((20, 2, 2))), r"holds float64 of shape \(20, 2, 2\), expected numbers"),
        (lambda d: _save(d / "a.npy", [["a", "b"]] * 20), r"expected numbers \(rows, columns\)"),
        (lambda d: _save(d / "a.npy", [[0.0, 1.0]] * 7 + [[0.0, np.nan]] * 7), "row 7 has a value that is not finite"),
        (lambda d: _save(d / "a.npy", [[0.0, 1.0]] * 7), "has 7 rows, expected at least 10"),
        (lambda d: _save(d / "train.npy", [[0.0, 1.0]] * 7).parent, r"has no valid\.npy or val\.npy"),
        (lambda d: _three(d, 2, 2, 3), r"different numbers of columns: \[2, 3\]"),
    ],
)
def test_bad_tables_are_explained(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        data.load(str(make(tmp_path)))
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"cannot read .*pickled\.npy"):
        data.load(str(tmp_path / "pickled.npy"))
