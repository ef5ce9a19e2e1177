"""Where the parts of an aligned face are: 68 landmarks by a published network, and a label map drawn from them."""

import math

import torch
from torch import Tensor, nn

from codeswap.perception.boxes import View
from codeswap.types import Image

# iBUG's 68 points: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67.
# (label of types.PARSING_LABELS, points around it), painted in this order. Left and right are the image's.
PARTS = (
    (10, (27, 31, 32, 33, 34, 35)),
    (4, (36, 37, 38, 39, 40, 41)),
    (5, (42, 43, 44, 45, 46, 47)),
    (12, (48, 49, 50, 51, 52, 53, 54, 64, 63, 62, 61, 60)),
    (13, (54, 55, 56, 57, 58, 59, 48, 60, 67, 66, 65, 64)),
    (11, (60, 61, 62, 63, 64, 65, 66, 67)),
)
BROWS = ((2, (17, 18, 19, 20, 21)), (3, (22, 23, 24, 25, 26)))
BROW_HEIGHT = 0.045  # of the distance from the brows to the chin, to either side of the brow's points
FOREHEAD = (
    0.75  # forehead above the brows, in lengths of brows to nose base: the hairline of the classic thirds is at 1
)
FOREHEAD_POINTS = 13
SURE = 10.0  # logit of the drawn label; all others are 0


class Landmarks(nn.Module):
    """(b, 3, h, w) aligned crops in [-1, 1] -> (b, 68, 2) points x, y in units of the crop's side. Differentiable."""

    def __init__(self, view: View, net: nn.Module) -> None:
        super().__init__()
        self.view, self.net = view, net

    def forward(self, image: Image) -> Tensor:
        box = self.view.box
        points = self.net(self.view(image)).unflatten(1, (68, 2))
        return points * box.side + points.new_tensor([box.left, box.top])


def inside(polygon: Tensor, height: int, width: int) -> Tensor:
    """(b, v, 2) polygons in units of the image -> (b, height, width) bool: pixel centres that they wind around.

    The winding number is not fooled where a turned face folds an outline over itself, as counting crossings would be.
    """
    x = (torch.arange(width, device=polygon.device) + 0.5) / width
    y = ((torch.arange(height, device=polygon.device) + 0.5) / height)[:, None]
    winding = torch.zeros(len(polygon), height, width, dtype=torch.int32, device=polygon.device)
    for start, end in zip(polygon.unbind(1), polygon.roll(-1, 1).unbind(1), strict=True):
        (x0, y0), (x1, y1) = (point.t()[..., None, None] for point in (start, end))
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        winding += ((y0 <= y) & (y1 > y) & (side > 0)).int() - ((y0 > y) & (y1 <= y) & (side < 0)).int()
    return winding != 0


def face_outline(points: Tensor) -> Tensor:
    """(b, 68, 2) -> (b, v, 2): the jaw, closed over an estimated forehead (half an ellipse from temple to temple)."""
    jaw, brows, nose_base = points[:, :17], points[:, 17:27].mean(1), points[:, 33]
    centre, half = (jaw[:, 0] + jaw[:, 16]) / 2, (jaw[:, 16] - jaw[:, 0]) / 2
    up = (brows - centre) + FOREHEAD * (brows - nose_base)
    angle = torch.arange(1, FOREHEAD_POINTS + 1, device=points.device) * (math.pi / (FOREHEAD_POINTS + 1))
    arc = centre[:, None] + half[:, None] * angle.cos()[:, None] + up[:, None] * angle.sin()[:, None]
    return torch.cat([jaw, arc], 1)


class LandmarkParsing(nn.Module):
    """Labels of face parts drawn from landmarks; what is no part of the face (hair, ears, neck) is background.

    A stand for a parsing network where none can be had: it knows no hair over the forehead, no glasses, no hands.
    forward: (b, 3, h, w) in [-1, 1] -> logits (b, C, h, w), C as in `labels`; no gradient reaches the image.
    """

    labels: Tensor

    def __init__(self, landmarks: Landmarks) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.register_buffer("labels", torch.tensor([0, 1, 2, 3, 4, 5, 10, 11, 12, 13]), persistent=False)

    def forward(self, image: Image) -> Tensor:
        drawn = self.label_map(image)[:, None] == self.labels.view(1, -1, 1, 1)
        return drawn.to(image.dtype) * SURE

    @torch.no_grad()
    def label_map(self, image: Image) -> Tensor:
        """(b, h, w) uint8 ids of types.PARSING_LABELS."""
        return draw_labels(self.landmarks(image), image.shape[2], image.shape[3])


def draw_labels(points: Tensor, height: int, width: int) -> Tensor:
    """(b, 68, 2) points in units of the image -> (b, height, width) uint8 label map."""
    painted = torch.zeros(len(points), height, width, dtype=torch.uint8, device=points.device)

    def paint(label: int, polygon: Tensor) -> None:
        painted[inside(polygon, height, width)] = label

    paint(1, face_outline(points))
    down = (points[:, 8] - points[:, 17:27].mean(1))[:, None] * BROW_HEIGHT
    for label, index in BROWS:
        brow = points[:, list(index)]
        paint(label, torch.cat([brow - down, (brow + down).flip(1)], 1))
    for label, index in PARTS:
        paint(label, points[:, list(index)])
    return painted
