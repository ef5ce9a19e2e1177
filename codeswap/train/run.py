"""A run folder: its lock, resuming, log lines, checkpoints, and the out that is written whole at the end."""

import dataclasses
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn
from tqdm import tqdm

from codeswap.data.loader import batches
from codeswap.data.pictures import save_png
from codeswap.models.store import CARD, save_model
from codeswap.train.engine import STOPPED, Engine
from codeswap.train.schedule import TrainingConfig
from codeswap.train.state import TrainState, load_state, newest_intact, save_state
from codeswap.train.tracking import Curve, Tracker, git_commit
from codeswap.types import Config

T = TypeVar("T")
_SPEAK_SECONDS = 20.0  # between console lines when there is no terminal


class RunLockedError(ValueError):
    """Another living process works in this run folder."""


class Stopped(SystemExit):
    """A signal asked to stop; the state is on disk and the same command resumes. Exit code 75."""


def lock_folder(folder: Path) -> int:
    """Takes the folder for this process until it ends, however it ends (a dead owner's lock is free by itself).

    Returns the descriptor that holds the lock. Raises RunLockedError naming the owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise RunLockedError(
            f"{folder} is in use by {owner}: the same training runs already. Wait for it, or stop it and start again"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


class Run:
    """One execution of a training stage, `name` = (stage, variant, fingerprint), used as a context.

    Leaving it by an exception marks the MLflow run as failed, by a signal as killed.

    `parents` names the cards of the models and networks that this one is made from. Raises RunLockedError.
    """

    def __init__(
        self,
        root: Path,
        name: tuple[str, str | None, str],
        *,
        engine: Engine,
        training: TrainingConfig,
        params: Config,
        parents: Mapping[str, Path],
    ) -> None:
        stage, variant, fingerprint = name
        self.engine, self.training, self.fingerprint = engine, training, fingerprint
        self.name = stage if variant is None else f"{stage}-{variant}"
        self.folder = root / "runs" / stage / (variant or "-") / fingerprint
        self.pictures = self.folder / "pictures"
        self._lock: int | None = None
        engine.on_main(self._take)
        self.curve = Curve(self.folder / "curve.jsonl")
        self.parents = {name: json.loads(path.read_text()) for name, path in parents.items()}
        self._tracker: Tracker | None = None
        if engine.main:
            lineage = {name: card.get("run_id") or card.get("fingerprint") for name, card in self.parents.items()}
            tags = {
                "stage": stage,
                "variant": variant or "-",
                "fingerprint": fingerprint,
                "git_commit": git_commit(),
                "parents": json.dumps(lineage),
                "processes": str(engine.world),
            }
            self._tracker = Tracker(self.name, params.model_dump(mode="json"), tags, self.folder / "mlflow_run_id")
        self._bar: tqdm | None = None
        self._alarmed: set[str] = set()
        self._began = self._spoke = time.monotonic()
        self._waited, self._steps, self._samples = 0.0, 0, 0

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._tracker is not None:
            self._tracker.close("FINISHED" if kind is None else "KILLED" if kind is Stopped else "FAILED")
        if self._lock is not None:
            os.close(self._lock)
        if kind is None or kind is Stopped:
            self.engine.close()

    def _take(self) -> None:
        self._lock = lock_folder(self.folder)

    def resume(self, state: TrainState) -> None:
        """Goes on from the newest intact checkpoint of this run, if there is one."""
        found = self.engine.on_main(lambda: str(newest_intact(self.folder, self.fingerprint) or ""))
        if found:
            load_state(state, Path(found))
            state.sums = {name: self._own(rows).to(self.engine.device) for name, rows in state.sums.items()}
        if self.engine.main:
            self.curve.cut(state.position)
            if found:
                print(f"{self.name}: resuming at sample {state.position:,} of {self.training.samples:,}", flush=True)
            if sys.stderr.isatty():
                self._bar = tqdm(
                    total=self.training.samples, initial=state.position, desc=self.name, unit="img", unit_scale=True
                )

    def _own(self, rows: Tensor) -> Tensor:
        """This process' sums of a checkpoint; of another number of processes: equal shares of all of them."""
        return rows[self.engine.rank] if len(rows) == self.engine.world else rows.sum(0) / self.engine.world

    def batches(self, state: TrainState, feed: Callable[[np.ndarray], T]) -> Iterator[tuple[int, T]]:
        """This process' batches from `state.position` on, each with the position after it, read ahead by threads."""
        engine = self.engine
        return batches(
            feed, state.position, engine.micro_batch, engine.rank, engine.world, engine.config.prefetch,
            engine.config.readers,
        )  # fmt: skip

    def next(self, batches: Iterator[tuple[int, T]]) -> tuple[int, T]:
        """The next batch; the time spent waiting for it is measured."""
        before = time.monotonic()
        position, batch = next(batches)
        self._waited += time.monotonic() - before
        return position, self.engine.begin(batch)

    def due(self, state: TrainState, every: int) -> bool:
        """Whether the step that ended at `state.position` crossed a multiple of `every`, or was the last."""
        before = state.position - self.training.batch
        crossed = state.position // every > before // every or state.position >= self.training.samples
        return self.engine.complete and crossed

    def add(self, state: TrainState, terms: Mapping[str, Tensor]) -> None:
        """Adds this step's terms to the sums of the current log interval, without waiting for the device."""
        for name, term in terms.items():
            value = torch.stack([term.detach().float(), torch.ones((), device=self.engine.device)])
            state.sums[name] = state.sums[name] + value if name in state.sums else value
        self._steps += self.engine.complete
        self._samples += self.engine.micro_batch
        if self._bar is not None:
            self._bar.update(self.engine.micro_batch)

    def means(self, state: TrainState) -> dict[str, float]:
        """The interval's means over the global batches.

        Raises FloatingPointError naming every term that is not finite.
        """
        if not state.sums:
            return {}
        table = self.engine.sum(torch.stack(list(state.sums.values()))).tolist()
        means = {name: total / count for name, (total, count) in zip(state.sums, table, strict=True)}
        wrong = [name for name, value in means.items() if not abs(value) < float("inf")]
        if wrong:
            raise FloatingPointError(
                f"{self.name}: {wrong} not finite between the last log line and sample {state.position:,}; the last "
                "checkpoint is intact. Lower lr (or clip gradients) and run the same command again"
            )
        return means

    def log(self, state: TrainState, extra: Mapping[str, float] | None = None) -> dict[str, float]:
        """Writes the interval's means (and `extra`, already equal on all processes) and starts a new interval."""
        metrics = self.means(state) | dict(extra or {})
        state.sums = {}
        if self.engine.main:
            self.curve.append(state.position, metrics)
            now = time.monotonic()
            elapsed = max(now - self._began, 1e-9)
            speed = {
                "speed/images_per_second": self._samples / elapsed,
                "speed/step_seconds": elapsed / max(self._steps, 1),
                "speed/data_wait_share": self._waited / elapsed,
            }
            self._began, self._waited, self._steps, self._samples = now, 0.0, 0, 0
            self._tracker.log(state.position, metrics | speed)
            shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            if self._bar is not None:
                self._bar.set_postfix_str(shown[:120])
            elif now - self._spoke > _SPEAK_SECONDS or state.position >= self.training.samples:
                self._spoke = now
                rate = speed["speed/images_per_second"]
                share = f"{state.position:,}/{self.training.samples:,}"
                print(f"{self.name} {share} {rate:.1f} img/s {shown}", flush=True)
        return metrics

    def note(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Writes metrics that stand beside the interval's means, such as those of fixed pairs. Main process only."""
        self.curve.append(state.position, metrics)
        self._tracker.log(state.position, metrics)

    def picture(self, state: TrainState, name: str, picture: Picture) -> None:
        """Keeps a picture in the run folder (later the out) and in MLflow. Main process only."""
        save_png(self.pictures / f"{name}-{state.position:012d}.png", picture)
        self._tracker.picture(f"pictures/{name}-{state.position:012d}.png", picture)

    def alarm(self, name: str, text: str) -> None:
        """Says on the console, in MLflow and in the run folder that something looks wrong; training goes on."""
        if self.engine.main and name not in self._alarmed:
            self._alarmed.add(name)
            print(f"{self.name}: ALARM {name}: {text}", file=sys.stderr, flush=True)
            self._tracker.tag({f"alarm.{name}": text})
            with (self.folder / "alarms.txt").open("a") as file:
                file.write(f"{name}: {text}\n")

    def checkpoint(self, state: TrainState) -> None:
        """Saves the state, unless a term is not finite. Resuming from it is bit for bit the uninterrupted run."""
        self.means(state)
        every = {name: self.engine.gather(sums[None]) for name, sums in state.sums.items()}  # one row per process
        if self.engine.main:
            whole = dataclasses.replace(state, sums=every)
            save_state(whole, self.folder, self.fingerprint, self.engine.world, self.training.keep)

    def stop_if_asked(self, state: TrainState) -> None:
        """After a signal: checkpoint and leave with exit code 75."""
        if self.engine.stopping(state.step) and state.position < self.training.samples:
            self.checkpoint(state)
            if self.engine.main:
                print(f"{self.name}: stopped at sample {state.position:,}; the same command resumes", flush=True)
            raise Stopped(STOPPED)

    def finish(self, out: Path, module: nn.Module, card: Mapping[str, object]) -> None:
        """Writes the out (model, card, curve.csv, pictures) beside and renames it, then removes the run folder."""
        if not self.engine.main:
            return
        run_id = self._tracker.ready()
        lineage = {name: parent.get("weights_sha256") for name, parent in self.parents.items()}
        runs = {name: parent.get("run_id") for name, parent in self.parents.items()}
        alarms = self.folder / "alarms.txt"
        whole = {
            **card,
            "fingerprint": self.fingerprint,
            "run_id": run_id,
            "git_commit": git_commit(),
            "lineage": lineage,
            "parent_runs": runs,
            "alarms": alarms.read_text().splitlines() if alarms.exists() else [],
        }
        made = out.with_name(f".{out.name}.made")
        save_model(made, module, whole)
        self.curve.write_csv(made / "curve.csv")
        if self.pictures.exists():
            shutil.copytree(self.pictures, made / "pictures")
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
        self._tracker.card(CARD, whole)
        shutil.rmtree(self.folder)
