"""A step never waits for the device: what reads a tensor's value happens at log lines, validations and checkpoints."""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from codeswap.train.codebook import CodebookParams, train_codebook
from codeswap.train.engine import Engine
from codeswap.train.mask import MaskParams, train_mask
from codeswap.train.swap import SwapParams, train_swap

pytestmark = pytest.mark.usefixtures("no_mlflow")
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


class Waits(TorchDispatchMode):
    """Counts the operations for whose answer a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.overloadpacket.__name__
        if any(name.startswith(wait) for wait in WAITS):
            self.seen[name] += 1
        return function(*arguments, **(named or {}))


TRAIN = {
    "codebook": train_codebook,
    "swap": lambda params, root, name: train_swap(params, "ours", root, name),
    "mask": lambda params, root, name: train_mask(params, "ours", root, name),
}
KINDS = {"codebook": CodebookParams, "swap": SwapParams, "mask": MaskParams}
EXTRA = {
    "codebook": {"warm_up": 0},
    "swap": {"truth": {"of": "dressed"}, "forehead": "target"},
    "mask": {"supervised": 0, "forehead": "target"},
}


@pytest.mark.parametrize("stage", KINDS)
def test_twice_as_many_steps_wait_no_more_often(tiny, copy, monkeypatch, stage) -> None:
    root = copy("codebook", "swap", "mask") if stage == "codebook" else copy(stage)
    monkeypatch.setattr(Engine, "stopping", lambda *_: False)  # asks at every step on a CPU, at every 16th on a GPU
    at_the_end = {"log_every": 1000, "validate_every": 1000, "checkpoint_every": 1000, "batch": 8}
    groups = {"engine": {"fused_optimizer": True}}  # Adam's other forms read their step counters, which lie on the CPU
    if stage == "codebook":  # which samples are soft, and which codes are dead, is asked for (off-paper)
        groups["quantizer"] = {"soft_share": 0.0, "continuous_share": 0.0, "restart_below": 0.0}
    counts = []
    for steps in (3, 6):
        training = {stage: at_the_end | EXTRA[stage] | {"samples": 8 * steps}}
        params = tiny.params(KINDS[stage], **training, **groups)
        with Waits() as waits:
            TRAIN[stage](params, root, f"steps{steps}")
        counts.append(waits.seen)
    assert counts[0] == counts[1] and counts[0]["_local_scalar_dense"] > 0
