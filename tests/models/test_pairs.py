"""Pairs and unpaired domains of real images: right values, splits that share nothing, streams that resume exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genmodels import data
from genmodels.data import Batch, ImageDataset, PairDataset, UnpairedDataset, apart, paired, unpaired
from genmodels.data.colour import DEBIAN_EMOJI, _drawn, _family, _sequences
from genmodels.data.pairs import edges, grey
from genmodels.errors import DataError


@pytest.fixture(scope="module")
def photos() -> ImageDataset:
    found = data.load("photos", size=16)
    assert isinstance(found, ImageDataset)
    return found


def _pixels(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_photographs_are_cut_into_splits_that_share_no_pixel(photos: ImageDataset) -> None:
    """Crops of different splits come from different tiles; two crops of a tile overlap, so equal ones would show."""
    assert photos.shape == (3, 16, 16)
    assert photos.classes == ("china", "flower")
    sizes = {name: len(split.x) for name, split in photos.splits.items()}
    assert sizes == {"train": 7392, "valid": 1056, "test": 2112}
    # 4x4 corners of the crops, of those with some contrast: no patch of one split is a patch of another.
    patches = {}
    for name, (x, _) in photos.splits.items():
        corners = torch.cat([x[:, :, i : i + 6, j : j + 6] for i in (0, 10) for j in (0, 10)])
        busy = corners.float().std((1, 2, 3)) > 20
        patches[name] = _pixels(corners[busy])
        assert len(patches[name]) > 500
    assert not patches["train"] & patches["test"]
    assert not patches["train"] & patches["valid"]
    assert not patches["valid"] & patches["test"]


def test_photographs_never_move_between_splits(photos: ImageDataset) -> None:
    assert [int(photos.splits[name].x[5].long().sum()) for name in ("train", "valid", "test")] == [
        158864,
        168521,
        164302,
    ]


def test_groups_stay_together_and_every_index_is_in_one_split() -> None:
    groups = [i // 3 for i in range(300)]
    found = apart(groups)
    assert sorted(torch.cat(list(found.values())).tolist()) == list(range(300))
    assert [len(found[name]) for name in ("train", "valid", "test")] == [210, 30, 60]
    homes = [{groups[i] for i in part.tolist()} for part in found.values()]
    assert not (homes[0] & homes[1] or homes[0] & homes[2] or homes[1] & homes[2])


def test_skin_tones_and_genders_of_an_emoji_are_one_family() -> None:
    waving, dark = (0x1F44B,), (0x1F44B, 0x1F3FF)
    woman, man, person = ((who, 0x200D, 0x1F692) for who in (0x1F469, 0x1F468, 0x1F9D1))
    assert _family(waving) == _family(dark)
    assert _family(woman) == _family(man) == _family(person)
    assert _family((0x1F6B4, 0x1F3FD, 0x200D, 0x2640, 0xFE0F)) == _family((0x1F6B4,))
    assert len({_family(waving), _family(woman), _family((0x1F600,))}) == 3


@pytest.mark.skipif(not DEBIAN_EMOJI.is_file(), reason="fonts-noto-color-emoji is not installed")
def test_emoji_are_the_bitmaps_of_the_font() -> None:
    found = data.load("emoji", size=16)
    assert isinstance(found, ImageDataset)
    assert found.shape == (3, 16, 16)
    whole = torch.cat([split.x for split in found.splits.values()])
    assert {name: len(split.x) for name, split in found.splits.items()} == {"train": 2745, "valid": 343, "test": 828}
    # On white, and in colour.
    assert float((whole[:, :, 0, 0] > 250).all(1).float().mean()) > 0.9
    assert float((whole.float().amax(1) - whole.float().amin(1)).mean()) > 20
    # The tones and genders of every emoji of the font are in one split, and every picture is in one.
    homes = {image: name for name, split in found.splits.items() for image in _pixels(split.x)}
    assert len(homes) == len(whole)
    font = pytest.importorskip("fontTools.ttLib").TTFont(DEBIAN_EMOJI)
    families: dict[tuple[int, ...], set[str]] = {}
    names = _sequences(font)
    for glyph, bitmap in font["CBDT"].strikeData[0].items():
        image = torch.from_numpy(_drawn(bitmap.imageData, 16).copy()).permute(2, 0, 1).contiguous()
        families.setdefault(_family(names[glyph]), set()).add(homes[image.numpy().tobytes()])
    assert len(families) > 1500
    assert all(len(splits) == 1 for splits in families.values())


def test_a_missing_font_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install fonts-noto-color-emoji"):
        data.emoji(path=tmp_path / "none.ttf")
    (tmp_path / "text.ttf").write_text("this is no font")
    with pytest.raises(DataError, match=r"text\.ttf is not the bitmap font of fonts-noto-color-emoji"):
        data.emoji(path=tmp_path / "text.ttf")


def test_edges_are_where_colours_change_and_grey_is_luminance() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, 2, :, 4:] = 200
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[:, 3:5] = 255
    assert torch.equal(edges(image)[0, 0], expected)
    assert grey(image)[0, 0, 0].tolist() == [0, 0, 0, 0, 23, 23, 23, 23]
    assert grey(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).unique().tolist() == [255]


def test_pairs_are_mirrored_together_and_resume_where_they_were(photos: ImageDataset) -> None:
    pairs = paired(photos, "grey")
    stream = pairs.stream(32, seed=3)
    known = _pixels(pairs.splits["train"].y)
    mirrored = 0
    for _ in range(4):
        x, y = next(stream)
        assert torch.equal(grey(y), x)
        turned = [image.numpy().tobytes() not in known for image in y]
        assert all(image.numpy().tobytes() in known for image in y[turned].flip(3))
        mirrored += sum(turned)
    assert 30 < mirrored < 98
    state = stream.state_dict()
    expected = [next(stream) for _ in range(3)]
    again = pairs.stream(32, seed=0)
    again.load_state_dict(state)
    for batch in expected:
        found = next(again)
        assert torch.equal(found.x, batch.x)
        assert torch.equal(found.y, batch.y)


def test_processes_share_an_epoch_of_pairs(photos: ImageDataset) -> None:
    pairs = paired(photos, "edges")
    whole = next(pairs.stream(16, seed=1)).y
    halves = [next(pairs.stream(8, seed=1, rank=rank, world=2)).y for rank in range(2)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), whole)


def test_domains_are_two_classes_in_their_own_orders() -> None:
    digits = data.load("digits")
    assert isinstance(digits, ImageDataset)
    both = unpaired(digits, "3", "8")
    for name, (x, y) in both.splits.items():
        labels = digits.splits[name].y
        assert (len(x), len(y)) == (int((labels == 3).sum()), int((labels == 8).sum()))
    stream = both.stream(4, seed=5)
    first = [next(stream) for _ in range(3)]
    x, y = both.splits["train"]
    for batch in first:
        assert _pixels(batch.x) <= _pixels(x)
        assert _pixels(batch.y) <= _pixels(y)
    again = both.stream(4, seed=0)
    again.load_state_dict(both.stream(4, seed=5).state_dict())
    assert torch.equal(next(again).y, first[0].y)


def test_data_that_cannot_be_paired_is_refused(photos: ImageDataset) -> None:
    digits = data.load("digits")
    assert isinstance(digits, ImageDataset)
    with pytest.raises(DataError, match=r"'grey' needs colour images, and those of digits have 1 channel"):
        paired(digits, "grey")
    with pytest.raises(ValueError, match=r"task must be one of edges, grey, got 'blur'"):
        paired(photos, "blur")
    with pytest.raises(DataError, match=r"photos has no class 'cat'; its classes: china, flower"):
        unpaired(photos, "china", "cat")
    with pytest.raises(DataError, match=r"the two domains must differ, got 'china' twice"):
        unpaired(photos, "china", "china")
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"inputs \(2, 1, 8, 8\) and targets \(1, 1, 8, 8\) are not pairs"):
        PairDataset("p", {"train": Batch(image, image[:1])})
    with pytest.raises(TypeError, match=r"inputs and targets must be uint8 images"):
        PairDataset("p", {"train": Batch(image, image.float())})
    with pytest.raises(ValueError, match=r"the two domains have images of different shapes"):
        UnpairedDataset("u", ("a", "b"), {"train": (image, image[:, :, :4])})
    with pytest.raises(ValueError, match=r"photos: size must be between 4 and 80, got 90"):
        data.photos(90)
