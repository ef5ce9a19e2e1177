"""Stage 3: the mask generator and the blend (METHOD §D)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from codeswap.models.vqgan import VQGANConfig
from codeswap.types import Config, Image, Mask

SLOPE = 0.2


class MaskConfig(Config):
    """The defaults are METHOD §D.3's: 62,817 parameters on the paper's VQGAN. All other values are off-paper."""

    width: PositiveInt = 32
    levels: tuple[int, ...] | None = None  # of the VQGAN, 0 = finest; default all but the coarsest
    kernel: Literal[1, 3] = 1
    normalise: bool = False  # divide every map by its own spread (prototype: raw features with pure L1 collapsed to 0)
    head: Literal["bilinear", "shuffle"] = "bilinear"  # how logits coarser than the image reach its size


def blend(naive: Image, target: Image, mask: Mask) -> Image:
    """Eq. (14): I_ab = I_ab^naive * M_b + I_b * (1 - M_b)."""
    return naive * mask + target * (1 - mask)


class MaskGenerator(nn.Module):
    """Level outputs of the encoder (target image) and of the decoder (swapped codes) -> soft mask in (0, 1).

    The same weights serve both sides, so exchange stays exact.
    """

    def __init__(self, config: MaskConfig, vqgan: VQGANConfig) -> None:
        super().__init__()
        last = len(vqgan.widths) - 1
        levels = range(max(last, 1)) if config.levels is None else config.levels
        if not levels or max(levels) > last or min(levels) < 0:
            raise ValueError(f"mask_generator.levels={config.levels}: the VQGAN has levels 0..{last}")
        self.config = config
        self.levels = tuple(sorted(set(levels), reverse=True))  # coarsest first: the order in which they are joined
        width, pad = config.width, config.kernel // 2
        self.reduce = nn.ModuleList(nn.Conv2d(2 * vqgan.widths[level], width, 1) for level in self.levels)
        self.join = nn.ModuleList(
            nn.Conv2d(width if step == 0 else 2 * width, width, config.kernel, padding=pad)
            for step in range(len(self.levels))
        )
        self.factor = vqgan.patch * 2 ** self.levels[-1]  # image pixels per pixel of the finest level used
        channels = self.factor**2 if config.head == "shuffle" else 1
        self.head = nn.Conv2d(width, channels, config.kernel, padding=pad)
        nn.init.zeros_(self.head.bias)

    def forward(self, encoder_features: list[Tensor], decoder_features: list[Tensor]) -> Mask:
        """The mask at image size. Feature lists are finest first, as `VQGAN` returns them."""
        h = None
        for step, level in enumerate(self.levels):
            both = [self._normalised(features[level]) for features in (encoder_features, decoder_features)]
            g = F.leaky_relu(self.reduce[step](torch.cat(both, dim=1)), SLOPE)
            if h is not None:
                h = F.interpolate(h, size=g.shape[-2:], mode="bilinear", align_corners=False)
                g = torch.cat([g, h], dim=1)
            h = F.leaky_relu(self.join[step](g), SLOPE)
        logits = self.head(h)
        if self.config.head == "shuffle":
            logits = F.pixel_shuffle(logits, self.factor)
        elif self.factor > 1:
            logits = F.interpolate(logits, scale_factor=float(self.factor), mode="bilinear", align_corners=False)
        return logits.sigmoid()

    def _normalised(self, x: Tensor) -> Tensor:
        return x / (x.flatten(1).std(dim=1)[:, None, None, None] + 1e-5) if self.config.normalise else x
