"""How good generated samples are: Fréchet distance and inception score over any extractor, and distances of laws.

    metric = FrechetDistance(fashion28(), split="fashion-mnist test")
    metric.update(real_images, real=True)
    metric.update(model.sample(10_000), real=False)
    print(metric.compute())

A figure is comparable only with one of the same extractor, resizer, number of images and split; all of these are
printed with it.
"""

from .distances import jensen_shannon, wasserstein
from .extractor import Classifier28, Extractor, fashion28, mnist28
from .frechet import FrechetDistance, FrechetResult, frechet_distance
from .inception import Inception, inception
from .score import InceptionScore, inception_score

__all__ = [
    "Classifier28",
    "Extractor",
    "FrechetDistance",
    "FrechetResult",
    "Inception",
    "InceptionScore",
    "fashion28",
    "frechet_distance",
    "inception",
    "inception_score",
    "jensen_shannon",
    "mnist28",
    "wasserstein",
]
