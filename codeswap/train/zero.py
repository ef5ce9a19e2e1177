"""The only door to deepspeed: ZeRO's sharded parameters and optimizer states as whole plain tensors, and back.

Checkpoints hold whole tensors whatever trained them, so a run begun under DDP goes on under any ZeRO stage, and the
other way round, on another number of processes too.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam and AdamW
State = dict[str, object]


class ZeroModule:
    """`module` trained by a DeepSpeed engine with `optimizer` (Adam or AdamW) under the given configuration.

    What the plain optimizer already knows (a resumed run) goes on. `call` is the module to call in a training step.
    All methods are collective: every process calls them. Raises ValueError for another optimizer.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, config: Mapping[str, object], rank: int, world: int
    ) -> None:
        import deepspeed  # imported here: it takes seconds, and DDP needs none of it

        if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one too
            raise ValueError(f"{type(optimizer).__name__} is not trained under DeepSpeed: use adam, or DDP")
        self._module, self._inner, self._rank, self._world = module, optimizer, rank, world
        whole = copy.deepcopy(optimizer.state_dict())
        self._groups = whole["param_groups"]
        self._ordered = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in self._ordered:
            optimizer.state.pop(parameter, None)  # DeepSpeed would leave it there, a second copy of the moments
        self.call, self.optimizer, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=dict(config))
        self.stage = self.call.zero_optimization_stage()
        if whole["state"] and self.stage == 0:
            optimizer.load_state_dict(whole)
        elif whole["state"]:
            self._restore(whole["state"])

    def module_state(self) -> dict[str, Tensor]:
        """What `module.state_dict()` would be without sharding, on the CPU."""
        from deepspeed.runtime.zero import GatheredParameters

        state = {}
        for name, value in self._module.state_dict(keep_vars=True).items():
            with GatheredParameters([value], enabled=hasattr(value, "ds_id")):
                state[name] = value.detach().to("cpu", copy=True)
        return state

    def optimizer_state(self) -> State:
        """What `optimizer.state_dict()` would be without sharding, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.stage == 0:
            return self._inner.state_dict()
        entries, first = {}, self._inner.state.get(self._flat[0])
        if first:  # nothing before the first step
            for index, parameter in enumerate(self._ordered):
                moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
                entries[index] = {"step": first["step"].clone()} | {
                    name: value.reshape(self._shape(parameter)).cpu() for name, value in moments.items()
                }
        return {"state": entries, "param_groups": self._groups}

    @property
    def _flat(self) -> list[Tensor]:
        """This process' slices of all parameters, which the inner optimizer updates."""
        return (
            self.optimizer.fp32_partitioned_groups_flat
            if self.stage == 3
            else self.optimizer.single_partition_of_fp32_groups
        )

    @staticmethod
    def _shape(parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def _restore(self, entries: Mapping[int, Mapping[str, Tensor]]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        step = next(iter(entries.values()))["step"]
        for flat in self._flat:
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            self._inner.state[flat] = {"step": torch.as_tensor(step).clone()} | moments
        if self.stage < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()  # else the setters find nothing to set
        for index, parameter in enumerate(self._ordered):
            for name in MOMENTS:
                value = entries[index][name].to(self._flat[0].device).flatten()
                if self.stage < 3:
                    safe_set_full_optimizer_state(parameter, value.view(parameter.shape), name)
                else:  # safe_set_full... reads beyond the end where the last slice is padded
                    size = parameter.ds_tensor.ds_numel
                    padded = value.new_zeros(size * self._world)
                    padded[: len(value)] = value
                    safe_set_local_optimizer_state(parameter, padded[self._rank * size :][:size], name)
