"""All models by name: a recipe in a folder of its own and a line here. Nothing is imported before it is used."""

from __future__ import annotations

import importlib

from .errors import GenmodelsError
from .recipe import Recipe

MODELS: dict[str, str] = {
    "realnvp": "genmodels.flows.recipe:RealNVPRecipe",
    "gaussian": "genmodels.flows.recipe:GaussianRecipe",
    "planar": "genmodels.flows.recipe:PlanarRecipe",
    "made": "genmodels.flows.recipe:MADERecipe",
    "maf": "genmodels.flows.recipe:MAFRecipe",
    "iaf": "genmodels.flows.recipe:IAFRecipe",
    "wavenet": "genmodels.flows.wavenet.recipe:WaveNetRecipe",
    "parallel-wavenet": "genmodels.flows.wavenet.recipe:ParallelWaveNetRecipe",
    "vae": "genmodels.vae.recipe:VAERecipe",
    "beta-vae": "genmodels.vae.recipe:BetaVAERecipe",
    "conditional-vae": "genmodels.vae.recipe:ConditionalVAERecipe",
    "m2": "genmodels.vae.recipe:M2Recipe",
    "gan": "genmodels.gan.recipe:OriginalRecipe",
    "dcgan": "genmodels.gan.recipe:DCGANRecipe",
    "wgan": "genmodels.gan.recipe:WGANRecipe",
    "wgan-gp": "genmodels.gan.recipe:WGANGPRecipe",
    "semi-gan": "genmodels.gan.recipe:SemiSupervisedRecipe",
    "bigan": "genmodels.gan.bigan_recipe:BiGANRecipe",
    "pixelcnn": "genmodels.autoregressive.recipe:PixelCNNRecipe",
    "gated-pixelcnn": "genmodels.autoregressive.recipe:GatedPixelCNNRecipe",
    "pix2pix": "genmodels.gan.translation_recipe:Pix2PixRecipe",
    "cyclegan": "genmodels.gan.translation_recipe:CycleGANRecipe",
    "rbm": "genmodels.energy.recipe:RBMRecipe",
    "boltzmann": "genmodels.energy.recipe:BoltzmannRecipe",
    "hopfield": "genmodels.energy.hopfield_recipe:HopfieldRecipe",
}


def recipe_of(model: str) -> type[Recipe]:
    """The recipe class of a model."""
    if model not in MODELS:
        raise GenmodelsError(f"unknown model {model!r}; expected one of {', '.join(MODELS)}")
    module, name = MODELS[model].split(":")
    return getattr(importlib.import_module(module), name)
