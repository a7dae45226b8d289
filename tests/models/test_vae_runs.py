"""Variational autoencoders through the one door: train, stop and resume, sample, evaluate, record, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genmodels.cli import main
from genmodels.recipe import restore
from genmodels.training import Fit, fit
from genmodels.training.checkpoint import load_newest
from genmodels.vae.recipe import M2Recipe, VAERecipe
from tests.streams import Stopping

PICTURES = ("samples", "reconstructions", "manifold", "interpolation", "latents", "loss")


@pytest.mark.parametrize(
    "recipe",
    [
        VAERecipe(data="digits", hidden=16, latents=3, batch_size=16, mask_rate=0.5, beta_warmup=30, binarise=True),
        M2Recipe(data="digits", hidden=16, latents=3, batch_size=16, labels=20),
    ],
    ids=["vae", "m2"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe: VAERecipe, tmp_path: Path) -> None:
    data, config, weights = recipe.dataset(), Fit(max_steps=24, warmup_steps=3), []
    for stops in ([], [9]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            result = fit(recipe.build(data), Stopping(recipe.stream(data), at), out, config)
            assert (result.stopped, result.step) == (("SIGINT", 9) if at else (None, 24))
        found = load_newest(out)
        assert found is not None
        weights.append({name: value for name, value in found[0].items() if name.startswith("model.")})
    whole, resumed = weights
    assert whole.keys() == resumed.keys()
    assert int(whole["model.updates"]) == 24
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


@pytest.mark.parametrize(
    ("model", "options", "figures"),
    [
        ("vae", ["--mask-rate", "0.5"], {"test_iwae50", "test_brier_filled", "test_brier_mean_image"}),
        ("beta-vae", ["--latents", "2", "--beta", "2", "--beta-warmup", "20"], {"test_iwae50"}),
        ("conditional-vae", ["--likelihood", "gaussian"], {"test_iwae50"}),
        ("m2", ["--labels", "50"], {"test_accuracy", "test_labels_alone", "test_iwae50"}),
    ],
)
@pytest.mark.filterwarnings("ignore::genmodels.vae.recipe.PosteriorCollapse")
def test_train_sample_evaluate_record(
    model: str, options: list[str], figures: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, record = tmp_path / "run", tmp_path / "results" / "models.jsonl"
    small = ["--data", "digits", "--hidden", "32", "--batch-size", "32", "--max-steps", "40"]
    assert main(["train", model, *small, *options, "--out", str(run)]) == 0
    pictures = PICTURES + (("inpainting",) if model == "vae" else ())
    assert all(_png(run / f"{name}.png") for name in pictures)
    report = json.loads((run / "result.json").read_text())
    assert figures < set(report)
    assert report["step"] == 40
    capsys.readouterr()

    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert figures < set(found)
    assert found == {name: pytest.approx(report[name]) for name in found}
    assert found["test_iwae50"] > found["test_elbo"]
    row = json.loads(record.read_text())
    assert (row["model"], row["data"], row["seed"], row["step"]) == (model, "digits", 0, 40)
    assert row["figures"] == {name: pytest.approx(value, abs=1e-5) for name, value in found.items()}
    assert {"gmkernels", "sha", "torch", "threads"} < set(row["environment"])

    assert main(["sample", str(run), "--seed", "3"]) == 0
    assert _png(run / "samples-3.png")


def test_the_schedule_of_beta_survives_the_run_s_config(tmp_path: Path) -> None:
    recipe = VAERecipe(data="digits", beta=3.0, beta_start=0.5, beta_warmup=10, beta_period=20)
    text = json.dumps(recipe, default=lambda r: r.__dict__)
    again = restore(VAERecipe, json.loads(text))
    assert again == recipe
    assert again.build(again.dataset()).beta == recipe.build(recipe.dataset()).beta
    assert again.build(again.dataset()).beta.value == 3.0


def test_a_collapse_is_said_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data", "digits", "--hidden", "16", "--batch-size", "32", "--lr", "0.01"]
    small += ["--max-steps", "150", "--beta", "100"]
    assert main(["train", "beta-vae", *small, "--out", str(tmp_path / "run")]) == 0
    assert "genmodels: warning: the posterior has collapsed: 10 of 10 latents carry less" in capsys.readouterr().err


def test_a_density_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "vae", "--data", "banana", "--out", str(tmp_path / "run")]) == 1
    assert (
        capsys.readouterr().err == "genmodels: a variational autoencoder is of images, and 'banana' is none of them\n"
    )
    assert not (tmp_path / "run").exists()
