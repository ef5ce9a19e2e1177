"""The parameters of the machine that trains."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from codeswap.types import Config


class EngineConfig(Config):
    """How a training uses the machine. How many processes there are is the launcher's business (configs/accelerate)."""

    machine: ClassVar[frozenset[str]] = frozenset(  # all but precision: other numbers then differ by rounding alone
        {"device", "accumulation", "threads", "readers", "prefetch", "channels_last", "compile", "fused_optimizer"}
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 autocast; 10-20 times slower than fp32 on a CPU without AMX
    accumulation: PositiveInt = 1  # a global batch is computed in this many parts
    threads: PositiveInt = 1  # CPU threads of one process; two contending threads can be slower than one
    readers: PositiveInt = 2  # threads that decode images ahead
    prefetch: PositiveInt = 4  # batches read ahead
    channels_last: bool = False
    compile: bool = False  # torch.compile of the trained networks
    fused_optimizer: bool = False
