"""MTCNN (Zhang et al. 2016): boxes, scores and five points of every face in a photograph, in plain torch.

Three small networks look at ever fewer windows: P on a pyramid of the whole image, R and O on the windows left.
Weights are the state dicts that the `facenet-pytorch` package carries, read without that package.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeswap.perception.convert import read_pickle
from codeswap.types import Detection

PYRAMID_FACTOR = 0.709  # area halves per level, as in the original
SURE = 0.95  # score of a detection that is hardly anything else
WINDOW, STRIDE = 12, 2  # P-Net's receptive field and step
OVERLAP_LEVEL, OVERLAP = 0.5, 0.7  # non-maximum suppression within a pyramid level and after it


class _Stage(nn.Sequential):
    """Layers that have the published names; forward of R and O flattens width-major, as the Caffe original did."""

    def trunk(self, x: Tensor, names: list[str]) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(
                x.permute(0, 3, 2, 1).flatten(1) if name.startswith("dense") and x.dim() == 4 else x
            )
        return x


def _layers(**layers: nn.Module) -> _Stage:
    stage = _Stage()
    for name, layer in layers.items():
        stage.add_module(name, layer)
    return stage


def _pool(size: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(size, 2, ceil_mode=True)


class MTCNN(nn.Module):
    """The detector. `detect` is the interface of the role `landmarks`; it is not differentiable."""

    def __init__(
        self, min_face: int = 40, longest_side: int = 1000, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8)
    ) -> None:
        """`min_face`: smallest face looked for, in pixels of the image shrunk to `longest_side`."""
        super().__init__()
        self.min_face, self.longest_side, self.thresholds = min_face, longest_side, thresholds
        self.pnet = _layers(
            conv1=nn.Conv2d(3, 10, 3), prelu1=nn.PReLU(10), pool1=_pool(2), conv2=nn.Conv2d(10, 16, 3),
            prelu2=nn.PReLU(16), conv3=nn.Conv2d(16, 32, 3), prelu3=nn.PReLU(32),
            conv4_1=nn.Conv2d(32, 2, 1), conv4_2=nn.Conv2d(32, 4, 1),
        )  # fmt: skip
        self.rnet = _layers(
            conv1=nn.Conv2d(3, 28, 3), prelu1=nn.PReLU(28), pool1=_pool(3), conv2=nn.Conv2d(28, 48, 3),
            prelu2=nn.PReLU(48), pool2=_pool(3), conv3=nn.Conv2d(48, 64, 2), prelu3=nn.PReLU(64),
            dense4=nn.Linear(576, 128), prelu4=nn.PReLU(128), dense5_1=nn.Linear(128, 2), dense5_2=nn.Linear(128, 4),
        )  # fmt: skip
        self.onet = _layers(
            conv1=nn.Conv2d(3, 32, 3), prelu1=nn.PReLU(32), pool1=_pool(3), conv2=nn.Conv2d(32, 64, 3),
            prelu2=nn.PReLU(64), pool2=_pool(3), conv3=nn.Conv2d(64, 64, 3), prelu3=nn.PReLU(64), pool3=_pool(2),
            conv4=nn.Conv2d(64, 128, 2), prelu4=nn.PReLU(128), dense5=nn.Linear(1152, 256), prelu5=nn.PReLU(256),
            dense6_1=nn.Linear(256, 2), dense6_2=nn.Linear(256, 4), dense6_3=nn.Linear(256, 10),
        )  # fmt: skip

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> list[Detection]:
        """Faces of one RGB uint8 (h, w, 3) image, best score first; an empty list when there is none.

        Raises ValueError for an array of another type or shape.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an RGB uint8 image (h, w, 3), found {image.dtype} {image.shape}")
        device = self.pnet.get_submodule("conv1").weight.device
        shrink = min(1.0, self.longest_side / max(image.shape[:2]))
        height, width = (round(side * shrink) for side in image.shape[:2])
        channels = torch.from_numpy(np.require(image, requirements="CW")).to(device).permute(2, 0, 1)[:, None, None]
        pixels = torch.cat([_area(channel.float(), height, width) for channel in channels], dim=1)  # large ones in turn
        boxes = self._propose(pixels)
        boxes, scores, move, _ = self._judge(pixels, boxes, self.rnet, 24, self.thresholds[1])
        keep = suppress(boxes, scores, OVERLAP)  # before the boxes move: moved ones agree, and too few would be left
        boxes = _squares(_moved(boxes[keep], move[keep]))
        boxes, scores, move, points = self._judge(pixels, boxes, self.onet, 48, self.thresholds[2])
        boxes = _moved(boxes, move)
        keep = suppress(boxes, scores, OVERLAP, of_smaller=True)
        scale = torch.tensor([image.shape[1] / pixels.shape[3], image.shape[0] / pixels.shape[2]], device=device)
        # The networks' coordinates count pixel edges; ours count centres.
        boxes, points = boxes[keep] * scale.repeat(2) - 0.5, points[keep] * scale - 0.5
        return [
            Detection(box.cpu().numpy(), score.item(), face.cpu().numpy())
            for box, score, face in zip(boxes, scores[keep], points, strict=True)
        ]

    def _propose(self, pixels: Tensor) -> Tensor:
        """Square windows (n, 4) that may hold a face, from P-Net on a pyramid."""
        height, width = pixels.shape[2:]
        scale, found, confidence = WINDOW / self.min_face, [pixels.new_zeros(0, 8)], [pixels.new_zeros(0)]
        while min(height, width) * scale >= WINDOW:
            level = _normalise(_area(pixels, int(height * scale + 1), int(width * scale + 1)))
            x = self.pnet.trunk(level, ["conv1", "prelu1", "pool1", "conv2", "prelu2", "conv3", "prelu3"])
            score = self.pnet.get_submodule("conv4_1")(x).softmax(1)[0, 1]
            move = self.pnet.get_submodule("conv4_2")(x)[0]
            rows, columns = torch.where(score >= self.thresholds[0])
            corner = torch.stack([columns, rows], 1) * STRIDE
            boxes = torch.cat([corner / scale, (corner + WINDOW) / scale], 1)
            keep = suppress(boxes, score[rows, columns], OVERLAP_LEVEL)
            found.append(torch.cat([boxes, move[:, rows, columns].t()], 1)[keep])
            confidence.append(score[rows, columns][keep])
            scale *= PYRAMID_FACTOR
        windows, scores = torch.cat(found), torch.cat(confidence)
        windows = windows[suppress(windows[:, :4], scores, OVERLAP)]
        return _squares(_moved(windows[:, :4], windows[:, 4:]))

    def _judge(self, pixels: Tensor, boxes: Tensor, net: _Stage, size: int, threshold: float) -> tuple[Tensor, ...]:
        """The square windows that `net` takes for faces: boxes, scores, how each side moves, five points (O-Net's)."""
        names = [name for name, _ in net.named_children() if "_" not in name]
        heads = [name for name, _ in net.named_children() if "_" in name]
        boxes = boxes.round()
        windows = [_window(pixels, box, size) for box in boxes.long().tolist()]
        x = net.trunk(torch.cat([pixels.new_zeros(0, 3, size, size), *windows]), names)
        logits, move, *rest = [net.get_submodule(name)(x) for name in heads]
        scores = logits.softmax(1)[:, 1]
        keep = scores > threshold
        boxes = boxes[keep]
        relative = torch.stack(rest[0][keep].chunk(2, 1), 2) if rest else boxes.new_zeros(len(boxes), 5, 2)
        points = relative * (boxes[:, 2:] - boxes[:, :2])[:, None] + boxes[:, None, :2]
        return boxes, scores[keep], move[keep], points


