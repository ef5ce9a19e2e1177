"""Ray as a launcher: the same stage, on the workers of a Ray cluster (the only ray import of the trainings).

    python -m codeswap.train.launch --workers 2 pipeline.train_swap --variant ours

takes the place of `accelerate launch`: every worker runs the stage as one process of the same training. A worker that
dies is replaced, and the training resumes from its own run folder, which all workers must see (a shared file system
when there are several machines).
"""

import argparse
import os
import runpy
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

OBJECT_STORE = 200_000_000  # bytes: workers exchange nothing through Ray, and its default takes a third of the memory


class StageFailedError(RuntimeError):
    """A stage ended with another exit code than 0 on a worker; its message is in the worker's output."""


def _run_stage(stage: dict[str, object]) -> None:
    """On a worker: what `python -m <module> <arguments>` does in the project's root."""
    os.chdir(stage["root"])
    sys.path.insert(0, stage["root"])
    sys.argv = [stage["module"], *stage["arguments"]]
    try:
        runpy.run_module(stage["module"], run_name="__main__", alter_sys=False)
    except SystemExit as end:  # in a worker's thread it would end nothing, and look like success
        if end.code not in (None, 0):
            raise StageFailedError(f"{stage['module']} ended with exit code {end.code}") from None


def launch(module: str, arguments: list[str], *, workers: int, gpu: bool, failures: int, storage: str) -> None:
    """Runs `module` with `arguments` on `workers` Ray workers, restarting all of them up to `failures` times.

    Joins the cluster named by RAY_ADDRESS, or starts one on this machine. Raises what the last attempt raised.
    """
    root = str(Path.cwd())
    storage = storage if "://" in storage else str(Path(storage).absolute())
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}}
    if "RAY_ADDRESS" in os.environ:
        ray.init(runtime_env=environment)
    else:
        ray.init(  # local: else Ray would join whatever cluster was last started on this machine
            "local",
            runtime_env=environment,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            num_cpus=workers + 1,
        )
    try:
        TorchTrainer(
            _run_stage,
            train_loop_config={"module": module, "arguments": arguments, "root": root},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(
                name=module, storage_path=storage, failure_config=FailureConfig(max_failures=failures)
            ),
        ).fit()
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a training stage on Ray workers.")
    parser.add_argument("--workers", type=int, required=True, help="processes of the training")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--failures", type=int, default=3, help="restarts after a worker has died")
    parser.add_argument("--storage", default="runs/ray", help="Ray's own bookkeeping: a folder, or an s3:// address")
    parser.add_argument("module", help="a stage, e.g. pipeline.train_swap")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the stage's own arguments")
    options = parser.parse_args()
    launch(
        options.module,
        options.arguments,
        workers=options.workers,
        gpu=options.gpu,
        failures=options.failures,
        storage=options.storage,
    )


if __name__ == "__main__":
    main()
