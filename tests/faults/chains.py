"""Mistakes in chains: of Boltzmann machines, and of pixels."""

from __future__ import annotations

from .patch import Fault

_RBM, _CONNECTED, _AIS = "rbm or test_gibbs", "boltzmann or hopfield", "ais"
_GIBBS, _PIXELS, _SAMPLER = "csrc/gibbs/", "csrc/autoregressive/", "pixelcnn or autoregressive"

CHAINS = [
    Fault("rbm-forgets-beta", _GIBBS + "rbm.cpp", "on(load(field + b * kWord + p * kLanes) * beta,",
          "on(load(field + b * kWord + p * kLanes),", _RBM),
    Fault("rbm-clamp-ignored", _GIBBS + "rbm.cpp", "const uint64_t keep = a.clamp ? held[c][b] : 0;",
          "const uint64_t keep = 0;", _RBM),
    Fault("rbm-every-step-draws-the-same", _GIBBS + "rbm.cpp", "draw_binary(stream, chain, 2 * t + 1, visible.field[c]",
          "draw_binary(stream, chain, 1, visible.field[c]", _RBM),
    Fault("rbm-chains-not-numbered-from-first", _GIBBS + "rbm.cpp", "const uint64_t chain = a.first + start + c;",
          "const uint64_t chain = start + c;", _RBM),
    Fault("rbm-gaussian-spread-is-beta", _GIBBS + "rbm.cpp", "T(1) / std::sqrt(beta)", "std::sqrt(beta)", _RBM),
    Fault("boltzmann-spin-slope-halved", _GIBBS + "boltzmann.cpp", "slope(a.spin ? beta + beta : beta)", "slope(beta)",
          _CONNECTED),
    Fault("boltzmann-spin-flips-by-one", _GIBBS + "boltzmann.cpp", "change = T(1) - low", "change = T(1)", _CONNECTED),
    Fault("boltzmann-clamp-ignored", _GIBBS + "boltzmann.cpp", "held |= uint32_t(m.a.clamp[at + l] != 0) << l", "held |= 0",
          _CONNECTED),
    Fault("ais-reverse-goes-forward", _GIBBS + "ais.cpp", "betas[a.start ? a.steps - 1 - k : k]", "betas[k]", _AIS),
    Fault("ais-chains-not-numbered-from-first", _GIBBS + "ais.cpp", "uint64_t(a.first + chain + c)", "uint64_t(chain + c)",
          _AIS),
    Fault("pixels-samples-not-numbered-from-first", _PIXELS + "draw.h", "a.first + sample)", "sample)", _SAMPLER),
    Fault("pixels-channels-share-a-word", _PIXELS + "draw.h", "uint64_t(channel), uint64_t(sample)", "0, uint64_t(sample)",
          _SAMPLER),
    Fault("pixels-temperature-ignored", _PIXELS + "draw.h", "(z - pack<T>(most)) / pack<T>(divisor)", "z - pack<T>(most)",
          _SAMPLER),
    Fault("pixels-first-layer-sees-itself", _PIXELS + "network.h", "Layer<T>(reader, 2 * w, a.channels, k, k), true)",
          "Layer<T>(reader, 2 * w, a.channels, k, k), false)", _SAMPLER),
    Fault("pixels-relu-forgotten", "csrc/include/gmk/product.h", "if (out.relu) sum = relu(sum);", "", _SAMPLER),
]  # fmt: skip
