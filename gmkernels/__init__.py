"""gmkernels: the hot paths of classical deep generative models as fused operators behind PyTorch autograd."""

from . import nn, random
from .core.backends import BackendError, use_backend
from .core.doors import backend_for
from .nn.matching import feature_matching_loss
from .ops.autoregressive import gated_pixelcnn_sample, made_inverse, pixelcnn_sample, wavenet_sample
from .ops.coupling import affine_coupling, planar_flow
from .ops.gaussian import bernoulli_log_likelihood, gaussian_log_likelihood, gaussian_log_prob, reparameterize_kl
from .ops.gibbs import (
    ais_log_z,
    boltzmann_gibbs,
    cd_statistics,
    hopfield_recall,
    rbm_free_energy,
    rbm_gibbs,
    rbm_sample_hidden,
    rbm_sample_visible,
)
from .ops.masked_conv import causal_conv1d, gated_activation, gated_masked_conv2d, masked_conv2d
from .ops.masked_linear import masked_linear
from .ops.minibatch import minibatch_discrimination
from .ops.mlp import affine_coupling_mlp, bernoulli_log_likelihood_mlp, mlp
from .ops.penalty import (
    BatchCoupledWarning,
    dragan_penalty,
    gradient_penalty,
    norm_penalty,
    norm_penalty_gradient,
    penalty_route,
    r1_penalty,
    r2_penalty,
    random_interpolate,
)
from .ops.virtual_batch_norm import virtual_batch_norm
from .version import __version__

__all__ = [
    "BackendError",
    "BatchCoupledWarning",
    "__version__",
    "affine_coupling",
    "affine_coupling_mlp",
    "ais_log_z",
    "backend_for",
    "bernoulli_log_likelihood",
    "bernoulli_log_likelihood_mlp",
    "boltzmann_gibbs",
    "causal_conv1d",
    "cd_statistics",
    "dragan_penalty",
    "feature_matching_loss",
    "gated_activation",
    "gated_masked_conv2d",
    "gated_pixelcnn_sample",
    "gaussian_log_likelihood",
    "gaussian_log_prob",
    "gradient_penalty",
    "hopfield_recall",
    "made_inverse",
    "masked_conv2d",
    "masked_linear",
    "minibatch_discrimination",
    "mlp",
    "nn",
    "norm_penalty",
    "norm_penalty_gradient",
    "penalty_route",
    "pixelcnn_sample",
    "planar_flow",
    "r1_penalty",
    "r2_penalty",
    "random",
    "random_interpolate",
    "rbm_free_energy",
    "rbm_gibbs",
    "rbm_sample_hidden",
    "rbm_sample_visible",
    "reparameterize_kl",
    "use_backend",
    "virtual_batch_norm",
    "wavenet_sample",
]
