"""What a process measures between two log lines: how fast it is, what it waits for, and where numbers went bad."""

import resource
import sys
import time
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from codeswap.train.cost import convolution_rate

NEVER = 2**62
# FLOP/s in bf16 and TF32, dense, from the makers' data sheets
GPUS = {
    "H100": (989e12, 494e12), "H200": (989e12, 494e12), "A100": (312e12, 156e12), "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12), "A10": (125e12, 62e12), "RTX 4090": (165e12, 83e12), "RTX 3090": (71e12, 36e12),
}  # fmt: skip
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage counts differently


class Meter:
    """Speed and memory of one process since the last `lap`.

    `bad_at` (on the device, so that no step waits for it) is the position after the first batch with a term that was
    not finite, NEVER without one.
    """

    def __init__(self, device: torch.device, world: int, bf16: bool) -> None:
        self._device, self._world, self._bf16 = device, world, bf16
        self._began = time.monotonic()
        self._waited, self._steps, self._samples = 0.0, 0, 0
        self.bad_at = torch.tensor(NEVER, device=device)
        self.speeds: list[float] = []  # images per second of every lap
        self.flops = 0.0  # of one sample, forward and backward

    def wait(self, seconds: float) -> None:
        """Adds time in which the next batch was not there."""
        self._waited += seconds

    def step(self, position: int, samples: int, complete: bool, terms: Mapping[str, Tensor]) -> None:
        """Adds a (part of a) step that ended at `position` and had these terms."""
        self._samples += samples
        self._steps += complete
        finite = torch.stack([term.detach().float() for term in terms.values()]).isfinite().all()
        self.bad_at = torch.where(finite, self.bad_at, self.bad_at.clamp(max=position))

    @cached_property
    def _peak(self) -> float:
        """FLOP/s of one process' processor: as its maker states, or as a large convolution reaches here."""
        if self._device.type == "cuda":
            name = torch.cuda.get_device_name(self._device)
            for known, (bf16, tf32) in GPUS.items():
                if known in name:
                    return bf16 if self._bf16 else tf32
        return convolution_rate(self._device)

    def lap(self) -> dict[str, float]:
        """`speed/...` since the last lap, and a new lap: images and step time, waiting, the peak of memory."""
        now = time.monotonic()
        elapsed = max(now - self._began, 1e-9)
        found = {
            "speed/images_per_second": self._samples / elapsed,
            "speed/step_seconds": elapsed / max(self._steps, 1),
            "speed/data_wait_share": self._waited / elapsed,
            "speed/peak_memory_gb": peak_memory(self._device) / 1e9,
        }
        if self.flops:
            rate = self.flops * found["speed/images_per_second"] / self._world
            found |= {"speed/model_tflops": rate / 1e12, "speed/mfu": rate / self._peak}  # of each process
        self.speeds.append(found["speed/images_per_second"])
        self._began, self._waited, self._steps, self._samples = now, 0.0, 0, 0
        return found


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the whole process took, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
