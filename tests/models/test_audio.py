"""Sound: WAV files of every width, damaged ones, resampling, splits; and processes whose entropy rate is known."""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels import data
from genmodels.data import AudioDataset, AutoregressiveNoise, MarkovLevels, Process, audio
from genmodels.errors import DataError
from genmodels.flows.wavenet.bands import BandEnergies

PROCESSES = [AutoregressiveNoise, MarkovLevels]


def _tone(frequency: float, rate: int, seconds: float = 0.5) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(int(rate * seconds)) / rate)


def _write(path: Path, frames: bytes, *, channels: int = 1, width: int = 2, rate: int = 8000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_of_every_width_are_read(width: int, channels: int, tmp_path: Path) -> None:
    """The values -1, -1/2, 0, 1/2 and the largest there is; of two channels, the mean."""
    top = 2 ** (8 * width - 1)
    levels = [-top, -top // 2, 0, top // 2, top - 1]
    each = [(level + 128) if width == 1 else level for level in levels]
    frames = b"".join(v.to_bytes(width, "little", signed=width > 1) * channels for v in each)
    _write(tmp_path / "a.wav", frames, width=width, channels=channels)
    x, rate = data.read_wav(tmp_path / "a.wav")
    assert (rate, x.dtype) == (8000, torch.float32)
    torch.testing.assert_close(x, torch.tensor([-1, -0.5, 0, 0.5, 1 - 1 / top]), rtol=0, atol=1e-7)


def test_channels_are_averaged(tmp_path: Path) -> None:
    _write(tmp_path / "a.wav", struct.pack("<4h", 16384, -16384, 16384, 0), channels=2)
    assert torch.equal(data.read_wav(tmp_path / "a.wav")[0], torch.tensor([0.0, 0.25]))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    x = torch.cat((_tone(440, 8000), torch.tensor([-2.0, 2.0])))
    data.write_wav(tmp_path / "a.wav", x, 8000)
    found, rate = data.read_wav(tmp_path / "a.wav")
    assert rate == 8000
    assert float((found - x.clamp(-1, 1)).abs().max()) < 2**-14


def _damaged(path: Path, how: str) -> None:
    data.write_wav(path, _tone(440, 8000), 8000)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "text": b"this is no sound at all, whatever its name says",
            "nothing": b"",
            "header": whole[:30],
            "half": whole[: len(whole) // 2],
            "format": whole[:20] + b"\x55\x00" + whole[22:],
            "width": whole[:34] + b"\x40\x00" + whole[36:],
            "silent": whole[:40] + b"\x00" * 4,
        }[how]
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "a.wav is not a PCM WAV file: file does not start with RIFF id"),
        ("nothing", "a.wav is not a PCM WAV file: it ends too early"),
        ("header", "a.wav is not a PCM WAV file"),
        ("half", "a.wav is damaged: its header speaks of 4000 samples, it holds 1989"),
        ("format", "a.wav is not a PCM WAV file: unknown format"),
        ("width", "a.wav: samples must be of 8, 16, 24 or 32 bits, got 64"),
        ("silent", "a.wav holds no samples"),
    ],
)
def test_a_damaged_file_is_one_clear_error(how: str, message: str, tmp_path: Path) -> None:
    _damaged(tmp_path / "a.wav", how)
    with pytest.raises(DataError) as caught:
        data.wav_folder(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_without_sound_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no WAV files"):
        data.wav_folder(tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder of WAV files"):
        data.sound(str(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match="unknown sound 'banana'; expected one of alsa, resonances, markov, or a folder"
    ):
        data.sound("banana")


def test_the_package_of_missing_recordings_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(audio, "ALSA", tmp_path / "none")
    with pytest.raises(DataError, match="apt install alsa-utils"):
        data.sound("alsa")


@pytest.mark.skipif(not audio.ALSA.is_dir(), reason="Debian's alsa-utils is not installed")
def test_alsa_is_eight_spoken_words() -> None:
    found = data.sound("alsa", rate=8000, length=2000)
    assert isinstance(found, AudioDataset)
    assert [len(found.splits[name]) for name in ("train", "valid", "test")] == [6, 1, 1]
    seconds = sum(len(x) for pieces in found.splits.values() for x in pieces) / 8000
    assert 10 < seconds < 14
    assert all(float(x.abs().max()) == pytest.approx(0.9) for pieces in found.splits.values() for x in pieces)


# ---- resampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "to"), [(48000, 8000), (44100, 16000), (8000, 16000)])
def test_a_tone_stays_a_tone_at_another_rate(rate: int, to: int) -> None:
    found, expected = data.resample(_tone(440, rate), rate, to), _tone(440, to)
    assert len(found) == len(expected)
    inside = slice(200, -200)  # the filter sees zeros beyond the ends
    assert float((found - expected)[inside].abs().max()) < 5e-3


def test_what_a_lower_rate_cannot_carry_is_filtered_out() -> None:
    assert float(data.resample(_tone(7000, 48000), 48000, 8000)[200:-200].abs().max()) < 5e-3


# ---- splits and windows ----------------------------------------------------------------------------------------------


def test_recordings_are_held_out_whole(tmp_path: Path) -> None:
    for i in range(12):
        data.write_wav(tmp_path / f"{i:02}.wav", _tone(200 + 50 * i, 8000), 8000)
    found = data.wav_folder(tmp_path, length=1000)
    assert [len(found.splits[name]) for name in ("train", "valid", "test")] == [10, 1, 1]
    assert all(len(x) == 4000 for pieces in found.splits.values() for x in pieces)
    again = data.wav_folder(tmp_path, length=1000)
    assert all(torch.equal(a, b) for a, b in zip(found.splits["train"], again.splits["train"], strict=True))
    batch = next(found.stream(5, seed=1))
    assert batch.x.shape == (5, 1000)


def test_few_recordings_are_held_out_in_part(tmp_path: Path) -> None:
    data.write_wav(tmp_path / "a.wav", _tone(300, 8000), 8000)
    found = data.wav_folder(tmp_path, length=1000)
    assert {name: [len(x) for x in pieces] for name, pieces in found.splits.items()} == {
        "train": [1200, 1200, 1200], "valid": [200], "test": [200],
    }  # fmt: skip
    with pytest.raises(DataError, match=r"do not fit its pieces of 1200 at most: .*--length"):
        data.wav_folder(tmp_path, length=2000).stream(1)


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for i, name in enumerate(("low", "high")):
        (tmp_path / name).mkdir()
        for j in range(3):
            data.write_wav(tmp_path / name / f"{j}.wav", _tone((200, 2000)[i], 8000), 8000)
    found = data.wav_folder(tmp_path, length=1000)
    assert found.classes == ("high", "low")
    windows = found.windows("train", 1000)
    assert windows.y is not None
    crossings = (windows.x[:, 1:] * windows.x[:, :-1] < 0).sum(1)
    assert torch.equal(windows.y, (crossings < 200).long())


# ---- processes -------------------------------------------------------------------------------------------------------


def _windows(folder: Path, frequency: float) -> AudioDataset:
    for name in "abcd":
        # Louder as it goes on, so that backwards can be heard.
        x = _tone(frequency, 8000, 1.0)
        data.write_wav(folder / f"{name}.wav", x * torch.linspace(0.1, 1.0, len(x)), 8000)
    return data.wav_folder(folder, length=1000)


def test_varied_sound_is_slower_louder_or_backwards(tmp_path: Path) -> None:
    """The pitch of a tone falls by up to the share, and loudness changes by up to it either way."""
    sound = _windows(tmp_path, 1000.0)
    plain, varied = sound.stream(10, seed=3), data.Varied(sound.stream(10, seed=3), 0.3, seed=3)
    pitches, loudness, rising = [], [], []
    for _ in range(8):
        x, y = next(plain).x, next(varied).x
        assert y.shape == x.shape and y.dtype == torch.float32
        pitches += (torch.fft.rfft(y, dim=1).abs().argmax(1) * 8.0).tolist()
        loudness += (y.square().mean(1) / x.square().mean(1)).sqrt().log().tolist()
        rising += (y[:, 500:].square().sum(1) > y[:, :500].square().sum(1)).tolist()
    assert 690 <= min(pitches) < 760 and 940 < max(pitches) <= 1010
    # Slowed down, a window shows a softer or louder part of itself; 0.06 for that and for the straight lines.
    assert -0.45 < min(loudness) < -0.2 and 0.2 < max(loudness) < 0.45
    assert 20 < sum(rising) < 60
    unchanged = next(data.Varied(sound.stream(10, seed=3), 0.0, seed=3)).x
    first = next(sound.stream(10, seed=3)).x
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(0)) for a, b in zip(unchanged, first, strict=True))


def test_varied_sound_goes_on_where_it_stopped(tmp_path: Path) -> None:
    sound = _windows(tmp_path, 500.0)
    through = data.Varied(sound.stream(4, seed=1), 0.2, seed=1)
    seen = [next(through).x for _ in range(12)]
    again = data.Varied(sound.stream(4, seed=1), 0.2, seed=1)
    for _ in range(5):
        next(again)
    late = data.Varied(sound.stream(4, seed=1), 0.2, seed=1)
    late.load_state_dict(again.state_dict())
    assert all(torch.equal(next(late).x, x) for x in seen[5:])
    other = data.Varied(sound.stream(4, seed=1), 0.2, seed=1, rank=1)
    assert not torch.equal(next(other).x, seen[0])
    with pytest.raises(ValueError, match=r"Varied: share must be at least 0 and less than 1, got 1\.0"):
        data.Varied(sound.stream(4), 1.0)


def test_excerpts_are_of_their_split(tmp_path: Path) -> None:
    sound = _windows(tmp_path, 500.0)
    for split in ("valid", "test"):
        assert torch.equal(sound.excerpt(700, split), sound.splits[split][0][:700])
    process = AutoregressiveNoise(400)
    assert not torch.equal(process.excerpt(50), process.excerpt(50, "valid"))


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_entropy_rate_is_what_samples_cost(kind: type[Process]) -> None:
    """-log p of long samples, within five standard errors; and 2 % away from it is seen."""
    process = kind()
    x = process.sample(200, 1000, gmk.random.key(seed=1))
    nats = -process.log_prob(x) / 1000
    error = float(nats.std()) / math.sqrt(len(nats))
    assert abs(float(nats.mean()) - process.entropy) < 5 * error + 2e-3  # the beginning costs a little more or less
    assert 5 * error + 2e-3 < 0.02 * abs(process.entropy)


@pytest.mark.parametrize("kind", PROCESSES)
def test_rows_of_a_process_do_not_depend_on_the_batch(kind: type[Process]) -> None:
    process, key = kind(), gmk.random.key(seed=2)
    whole = process.sample(6, 50, key)
    assert torch.equal(process.sample(2, 50, key, first=3), whole[3:5])
    stream = process.stream(4, seed=1)
    next(stream)
    state, after = stream.state_dict(), next(stream).x
    stream.load_state_dict(state)
    assert torch.equal(next(stream).x, after)


def test_resonances_are_where_they_should_be() -> None:
    process = AutoregressiveNoise()
    x = process.sample(400, 512, gmk.random.key(seed=3)).double()
    power = torch.fft.rfft(x * torch.hann_window(512, dtype=torch.float64)).abs().square().mean(0)
    a = process.coefficients
    phase = torch.exp(-1j * torch.arange(257, dtype=torch.float64)[:, None] * 2 * math.pi / 512 * torch.arange(1, 5))
    expected = process.sigma**2 / (1 - phase @ a.to(torch.complex128)).abs().square()
    ratio = (power / expected / (power / expected).mean())[5:-5]
    assert float((ratio - 1).abs().max()) < 0.5
    assert abs(int(power.argmax()) * 8000 / 512 - 700) < 40


def test_markov_transitions_are_a_law_that_keeps_its_stationary_one() -> None:
    process = MarkovLevels()
    assert torch.allclose(process.law.sum(2), torch.ones(16, 16, dtype=torch.float64))
    after = torch.einsum("ab,abc->bc", process.stationary, process.law)
    torch.testing.assert_close(after, process.stationary, rtol=0, atol=1e-14)
    x = process.sample(20_000, 3, gmk.random.key(seed=4))
    for place in (0, 1):
        pairs = torch.bincount(x[:, place] * 16 + x[:, place + 1], minlength=256).double() / len(x)
        assert float((pairs - process.stationary.flatten()).abs().sum()) < 0.12


# ---- band energies ---------------------------------------------------------------------------------------------------


def test_band_energies_tell_where_a_tone_is_and_when() -> None:
    bands = BandEnergies(8000, 12)
    x = torch.cat((_tone(300, 8000), torch.zeros(4000), _tone(3000, 8000)))[None]
    found = bands(x)
    assert found.shape == (1, 12, x.shape[1])
    loudest = found[0].argmax(0)
    assert int(loudest[2000]) < 4 < 8 < int(loudest[10_000])
    assert float(found[0, :, 6000].max()) == pytest.approx(-1.0)
    # A window of the sound has the same energies, but for its ends.
    part = bands(x[:, 800:3200])
    torch.testing.assert_close(part[:, :, 320:-320], found[:, :, 1120:2880], rtol=0, atol=1e-4)


def test_too_many_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="200 bands are too many for 8000 samples a second"):
        BandEnergies(8000, 200)


def test_numpy_is_all_that_reading_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write_wav(tmp_path / "a.wav", _tone(300, 8000), 8000)
    monkeypatch.setitem(__import__("sys").modules, "scipy.signal", None)
    assert np.isclose(float(data.read_wav(tmp_path / "a.wav")[0].abs().max()), 0.5, atol=1e-3)
    with pytest.raises(ImportError, match=r"resampling needs scipy.signal: pip install '\.\[models\]'"):
        data.wav_folder(tmp_path, rate=16000)
