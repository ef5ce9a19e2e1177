"""What a process measures between two log lines: how fast it is, what it waits for, and where numbers went bad."""

import resource
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor

NEVER = 2**62
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage counts differently


class Meter:
    """Speed and memory of one process since the last `lap`.

    `bad_at` (on the device, so that no step waits for it) is the position after the first batch with a term that was
    not finite, NEVER without one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.monotonic()
        self._waited, self._steps, self._samples = 0.0, 0, 0
        self.bad_at = torch.tensor(NEVER, device=device)
        self.speeds: list[float] = []  # images per second of every lap

    def wait(self, seconds: float) -> None:
        """Adds time in which the next batch was not there."""
        self._waited += seconds

    def step(self, position: int, samples: int, complete: bool, terms: Mapping[str, Tensor]) -> None:
        """Adds a (part of a) step that ended at `position` and had these terms."""
        self._samples += samples
        self._steps += complete
        finite = torch.stack([term.detach().float() for term in terms.values()]).isfinite().all()
        self.bad_at = torch.where(finite, self.bad_at, self.bad_at.clamp(max=position))

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
        self.speeds.append(found["speed/images_per_second"])
        self._began, self._waited, self._steps, self._samples = now, 0.0, 0, 0
        return found


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the whole process took, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
