"""A network behind the view of the crop that it was trained on."""

import torch
from torch import Tensor, nn

from codeswap.types import Image


class Viewed(nn.Module):
    """What `view` shows of the crop, through `net`: (b, 3, h, w) in [-1, 1] -> (b, e)."""

    def __init__(self, view: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.view, self.net = view, net

    def forward(self, image: Image) -> Tensor:
        return self.net(self.view(image))


class Pose(Viewed):
    """Hopenet's reading of 66 bins of 3 degrees each: (b, 3, h, w) -> (b, 3) yaw, pitch, roll in degrees."""

    def forward(self, image: Image) -> Tensor:
        return torch.stack([expectation(logits) for logits in self.net(self.view(image))], dim=1)


def expectation(logits: Tensor) -> Tensor:
    """Logits (b, 66) -> (b,): the mean bin in degrees; the first bin alone is -99, the last 96."""
    bins = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    return logits.softmax(1) @ bins * 3 - 99
