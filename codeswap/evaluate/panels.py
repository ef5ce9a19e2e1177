"""The paper's qualitative figures for one evaluated model, next to its metrics: pictures of pairs chosen by rule."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from codeswap.data.faces import to_float
from codeswap.data.labels import among
from codeswap.data.pictures import grid, save_png, to_bytes
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.methods import Batch, Pictures
from codeswap.evaluate.views import attention, degraded, through_codes
from codeswap.models.codeswap import CodeSwap
from codeswap.models.regional import swap_region
from codeswap.types import REGIONS, Image, corner_of

PLACES = {"eye": (0.38, 0.47), "nose": (0.5, 0.61), "mouth": (0.5, 0.74)}  # of FFHQ's square, x and y
SHOWN = 128  # pixels, about, of a face


def write_panels(folder: Path, testset: str, model: CodeSwap, judges: Judges, batch: Batch, made: Pictures) -> None:
    """Writes `<testset>` .grid.png, .robustness.png, .regions.png and .attention.png of the pairs in `batch`, whose
    pictures are `made`."""
    scale = max(1, SHOWN // batch.target.shape[-1])
    panels = {
        "grid": methods_grid(batch, made, scale),
        "robustness": robustness_grid(model, batch.target, scale),
        "regions": regions_grid(model, judges, batch, scale),
        "attention": attention_grid(model, batch),
    }
    for name, picture in panels.items():
        save_png(folder / f"{testset}.{name}.png", picture)


def methods_grid(batch: Batch, made: Pictures, scale: int) -> PILImage.Image:
    """Source, target, naive image, mask and result (Fig. 7), the true swap, and a paste."""
    rows = {"source": batch.source, "target": batch.target}
    rows["swap, naive image (w/o M)"] = made.images.get("swap_without_mask", made.images["swap"])
    if made.mask is not None:
        rows |= {"mask": made.mask * 2 - 1, "swap": made.images["swap"]}
    if batch.truth is not None:
        rows |= {"true swap": batch.truth.image, "true swap, codebook": made.images["true_swap_through_codebook"]}
    rows["paste (no model)"] = made.images["paste"]
    return grid(list(rows.values()), list(rows), scale=scale)


@torch.no_grad()
def robustness_grid(model: CodeSwap, images: Image, scale: int) -> PILImage.Image:
    """Fig. 3: faces and bad pictures of them, as they are and through the codebook."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).numpy()
    bad = torch.from_numpy(np.stack([degraded(crop) for crop in pixels])).permute(0, 3, 1, 2)
    bad = to_float(bad).to(images)
    rows = [images, through_codes(model, images), bad, through_codes(model, bad)]
    return grid(rows, ["face", "through the codebook", "bad picture", "bad picture, codebook"], scale=scale)


@torch.no_grad()
def regions_grid(model: CodeSwap, judges: Judges, batch: Batch, scale: int) -> PILImage.Image:
    """Fig. 8: only the codes of one part are the source's; a part that the target does not show leaves it as it is."""
    rows, labels = {"source": batch.source, "target": batch.target}, judges.labels(batch.target)
    for name, classes in REGIONS.items():
        region = among(labels, classes)[:, None]
        swapped = swap_region(model, batch.source, batch.target, region.float())
        rows[name] = torch.where(region.flatten(1).any(dim=1)[:, None, None, None], swapped, batch.target)
    return grid(list(rows.values()), list(rows), scale=scale)


def attention_grid(model: CodeSwap, batch: Batch) -> PILImage.Image:
    """Fig. 9 for the pair in the middle: where the codes of an eye, the nose and the mouth look."""
    middle = len(batch.pairs) // 2
    pair = batch.source[middle : middle + 1], batch.target[middle : middle + 1]
    framing = model.vqgan.config.framing
    left, top = corner_of(framing)
    places = [((x - left) / framing, (y - top) / framing) for x, y in PLACES.values()]
    return side_by_side([attention(model, *pair, at=place) for place in places])


def side_by_side(pictures: list[PILImage.Image]) -> PILImage.Image:
    canvas = PILImage.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width
    return canvas
