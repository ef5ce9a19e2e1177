"""The only door to MLflow: one run per stage execution, buffered, off the training's thread (DESIGN §9).

The run folder's `curve.jsonl` is the record of a training; MLflow shows it. A tracking server that is away costs a
warning and the metrics of that time are sent later, never the training.
"""

import hashlib
import json
import logging
import os
import queue
import re
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image as Picture

from codeswap.data.manifest import write_bytes

if TYPE_CHECKING:  # importing mlflow takes seconds: the worker thread does it while training has begun
    from mlflow import MlflowClient

EXPERIMENT = "codeswap"
OFF = "CODESWAP_MLFLOW"  # environment variable; "off" writes only the run folder's curve and the out's curve.csv
STORE = "mlflow.db"  # below the working directory, with `mlartifacts` beside it
FLUSH_SECONDS = 10.0
_BATCH = 1000  # MLflow's limit of metrics in one request
_PARAMS_BATCH = 100
_LONGEST_PARAM = 6000


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow shows them: `{"a": {"b": 1}}` -> `{"a.b": "1"}`."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = str(value)[:_LONGEST_PARAM]
    return out


def store_uri() -> str:
    """Where MLflow's books are: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the working directory.

    Named absolutely: mlflow keeps one engine per address for the whole process, and a relative one would go on meaning
    the first folder.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(STORE).absolute()}"


class Tracker:
    """One MLflow run, fed from a queue by one thread of its own.

    `note` is a small file in which the run's id is kept, so that a resumed training continues its run; without one
    every Tracker starts a new run. Nothing raises into the training: problems become warnings.
    """

    def __init__(
        self, name: str, params: Mapping[str, object], tags: Mapping[str, str], note: Path | None = None
    ) -> None:
        self.run_id: str | None = None
        self._name, self._params, self._note = name, flat(params), note
        self._tags = {key: str(value) for key, value in tags.items()}
        self._queue: queue.SimpleQueue[Callable[[MlflowClient], None] | None] = queue.SimpleQueue()
        self._metrics: list[tuple[str, float, int, int]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._closed = os.environ.get(OFF) == "off"
        if not self._closed:
            self._thread.start()

    def log(self, position: int, metrics: Mapping[str, float]) -> None:
        """Buffers one line of metrics; `position` (samples seen) is MLflow's step."""
        now = int(time.time() * 1000)
        if self._closed:
            return
        with self._lock:
            self._metrics += [(key, value, now, position) for key, value in metrics.items()]

    def picture(self, name: str, picture: Picture) -> None:
        """Stores a picture as artifact `name`."""
        self._put(lambda client: client.log_image(self.run_id, picture, artifact_file=name))

    def card(self, name: str, facts: Mapping[str, object]) -> None:
        """Stores `facts` as a JSON artifact."""
        self._put(lambda client: client.log_dict(self.run_id, dict(facts), name))

    def tag(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._put(lambda client, key=key, value=value: client.set_tag(self.run_id, key, str(value)))

    def ready(self, timeout: float = 60) -> str | None:
        """Waits until all that was given is sent, then the run's id (None: the store could not be reached in time)."""
        done = threading.Event()
        self._put(lambda client: done.set())
        if not self._closed:
            done.wait(timeout)
        return self.run_id

    def close(self, status: str = "FINISHED") -> str | None:
        """Sends what is left, ends the run (FINISHED, KILLED or FAILED) and gives its id (None: no store was found)."""
        if not self._closed:
            self._put(lambda client: client.set_terminated(self.run_id, status))
            self._queue.put(None)
            self._thread.join(timeout=120)
            self._closed = True
        return self.run_id

    def _put(self, work: "Callable[[MlflowClient], None]") -> None:
        if not self._closed:
            self._queue.put(work)

    def _work(self) -> None:
        # A tracking thread must not end on a store's bad day, and mlflow wraps few of its drivers' errors.
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        troubles = (MlflowException, SQLAlchemyError, OSError)
        client: MlflowClient | None = None
        pending: list[Callable[[MlflowClient], None]] = []
        ending = False
        while not ending:
            try:
                item = self._queue.get(timeout=FLUSH_SECONDS)
                ending = item is None
                if item is not None:
                    pending.append(item)
                    if not self._queue.empty():
                        continue
            except queue.Empty:
                pass
            try:
                client = client or self._open()
                self._flush(client)
                while pending:
                    pending[0](client)
                    pending.pop(0)
            except troubles as error:
                warnings.warn(f"MLflow could not be reached, metrics are kept and sent later: {error}", stacklevel=1)

    def _open(self) -> "MlflowClient":
        import mlflow

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it tells of every table it makes
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        client = mlflow.MlflowClient(tracking_uri=store_uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            place = None if uri else Path("mlartifacts").absolute().as_uri()
            number = client.create_experiment(EXPERIMENT, artifact_location=place)
        else:
            number = experiment.experiment_id
        known = self._note.read_text().strip() if self._note and self._note.exists() else None
        if known and any(run.info.run_id == known for run in client.search_runs([number], f"run_id = '{known}'")):
            client.update_run(known, status="RUNNING")
            self.run_id = known
            return client
        self.run_id = client.create_run(number, run_name=self._name, tags=self._tags).info.run_id
        if self._note:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(self.run_id)
        items = [mlflow.entities.Param(key, value) for key, value in self._params.items()]
        for start in range(0, len(items), _PARAMS_BATCH):
            client.log_batch(self.run_id, params=items[start : start + _PARAMS_BATCH])
        return client

    def _flush(self, client: "MlflowClient") -> None:
        from mlflow.entities import Metric

        with self._lock:
            waiting = list(self._metrics)
        for start in range(0, len(waiting), _BATCH):
            part = waiting[start : start + _BATCH]
            client.log_batch(self.run_id, metrics=[Metric(*entry) for entry in part])
            with self._lock:
                del self._metrics[: len(part)]


def git_commit() -> str:
    """The project's commit, with `+` when files differ from it; `unknown` outside git."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def log_stage_run(
    stage: str,
    variant: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    *,
    pictures: Sequence[tuple[str, Picture]] = (),
    card: Mapping[str, object] | None = None,
) -> str | None:
    """Records a whole stage execution that is not a training (shard, perception, annotate, evaluate, report).

    The run is named `<stage>-<variant>`; `tags` should hold fingerprint, parents and data hashes. Returns its id.
    """
    tracker = Tracker(f"{stage}-{variant}", params, {"stage": stage, "variant": variant, **tags})
    tracker.log(0, metrics)
    for name, picture in pictures:
        tracker.picture(name, picture)
    if card is not None:
        tracker.card("card.json", card)
    return tracker.close()


def log_out(
    stage: str,
    variant: str,
    params: Mapping[str, object],
    fingerprint: str,
    card: Path,
    parents: Mapping[str, Path] | None = None,
) -> str | None:
    """Records the execution of a stage from the `card.json` of its out: every number in it becomes a metric.

    `parents` are the cards of what it was made from; their hashes become tags. Returns the run's id.
    """
    facts = json.loads(card.read_text())
    tags = {f"parent.{name}": hashlib.sha256(path.read_bytes()).hexdigest() for name, path in (parents or {}).items()}
    tags |= {"fingerprint": fingerprint, "git_commit": git_commit(), "out": str(card.parent)}
    return log_stage_run(stage, variant, params, numbers(facts), tags, card=facts)


def numbers(facts: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """The numbers in nested facts, by dotted names; MLflow allows letters, digits and `_-. /` in them."""
    found: dict[str, float] = {}
    for key, value in facts.items():
        name = prefix + re.sub(r"[^\w\-. /]", "_", key)
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


class Curve:
    """`curve.jsonl`: one line of metrics per log interval, the record from which the out's `curve.csv` is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def cut(self, position: int) -> None:
        """Forgets lines after `position`: what a killed run had done after its last checkpoint is done again."""
        lines = [line for line in self.lines() if line["position"] <= position]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def append(self, position: int, metrics: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"position": position, **metrics}) + "\n")

    def lines(self) -> list[dict[str, float]]:
        """All whole lines (a line cut off by a kill is left out)."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def csv(self) -> str:
        """One row per position for `dvc plots`, one column per metric, empty where a metric was not computed."""
        merged: dict[float, dict[str, float]] = {}
        for line in self.lines():
            merged.setdefault(line["position"], {}).update(line)
        lines = list(merged.values())
        names = ["position", *sorted({name for line in lines for name in line} - {"position"})]
        rows = [",".join(repr(line[name]) if name in line else "" for name in names) for line in lines]
        return "\n".join([",".join(names), *rows]) + "\n"
