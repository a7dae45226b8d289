"""The five tables that flows are compared on, from the files in which their archives hand them out.

G. Papamakarios, T. Pavlakou and I. Murray, "Masked autoregressive flow for density estimation", 2017, appendix D.3, prepare
POWER, GAS, HEPMASS and MINIBOONE of the UCI archive, and BSDS300 of Berkeley; this is that preparation, done here. None of
them is distributed here. Noise and order are Philox words under seed 0, so that a file gives the same table on every machine.
"""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

import gmkernels as gmk

from ..errors import DAMAGED, DataError, MissingPackage

Splits = tuple[Tensor, Tensor, Tensor]
_PICKLES = (".pickle", ".pkl")
_CHUNK = 200_000


@dataclass(frozen=True)
class Archive:
    """One of the five tables.

    Attributes:
        name: what the field calls it.
        file: its file as it is handed out; ``.gz`` may follow.
        features: how many it has when it is ready.
        read: from that file to the rows of train, valid and test.
        prepared: the folder in which the paper's own ``data.npy`` lies, where it has one, and how that is read.
    """

    name: str
    file: str
    features: int
    read: Callable[[Path], Splits]
    prepared: tuple[str, Callable[[np.ndarray], Splits]] | None = None


def found(path: Path) -> tuple[Archive, Path] | None:
    """Which of the five ``path`` is, a file or the folder that holds it, and the file.

    Raises:
        DataError: it is a pickle, or a folder with GAS in nothing else.
    """
    inside = [path] if not path.is_dir() else sorted(path.iterdir())
    for archive in ARCHIVES:
        for file in inside:
            if file.name.removesuffix(".gz") == archive.file or _is_prepared(archive, file):
                return archive, file
    for file in inside:
        if file.suffix.lower() in _PICKLES and (file == path or file.stem == "ethylene_CO"):
            raise DataError(
                f"{file} is a pickle, which can run any program when it is opened: give the archive's own text file "
                "(ethylene_CO.txt for GAS), or numbers in a .npy file"
            )
    return None


def rows(archive: Archive, file: Path) -> Splits:
    """The rows of ``train``, ``valid`` and ``test``, float32 (N, features).

    POWER (6 features): minutes with missing values, the date, reactive power and intensity are left out; the time is the
    minute of the day; every feature gets uniform noise as wide as the steps in which it is written. GAS (8): of every
    fourth row of the mixture of ethylene and CO the sensors, each left out that has a correlation above 0.98 with a later
    one that stays. HEPMASS (21): the signal at mass 1000; of the first 26 features the five are left out in which one
    value comes back most often. MINIBOONE (43): the signal without rows of -999; the seven of 50 features are left out in
    which one value comes back most often. BSDS300 (63): as its file has them.

    All but BSDS300 then have the mean and deviation of the training rows taken off. A tenth is the test and a tenth of
    what remains the validation (HEPMASS has a test of its own), in an order drawn here: splits as large as the paper's, of
    other rows.

    Raises:
        DataError: the file is damaged or is another table.
        MissingPackage: BSDS300.hdf5 without h5py.
    """
    if _is_prepared(archive, file):
        assert archive.prepared is not None
        parts = archive.prepared[1](np.asarray(load(file), np.float64))
    else:
        parts = archive.read(file)
    got = {part.shape[1] for part in parts}
    if got != {archive.features}:
        raise DataError(f"{file}: {archive.name} has {archive.features} features when it is ready, got {sorted(got)}")
    for part in parts:
        if not len(part) or not bool(part.isfinite().all()):
            raise DataError(f"{file}: a split of {archive.name} is empty or has values that are not finite")
    return parts


def _is_prepared(archive: Archive, file: Path) -> bool:
    return archive.prepared is not None and file.name == "data.npy" and file.parent.name.lower() == archive.prepared[0]


# Reading.


