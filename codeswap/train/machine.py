"""The parameters of the machine that trains."""

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt

from codeswap.types import Config

FAST_BF16 = ("amx_bf16", "avx512_bf16")  # of torch.cpu.get_capabilities(): the instructions that multiply in bf16


class EngineConfig(Config):
    """How a training uses the machine. How many processes there are is the launcher's business (configs/accelerate)."""

    machine: ClassVar[frozenset[str]] = frozenset(  # all but precision: other numbers then differ by rounding alone
        {"device", "accumulation", "threads", "readers", "prefetch", "channels_last", "compile", "fused_optimizer"}
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # bf16 is autocast; 10-20 times slower than fp32 on a CPU without such instructions. auto: bf16 where it is fast
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    accumulation: PositiveInt = 1  # a global batch is computed in this many parts
    threads: PositiveInt = 1  # CPU threads of one process; two contending threads can be slower than one
    readers: PositiveInt = 2  # threads that decode images ahead
    prefetch: PositiveInt = 4  # batches read ahead
    channels_last: bool = False
    compile: bool = False  # torch.compile of the trained networks
    fused_optimizer: bool = False

    def in_bf16(self, device: torch.device) -> bool:
        """Whether a training on `device` multiplies in bf16."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        known = torch.cpu.get_capabilities()
        return any(known.get(name, False) for name in FAST_BF16)
