"""A run folder: its lock, resuming, log lines, checkpoints, and the out that is written whole at the end."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn
from tqdm import tqdm

from codeswap.data.loader import batches
from codeswap.data.manifest import write_bytes
from codeswap.data.pictures import save_png
from codeswap.models.store import CARD, hashes_of
from codeswap.train import outs
from codeswap.train.alarms import Alarm, speed_alarms
from codeswap.train.checkpoints import CheckpointWriter
from codeswap.train.engine import Engine
from codeswap.train.feeds import Feed
from codeswap.train.latents import LATENTS
from codeswap.train.lock import lock_folder
from codeswap.train.meter import Meter
from codeswap.train.processes import STOPPED, Stopped
from codeswap.train.schedule import TrainingConfig
from codeswap.train.state import TrainState, load_state, newest_intact, snapshot
from codeswap.train.tracking import Curve, Tracker, git_commit
from codeswap.types import Config

T = TypeVar("T")
_SPEAK_SECONDS = 20.0  # between console lines when there is no terminal


class Run:
    """One execution of a training stage, `name` = (stage, variant, fingerprint), used as a context.

    Leaving it by an exception marks the MLflow run as failed, by a signal as killed. `parents` names the cards of the
    models and networks that this one is made from. Raises RunLockedError.
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
        engine.on_main(lambda: setattr(self, "_lock", lock_folder(self.folder)))
        self._writer = CheckpointWriter(self.folder, training.keep, training.checkpoint_every, training.keep_every)
        self.curve = Curve(self.folder / "curve.jsonl")
        self.parents = {name: json.loads(path.read_text()) for name, path in parents.items()}
        self._tracker: Tracker | None = None
        if engine.main:
            made_by = {name: card.get("run_id") or card.get("fingerprint") for name, card in self.parents.items()}
            tags = {"stage": stage, "variant": variant or "-", "fingerprint": fingerprint, "git_commit": git_commit()}
            tags |= {"parents": json.dumps(made_by), "processes": str(engine.world), "bf16": str(engine.bf16)}
            self._tracker = Tracker(self.name, params.model_dump(mode="json"), tags, self.folder / "mlflow_run_id")
        self._bar: tqdm | None = None
        self._alarmed: set[str] = set()
        self._spoke = time.monotonic()
        self._meter = Meter(engine.device, engine.world, engine.bf16)
        self._feed: Feed | None = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():  # the first problem is the one to tell
            self._writer.wait()
        if self._tracker is not None:
            self._tracker.close("FINISHED" if kind is None else "KILLED" if kind is Stopped else "FAILED")
        if self._lock is not None:
            os.close(self._lock)
        if kind is None or kind is Stopped:
            self.engine.close()

    def finished(self, out: Path) -> bool:
        """Whether this very training is finished already; then its result is in `out`, put back if it was not there."""

        def look() -> str | None:
            if not outs.is_made(out, self.fingerprint):
                if not (self.folder / outs.FINISHED).exists():
                    return None
                outs.put(self.folder, out)
            print(f"{self.name}: finished already (run {self.fingerprint}), its result is in {out}", flush=True)
            return "yes"

        return self.engine.on_main(look) is not None

    def count(self, flops: float) -> None:
        """Says what one sample costs, to log speed as a share of what the processor can."""
        self._meter.flops = flops

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
                total = self.training.samples
                self._bar = tqdm(total=total, initial=state.position, desc=self.name, unit="img", unit_scale=True)

    def _own(self, rows: Tensor) -> Tensor:
        """This process' sums of a checkpoint; of another number of processes: equal shares of all of them."""
        return rows[self.engine.rank] if len(rows) == self.engine.world else rows.sum(0) / self.engine.world

    def batches(self, state: TrainState, feed: Feed[T]) -> Iterator[tuple[int, T]]:
        """This process' batches from `state.position` on, each with the position after it, read ahead by threads."""
        engine, self._feed = self.engine, feed
        return batches(
            feed, state.position, engine.micro_batch, engine.rank, engine.world, engine.config.prefetch,
            engine.config.readers,
        )  # fmt: skip

    def next(self, batches: Iterator[tuple[int, T]]) -> tuple[int, T]:
        """The next batch; the time spent waiting for it is measured."""
        before = time.monotonic()
        position, batch = next(batches)
        self._meter.wait(time.monotonic() - before)
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
        self._meter.step(state.position, self.engine.micro_batch, self.engine.complete, terms)
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
            at = int(self.engine.gather(self._meter.bad_at[None]).min())
            raise FloatingPointError(
                f"{self.name}: {wrong} not finite in the batch before sample {at:,}; its faces are listed in "
                f"{self._keep_batch(at, wrong)} and the last checkpoint is intact: the same command comes to that "
                "batch again. Lower lr, clip gradients, or pass over such steps with skip_nonfinite"
            )
        return means

    def skip(self, state: TrainState) -> None:
        """Passes over a step whose gradient was not finite. Raises FloatingPointError when there were too many."""
        state.step += self.engine.complete
        state.skipped += 1
        listed = self._keep_batch(state.position, ["gradient"])
        text = f"{self.name}: the gradient of the batch before sample {state.position:,} is not finite ({listed})"
        if state.skipped > self.training.skip_nonfinite:
            raise FloatingPointError(f"{text}, and skip_nonfinite allows {self.training.skip_nonfinite} such steps")
        if self.engine.main:
            print(
                f"{text}: passed over, {state.skipped} of {self.training.skip_nonfinite}", file=sys.stderr, flush=True
            )

    def _keep_batch(self, position: int, terms: Sequence[str]) -> Path:
        """Lists the faces of the (part of a) global batch that ended at `position`."""
        path = self.folder / f"nonfinite-{position:012d}.json"
        if self.engine.main and self._feed is not None:
            faces = self._feed.describe(np.arange(position - self.engine.micro_batch, position))
            write_bytes(path, json.dumps({"terms": list(terms), "batch": faces}, indent=1).encode())
        return path

    def log(self, state: TrainState, extra: Mapping[str, float] | None = None) -> dict[str, float]:
        """Writes the interval's means (and `extra`, already equal on all processes) and starts a new interval."""
        metrics = self.means(state) | dict(extra or {})
        state.sums = {}
        if self.engine.main:
            self.curve.append(state.position, metrics)
            speed = self._meter.lap()
            self._tracker.log(state.position, metrics | speed)
            shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            if self._bar is not None:
                self._bar.set_postfix_str(shown[:120])
            elif time.monotonic() - self._spoke > _SPEAK_SECONDS or state.position >= self.training.samples:
                self._spoke = time.monotonic()
                rate = speed["speed/images_per_second"]
                share = f"{state.position:,}/{self.training.samples:,}"
                print(f"{self.name} {share} {rate:.1f} img/s {shown}", flush=True)
            self.alarm(*speed_alarms(self._meter.speeds))
        return metrics

    def validated(self, state: TrainState, metrics: Mapping[str, float], module: nn.Module) -> None:
        """Writes a validation's metrics beside the interval's means, and keeps `module` if it is the best so far."""
        if self.engine.main:
            self.curve.append(state.position, metrics)
            self._tracker.log(state.position, metrics)
        select = self.training.select
        if select and self.engine.on_main(lambda: "yes" if outs.is_better(self.folder, select, metrics) else None):
            weights = self.engine.module_state(module)
            if self.engine.main:
                facts = {"metric": select.metric, "value": metrics[select.metric], "position": state.position}
                outs.keep_best(self.folder, weights, facts)

    def picture(self, state: TrainState, name: str, picture: Picture) -> None:
        """Keeps a picture in the run folder (later the out) and in MLflow. Main process only."""
        save_png(self.pictures / f"{name}-{state.position:012d}.png", picture)
        self._tracker.picture(f"pictures/{name}-{state.position:012d}.png", picture)

    def alarm(self, *alarms: Alarm) -> None:
        """Says each once on the console, in MLflow and in the run folder; training goes on."""
        for alarm in alarms if self.engine.main else ():
            if alarm.name not in self._alarmed:
                self._alarmed.add(alarm.name)
                print(f"{self.name}: ALARM {alarm}", file=sys.stderr, flush=True)
                self._tracker.tag({f"alarm.{alarm.name}": str(alarm)})
                with (self.folder / "alarms.txt").open("a") as file:
                    file.write(f"{alarm}\n")

    def checkpoint(self, state: TrainState) -> None:
        """Saves the state, unless a term is not finite. Resuming from it is bit for bit the uninterrupted run.

        The step waits for a copy in memory only; a checkpoint that could not be written raises its OSError at the next.
        """
        self.means(state)
        every = {name: self.engine.gather(sums[None]) for name, sums in state.sums.items()}  # one row per process
        whole = dataclasses.replace(state, sums=every)
        taken = snapshot(whole, self.engine, {"fingerprint": self.fingerprint, "world": self.engine.world})
        if self.engine.main:
            self._writer.put(taken)

    def stop_if_asked(self, state: TrainState) -> None:
        """After a signal: checkpoint and leave with exit code 75."""
        if self.engine.stopping(state.step) and state.position < self.training.samples:
            self.checkpoint(state)
            self._writer.wait()
            if self.engine.main:
                print(f"{self.name}: stopped at sample {state.position:,}; the same command resumes", flush=True)
            raise Stopped(STOPPED)

    def finish(self, out: Path, module: nn.Module, card: Mapping[str, object]) -> None:
        """Writes the out (model, card, curve.csv, pictures) and gives the room of the checkpoints back.

        Whole or not at all, first in the run folder: whenever it is killed, the same command ends with the same out.
        """
        weights = self.engine.module_state(module)
        self._writer.wait()
        if not self.engine.main:
            return
        best = outs.best(self.folder)
        weights, selected = best or (weights, None)
        run_id = self._tracker.ready()
        alarms = self.folder / "alarms.txt"
        whole = {
            **card,
            "fingerprint": self.fingerprint,
            "run_id": run_id,
            "git_commit": git_commit(),
            "lineage": {name: hashes_of(parent) for name, parent in self.parents.items()},
            "parent_runs": {name: parent.get("run_id") for name, parent in self.parents.items()},
            "selected": selected or {"position": self.training.samples},
            "alarms": alarms.read_text().splitlines() if alarms.exists() else [],
        }
        outs.keep(self.folder, weights, whole, self.curve.csv(), self.pictures)
        outs.put(self.folder, out)
        self._tracker.card(CARD, whole)
        self._writer.remove()
        for folder in (self.pictures, self.folder / outs.BEST, self.folder / LATENTS):
            shutil.rmtree(folder, ignore_errors=True)