def load(file: Path) -> np.ndarray:
    """The numbers (rows, columns) of a .npy file, in its dtype."""
    try:
        x = np.load(file, allow_pickle=False)
    except DAMAGED as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype.kind not in "fiu":
        held = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else "several arrays"
        raise DataError(f"{file} holds {held}, expected numbers (rows, columns)")
    return x


def _open(file: Path) -> IO[str]:
    return gzip.open(file, "rt") if file.suffix == ".gz" else file.open()


def _numbers(file: Path, skip: int, limit: int | None = None, **how: Any) -> Iterator[np.ndarray]:
    """Arrays (rows, columns) of a text file's numbers after its first ``skip`` lines: a few at a time, since the files are
    many times larger than what is kept of them."""
    line = skip
    try:
        with _open(file) as text:
            next(islice(text, skip, skip), None)
            while lines := list(islice(text, _CHUNK if limit is None else min(_CHUNK, limit + skip - line))):
                yield np.loadtxt(lines, np.float64, ndmin=2, **how)
                line += len(lines)
    except DAMAGED as error:
        raise DataError(f"cannot read {file}: after line {line}, {error}") from None


def _together(file: Path, parts: Iterator[np.ndarray]) -> np.ndarray:
    kept = list(parts)
    if not sum(len(part) for part in kept):
        raise DataError(f"{file} holds no rows")
    if len(widths := {part.shape[1] for part in kept}) > 1:
        raise DataError(f"{file}: rows have different numbers of columns: {sorted(widths)}")
    return np.concatenate(kept)


def _columns(file: Path, x: np.ndarray, least: int) -> np.ndarray:
    if x.shape[1] < least:
        raise DataError(f"{file}: expected rows of {least} numbers or more, got {x.shape[1]}")
    return x


# What all share.


def _shuffled(x: np.ndarray) -> np.ndarray:
    return x[gmk.random.bits(gmk.random.key(seed=0), len(x)).argsort(stable=True).numpy()]


