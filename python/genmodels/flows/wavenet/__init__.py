"""WaveNet, autoregressive over sound, and Parallel WaveNet, its student that draws all samples in one pass."""

from .parallel import ParallelWaveNet, power_loss
from .wavenet import WaveNet

__all__ = ["ParallelWaveNet", "WaveNet", "power_loss"]
