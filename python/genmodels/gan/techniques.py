"""Techniques of Salimans et al., "Improved techniques for training GANs", 2016, for any adversarial model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """Which techniques a model is trained with. Minibatch discrimination is a layer of the discriminator, virtual batch
    normalisation one of the generator: they are chosen where the networks are built.
    """

    feature_matching: bool = False
    """The generator brings the mean features of its samples near those of the data (3.1) instead of fooling."""
    historical: float = 0.0
    """Weight of the squared distance of the parameters from their average over the updates so far (3.3)."""
    label_smoothing: float = 0.0
    """What is taken off the target 1 of real samples, and of these alone (3.4)."""

    def __post_init__(self) -> None:
        if self.historical < 0:
            raise ValueError(f"Techniques: historical must be 0 or more, got {self.historical}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"Techniques: label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