def _tenths(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    test = len(x) // 10
    valid = (len(x) - test) // 10
    train = len(x) - test - valid
    return x[:train], x[train : train + valid], x[train + valid :]


def _standard(parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Splits:
    mean, deviation = parts[0].mean(0), parts[0].std(0)
    train, valid, test = (torch.from_numpy(((part - mean) / deviation).astype(np.float32)) for part in parts)
    return train, valid, test


def _recurrence(x: np.ndarray) -> np.ndarray:
    """How often each feature's commonest value occurs."""
    return np.array([np.unique(column, return_counts=True)[1].max() for column in x.T])


def _without_recurring(x: np.ndarray, out: int) -> np.ndarray:
    """Which columns stay if the ``out`` go in which one value comes back most often: spikes there would outweigh all else in
    a density."""
    return np.sort(_recurrence(x).argsort(kind="stable")[: x.shape[1] - out])


# The five.

# Steps in which the archive writes active power (kW), voltage (V), the three meters (Wh) and the time (min).
_POWER_STEPS = (0.001, 0.01, 1.0, 1.0, 1.0, 1.0)


def _power(file: Path) -> Splits:
    def minutes() -> Iterator[np.ndarray]:
        number = 1
        try:
            with _open(file) as text:
                next(text, None)
                while lines := list(islice(text, _CHUNK)):
                    yield np.array([_minute(line) for line in lines if "?" not in line]).reshape(-1, 6)
                    number += len(lines)
        except (*DAMAGED, IndexError) as error:
            raise DataError(f"cannot read {file}: after line {number}, {error}") from None

    return _power_rows(_together(file, minutes()), _POWER_STEPS)


def _minute(line: str) -> list[float]:
    _, clock, active, _, voltage, _, *meters = line.rstrip().split(";")
    hours, minutes, _ = clock.split(":")
    return [float(active), float(voltage), *(float(meter) for meter in meters), 60.0 * int(hours) + int(minutes)]


def _power_rows(x: np.ndarray, steps: tuple[float, ...]) -> Splits:
    noise = gmk.random.uniform(torch.tensor([0, 1]), x.shape, dtype=torch.float64).numpy()
    return _standard(_tenths(_shuffled(x + noise * np.array(steps))))


def _prepared_power(x: np.ndarray) -> Splits:
    """Of active and reactive power, voltage, intensity, three meters, and a time that has its noise already."""
    if x.shape[1] != 8:
        raise DataError(f"data.npy of POWER has 8 columns, got {x.shape[1]}")
    return _power_rows(x[:, [0, 2, 4, 5, 6, 7]], (*_POWER_STEPS[:-1], 0.0))


def _gas(file: Path) -> Splits:
    # The archive has 4,208,261 rows, a hundred a second, and the paper's splits together a fourth of them.
    first = 0
    kept = []
    for part in _numbers(file, 1):
        # Before the 16 sensors come the time and the concentrations of the two gases.
        kept.append(_columns(file, part, 19)[(3 - first) % 4 :: 4, 3:].copy())
        first += len(part)
    x = _together(file, iter(kept))
    near = np.corrcoef(x.T) > 0.98
    stays = np.ones(len(near), bool)
    for i in range(len(near)):
        stays[i] = not near[i, i + 1 :].any()
    return _standard(_tenths(_shuffled(x[:, stays])))


def _hepmass(file: Path) -> Splits:
    zipped = ".gz" if file.suffix == ".gz" else ""
    places = [file.with_name(f"1000_test.csv{end}") for end in (zipped, "", ".gz")]
    other = next((place for place in places if place.is_file()), None)
    if other is None:
        raise DataError(f"{file.parent} has no 1000_test.csv beside {file.name}; HEPMASS has both")

    def signal(path: Path) -> np.ndarray:
        parts = (_columns(path, part, 27) for part in _numbers(path, 1, delimiter=","))
        return _together(path, (part[part[:, 0] == 1, 1:27] for part in parts))

    train, test = _shuffled(signal(file)), signal(other)
    stays = _without_recurring(train, 5)
    valid = len(train) // 10
    return _standard((train[:-valid, stays], train[-valid:, stays], test[:, stays]))


def _miniboone(file: Path) -> Splits:
    try:
        with _open(file) as text:
            head = text.readline().split()
    except DAMAGED as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if len(head) != 2 or not all(word.isdigit() for word in head):
        raise DataError(f"{file}: expected the numbers of signal and background events in the first line, got {head}")
    x = _columns(file, _together(file, _numbers(file, 1, limit=int(head[0]))), 50)
    if len(x) < int(head[0]):
        raise DataError(f"{file} is damaged: its first line speaks of {head[0]} signal events, it holds {len(x)} rows")
    x = x[~(x < -900).any(1)]
    return _standard(_tenths(_shuffled(x[:, _without_recurring(x, 7)])))


def _prepared_miniboone(x: np.ndarray) -> Splits:
    return _standard(_tenths(_shuffled(x)))


def _bsds300(file: Path) -> Splits:
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError:
        raise MissingPackage(f"{file.name} needs h5py: pip install h5py") from None
    try:
        with h5py.File(file, "r") as store:
            train, valid, test = (torch.from_numpy(np.asarray(store[name], np.float32))
                                  for name in ("train", "validation", "test"))  # fmt: skip
    except (*DAMAGED, KeyError, TypeError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    return train, valid, test


ARCHIVES = (
    Archive("POWER", "household_power_consumption.txt", 6, _power, ("power", _prepared_power)),
    Archive("GAS", "ethylene_CO.txt", 8, _gas),
    Archive("HEPMASS", "1000_train.csv", 21, _hepmass),
    Archive("MINIBOONE", "MiniBooNE_PID.txt", 43, _miniboone, ("miniboone", _prepared_miniboone)),
    Archive("BSDS300", "BSDS300.hdf5", 63, _bsds300),
)
