"""How long a training is, what it does now and then, and its learning rate: all functions of the samples seen."""

import math
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch.optim import Optimizer

from codeswap.train.outs import Select
from codeswap.types import Config


class TrainingConfig(Config):
    """What every training has: its length and what it does now and then, all counted in samples of all processes."""

    samples: PositiveInt
    batch: PositiveInt  # over all processes
    log_every: PositiveInt = 3_200
    validate_every: PositiveInt = 32_000
    checkpoint_every: PositiveInt = 32_000
    keep: PositiveInt = 2  # newest checkpoints
    keep_every: PositiveInt | None = None  # samples; the first checkpoint after each multiple stays for good
    validation: PositiveInt = 64  # faces that validation looks at, of those held out (`datasets.<name>.validation`)
    pictures: PositiveInt = 8  # of these, in a picture grid
    select: Select | None = None  # the best weights of a validation become the out, instead of the last
    skip_nonfinite: NonNegativeInt = 0  # so many steps without a finite gradient are passed over; the next one ends it
    lr: PositiveFloat = 1e-4
    schedule: Literal["constant", "onecycle"] = "constant"
    rise: float = Field(0.1, ge=0, lt=1)  # onecycle: share of the samples in which lr rises
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.0  # above 0 it is AdamW
    clip: PositiveFloat | None = None  # largest norm of the gradient
    ema: float = Field(0.0, ge=0, lt=1)  # off-paper: decay of averaged weights; then these are the out

    def lr_at(self, position: int) -> float:
        """The learning rate of the step that begins at `position`: a function of the samples seen, so it resumes.

        onecycle: cosine from lr/25 to lr, then cosine to lr/250,000 (torch's OneCycleLR).
        """
        if self.schedule == "constant":
            return self.lr
        share = position / self.samples
        if share < self.rise:
            return _cosine(self.lr / 25, self.lr, share / self.rise)
        return _cosine(self.lr, self.lr / 250_000, (share - self.rise) / (1 - self.rise))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
