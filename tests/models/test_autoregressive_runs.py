"""PixelCNNs learn: a law of known entropy, step for step as plain PyTorch does, and through the one door."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk
from genmodels import data
from genmodels.autoregressive import BinaryImages, GatedPixelCNN, PixelCNN, PixelModel, binarised
from genmodels.autoregressive.recipe import GatedPixelCNNRecipe, PixelCNNRecipe
from genmodels.cli import main
from genmodels.data import Batch, ImageDataset
from genmodels.recipe import restore
from genmodels.registry import recipe_of
from genmodels.training import Fit, fit
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping

MODELS = {"pixelcnn": PixelCNN, "gated-pixelcnn": GatedPixelCNN}
DEEP = {"pixelcnn": {"blocks": 1}, "gated-pixelcnn": {"layers": 2}}

# ---- a law of known entropy ------------------------------------------------------------------------------------------

SIDE = 8


def _fields(x: Tensor) -> Tensor:
    """Logits of the pixels of images (N, C, H, W) given their neighbours left, above and right above, and, with
    colours, the channels before."""
    s = F.pad(2.0 * x - 1, (1, 1, 1, 0))
    left, above, beside = s[:, :, 1:, :-2], s[:, :, :-1, 1:-1], s[:, :, :-1, 2:]
    field = 0.3 + 1.1 * left + 0.9 * above - 0.8 * beside
    before = F.pad(s[:, :-1, 1:, 1:-1], (0, 0, 0, 0, 1, 0)) if x.shape[1] > 1 else 0.0
    return field + 0.9 * before


def _process(n: int, channels: int, key: int) -> Tensor:
    """Images of the process, drawn pixel by pixel."""
    x = torch.zeros(n, channels, SIDE, SIDE, dtype=torch.int64)
    u = gmk.random.uniform(gmk.random.key(seed=key), x.shape)
    for row in range(SIDE):
        for column in range(SIDE):
            for channel in range(channels):
                p = _fields(x[:, :, : row + 1])[:, channel, row, column].sigmoid()
                x[:, channel, row, column] = (u[:, channel, row, column] < p).long()
    return x


def _truth(x: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(_fields(x), x.float(), reduction="none").sum((1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_process_of_known_entropy_is_matched_within_half_a_percent(name: str, channels: int) -> None:
    """The gap on fresh images is the divergence from the process to the model; it is measured to 0.1 % of the entropy,
    because both are judged on the same images. A model without neighbours would be 24 % off."""
    train, test = _process(19_200, channels, 1), _process(4_000, channels, 2)
    model = MODELS[name]((channels, SIDE, SIDE), width=12, first_kernel=3, **DEEP[name])
    optimizer = torch.optim.Adam(model.parameters())
    steps = 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        batch = train[(64 * step) % len(train) :][:64]
        model.losses(Batch(batch))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        truth, gap = _truth(test), _truth(test) - model.log_prob(test)
    entropy = -float(truth.mean())
    p = train.float().mean(0).clamp(1e-3, 1 - 1e-3)
    without = float(-(p * p.log() + (1 - p) * (1 - p).log()).sum())
    error = float(gap.std()) / math.sqrt(len(test)) / entropy
    assert error < 1e-3
    assert without > 1.2 * entropy
    assert -5 * error < float(gap.mean()) / entropy < 5e-3
    # What it draws is as likely under the process as the process's own images.
    drawn = _truth(model.eval().sample(2000, key=3))
    spread = math.sqrt(float(drawn.var()) / len(drawn) + float(truth.var()) / len(truth))
    assert abs(float(drawn.mean() - truth.mean())) < 5 * spread + 0.02 * entropy


# ---- the fused model is the reference model ---------------------------------------------------------------------------


def _curve(backend: str, make: Any, batches: list[Batch], steps: int = 40) -> list[float]:
    with gmk.use_backend(backend):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        losses = []
        for i in range(steps):
            loss = model.losses(batches[i % len(batches)])["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", ["bernoulli", "categorical", "mixture", "colour"])
def test_the_fused_model_follows_the_reference_loss_curve(name: str, head: str) -> None:
    """Same seeds, 40 steps of Adam: rounding grows slowly with the steps and stays far below what a wrong gradient
    would do."""
    images = data.digits()
    if head == "bernoulli":
        images = binarised(images)
    stream = images.stream(32, seed=1)
    batches = [next(stream) for _ in range(10)]
    options: dict[str, Any] = {"head": head, "levels": images.levels, "classes": 10, "components": 3}
    shape = (1, 8, 8)
    if head == "colour":
        # The same digit in three shades, so that channels tell of each other.
        batches = [Batch(torch.cat([x, x // 2, 16 - x], 1), y) for x, y in batches]
        options["head"], shape = "categorical", (3, 8, 8)
    make = lambda: MODELS[name](shape, width=12, **DEEP[name], **options)  # noqa: E731
    fused, reference = (_curve(backend, make, batches) for backend in ("auto", "reference"))
    assert reference[-1] < 0.85 * reference[0], "it must learn something, else agreeing is cheap"
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(reference), rtol=2e-4, atol=2e-4)


# ---- black-and-white data --------------------------------------------------------------------------------------------


def test_binarised_pixels_have_their_grey_values_as_probabilities() -> None:
    grey = data.digits()
    images = binarised(grey)
    assert isinstance(images, BinaryImages)
    assert (images.levels, images.shape) == (2, grey.shape)
    for name, (x, y) in images.splits.items():
        p = grey.splits[name].x / 16.0
        assert set(x.unique().tolist()) == {0, 1}
        assert not x[p == 0].any()
        assert x[p == 1].all()
        assert torch.equal(y, grey.splits[name].y)
        error = (p * (1 - p)).sum().sqrt() / p.numel()
        assert abs(float(x.float().mean() - p.mean())) < 5 * float(error)
        assert torch.equal(x, binarised(grey).splits[name].x), "valid and test must stay the same"


def test_training_images_are_drawn_anew_every_epoch_whatever_the_batch_size() -> None:
    images = binarised(data.digits())
    n = len(images.splits["train"].x)

    def epochs(size: int, count: int) -> list[Tensor]:
        """Whole epochs in the order of the data, as far as batches of ``size`` go."""
        stream, found = images.stream(size, seed=3), []
        for _ in range(count):
            assert stream.position == 0
            batches = [next(stream).x for _ in range(stream.batches_per_epoch)]
            found.append(torch.cat(batches))
        return found

    (a, b), (again, _) = epochs(n, 2), epochs(n, 2)
    assert torch.equal(a, again)
    # As sets: the order is another in any case.
    one, other = ({bytes(image.flatten().tolist()) for image in x} for x in (a, b))
    assert len(one & other) < 0.1 * n
    assert abs(float(a.float().mean() - b.float().mean())) < 2e-3
    small = epochs(100, 1)[0]
    assert torch.equal(small, a[: len(small)])


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        PixelCNNRecipe(data="digits", width=6, blocks=1, batch_size=256, dropout=0.2, shift=1),
        GatedPixelCNNRecipe(data="digits", width=6, layers=2, batch_size=256, dropout=0.2, conditional=True),
    ],
    ids=MODELS,
)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe: Any, tmp_path: Path) -> None:
    """Dropout, the draws of an epoch half gone, and the moving average go on where they were."""
    images, config, weights = recipe.dataset(), Fit(max_steps=16, warmup_steps=3, ema=0.9), []
    assert recipe.stream(images).batches_per_epoch == 5
    for stops in ([], [8]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            result = fit(recipe.build(images), Stopping(recipe.stream(images), at), out, config)
            assert (result.stopped, result.step) == (("SIGINT", 8) if at else (None, 16))
        found = load_newest(out)
        assert found is not None
        weights.append({name: value for name, value in found[0].items() if name.startswith(("model.", "ema."))})
    whole, resumed = weights
    assert whole.keys() == resumed.keys()
    assert len(whole) > 16
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


def _frames(path: Path) -> list[Tensor]:
    from PIL import Image, ImageSequence

    with Image.open(path) as film:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
    return [torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8) for frame in frames]


def _independent(grey: bool) -> float:
    """What pixels that know nothing of each other reach: bits per dimension of the grey digits, nats of the others."""
    images = data.digits() if grey else binarised(data.digits())
    train, test = (F.one_hot(images.splits[name].x.long(), images.levels).float() for name in ("train", "test"))
    p = train.mean(0) + 1e-3
    nats = -float((test * (p / p.sum(-1, keepdim=True)).log()).sum() / len(test))
    return nats / (64 * math.log(2)) if grey else nats


@pytest.mark.parametrize(
    ("name", "options", "figure"),
    [
        ("pixelcnn", [], "nats"),
        ("pixelcnn", ["--head", "mixture", "--components", "3", "--dropout", "0.1"], "bits_per_dim"),
        ("gated-pixelcnn", ["--conditional"], "nats"),
        ("gated-pixelcnn", ["--head", "categorical"], "bits_per_dim"),
    ],
)
def test_train_sample_evaluate_record(
    name: str, options: list[str], figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, record = tmp_path / "run", tmp_path / "results" / "models.jsonl"
    deep = [f"--{key}={value}" for key, value in DEEP[name].items()]
    small = ["--data", "digits", "--width", "12", *deep, "--batch-size", "64", "--max-steps", "120", "--lr", "1e-2"]
    small += ["--warmup-steps", "10", "--ema", "0.9"]
    assert main(["train", name, *small, *options, "--out", str(run)]) == 0
    assert all(_png(run / f"{picture}.png") for picture in ("samples", "completion", "loss"))
    frames = _frames(run / "growing.gif")
    assert len(frames) == 8, "a frame for each row"
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(frames))
    report = json.loads((run / "result.json").read_text())
    # 44.4 nats or 4.09 bits at the start.
    assert report[f"test_{figure}"] < _independent(grey=figure == "bits_per_dim")
    capsys.readouterr()

    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {f"test_{figure}", f"held_out_{figure}"}
    assert found == {key: pytest.approx(report[key]) for key in found}
    row = json.loads(record.read_text())
    assert (row["model"], row["data"], row["step"]) == (name, "digits", 120)
    assert row["figures"] == {key: pytest.approx(value, abs=1e-5) for key, value in found.items()}
    assert main(["evaluate", str(run), "--split", "valid"]) == 0
    valid = json.loads(capsys.readouterr().out)[f"valid_{figure}"]
    assert found[f"held_out_{figure}"] == pytest.approx((valid + found[f"test_{figure}"]) / 2, rel=0.02)

    assert main(["sample", str(run), "--seed", "3", "--n", "20", "--temperature", "0.8"]) == 0
    assert _png(run / "samples-3.png")


def test_colour_images_from_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    pixels = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture.numpy()).save(tmp_path / "pictures" / f"{i}.png")
    small = ["--data", str(tmp_path / "pictures"), "--image-size", "8", "--width", "6", "--components", "2"]
    small += ["--batch-size", "4", "--max-steps", "2"]
    for name in MODELS:
        deep = [f"--{key}={value}" for key, value in DEEP[name].items()]
        for head in ("bernoulli", "categorical", "mixture"):
            run = tmp_path / f"{name}-{head}"
            assert main(["train", name, *small, *deep, "--head", head, "--out", str(run)]) == 0
            assert _png(run / "samples.png")
            assert _png(run / "completion.png")


def test_recipes_survive_json_and_make_the_model_they_name() -> None:
    for name, kind in MODELS.items():
        recipe = recipe_of(name)(data="digits", width=8, kernel=5, head="mixture", components=4, conditional=True)
        again = restore(type(recipe), json.loads(json.dumps(recipe, default=lambda r: r.__dict__)))
        assert again == recipe
        images = again.dataset()
        assert isinstance(images, ImageDataset)
        model = again.build(images)
        assert isinstance(model, kind)
        assert isinstance(model, PixelModel)
        assert (model.classes, model.levels, model.head.components) == (10, 17, 4)
        assert {t.shape[-1] for t in model.network.body.parameters() if t.dim() == 4} == {1, 5, 7}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "banana"], "a PixelCNN is of images, and 'banana' is none of them"),
        (["--data", "digits", "--kernel", "4"], "odd, got 4"),
        (["--data", "digits", "--width", "0"], "--width must be 1 or more, got 0"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_bad_options_are_one_clear_line(
    name: str, args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", name, *args, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("genmodels: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
