"""Sound as numbers: .wav files, and the log-mel spectrograms that Whisper reads. Pure but for the reading."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from bigjax.core.errors import UserError, first_line

RATE = 16_000  # samples a second
WINDOW, HOP = 400, 160  # samples: 25 ms, every 10 ms
DYNAMIC = 8.0  # powers of ten below the loudest that are kept
# Slaney's scale: linear up to 1000 Hz, three mels for 200 Hz; above, 27 mels for a factor of 6.4.
BREAK, BREAK_MEL, STEP = 1000.0, 15.0, math.log(6.4) / 27


def read_wav(path: Path) -> np.ndarray:
    """A .wav file as float32 (samples,), -1 to 1, at 16 kHz; the channels' mean.

    Raises:
      UserError: it is no .wav file that can be read, or holds no sound.
    """
    import scipy.io.wavfile

    try:
        rate, samples = scipy.io.wavfile.read(path)
    except Exception as error:  # SciPy raises whatever a damaged header leads to
        raise UserError(f"{path}: not a readable .wav file ({first_line(error)})") from None
    if not len(samples) or rate <= 0:
        raise UserError(f"{path}: holds no sound")
    if samples.dtype.kind == "u":  # 8 bits, of which 128 is silence
        samples = (samples - 128.0) / 128
    elif samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are not finite")
    mono = samples.mean(axis=1) if samples.ndim > 1 else samples
    return resampled(mono, rate).astype(np.float32)


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples (n,) at 16 kHz, by a windowed sinc (SciPy's `resample_poly`)."""
    import scipy.signal

    if rate == RATE:
        return samples
    common = math.gcd(rate, RATE)
    return scipy.signal.resample_poly(samples, RATE // common, rate // common)


def log_mel(samples: np.ndarray, mel: int, frames: int) -> np.ndarray:
    """What Whisper hears (Radford et al. 2022, section 2.2), float32 (frames, mel).

    Powers of a short-time Fourier transform (Hann's window, the ends mirrored) in mel bands, in powers of ten,
    at most 8 below the loudest, moved and scaled to about -1 to 1. Computed in float64.

    Args:
      samples: (n,) at 16 kHz; cut off or filled up with silence to `frames` steps of 10 ms.
      mel: bands. frames: 3000 for Whisper's 30 seconds.
    """
    given = np.asarray(samples, np.float64)[: frames * HOP]
    whole = np.pad(given, (0, frames * HOP - len(given)))
    whole = np.pad(whole, WINDOW // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    pieces = np.lib.stride_tricks.sliding_window_view(whole, WINDOW)[::HOP][:frames]
    power = np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2
    logs = np.log10(np.maximum(power @ mel_filters(mel), 1e-10))
    return ((np.maximum(logs, logs.max() - DYNAMIC) + 4.0) / 4.0).astype(np.float32)


@functools.lru_cache(8)
def mel_filters(mel: int) -> np.ndarray:
    """Triangles of equal area over the frequencies 0 to 8 kHz, float64 (WINDOW / 2 + 1, mel).

    Slaney 1998, "Auditory Toolbox": corners at equal distances in mels, each triangle 2 / its width high.
    """
    top = BREAK_MEL + math.log(RATE / 2 / BREAK) / STEP
    mels = np.linspace(0.0, top, mel + 2)
    corners = np.where(
        mels < BREAK_MEL,
        mels * BREAK / BREAK_MEL,
        BREAK * np.exp(STEP * (mels - BREAK_MEL)),
    )
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies - left) / (middle - left)
    falling = (right - frequencies) / (right - middle)
    return np.maximum(0.0, np.minimum(rising, falling)) * 2 / (right - left)
