"""M2 adds up over the classes exactly, and unlabelled images teach it what the labels alone do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk
from genmodels.data import Batch, load
from genmodels.errors import DataError
from genmodels.vae import NonFiniteLoss, SemiBatch, SemiStream, SemiSupervisedVAE, keep_labels
from genmodels.vae.networks import Joint
from genmodels.vae.recipe import M2Recipe

SHAPE, K = (1, 8, 8), 4


def _model(**options: object) -> SemiSupervisedVAE:
    return SemiSupervisedVAE(SHAPE, K, latents=3, hidden=16, alpha=2.0, **options).double()


def _images(n: int) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64)


def test_a_joint_layer_is_a_linear_layer_of_the_vector_and_the_one_hot_class() -> None:
    joint, linear = Joint(5, 7, K).double(), nn.Linear(5 + K, 7).double()
    with torch.no_grad():
        linear.weight.copy_(torch.cat([joint.linear.weight, joint.classes.t()], 1))
        linear.bias.copy_(joint.linear.bias)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % K
    torch.testing.assert_close(joint(x, y), linear(torch.cat([x, F.one_hot(y, K)], 1)))
    for k in range(K):
        torch.testing.assert_close(joint.every(x)[:, k], joint(x, torch.full((6,), k)))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_enumeration_is_one_forward_pass_for_each_class(network: str) -> None:
    """Values and gradients of the unlabelled loss against K passes through the ordinary conditional model."""
    model, x, key = _model(network=network, beta=1.5), _images(5), gmk.random.key(seed=3)
    found = model.unlabelled(x, key)["loss"].mean()
    ours = torch.autograd.grad(found, list(model.parameters()))

    eps = gmk.random.normal(key, (5 * K, 3), dtype=torch.float64).view(5, K, 3)
    q = model.classifier(x).softmax(1)
    expected = torch.zeros(5, dtype=torch.float64)
    for k in range(K):
        y = torch.full((5,), k)
        mu, logvar = model.encoder(x, y).chunk(2, 1)
        logits = model.decoder(mu + (0.5 * logvar).exp() * eps[:, k], y)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
        minus_log_prior = math.log(K)
        expected = expected + q[:, k] * (reconstruction + 1.5 * kl + minus_log_prior + q[:, k].log())
    torch.testing.assert_close(found, expected.mean())
    theirs = torch.autograd.grad(expected.mean(), list(model.parameters()))
    for name, a, b in zip(dict(model.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_loss_is_the_papers_sum_over_labelled_and_unlabelled_images() -> None:
    model, x, u, y = _model(), _images(3), _images(5), torch.tensor([0, 3, 1])
    key = gmk.random.key(seed=4)
    found = model.losses(SemiBatch(x, y, u), key)
    labelled = model.terms(x, y, None, key, first=5 * K)
    free = model.unlabelled(u, key)
    bound = labelled.reconstruction + labelled.kl + math.log(K)
    cross_entropy = F.cross_entropy(model.classifier(x), y)
    torch.testing.assert_close(found["loss"], (bound.sum() + free["loss"].sum()) / 8 + 2.0 * cross_entropy)
    torch.testing.assert_close(found["kl_class"], free["kl_class"].mean())
    assert set(found) == {"loss", "reconstruction", "kl", "kl_class", "cross_entropy", "accuracy"}


def test_the_divergence_of_the_class_is_zero_for_a_uniform_one_and_log_k_for_a_certain_one() -> None:
    model = _model()
    for scale, expected in ((0.0, 0.0), (1e4, math.log(K))):
        with torch.no_grad():
            model.classifier.rest[-1].weight.zero_()
            model.classifier.rest[-1].bias.copy_(scale * torch.tensor([0.0, 1.0, 0.0, 0.0]))
        found = model.unlabelled(_images(2), gmk.random.key(seed=1))["kl_class"]
        torch.testing.assert_close(found, torch.full((2,), expected, dtype=torch.float64))


def test_a_sure_and_right_classifier_makes_the_unlabelled_bound_the_labelled_one() -> None:
    """U(x) = L(x, y) where q(y|x) = 1."""
    model, x, key = _model(), _images(6), gmk.random.key(seed=2)
    with torch.no_grad():
        model.classifier.rest[-1].weight.zero_()
        model.classifier.rest[-1].bias.copy_(torch.tensor([0.0, 0.0, 1e4, 0.0]))
    log_likelihood, kl = model.every_class(x, key)
    torch.testing.assert_close(model.bound(x, key), (log_likelihood - kl)[:, 2] - math.log(K))


def test_importance_weighting_without_labels_lies_above_the_bound() -> None:
    model, x = _model(), _images(40)
    bound = torch.stack([model.bound(x, i) for i in range(50)]).mean(0)
    with torch.no_grad():
        found = model.iwae(x, samples=200, key=1)
        each = torch.stack([model.iwae(x, torch.full((40,), k), samples=200, key=1) for k in range(K)])
    assert float((found - bound).mean()) > 0
    torch.testing.assert_close(found, each.logsumexp(0) - math.log(K))


def test_an_overflow_is_named_by_its_network_and_seen_where_the_class_has_no_weight() -> None:
    model, x, key = _model(), _images(2), gmk.random.key(seed=1)
    with torch.no_grad():
        model.classifier.rest[-1].bias.copy_(torch.tensor([0.0, 1e6, 0.0, 0.0]))
        kept = model.decoder.first.classes[0].clone()
        model.decoder.first.classes[0] = torch.finfo(torch.float64).max
        model.decoder.rest[-1].weight.abs_().clamp_(min=1.0)
    with pytest.raises(NonFiniteLoss, match="the decoder's output overflows"):
        model.unlabelled(x, key)
    with torch.no_grad():
        model.decoder.first.classes[0] = kept
        model.classifier.first.linear.bias.fill_(torch.finfo(torch.float64).max)
        model.classifier.rest[-1].weight.fill_(2.0)
    with pytest.raises(NonFiniteLoss, match="the classifier's output overflows"):
        model.unlabelled(x, key)


def test_kept_labels_are_balanced_disjoint_and_fixed() -> None:
    train = load("digits").splits["train"]
    labelled, rest = keep_labels(train, 30, 10, seed=1)
    assert labelled.y.bincount().tolist() == [3] * 10
    assert rest.y is None
    assert len(labelled.x) + len(rest.x) == len(train.x)
    again, _ = keep_labels(train, 30, 10, seed=1)
    other, _ = keep_labels(train, 30, 10, seed=2)
    assert torch.equal(again.x, labelled.x)
    assert not torch.equal(other.x, labelled.x)


def test_a_stream_of_both_parts_continues_where_its_state_was_taken() -> None:
    labelled, rest = keep_labels(load("digits").splits["train"], 20, 10)
    stream = SemiStream(labelled, rest, 32, 10)
    for _ in range(57):
        next(stream)
    state = stream.state_dict()
    expected = [next(stream) for _ in range(60)]
    other = SemiStream(labelled, rest, 32, 10)
    other.load_state_dict(state)
    for a, b in zip(expected, other, strict=False):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.slow
def test_unlabelled_images_add_five_points_to_a_hundred_labels() -> None:
    """mnist5k, 100 labels, the same classifier network: with 3,900 unlabelled images against without."""
    recipe = M2Recipe(hidden=200, latents=20, batch_size=48)
    data = recipe.dataset()
    torch.manual_seed(0)
    model = recipe.build(data)
    optimizer = torch.optim.AdamW(model.parameters(), 1.5e-3, (0.9, 0.99))
    stream, steps = recipe.stream(data), 500
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, 2 * (1 - step / steps))
        optimizer.zero_grad()
        model.losses(next(stream))["loss"].backward()
        optimizer.step()
    x, y = data.splits["test"]
    accuracy = float((model.classify(x).argmax(1) == y).float().mean())
    alone = sum(recipe.classifier_alone(model, data, seed) for seed in range(3)) / 3
    print(f"accuracy {accuracy:.3f}, labels alone {alone:.3f}")
    assert accuracy >= alone + 0.05


def test_bad_semi_supervised_arguments_are_explained() -> None:
    model, x = _model(), _images(3)
    y = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="the unlabelled part of the batch is empty"):
        model.losses(SemiBatch(x, y, x[:0]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3, got values from 0 to 4"):
        model.losses(SemiBatch(x, torch.tensor([0, 4, 2]), x))
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        model.losses(SemiBatch(x, y, x + 1))
    with pytest.raises(DataError, match="the unlabelled set is empty"):
        SemiStream(Batch(x, y), Batch(x[:0]), 2)
    with pytest.raises(DataError, match="needs labelled images, got none"):
        SemiStream(Batch(x), Batch(x), 2)
    with pytest.raises(ValueError, match="labels must be a multiple of the 10 classes, got 15"):
        keep_labels(load("digits").splits["train"], 15, 10)
    with pytest.raises(DataError, match=r"class \d has \d+ images, fewer than 500 to be labelled"):
        keep_labels(load("digits").splits["train"], 5000, 10)
    with pytest.raises(ValueError, match="alpha must be 0 or more, got -1"):
        SemiSupervisedVAE(SHAPE, K, alpha=-1)
    with pytest.raises(ValueError, match="free_bits and mask_rate are not offered"):
        SemiSupervisedVAE(SHAPE, K, mask_rate=0.5)
