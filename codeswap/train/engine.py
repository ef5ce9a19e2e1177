"""The only door to accelerate and torch.distributed: the loops see `prepare`, `begin`, `step` and `mean`."""

import atexit
import contextlib
import copy
import hashlib
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from types import FrameType
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim import Optimizer

from codeswap.train.machine import EngineConfig
from codeswap.train.muon import MuonWithAdamW
from codeswap.train.processes import LaunchError, check_launch, end_with_launcher, use_cuda
from codeswap.train.zero import ZeroModule

Batch = TypeVar("Batch", bound=NamedTuple)
_DDP = nn.parallel.DistributedDataParallel
_SYNC_BUFFERS = (  # torch 2.14 gave the argument a new name and warns at the old one
    "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(_DDP).parameters else "broadcast_buffers"
)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Engine:
    """One process of a training: device, precision, gradients of the global batch, agreement between processes.

    Raises LaunchError when the world is not what was asked for, ValueError when the batch cannot be shared out.
    """

    def __init__(self, config: EngineConfig, seed: int, batch: int) -> None:
        check_launch(os.environ)
        end_with_launcher(os.environ)
        torch.set_num_threads(config.threads)
        cuda = use_cuda(config.device)
        deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
        together = [InitProcessGroupKwargs(backend="nccl" if cuda else "gloo")] if "WORLD_SIZE" in os.environ else []
        # cpu=True would switch DeepSpeed off; without a named backend DeepSpeed's CPU ranks each believe to be alone
        self._accelerator = Accelerator(cpu=not cuda and not deepspeed, kwargs_handlers=together)
        self.config, self.seed, self.batch = config, seed, batch
        self.rank, self.world = self._accelerator.process_index, self._accelerator.num_processes
        self.device, self.main = self._accelerator.device, self._accelerator.is_main_process
        self.bf16 = config.in_bf16(self.device)
        self.deepspeed = self._accelerator.distributed_type == DistributedType.DEEPSPEED
        self.zero_stage = self._accelerator.state.deepspeed_plugin.zero_stage if self.deepspeed else 0
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if asked != self.world:
            raise LaunchError(f"WORLD_SIZE={asked} but {self.world} process(es) joined: check the launcher's file")
        if batch % (self.world * config.accumulation):
            raise ValueError(
                f"batch {batch} cannot be shared by {self.world} processes x {config.accumulation} accumulation steps: "
                "make it a multiple of their product"
            )
        self.micro_batch = batch // config.accumulation  # over all processes
        atexit.register(self._accelerator.end_training)
        self._part, self._prepared, self._signal = -1, list[nn.Module](), 0
        self._clip: dict[nn.Module, float | None] = {}  # largest norm of the gradient, by what `prepare` returned
        self._zero: dict[nn.Module | Optimizer, ZeroModule] = {}  # by plain module and by plain optimizer
        # Ray runs trainings in a thread, which receives no signals; it restarts them itself
        numbers = _STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}

    def place(self, module: nn.Module) -> nn.Module:
        """`module` on this process' device and in its memory format, otherwise as it was."""
        module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.config.channels_last else module

    def frozen(self, module: nn.Module) -> nn.Module:
        """`module` placed, in evaluation mode and without gradients of its own."""
        return self.place(module).eval().requires_grad_(False)

    def adam(self, module: nn.Module, lr: float, betas: tuple[float, float], decay: float = 0.0) -> Optimizer:
        """Adam over what `module` trains; with a weight decay it is AdamW."""
        kind = torch.optim.AdamW if decay else torch.optim.Adam
        trained = [p for p in module.parameters() if p.requires_grad]
        return kind(trained, lr=lr, betas=betas, weight_decay=decay, fused=self.config.fused_optimizer)

    def muon(
        self, module: nn.Module, hidden: nn.Module, lr: float, betas: tuple[float, float], decay: float = 0.0
    ) -> Optimizer:
        """Muon over the linear maps inside `hidden`, a part of `module`, and AdamW over the rest of `module`.

        Raises ValueError under DeepSpeed, whose optimizers see flat slices where Muon needs whole matrices.
        """
        if self.deepspeed:
            raise ValueError("optimizer: muon needs whole matrices on every process: use DDP, or adam with DeepSpeed")
        matrices = {part.weight for part in hidden.modules() if isinstance(part, nn.Linear)}
        ordered = [p for p in module.parameters() if p.requires_grad]
        return MuonWithAdamW(
            [p for p in ordered if p in matrices], [p for p in ordered if p not in matrices], lr, betas, decay
        )

    def prepare(
        self, module: nn.Module, optimizer: Optimizer, clip: float | None = None, partly_used: bool = False
    ) -> tuple[nn.Module, Optimizer]:
        """The module to call in a training step (gradients then are means over the global batch) and its optimizer.

        Several processes: DistributedDataParallel around `module`, or a DeepSpeed engine when launched with one.
        `clip`: largest norm of the gradient. `partly_used`: some steps leave parameters without gradient.
        """
        if self.config.compile and self._compiles:
            module.compile()
        if self.deepspeed:
            zero = ZeroModule(module, optimizer, self._zero_config(clip), self.rank, self.world)
            self._zero[module] = self._zero[optimizer] = zero
            module, optimizer = zero.call, zero.optimizer
        elif self.world > 1:
            module = _DDP(
                module,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                find_unused_parameters=partly_used,
                gradient_as_bucket_view=True,
                # Code statistics are reduced by name, BatchNorm is per process as in taming, and a network may run
                # twice before its backward pass, where copying buffers in between is an error.
                **{_SYNC_BUFFERS: False},
            )
            self._prepared.append(module)
        self._clip[module] = clip
        return module, optimizer

    @cached_property
    def _compiles(self) -> bool:
        """Whether torch.compile works here (it needs a C++ compiler, or Triton); says why not."""
        try:
            torch.compile(torch.nn.functional.silu)(torch.zeros(2, device=self.device))
        except (RuntimeError, ImportError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            if self.main:
                print(f"torch.compile does not work here, training goes on without it: {reason}", flush=True)
            return False
        return True

    def _zero_config(self, clip: float | None) -> dict[str, object]:
        """The launcher's DeepSpeed file, with what the parameters say filled in."""
        config = copy.deepcopy(self._accelerator.state.deepspeed_plugin.deepspeed_config)
        config["train_micro_batch_size_per_gpu"] = self.micro_batch // self.world
        config["gradient_accumulation_steps"] = self.config.accumulation
        config["gradient_clipping"] = clip or 0.0
        if self.bf16:  # DeepSpeed switches off an autocast that it does not know of
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return config

    def module_state(self, module: nn.Module) -> dict[str, Tensor]:
        """`module.state_dict()` of whole tensors, copied to the CPU, however it is trained. Collective."""
        if module in self._zero:
            return self._zero[module].module_state()
        return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, object]:
        """`optimizer.state_dict()` of whole tensors, however it is trained. Collective."""
        return self._zero[optimizer].optimizer_state() if optimizer in self._zero else optimizer.state_dict()

    def begin(self, batch: Batch) -> Batch:
        """Moves a batch to the device and opens its (part of a) step."""
        self._part = (self._part + 1) % self.config.accumulation
        for module in self._prepared:
            module.require_backward_grad_sync = self.complete
        return type(batch)(*(None if item is None else self.to_device(item) for item in batch))

    def to_device(self, item: Tensor) -> Tensor:
        item = item.to(self.device, non_blocking=True)
        if item.ndim != 4:
            return item
        return item.contiguous(
            memory_format=torch.channels_last if self.config.channels_last else torch.contiguous_format
        )

    @property
    def complete(self) -> bool:
        """Whether the current part is the last of its global batch."""
        return self._part == self.config.accumulation - 1

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def step(self, loss: Tensor, module: nn.Module, optimizer: Optimizer, guard: bool = False) -> bool:
        """Adds the gradient of `loss` (a mean over this part) and, when the batch is complete, updates `module`.

        `module` and `optimizer` are what `prepare` returned. With `guard` a gradient that is not finite updates
        nothing, and the answer, the same on all processes, is False; that waits for the device.
        """
        if self.deepspeed:
            if guard:
                raise ValueError("skip_nonfinite: DeepSpeed updates without asking; set it to 0, or use DDP")
            module.backward(loss)
            module.step()
            return True
        (loss / self.config.accumulation).backward()
        if not self.complete:
            return True
        finite = True
        if guard:  # gradients are means over the processes: all of them see the same
            norms = torch._foreach_norm([p.grad for p in module.parameters() if p.grad is not None])
            finite = bool(torch.stack(norms).isfinite().all())
        if finite:
            if self._clip[module] is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), self._clip[module])
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return finite

    def seed_for(self, step: int, purpose: str, apart: bool = False) -> int:
        """A seed for `purpose` at `step`; `apart`: another one on each process."""
        key = f"{self.seed}/{step}/{self._part}/{purpose}/{self.rank if apart else ''}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")

    def generator(self, step: int, purpose: str) -> torch.Generator:
        """A CPU generator for `purpose` at `step`. Draw for the whole (micro) batch and take `rows`."""
        return torch.Generator().manual_seed(self.seed_for(step, purpose))

    @contextlib.contextmanager
    def initialising(self, purpose: str) -> Iterator[None]:
        """Within, networks start from the seed and `purpose` alone; the process' own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:7], "little"))
            yield

    def rows(self, whole: Tensor) -> Tensor:
        """This process' share of a tensor with one row per sample of the (micro) batch over all processes."""
        return whole[self.rank :: self.world].to(self.device)  # as data/loader.py cuts a batch

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, on all of them."""
        if self.world > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes, on all of them."""
        return self.sum(tensor) / self.world

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all processes, one process after the other, on all of them."""
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def on_main(self, work: Callable[[], str | None]) -> str | None:
        """Runs `work` on the main process while the others wait; all get its text, or raise its ValueError."""
        answer: list[tuple[str | None, str | None]] = [(None, None)]
        if self.main:
            try:
                answer = [(work(), None)]
            except ValueError as error:
                answer = [(None, str(error))]
        if self.world > 1:
            dist.broadcast_object_list(answer, src=0)
        text, problem = answer[0]
        if problem is not None:
            raise ValueError(problem)
        return text

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:  # the second Ctrl-C means now
            raise KeyboardInterrupt
        self._signal = number

    def stopping(self, step: int) -> bool:
        """Whether any process was asked to stop (SIGTERM, SIGINT, SIGUSR1); the same answer on all of them.

        On GPUs only every 16th step asks, because the answer waits for the device.
        """
        if not self.complete or (self.device.type == "cuda" and step % 16):
            return False
        return bool(self.sum(torch.tensor(self._signal, device=self.device)).item())

    def close(self) -> None:
        """Gives signals back and waits for the other processes, so that none is ended while another still writes."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def held(module: nn.Module) -> Iterator[nn.Module]:
    """Within, gradients flow through `module` but not into it (a discriminator judging the generator)."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
