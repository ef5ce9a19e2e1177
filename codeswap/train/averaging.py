"""Weights averaged exponentially while a training goes on: often better than any that it passes through."""

import torch
from torch import nn


@torch.no_grad()
def average_(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * module; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
    for kept, buffer in zip(ema.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
