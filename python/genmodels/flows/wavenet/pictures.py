"""Pictures of sound: waveforms above spectrograms, the source beside samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...pictures import _ACCENT, _INK, _figure


def spectrogram(x: Tensor, window: int) -> Tensor:
    """Decibels (frequencies, times) of sound (T,), the loudest at 0 and nothing below -80."""
    padded = torch.nn.functional.pad(x.double(), (0, max(0, window - len(x))))
    hann = torch.hann_window(window, dtype=torch.float64)
    power = torch.stft(padded, window, window // 4, window=hann, center=False, return_complex=True).abs().square()
    return (10 * torch.log10(power / power.max().clamp(min=1e-12) + 1e-8)).clamp(min=-80)


def sounds(path: Path, rows: Mapping[str, Tensor], rate: int) -> None:
    """Write sounds (T,) side by side, by title; the waveform above the spectrogram."""
    figure, axes = _figure(3.2 * len(rows), 3.8, nrows=2, ncols=len(rows), squeeze=False)
    top = max(float(x.abs().max()) for x in rows.values()) or 1.0
    for i, (column, (title, x)) in enumerate(zip(axes.T, rows.items(), strict=True)):
        seconds = len(x) / rate
        column[0].plot(torch.arange(len(x)) / rate, x, color=_ACCENT if i else _INK, linewidth=0.4)
        column[0].set(xlim=(0, seconds), ylim=(-1.05 * top, 1.05 * top))
        column[0].set_title(title, fontsize=10, color=_INK)
        column[0].tick_params(labelbottom=False, labelleft=i == 0)
        extent = (0, seconds, 0, rate / 2000)
        picture = spectrogram(x, 256 if rate <= 12000 else 512)
        column[1].imshow(picture, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-80, vmax=0)
        column[1].tick_params(labelleft=i == 0)
        column[1].set_xlabel("seconds")
    axes[1, 0].set_ylabel("kHz")
    figure.savefig(path, dpi=130)
