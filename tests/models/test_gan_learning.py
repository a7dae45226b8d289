"""Seconds of training in which the Wasserstein, semi-supervised and comparing discriminators must teach something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genmodels.gan import GAN
from genmodels.gan.recipe import GANRecipe, SemiSupervisedRecipe, WGANGPRecipe, WGANRecipe
from genmodels.training import Fit, fit, load_weights


def _learn(recipe: GANRecipe, out: Path, steps: int, lr: float) -> tuple[GAN, dict[str, float], dict[str, float]]:
    """The model, and its figures before and after."""
    torch.manual_seed(0)
    data = recipe.dataset()
    model = recipe.build(data)
    before = recipe.evaluate(model, data, "valid")
    config = Fit(max_steps=steps, lr=lr, warmup_steps=0, schedule="constant", clip=0.0, ema=0.98)
    parts = model.parts(lr=lr, **({} if recipe.betas is None else {"betas": recipe.betas}))
    fit(model, recipe.stream(data), out, config, parts=parts)
    load_weights(model, out)
    return model, before, recipe.evaluate(model, data, "valid")


RING = {"data": "ring", "hidden": (64, 64), "latents": 4, "batch_size": 128, "judged": 2000}


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [(WGANRecipe(**RING, clip_weights=0.1), 500), (WGANGPRecipe(**RING, penalty_weight=1.0), 400)],
    ids=["wgan", "wgan-gp"],
)
def test_a_wasserstein_critic_leads_to_every_mode_of_a_ring(recipe: GANRecipe, steps: int, tmp_path: Path) -> None:
    _, before, after = _learn(recipe, tmp_path, steps, 2e-3)
    assert before["valid_sliced_wasserstein"] > 1
    assert after["valid_sliced_wasserstein"] < 0.3
    assert after["valid_modes"] >= 7
    assert after["valid_high_quality"] > 0.35


def test_comparing_samples_keeps_a_generator_from_collapsing(tmp_path: Path) -> None:
    """With so much momentum a generator runs from mode to mode; a critic that sees how alike its samples are stops it."""
    found = {}
    for kernels in (0, 8):
        recipe = GANRecipe(**RING | {"latents": 2}, betas=(0.9, 0.999), minibatch=kernels)
        found[kernels] = _learn(recipe, tmp_path / str(kernels), 300, 2e-3)[2]
    assert found[0]["valid_modes"] <= 3
    assert found[8]["valid_modes"] >= 5
    assert found[8]["valid_sliced_wasserstein"] < 0.8 < 1 < found[0]["valid_sliced_wasserstein"]


def test_a_discriminator_learns_classes_and_what_is_generated(tmp_path: Path) -> None:
    recipe = SemiSupervisedRecipe(data="digits", width=16, latents=16, labels=20, batch_size=64, judged=200)
    model, before, after = _learn(recipe, tmp_path, 300, 1e-3)
    assert before["valid_accuracy"] < 0.3
    assert after["valid_accuracy"] > 0.6
    assert after["valid_frechet"] < 0.8 * before["valid_frechet"]
    x = recipe.dataset().splits["valid"].x
    real, fake = (torch.sigmoid(model.critic()(model.inside(part))).mean() for part in (x, model.sample(200, key=1)))
    assert real > fake
