"""The five tables, from small files in the forms in which their archives hand them out."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genmodels import data
from genmodels.cli import main
from genmodels.data import Table
from genmodels.errors import DataError, MissingPackage

RNG = np.random.default_rng(0)


def _splits(path: Path) -> dict[str, np.ndarray]:
    found = data.load(str(path))
    assert isinstance(found, Table)
    return {name: part.x.double().numpy() for name, part in found.splits.items()}


def _check_standard(splits: dict[str, np.ndarray], sizes: tuple[int, int, int], features: int) -> None:
    assert tuple(len(part) for part in splits.values()) == sizes
    assert {part.shape[1] for part in splits.values()} == {features}
    np.testing.assert_allclose(splits["train"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(splits["train"].std(0), 1, atol=1e-5)


def _power(folder: Path, lines: int = 400) -> Path:
    rows = ["Date;Time;Active;Reactive;Voltage;Intensity;M1;M2;M3"]
    for i in range(lines):
        numbers = f"{4 + i / 1000:.3f};0.418;{240 + i / 100:.2f};18.4;{i % 3}.000;{i % 5}.000;{i % 7}.000"
        rows.append(f"16/12/2006;{i // 60:02}:{i % 60:02}:00;" + ("?;?;?;?;?;?;" if i % 40 == 0 else numbers))
    path = folder / "household_power_consumption.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_power_leaves_out_what_is_missing_and_dithers_the_rest(tmp_path: Path) -> None:
    splits = _splits(_power(tmp_path))
    # Of 400 minutes ten are missing; 39 of 390 are the test, 35 of 351 the validation.
    _check_standard(splits, (316, 35, 39), 6)
    x = np.concatenate(list(splits.values()))
    for column in x.T:
        assert len(np.unique(column)) > 380, "noise makes every value its own"
    # Active power, voltage and time all rise by one step a minute: but for the noise they are one and the same.
    corr = np.corrcoef(x.T)
    assert corr[0, 1] > 0.999 and corr[0, 5] > 0.999
    assert np.abs(np.diff(x[:, 0])).mean() > 0.5, "the order of time is gone"
    assert all(np.array_equal(a, b) for a, b in zip(splits.values(), _splits(tmp_path).values(), strict=True))


def test_power_as_the_paper_left_it(tmp_path: Path) -> None:
    folder = tmp_path / "power"
    folder.mkdir()
    x = np.stack([RNG.integers(0, 9, 100) * (10.0**i) for i in range(8)], 1)
    np.save(folder / "data.npy", x)
    splits = _splits(folder)
    _check_standard(splits, (81, 9, 10), 6)
    assert len(np.unique(np.concatenate(list(splits.values()))[:, 5])) == 9, "time has its noise already"
    np.save(folder / "data.npy", x[:, :7])
    with pytest.raises(DataError, match="POWER has 8 columns, got 7"):
        data.load(str(folder))


def _gas(folder: Path, factors: np.ndarray) -> Path:
    rows = ["Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels)"]
    x = RNG.standard_normal((800, 8))
    for i, sensors in enumerate(x @ factors + 1e-3 * RNG.standard_normal((800, factors.shape[1]))):
        rows.append(f"{i / 100:.2f}  0.00  0.00  " + " ".join(f"{value:.6f}" for value in sensors))
    path = folder / "ethylene_CO.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_gas_keeps_one_of_sensors_that_say_the_same(tmp_path: Path) -> None:
    # Sensors 0 and 8, 1 and 9 and so on are the same but for a little noise.
    splits = _splits(_gas(tmp_path, np.hstack([np.eye(8), 3 * np.eye(8)])))
    _check_standard(splits, (162, 18, 20), 8)
    corr = np.corrcoef(splits["train"].T)
    assert (corr - np.eye(8)).max() < 0.5
    factors = np.hstack([np.eye(8), 3 * np.eye(8)])
    factors[:, 0] = 1.0
    other = _gas(tmp_path, factors)
    with pytest.raises(DataError, match=r"GAS has 8 features when it is ready, got \[9\]"):
        data.load(str(other))


def _hepmass(folder: Path, name: str, n: int, extra: int) -> np.ndarray:
    x = RNG.standard_normal((n, 28 + extra))
    x[:, 0] = np.arange(n) % 2
    # b-tags: few values, in five features.
    x[:, [6, 10, 14, 18, 22]] = RNG.integers(0, 3, (n, 5))
    text = "# label," + ",".join(f"f{i}" for i in range(27)) + "\n"
    text += "".join(",".join(f"{value:.6f}" for value in row) + "\n" for row in x)
    with gzip.open(folder / name, "wt") as file:
        file.write(text)
    return x


def test_hepmass_is_the_signal_without_its_tags(tmp_path: Path) -> None:
    _hepmass(tmp_path, "1000_train.csv.gz", 400, 0)
    with pytest.raises(DataError, match=r"no 1000_test.csv beside 1000_train.csv.gz"):
        data.load(str(tmp_path))
    x = _hepmass(tmp_path, "1000_test.csv.gz", 100, 1)
    splits = _splits(tmp_path)
    _check_standard(splits, (180, 20, 50), 21)
    kept = [i for i in range(1, 27) if i not in (6, 10, 14, 18, 22)]
    signal = x[x[:, 0] == 1][:, kept]
    # The test is in the order of its file, on the scale of the training rows.
    for ours, theirs in zip(splits["test"].T, signal.T, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.9999


def _miniboone(folder: Path, signal: int, written: int) -> Path:
    x = RNG.standard_normal((written, 50))
    x[3] = -999
    x[:, 10:17] = x[:, 10:17].round()
    lines = [f" {signal} 30", *("  ".join(f"{value:.5E}" for value in row) for row in x)]
    path = folder / "MiniBooNE_PID.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_miniboone_is_the_signal_without_outliers_and_spikes(tmp_path: Path) -> None:
    splits = _splits(_miniboone(tmp_path, 201, 240))
    _check_standard(splits, (162, 18, 20), 43)
    assert max(np.abs(part).max() for part in splits.values()) < 6
    for column in splits["train"].T:
        assert len(np.unique(column)) > 150
    with pytest.raises(DataError, match="speaks of 201 signal events, it holds 100 rows"):
        data.load(str(_miniboone(tmp_path, 201, 100)))
    folder = tmp_path / "MiniBoone"
    folder.mkdir()
    np.save(folder / "data.npy", RNG.standard_normal((100, 43)))
    _check_standard(_splits(folder), (81, 9, 10), 43)


def test_bsds300_is_as_its_file_has_it(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="BSDS300.hdf5 is read by h5py")
    parts = {"train": 20, "validation": 3, "test": 5}
    with h5py.File(tmp_path / "BSDS300.hdf5", "w") as file:
        for name, n in parts.items():
            file[name] = np.full((n, 63), n, np.float64)
    assert {name: set(x[:, 0]) for name, x in _splits(tmp_path).items()} == {"train": {20}, "valid": {3}, "test": {5}}
    with h5py.File(tmp_path / "BSDS300.hdf5", "w") as file:
        file["train"] = np.zeros((3, 63))
    with pytest.raises(DataError, match=r"cannot read .*BSDS300.hdf5"):
        data.load(str(tmp_path))


def test_without_h5py_bsds300_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "BSDS300.hdf5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackage, match=r"BSDS300\.hdf5 needs h5py: pip install h5py"):
        data.load(str(tmp_path / "BSDS300.hdf5"))


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('opened')",)


@pytest.mark.parametrize("name", ["ethylene_CO.pickle", "other.pkl"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(_Trap()))
    places = [tmp_path / name, *([tmp_path] if name.startswith("ethylene") else [])]
    for place in places:
        with pytest.raises(DataError, match="is a pickle, which can run any program"):
            data.load(str(place))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("household_power_consumption.txt", "head\n16/12/2006;17:24:00;4.2\n", "cannot read .* after line 1"),
        ("household_power_consumption.txt", "head\n", "holds no rows"),
        ("ethylene_CO.txt", "head\n1 2 3\n1 2 3\n1 2 3\n1 2 3\n", "rows of 19 numbers or more, got 3"),
        ("ethylene_CO.txt", "head\n1 2 3\n1 2 x\n", "cannot read .* after line 1"),
        ("MiniBooNE_PID.txt", "1.0 2.0 3.0\n", "numbers of signal and background events"),
        ("1000_train.csv", "# label,f0\n1,2\n", "no 1000_test.csv beside"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path / file))
    (tmp_path / f"{file}.gz").write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=r"cannot read|has no"):
        data.load(str(tmp_path / f"{file}.gz"))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    found = data.table(_power(tmp_path))
    found.save(tmp_path / "ready")
    again = data.load(str(tmp_path / "ready"))
    assert isinstance(again, Table)
    for name, part in found.splits.items():
        assert torch.equal(again.splits[name].x, part.x)


def test_a_flow_is_trained_on_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    given = [
        "--data",
        str(_power(tmp_path)),
        "--hidden",
        "16",
        "--layers",
        "2",
        "--batch-size",
        "64",
        "--max-steps",
        "60",
    ]
    assert main(["train", "maf", *given, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    figures = json.loads(capsys.readouterr().out)
    # Independent standard normals would cost 8.5 nats; power, voltage and time are one and the same.
    assert figures["test_nats"] < 8.0
    assert figures["gaussian_nats"] < -1
