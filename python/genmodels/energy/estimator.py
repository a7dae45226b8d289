"""A restricted Boltzmann machine as a scikit-learn estimator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..data import Batch
from .learning import Learning, ascent
from .rbm import RBM


class RBMTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Restricted Boltzmann machine for scikit-learn pipelines: features are the hidden units' probabilities.

    Args:
        n_components: hidden units.
        visible: ``binary``, ``gaussian``, or ``auto``: binary for data that all lie in [0, 1], as ``BernoulliRBM`` takes
            them, else Gaussian units on standardised data.
        learning_rate: at the start; it falls as half a cosine over ``fit``, and stays in ``partial_fit``. For Gaussian
            units a tenth of it is taken.
        batch_size, n_iter: samples of an update, and passes over the data.
        method, steps, n_chains: see :class:`genmodels.energy.Learning`.
        centred, weight_decay, momentum: of the gradient and its use.
        random_state: seed, or a NumPy generator.

    Attributes:
        model_: the :class:`genmodels.energy.RBM`, float64.
        log_z_: log of its normalising constant: exact, or by annealed importance sampling.
        components_, intercept_hidden_, intercept_visible_: its parameters as NumPy arrays, (n_components, n_features), ...
        n_features_in_, n_iter_.
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        visible: str = "auto",
        learning_rate: float = 0.2,
        batch_size: int = 50,
        n_iter: int = 10,
        method: str = "pcd",
        steps: int = 1,
        n_chains: int = 50,
        centred: bool = True,
        weight_decay: float = 0.0,
        momentum: float = 0.5,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.visible = visible
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.method = method
        self.steps = steps
        self.n_chains = n_chains
        self.centred = centred
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> RBMTransformer:
        """Learn from data (n_samples, n_features) anew."""
        x = self._data(X, reset=True)
        self._begin(x)
        batches = max(1, math.ceil(len(x) / self.batch_size))
        total = self.n_iter * batches
        for epoch in range(self.n_iter):
            order = torch.from_numpy(self._random.permutation(len(x)))
            for i, rows in enumerate(order.tensor_split(batches)):
                self._update(x[rows], 0.5 * (1 + math.cos(math.pi * (epoch * batches + i) / total)))
        self.n_iter_ = self.n_iter
        return self._finish()

    def partial_fit(self, X: Any, y: Any = None) -> RBMTransformer:
        """One update with all of the data given."""
        first = not hasattr(self, "model_")
        x = self._data(X, reset=first)
        if first:
            self._begin(x)
            self.n_iter_ = 0
        self._update(x, 1.0)
        self.n_iter_ += 1
        return self._finish()

    def transform(self, X: Any) -> np.ndarray:
        """Probabilities of the hidden units (n_samples, n_components)."""
        check_is_fitted(self)
        x = self._data(X, reset=False)
        with torch.no_grad():
            return self.model_.hidden_given(self.model_.probabilities(x)).numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihood (n_samples,) in nats; the normalising constant is found when it is first asked for."""
        check_is_fitted(self)
        x = self._data(X, reset=False)
        return self.model_.log_likelihood(self.model_.probabilities(x), self.log_z_).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood, for model selection."""
        return float(self.score_samples(X).mean())

    @property
    def log_z_(self) -> float:
        check_is_fitted(self)
        if self._log_z is None:
            self._log_z = self.model_.log_z(key=0).low
        return self._log_z

    @property
    def components_(self) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.weight.detach().numpy().T

    @property
    def intercept_hidden_(self) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.hidden_bias.detach().numpy()

    @property
    def intercept_visible_(self) -> np.ndarray:
        check_is_fitted(self)
        return self.model_.visible_bias.detach().numpy()

    @property
    def _n_features_out(self) -> int:
        return self.model_.hidden

    def _data(self, X: Any, reset: bool) -> torch.Tensor:
        return torch.from_numpy(np.array(validate_data(self, X, dtype=np.float64, reset=reset)))

    _log_z: float | None

    def _begin(self, x: torch.Tensor) -> None:
        kind = self.visible
        if kind == "auto":
            kind = "binary" if float(x.min()) >= 0 and float(x.max()) <= 1 else "gaussian"
        if kind not in ("binary", "gaussian"):
            raise ValueError(f"visible must be 'auto', 'binary' or 'gaussian', got {self.visible!r}")
        if self.batch_size < 1 or self.n_iter < 1:
            raise ValueError(f"batch_size and n_iter must be at least 1, got {self.batch_size} and {self.n_iter}")
        self._random = check_random_state(self.random_state)
        seed = int(self._random.randint(2**31))
        options = Learning(
            method=self.method,  # type: ignore[arg-type]
            steps=self.steps,
            chains=self.n_chains,
            centred=self.centred,
            seed=seed,
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.model_ = RBM(x.shape[1], self.n_components, visible=kind, learning=options).double()  # type: ignore[arg-type]
        self.model_.initialise(x)
        self._optimizer = ascent(
            self.model_.weight,
            self.model_.biases(),
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        self._rate = self.learning_rate * (0.1 if kind == "gaussian" else 1.0)

    def _update(self, x: torch.Tensor, factor: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * factor
        self._optimizer.zero_grad()
        self.model_.losses(Batch(x))["loss"].backward()
        self._optimizer.step()

    def _finish(self) -> RBMTransformer:
        self._log_z = None
        return self
