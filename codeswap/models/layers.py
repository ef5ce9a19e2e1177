"""Convolutional building blocks of Stage 1 (METHOD §A.2, after taming-transformers' diffusion modules)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "none"]


def normalisation(channels: int, kind: Norm) -> nn.Module:
    """GroupNorm of 32 groups (fewer when `channels` is not a multiple of 32), or nothing."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6) if kind == "group" else nn.Identity()


class Res(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution when the width changes.

    Without normalisation the last convolution starts at zero: the block starts as its shortcut, which keeps a stack of
    un-normalised blocks stable.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = normalisation(in_channels, norm)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalisation(out_channels, norm)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        if norm == "none":
            nn.init.zeros_(self.conv2.weight)
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_activated(self.norm1, x))
        h = self.conv2(_activated(self.norm2, h))
        return self.shortcut(x) + h


def _activated(norm: nn.Module, x: Tensor) -> Tensor:
    """Swish of the normalised `x`, in the normalisation's own memory where no gradient needs that."""
    h = norm(x)
    return F.silu(h, inplace=h is not x and not h.requires_grad)


class SpatialAttention(nn.Module):
    """One attention head over all positions of a feature map, with a residual connection."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = normalisation(channels, norm)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class ConvDown(nn.Module):
    """Halves the resolution: zero row and column at the right and bottom only, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ConvUp(nn.Module):
    """Doubles the resolution by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        plain = isinstance(self.conv, nn.Conv2d)  # and not one of 8 bits
        if plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._by_quarters(x)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def _by_quarters(self, x: Tensor) -> Tensor:
        """The same in 4/9 of the FLOPs: every second pixel of a row and column sees 2x2 of `x`, some weights added."""
        height, width = x.shape[2:]
        by_row = _of_pixels_seen(self.conv.weight.transpose(2, 3))
        last = x.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        out = None
        for top in (0, 1):
            by_column = _of_pixels_seen(by_row[top].transpose(2, 3))
            for left in (0, 1):
                weight = by_column[left].contiguous(memory_format=form)
                part = F.conv2d(x, weight, self.conv.bias, padding=1)[..., top : top + height, left : left + width]
                if out is None:
                    size = (*part.shape[:2], 2 * height, 2 * width)
                    out = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=form)
                out[..., top::2, left::2] = part
        return out


def _of_pixels_seen(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3) weights on repeated pixels -> (..., 2) on the pixels themselves, for even and for odd places."""
    before, here, after = weight.unbind(-1)
    return torch.stack([before, here + after], -1), torch.stack([before + here, after], -1)


class ShuffleDown(nn.Module):
    """Off-paper, cheap: swish, space-to-depth, 1x1 convolution to the next level's width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(F.silu(x), 2))


class ShuffleUp(nn.Module):
    """Off-paper, cheap (ninth of ConvUp at four times fewer positions): swish, 1x1 convolution, depth-to-space."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(F.silu(x)), 2)
