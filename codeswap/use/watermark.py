"""An invisible mark in the pixels that says "generated": a repeated noise pattern, found again after common edits.

Spread spectrum (Cox et al. 1997) with a tile that repeats, so that a cut picture still holds whole ones, and a band of
middle frequencies, which JPEG and halving keep. The pattern is public: it tells honest readers what a picture is, it is
no lock. `benchmarks/watermark.py` measures how often it is found, and how often where it is not.
"""

from functools import lru_cache

import numpy as np
from PIL import Image as PILImage
from scipy.ndimage import gaussian_filter

TILE = 64  # pixels
BAND = (1 / 16, 1 / 4.5)  # cycles per pixel
STRENGTH, TEXTURED, STRONGEST = 1.3, 0.09, 5.0  # grey levels: on flat parts, more per unit of local contrast, at most
SCALES = (1.0, 0.5)  # by which a picture may have been shrunk
STRIP, REACH = 16 * TILE, 8  # rows marked at a time, and how far the local contrast looks
LARGEST = 4096  # pixels of a side
THRESHOLD = 6.5  # standard deviations of the correlation; see the benchmark
_KEY = 20241028  # the paper's day at the conference; nothing secret
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@lru_cache(maxsize=1)
def _pattern() -> np.ndarray:
    """(TILE, TILE) float32 of standard deviation 1, band-limited, seamless where tiles meet."""
    noise = np.random.default_rng(_KEY).standard_normal((TILE, TILE))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE)))
    kept = np.fft.ifft2(np.fft.fft2(noise) * ((frequency >= BAND[0]) & (frequency <= BAND[1]))).real
    return (kept / kept.std()).astype(np.float32)


def _tiled(height: int, width: int) -> np.ndarray:
    return np.tile(_pattern(), (-(-height // TILE), -(-width // TILE)))[:height, :width]


def embed(pixels: np.ndarray) -> np.ndarray:
    """The uint8 (h, w, 3) picture with the mark: a little more noise, most of it where the picture is textured."""
    marked = np.empty_like(pixels)
    for top in range(0, len(pixels), STRIP):  # large photographs need no more memory than strips of them
        above = min(top, REACH)
        part = pixels[top - above : top + STRIP + REACH].astype(np.float32)
        luma = part @ _LUMA
        mean = gaussian_filter(luma, 2)
        contrast = np.sqrt(np.maximum(gaussian_filter(luma * luma, 2) - mean * mean, 0))
        strength = np.minimum(STRENGTH + TEXTURED * contrast, STRONGEST)[above : above + STRIP]
        part = part[above : above + STRIP]
        part += (strength * _tiled(*strength.shape))[..., None]
        marked[top : top + STRIP] = np.clip(np.rint(part), 0, 255)
    return marked


def score(pixels: np.ndarray) -> float:
    """How many standard deviations the pattern stands out of a uint8 (h, w, 3) picture, at the best shift and scale.

    Of a picture larger than LARGEST its middle is looked at.
    """
    top, left = (max(0, side - LARGEST) // 2 for side in pixels.shape[:2])
    pixels = pixels[top : top + LARGEST, left : left + LARGEST]
    return max(_score(pixels if scale == 1 else _resized(pixels, 1 / scale)) for scale in SCALES)


def is_marked(pixels: np.ndarray) -> bool:
    """Whether the picture carries the mark. Small pictures (below about 128 px) are too short to tell."""
    return score(pixels) > THRESHOLD


def _resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return np.asarray(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.BICUBIC))


def _score(pixels: np.ndarray) -> float:
    luma = pixels.astype(np.float32) @ _LUMA
    rest = luma - gaussian_filter(luma, 3)
    rest /= np.sqrt(gaussian_filter(rest * rest, 4)) + 2  # edges would speak louder than the mark
    height, width = rest.shape
    whole = np.zeros((-(-height // TILE) * TILE, -(-width // TILE) * TILE), dtype=np.float32)
    whole[:height, :width] = rest
    folded = whole.reshape(whole.shape[0] // TILE, TILE, -1, TILE).sum(axis=(0, 2))
    found = np.fft.fft2(folded)
    found *= np.conj(np.fft.fft2(_pattern()))
    correlation = np.fft.ifft2(found).real
    return float((correlation.max() - correlation.mean()) / (correlation.std() + 1e-9))
