"""All models by name. A new one is a recipe in its own folder and a line here; nothing is imported before it is used."""

from __future__ import annotations

import importlib

from .errors import GenmodelsError
from .recipe import Recipe

MODELS: dict[str, str] = {
    "realnvp": "genmodels.flows.recipe:RealNVPRecipe",
}


def recipe_of(model: str) -> type[Recipe]:
    """The recipe class of a model."""
    if model not in MODELS:
        raise GenmodelsError(f"unknown model {model!r}; expected one of {', '.join(MODELS)}")
    module, name = MODELS[model].split(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
