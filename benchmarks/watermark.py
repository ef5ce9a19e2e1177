"""How often the invisible mark is found after common edits, and how often where there is none.

    python -m benchmarks.watermark PICTURES [--marked 1000] [--unmarked 10000] [--size 256]

PICTURES is a folder of photographs of at least `size` px. Marked: each picture once, then JPEG quality 75, half the
size, a cut of 10 % and all three together. Unmarked: different windows, mirrored and scaled, of the same pictures.
Intervals are Wilson's, 95 %.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from codeswap.data.records import pictures_below
from codeswap.use import watermark

EDITS = ("nothing", "JPEG q75", "half the size", "10 % cut off", "all three")


def edited(picture: PILImage.Image, edit: str, draw: np.random.Generator) -> np.ndarray:
    """The picture after one of EDITS, uint8 (h, w, 3)."""
    if edit in ("10 % cut off", "all three"):
        width, height = (round(0.9 * side) for side in picture.size)
        left, top = draw.integers(0, picture.width - width + 1), draw.integers(0, picture.height - height + 1)
        picture = picture.crop((left, top, left + width, top + height))
    if edit in ("half the size", "all three"):
        picture = picture.resize((picture.width // 2, picture.height // 2), PILImage.Resampling.LANCZOS)
    if edit in ("JPEG q75", "all three"):
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=75)
        picture = PILImage.open(out).convert("RGB")
    return np.asarray(picture)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.96, hits / count
    centre, reach = share + z * z / (2 * count), z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - reach) / (1 + z * z / count), (centre + reach) / (1 + z * z / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    for name, default in (("marked", 1000), ("unmarked", 10_000), ("size", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    paths, draw, size = sorted(pictures_below(options.pictures)), np.random.default_rng(0), options.size
    scores: dict[str, list[float]] = {edit: [] for edit in EDITS}
    noise = []
    for number in range(options.marked):
        picture = PILImage.open(options.pictures / paths[number % len(paths)]).convert("RGB").resize((size, size))
        before = np.asarray(picture)
        after = watermark.embed(before)
        noise.append(10 * np.log10(255**2 / np.mean((after.astype(float) - before) ** 2)))
        for edit in EDITS:
            scores[edit].append(watermark.score(edited(PILImage.fromarray(after), edit, draw)))
    false = []
    for number in range(options.unmarked):
        picture = PILImage.open(options.pictures / paths[number % len(paths)]).convert("RGB")
        side = int(draw.integers(size // 2, min(picture.size) + 1))
        left, top = (int(draw.integers(0, length - side + 1)) for length in picture.size)
        window = picture.crop((left, top, left + side, top + side)).resize((size, size))
        false.append(watermark.score(np.asarray(ImageOps.mirror(window) if draw.random() < 0.5 else window)))
    print(
        f"{options.marked} marked pictures of {size} px, PSNR {np.mean(noise):.1f} dB; threshold {watermark.THRESHOLD}"
    )
    for edit, found in scores.items():
        hits = sum(one > watermark.THRESHOLD for one in found)
        low, high = wilson(hits, len(found))
        print(f"  {edit:14} found {hits / len(found):.2%} [{low:.2%}, {high:.2%}], lowest score {min(found):.1f}")
    hits = sum(one > watermark.THRESHOLD for one in false)
    low, high = wilson(hits, len(false))
    print(f"{len(false)} unmarked: found {hits} times [{low:.1e}, {high:.1e}], highest score {max(false):.2f}")


if __name__ == "__main__":
    main()
