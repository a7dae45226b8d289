"""Band energies of a sound, a local condition: with them a WaveNet is a vocoder, and speaks what it is told to."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FLOOR = 1e-5


class BandEnergies(nn.Module):
    """Energies of ``count`` bands, evenly spread on the mel scale (S. S. Stevens et al., 1937), a hundred times a second.

    ``forward(x)``: sound (B, T) to (B, count, T), ``log10(energy + 1e-5) / 2.5 + 1``, which lies about zero; linear between
    frames. A frame sees 20 ms before and after its time.
    """

    filters: Tensor
    hann: Tensor

    def __init__(self, rate: int, count: int) -> None:
        super().__init__()
        self.count, self.hop, self.window = count, max(1, rate // 100), max(4, rate // 25)
        mel = torch.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), count + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mel / 2595) - 1)
        frequencies = torch.arange(self.window // 2 + 1, dtype=torch.float64) * rate / self.window
        low, middle, high = (edges[i : i + count, None] for i in range(3))
        up, down = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
        filters = torch.minimum(up, down).clamp(min=0)
        if not bool((filters.sum(1) > 0).all()):
            raise ValueError(f"{count} bands are too many for {rate} samples a second: some would hold no frequency")
        self.register_buffer("filters", (filters / filters.sum(1, keepdim=True)).float(), persistent=False)
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.float(), (self.window // 2, self.window // 2 + self.hop))
        spectrum = torch.stft(padded, self.window, self.hop, window=self.hann, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1) / self.hann.sum()
        frames = torch.log10(self.filters @ power + _FLOOR) / 2.5 + 1
        # Frame k is at time k hop; between two frames, a straight line.
        time = torch.arange(x.shape[1], device=x.device)
        before, share = time // self.hop, (time % self.hop) / self.hop
        return torch.lerp(frames[:, :, before], frames[:, :, before + 1], share)
