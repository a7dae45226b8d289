"""Tables of numbers, one sample a row: NumPy files that the user has, and the five tables that flows are compared on
(:mod:`.archives`) as they are handed out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gmkernels as gmk

from ..errors import DataError
from . import archives
from .dataset import Batch, Shuffled

_SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Table:
    """Rows of real numbers in memory.

    Attributes:
        name: what it was loaded as.
        splits: ``train``, ``valid`` and ``test``: float32 (N, D).
    """

    name: str
    splits: dict[str, Batch]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.splits["train"].x.shape[1:])

    def stream(self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> Shuffled:
        """Endless shuffled batches of the training rows."""
        return Shuffled(self.splits["train"], batch_size, seed=seed, rank=rank, world=world)

    def batches(self, split: str, batch_size: int = 4096) -> Iterator[Batch]:
        """One pass over a split in its order."""
        for part in self.splits[split].x.split(batch_size):
            yield Batch(part)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``train.npy``, ``valid.npy`` and ``test.npy``, which :func:`table` reads in no time; the folder is made."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, split in self.splits.items():
            np.save(Path(folder) / f"{name}.npy", split.x.numpy())

    def gaussian_nats(self, split: str) -> float | None:
        """Negative log-likelihood of a split under a Gaussian with the training rows' mean and covariance, in nats.

        None where there is no such Gaussian: of a constant or dependent column, or fewer rows than columns.
        """
        train, x = self.splits["train"].x.double(), self.splits[split].x.double()
        deviation = train.std(0)
        z = (x - train.mean(0)) / deviation
        # Of columns of one scale, so that what is singular does not depend on units.
        factor, bad = torch.linalg.cholesky_ex(torch.atleast_2d(torch.corrcoef(train.t())))
        least = factor.diag().min() ** 2
        if bool(bad) or not float(least) > 1e-12 * train.shape[1]:
            return None
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(z[0]), scale_tril=factor)
        return -float(normal.log_prob(z).mean()) + float(deviation.log().sum())

    def constant(self) -> list[int]:
        """The columns in which all training rows have one value."""
        x = self.splits["train"].x
        return (x == x[0]).all(0).nonzero()[:, 0].tolist()


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path looks like a table: a .npy file, a folder with a training split in one, or one of the archives' files
    or the folder that holds it."""
    path = Path(path)
    return path.suffix == ".npy" or (path / "train.npy").is_file() or archives.found(path) is not None


def table(path: str | os.PathLike[str]) -> Table:
    """A table in a .npy file (N, D), split 80 / 10 / 10 % by Philox words under seed 0; or a folder with ``train.npy``,
    ``valid.npy`` (or ``val.npy``) and ``test.npy``, which are used as they are.

    POWER, GAS, HEPMASS, MINIBOONE and BSDS300 are prepared from the files of their archives, plain or with ``.gz``, given
    by the file or by its folder: ``household_power_consumption.txt``, ``ethylene_CO.txt``, ``1000_train.csv`` with
    ``1000_test.csv``, ``MiniBooNE_PID.txt``, ``BSDS300.hdf5`` (with h5py), or the paper's ``power/data.npy`` and
    ``miniboone/data.npy``; see :func:`.archives.rows`. Millions of lines take up to a minute: :meth:`Table.save` the result.

    Raises:
        DataError: a file is missing or is no table of finite numbers, it is a pickle, or the widths of the splits differ.
        MissingPackage: BSDS300.hdf5 without h5py.
    """
    path = Path(path)
    if not (path / "train.npy").is_file() and (archive := archives.found(path)):
        prepared = archives.rows(*archive)
        return Table(str(path), {name: Batch(part) for name, part in zip(_SPLITS, prepared, strict=True)})
    if path.suffix == ".npy":
        x = _read(path)
        if len(x) < 10:
            raise DataError(f"{path} has {len(x)} rows, expected at least 10")
        order = gmk.random.bits(gmk.random.key(seed=0), len(x)).argsort(stable=True)
        ends = [round(0.8 * len(x)), round(0.9 * len(x))]
        parts = [x[rows] for rows in order.tensor_split(ends)]
    else:
        parts = [_read(_find(path, names)) for names in _SPLITS.values()]
    if len(widths := {part.shape[1] for part in parts}) > 1:
        raise DataError(f"the splits in {path} have different numbers of columns: {sorted(widths)}")
    return Table(str(path), {name: Batch(part) for name, part in zip(_SPLITS, parts, strict=True)})


def _find(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (found := folder / f"{name}.npy").is_file():
            return found
    raise DataError(
        f"{folder} has no {' or '.join(f'{name}.npy' for name in names)}; a table has train, valid and test"
    )


def _read(path: Path) -> Tensor:
    x = archives.load(path)
    if 0 in x.shape:
        raise DataError(f"{path} holds {x.dtype} of shape {x.shape}, expected numbers (rows, columns)")
    rows = torch.from_numpy(np.asarray(x, np.float32))
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite().all(1)).nonzero()[0])
        raise DataError(f"{path}: row {bad} has a value that is not finite")
    return rows
