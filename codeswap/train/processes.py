"""What the processes of a training owe their launcher: to be as many as were asked for, and to end with it."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

import psutil
import torch

STOPPED = 75  # EX_TEMPFAIL: "stopped on request, run the same command again"


class Stopped(SystemExit):
    """A signal asked to stop; the state is on disk and the same command resumes. Exit code 75."""


class LaunchError(ValueError):
    """The processes that run are not those that the launcher was asked for."""


def check_launch(environment: Mapping[str, str]) -> None:
    """`accelerate launch --cpu --num_processes 2` sets a meeting point and then silently starts one process."""
    if "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "the launcher was asked for several processes but started one: accelerate does this with --cpu or a "
            "MULTI_CPU file. Use `accelerate launch --config_file configs/accelerate/cpu2.yaml` or torchrun"
        )


def end_with_launcher(environment: Mapping[str, str]) -> None:
    """A launcher killed with SIGKILL would leave its processes training, and the same command could not resume.

    Raises LaunchError when it has gone already, while this process was still importing.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in environment:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        parent = psutil.Process().parent()
        if parent is None or not any("accelerate" in word or "torch" in word for word in parent.cmdline()):
            raise LaunchError("the launcher of this process has ended: start it again")


def use_cuda(device: str) -> bool:
    """Whether each process of this machine gets a GPU. Raises LaunchError when it is to and there are too few."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and torch.cuda.device_count() < local:
        raise LaunchError(f"{local} processes on this machine but {torch.cuda.device_count()} CUDA devices")
    return device != "cpu" and torch.cuda.device_count() >= local and torch.cuda.is_available()
