"""`accelerate launch` that can be told to stop, and says so: for batch systems that preempt.

    python -m codeswap.train.accelerate_launch --config_file FILE -m pipeline.train_swap --variant ours

takes the arguments of `accelerate launch`. SIGTERM and SIGUSR1 (scancel, a spot machine's notice) are passed on to the
training processes, which write a checkpoint; it then ends with exit code 75, "run the same command again". Accelerate
itself dies of SIGUSR1, gives its processes 30 seconds after SIGTERM, and ends with 1 whatever they answered.
"""

import os
import signal
import subprocess
import sys
from types import FrameType

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from codeswap.train.processes import STOPPED

_ENDED_BY_LAUNCHER = -signal.SIGTERM  # what a process answers that was ended because another one had stopped first


def exit_code(answers: set[int]) -> int:
    """The launcher's exit code for those of its processes: 75 when they stopped on request, otherwise 1."""
    return STOPPED if STOPPED in answers and answers <= {STOPPED, _ENDED_BY_LAUNCHER} else 1


def main(arguments: list[str] | None = None) -> None:
    """Runs `accelerate launch`. Ends by SystemExit with 75 after a requested stop, 1 after a failure."""
    options = launch_command_parser().parse_args(arguments)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            if options.training_script in child.cmdline():
                child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the processes by itself
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # torchrun would end its processes at once
    try:
        launch_command(options)
    except ChildFailedError as failed:
        raise SystemExit(exit_code({failure.exitcode for failure in failed.failures.values()})) from None
    except subprocess.CalledProcessError as failed:
        raise SystemExit(exit_code({failed.returncode})) from None


if __name__ == "__main__":
    sys.exit(main())
