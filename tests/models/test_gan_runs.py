"""Adversarial models through the one door, and seconds-long versions of what they must learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genmodels.cli import main
from genmodels.data import DENSITIES
from genmodels.gan.recipe import DCGANRecipe, GANRecipe, SemiSupervisedRecipe, WGANGPRecipe, WGANRecipe
from genmodels.training import Best, Fit, best_weights, fit
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping

SMALL = ["--width", "8", "--batch-size", "32", "--max-steps", "30", "--evaluations", "3", "--judged", "200"]
IMAGES = ("samples", "losses", "figure", "interpolation", "arithmetic", "progress")


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


@pytest.mark.parametrize(
    ("model", "data", "options", "figures", "pictures"),
    [
        ("dcgan", "digits", ["--minibatch", "8", "--feature-matching"], {"test_frechet", "share_9"}, IMAGES),
        ("semi-gan", "digits", ["--labels", "50"], {"test_accuracy", "test_labels_alone"}, IMAGES),
        ("gan", "ring", ["--label-smoothing", "0.1"], {"test_modes", "test_high_quality"}, ("samples", "plane")),
        ("wgan", "grid25", ["--clip-weights", "0.05"], {"test_sliced_wasserstein"}, ("samples", "plane", "figure")),
        ("wgan-gp", "digits", ["--historical", "0.01", "--n-critic", "2"], {"test_smallest_share"}, IMAGES),
    ],
)
def test_train_sample_evaluate_record(
    model: str,
    data: str,
    options: list[str],
    figures: set[str],
    pictures: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, record = tmp_path / "run", tmp_path / "models.jsonl"
    assert main(["train", model, "--data", data, *SMALL, *options, "--out", str(run)]) == 0
    said = capsys.readouterr()
    assert "samples against" in said.out
    assert all(_png(run / f"{name}.png") for name in pictures)
    report = json.loads((run / "result.json").read_text())
    assert figures < set(report)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["event"] == "evaluate"] == [10, 20, 30]

    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {name: pytest.approx(report[name], rel=1e-4) for name in json.loads(said.out)}
    row = json.loads(record.read_text())
    assert row["judged_by"] in said.err
    best = best_weights(run)
    assert best is not None
    by = best[1]["metric"]
    judged = {line["step"]: line[by] for line in log if line["event"] == "evaluate"}
    choose = min if best[1]["direction"] == "min" else max
    assert best[1]["value"] == pytest.approx(choose(judged.values()), rel=1e-6)
    assert row["weights"] == best[1]["step"]
    assert f"weights of step {best[1]['step']}, the best by {by}" in said.err

    assert main(["evaluate", str(run), "--weights", "last", "--split", "valid"]) == 0
    last = json.loads(capsys.readouterr().out)
    judged = [line for line in log if line["event"] == "evaluate"][-1]
    assert last == {name: pytest.approx(judged[name], rel=1e-3, abs=1e-5) for name in last}

    assert main(["sample", str(run), "--seed", "3", "--n", "20"]) == 0
    assert _png(run / "samples-3.png")


@pytest.mark.parametrize(
    "recipe",
    [
        GANRecipe(data="digits", width=4, batch_size=16, dropout=0.2, historical=0.1, minibatch=4),
        WGANRecipe(data="ring", hidden=(16,), batch_size=16),
        # Of 28x28 pixels there is a convolution of several channels, whose weights are channels last.
        DCGANRecipe(data="mnist5k", width=4, batch_size=8),
        WGANGPRecipe(data="mnist5k", width=4, batch_size=8, n_critic=2),
        SemiSupervisedRecipe(data="digits", width=4, batch_size=16, labels=20),
    ],
    ids=["gan", "wgan", "dcgan", "wgan-gp", "semi-gan"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe: GANRecipe, tmp_path: Path) -> None:
    data, config, found = recipe.dataset(), Fit(max_steps=12, warmup_steps=3, ema=0.9, clip=0.0), []
    for stops in ([], [11]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            model = recipe.build(data)
            fit(model, Stopping(recipe.stream(data), at), out, config, parts=recipe.parts(model))
        newest = load_newest(out)
        assert newest is not None
        assert newest[1]["step"] == 12
        found.append(newest[0])
    whole, resumed = found
    assert whole.keys() == resumed.keys()
    assert int(whole["model.updates"]) == 12
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_the_best_classifier_is_chosen_by_few_labels() -> None:
    recipe = SemiSupervisedRecipe(data="digits", labels=50)
    data = recipe.dataset()
    few = recipe.few(data)
    assert few.y.bincount().tolist() == [5] * 10
    valid = {x.numpy().tobytes() for x in data.splits["valid"].x}
    assert all(x.numpy().tobytes() in valid for x in few.x)
    # Not as many of every class as there are labels are among the validation images.
    scarce = SemiSupervisedRecipe(data="digits", labels=1000).few(data)
    least = data.splits["valid"].y.bincount().min()
    assert scarce.y.bincount().tolist() == [least] * 10
    assert recipe.best(data) == Best("valid_few_accuracy", "max")


def test_a_generator_learns_a_ring(tmp_path: Path) -> None:
    """Nothing near a mode at first; then every mode, and most samples on one. Broken signs or turns do not get there."""
    torch.manual_seed(0)
    recipe = GANRecipe(
        data="ring", hidden=(64, 64), latents=4, batch_size=128, betas=(0.5, 0.99), judged=2000, minibatch=8
    )
    data = DENSITIES["ring"]()
    model = recipe.build(data)
    before = recipe.evaluate(model, data, "valid")
    config = Fit(max_steps=600, lr=2e-3, warmup_steps=0, schedule="constant", clip=0.0, ema=0.98)
    fit(model, recipe.stream(data), tmp_path, config, parts=model.parts(lr=2e-3))
    after = recipe.evaluate(model, data, "valid")
    assert before["valid_sliced_wasserstein"] > 0.5
    assert after["valid_sliced_wasserstein"] < 0.25
    assert after["valid_modes"] >= 7
    assert after["valid_high_quality"] > 0.7


def test_bad_data_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "semi-gan", "--data", "ring", *out]) == 1
    assert capsys.readouterr().err == (
        "genmodels: semi-supervised learning needs images with labels, and 'ring' has none\n"
    )
    assert main(["train", "dcgan", "--data", "grid25", *out]) == 1
    assert "a convolutional network is of images, and 'grid25' is none of them" in capsys.readouterr().err
    assert main(["train", "wgan", "--data", "ring", "--label-smoothing", "0.1", *out]) == 1
    assert "WGAN has no labels to smooth" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gan --data ring --n-critic 0", "n-critic must be 1 or more, got 0"),
        ("wgan --data ring --critic-lr 0", "lr and critic_lr must be positive"),
        ("bigan --data digits --critic-lr 0", "lr and critic_lr must be positive"),
        ("gan --data ring --latents 0", "latents must be 1 or more, got 0"),
        ("dcgan --data digits --latents 0", "latents must be 1 or more, got 0"),
        ("bigan --data digits --latents 0", "latents must be 1 or more, got 0"),
        ("gan --data ring --hidden", "hidden must name the units of at least one layer, got none"),
        ("gan --data ring --hidden 8 0", "hidden must be 1 or more, got 0"),
        ("dcgan --data digits --width 0", "width must be 1 or more, got 0"),
        ("dcgan --data digits --critic-width 0", "critic-width must be 1 or more, got 0"),
        ("bigan --data digits --width 0", "width must be 1 or more, got 0"),
        ("gan --data ring --batch-size 0", "batch-size must be 1 or more, got 0"),
        ("gan --data digits --batch-size 0", "batch-size must be 1 or more, got 0"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_that_train_nothing_are_refused_in_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments.split(), "--max-steps", "2", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
