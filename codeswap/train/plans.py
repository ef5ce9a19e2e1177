"""From what a sample costs to what a training costs on so many GPUs."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Of one sample (an image or a pair) of a stage, on average over its training."""

    stage: str
    samples: int
    batch: int  # over all processes
    trained: int  # parameters that are updated ...
    frozen: int  # ... and that are only run
    flops: float  # forward and backward, a multiply-add counts 2
    activations: int  # bytes that wait for the backward pass (fp32)


class Cluster(NamedTuple):
    """What a training would run on; the defaults are one guess of an A100 machine, to be replaced by your own."""

    peak: float = 312e12  # FLOP/s of one GPU (A100, bf16)
    used: float = 0.35  # share of it that the networks reach
    link: float = 100e9  # bytes/s between GPUs, each way
    price: float = 2.0  # money per GPU and hour


class Plan(NamedTuple):
    """A stage on so many GPUs."""

    images_per_second: float
    days: float
    money: float
    ddp_bytes: float  # sent by each GPU in a step
    zero3_bytes: float
    ddp_memory: float  # bytes of one GPU: weights, gradients, Adam's moments, activations
    zero2_memory: float
    zero3_memory: float


def plan(cost: Cost, gpus: int, cluster: Cluster) -> Plan | None:
    """The figures of a stage on `gpus` GPUs; None when the batch cannot be shared out. Communication that computing
    does not hide is waited for."""
    if cost.batch % gpus:
        return None
    ring, parameters = (gpus - 1) / gpus, 4 * cost.trained
    ddp, zero3 = 2 * ring * parameters, 3 * ring * parameters
    seconds = max(cost.batch / gpus * cost.flops / (cluster.peak * cluster.used), ddp / cluster.link)
    speed = cost.batch / seconds
    hours = cost.samples / speed / 3600
    fixed = 4 * cost.frozen + cost.activations * cost.batch / gpus
    return Plan(
        speed, hours / 24, hours * gpus * cluster.price, ddp, zero3,
        fixed + 4 * parameters, fixed + (1 + 3 / gpus) * parameters, fixed + 4 * parameters / gpus,
    )  # fmt: skip
