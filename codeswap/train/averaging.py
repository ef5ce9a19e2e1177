"""Weights averaged exponentially while a training goes on: often better than any that it passes through."""

import copy

import torch
from torch import nn

from codeswap.train.engine import Engine
from codeswap.train.state import TrainState


def check_averages(engine: Engine, key: str, decay: float) -> None:
    """Raises ValueError where weights cannot be averaged. `key`: what asks for it in params.yaml."""
    if decay and engine.zero_stage == 3:
        raise ValueError(
            f"{key} averages whole weights, which ZeRO-3 has cut into pieces: use ZeRO-2 or DDP, or {key}: 0 "
            "(configs/accelerate/deepspeed_zero2.yaml)"
        )


def given_out(state: TrainState, module: nn.Module, decay: float) -> nn.Module:
    """What becomes the out: `module`, or with a decay its average, which joins `state` and so is resumed."""
    if not decay:
        return module
    average = state.modules["ema"] = copy.deepcopy(module).requires_grad_(False)
    return average


@torch.no_grad()
def average_(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * module; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)
    for kept, buffer in zip(ema.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
