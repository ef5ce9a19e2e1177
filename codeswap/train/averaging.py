"""Weights averaged exponentially while a training goes on: often better than any that it passes through."""

import copy

import torch
from torch import nn

from codeswap.train.engine import Engine


def new_average(engine: Engine, module: nn.Module) -> nn.Module:
    """A copy of `module` for `average_`. Raises ValueError under ZeRO-3, where no process holds whole weights."""
    if engine.zero_stage == 3:
        raise ValueError("averaged weights (ema) need whole weights, ZeRO-3 holds slices: use ZeRO-2 or DDP, or ema: 0")
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def average_(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * module; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
    for kept, buffer in zip(ema.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
