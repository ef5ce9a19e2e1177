"""From the FFHQ-aligned crop to what a published face network was trained on: a constant box (METHOD §B.8).

All crops share one alignment, so the similarity that takes them to another template is the same for every face. Its
rotation is below 0.01 degrees: what is left is a square box of the crop, a product of two small matrices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codeswap.types import Image, corner_of

Points = Sequence[tuple[float, float]]
# Mean five points of FFHQ at 512 pixels (facexlib) and ArcFace's template at 112 (insightface): METHOD §B.8.
FFHQ_512: Points = ((192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935), (201.26117, 371.41043), (313.08905, 371.15118))  # fmt: skip  # noqa: E501
ARCFACE_112: Points = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))  # fmt: skip  # noqa: E501
# The same five points in dlib's chip of 150 pixels with padding 0.25, from its mean face of 68 points.
DLIB_150: Points = ((47.5492, 46.599), (100.4761, 46.599), (74.0127, 76.5625), (50.4149, 103.0233), (97.6104, 103.0233))


class Box(NamedTuple):
    """A square of the crop in units of the crop's side: (0, 0, 1) is the whole crop."""

    left: float
    top: float
    side: float

    def within(self, framing: float) -> "Box":
        """The same square of FFHQ's crop in units of crops that show a smaller square (types.corner_of)."""
        left, top = corner_of(framing)
        return Box((self.left - left) / framing, (self.top - top) / framing, self.side / framing)


WHOLE = Box(0.0, 0.0, 1.0)


def box_of(template: Points, size: int) -> Box:
    """The box whose content, resized to `size`, has FFHQ's mean points nearest to `template` (pixel centres)."""
    source = torch.tensor(FFHQ_512, dtype=torch.float64) + 0.5
    target = torch.tensor(template, dtype=torch.float64) + 0.5
    source_mean, target_mean = source.mean(0), target.mean(0)
    source_spread, target_spread = source - source_mean, target - target_mean
    scale = (source_spread * target_spread).sum() / source_spread.square().sum()
    left, top = ((source_mean - target_mean / scale) / 512).tolist()
    return Box(left, top, float(size / scale) / 512)


def resampling(pixels: int, start: float, side: float, size: int, like: Tensor) -> Tensor:
    """(size, pixels) matrix that resamples [start, start + side] of a unit interval of `pixels` samples.

    Triangle filter as wide as the coarser of the two grids (bilinear when enlarging, antialiased when shrinking).
    What lies outside of the image repeats its edge.
    """
    step = side * pixels / size
    centre = start * pixels + (torch.arange(size, device=like.device, dtype=torch.float64) + 0.5) * step - 0.5
    reach = max(step, 1.0)
    taps = int(2 * reach) + 2
    first = (centre - reach).floor().long() + 1
    index = first[:, None] + torch.arange(taps, device=like.device)
    weight = (1 - (index - centre[:, None]).abs() / reach).clamp(min=0)
    weight = weight / weight.sum(1, keepdim=True)
    matrix = torch.zeros(size, pixels, device=like.device, dtype=torch.float64)
    return matrix.scatter_add_(1, index.clamp(0, pixels - 1), weight).to(like.dtype)


def crop(image: Image, box: Box, size: int) -> Image:
    """The box of each image as `size` x `size` pixels. Differentiable; the image may have any size."""
    rows = resampling(image.shape[2], box.top, box.side, size, image)
    columns = resampling(image.shape[3], box.left, box.side, size, image)
    return rows @ image @ columns.t()


class View(nn.Module):
    """What a network wants to see: a box of the crop at its own size, channel order and normalisation.

    forward: (b, 3, h, w) in [-1, 1] RGB -> (b, c, size, size) with c = 1 when `channels` is "grey". `mean` and `std`
    are in units of 0..255, one per channel in the order that the network wants, or one for all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, box: Box, size: int, mean: Sequence[float], std: Sequence[float], channels: str = "rgb") -> None:
        super().__init__()
        self.box, self.size, self.channels = box, size, channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def __str__(self) -> str:
        box, mean, std = (",".join(f"{x:.4g}" for x in part) for part in (self.box, *self._units()))
        return f"box {box} -> {self.size} px, {self.channels}, mean {mean} std {std} of 255"

    def _units(self) -> tuple[list[float], list[float]]:
        return self.mean.flatten().tolist(), self.std.flatten().tolist()

    def forward(self, image: Image) -> Tensor:
        x = (crop(image, self.box, self.size) + 1) * 127.5
        match self.channels:
            case "bgr":
                x = x.flip(1)
            case "grey":
                x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return (x - self.mean) / self.std