def _normalise(pixels: Tensor) -> Tensor:
    return (pixels - 127.5) / 128


def _area(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pixels, size=(height, width), mode="area")


def _window(pixels: Tensor, box: list[int], size: int) -> Tensor:
    """(1, 3, size, size), normalised; outside of the image its edge goes on (black loses faces at the edge)."""
    x0, y0, x1, y1 = box
    height, width = pixels.shape[2:]
    inside = pixels[:, :, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if inside.numel() == 0:
        return _normalise(pixels.new_zeros(1, 3, size, size))
    border = [max(-x0, 0), max(x1 - width, 0), max(-y0, 0), max(y1 - height, 0)]
    return _normalise(_area(F.pad(inside, border, mode="replicate"), size, size))


def _moved(boxes: Tensor, move: Tensor) -> Tensor:
    return boxes + move * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _squares(boxes: Tensor) -> Tensor:
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def suppress(boxes: Tensor, scores: Tensor, overlap: float, of_smaller: bool = False) -> Tensor:
    """Indices of the boxes kept by greedy non-maximum suppression, best first.

    Overlap is intersection over union, or over the smaller of the two boxes when `of_smaller`.
    """
    order = scores.argsort(descending=True)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner = torch.maximum(boxes[best, :2], boxes[order, :2])
        shared = (torch.minimum(boxes[best, 2:], boxes[order, 2:]) - corner).clamp(min=0).prod(1)
        whole = torch.minimum(area[best], area[order]) if of_smaller else area[best] + area[order] - shared
        order = order[shared <= overlap * whole]
    return torch.stack(kept) if kept else order


def largest(found: Sequence[Detection]) -> Detection:
    """The largest face, of the sure ones if there are any: knees and leaves pass for large faces, but not surely."""
    return max(found, key=lambda face: (face.score >= SURE, face.side))


def load_mtcnn(onet: Path) -> MTCNN:
    """The detector from `onet.pt`, with `pnet.pt` and `rnet.pt` in the same folder."""
    network = MTCNN()
    for name, stage in (("pnet", network.pnet), ("rnet", network.rnet), ("onet", network.onet)):
        state = read_pickle(onet.with_name(f"{name}.pt"))
        stage.load_state_dict(state)
    return network
