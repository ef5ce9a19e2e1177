"""A blind user study (the paper's Table 2): trials from any methods' results, answers in SQLite, a table of means.

A trial shows a source, a target and one result, without a name. Raters give 1 to 5 for identity, attributes
(expression, light, pose) and realism. Catch trials show the untouched target as the result: whoever finds the source's
identity in it did not look, and is left out of the report by name.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import krippendorff
import numpy as np

from codeswap.data.faces import Faces
from codeswap.evaluate.intervals import bootstrap_means
from codeswap.evaluate.protocol import PairList
from codeswap.evaluate.tables import Table
from codeswap.use.errors import UnreadableError
from codeswap.use.output import write_picture
from codeswap.use.photographs import read

QUESTIONS = ("identity", "attributes", "realism")
CATCH = "catch"
FILE, ANSWERS = "study.json", "answers.sqlite"
SEEN = 3  # a rating of identity from which a catch trial was not looked at
_TABLE = """create table if not exists answers (
    person text not null, trial text not null, identity integer not null, attributes integer not null,
    realism integer not null, at text not null default current_timestamp, primary key (person, trial))"""

Result = Callable[[str, str], np.ndarray]  # (source, target) keys -> uint8 (h, w, 3)


class Trial(NamedTuple):
    """`id` is all that a rater's browser learns of it besides its three pictures."""

    id: str
    method: str
    source: str
    target: str


def folder_of_results(folder: Path) -> Result:
    """Results called <source>_<target>.png."""
    return lambda source, target: read(folder / f"{source}_{target}.png")


def build(
    out: Path, faces: Faces, pairs: PairList, methods: Mapping[str, Result], count: int, catches: int, seed: int
) -> list[Trial]:
    """Writes a study of `count` drawn pairs, each by every method, and `catches` catch trials, to `out`.

    All results of a method must be there: raters would guess it from what is missing. Raises UnreadableError naming
    them, or when `out` holds a study already (its answers would lose their trials).
    """
    if (out / FILE).exists():
        raise UnreadableError(f"{out} holds a study: choose another folder")
    if not methods:
        raise UnreadableError("a study needs results: name at least one method")
    chosen = np.random.default_rng(seed).permutation(len(pairs.sources))[: count + catches]
    if len(chosen) < count + catches:
        raise UnreadableError(f"{count} trials and {catches} catch trials need as many pairs, there are {len(chosen)}")
    index = {key: row for row, key in enumerate(faces.keys)}
    trials, problems, made = [], [], []
    for number, place in enumerate(chosen.tolist()):
        source, target = pairs.sources[place], pairs.targets[place]
        shown = {name: made_by for name, made_by in methods.items() if number < count} or {CATCH: None}
        for name, result in shown.items():
            trial = Trial(_opaque(seed, name, source, target), name, source, target)
            pictures = {"source": faces.read(index[source]), "target": faces.read(index[target])}
            try:
                pictures["result"] = pictures["target"] if result is None else result(source, target)
            except UnreadableError as error:
                problems.append(f"{name}: {error}")
                continue
            trials.append(trial)
            made.append((trial, pictures))
    if problems:
        raise UnreadableError(f"{len(problems)} results are not there:\n  " + "\n  ".join(problems[:10]))
    for trial, pictures in made:
        for kind, pixels in pictures.items():
            # results carry their marks, all methods' and the catch trials' alike
            write_picture(out / "pictures" / f"{trial.id}-{kind}.png", pixels, {}, mark=kind == "result")
    tree = {"seed": seed, "pair_list_sha256": pairs.sha256, "trials": [trial._asdict() for trial in trials]}
    partial = out / f".{FILE}.partial"
    partial.write_text(json.dumps(tree, indent=1) + "\n")
    partial.replace(out / FILE)
    return trials


def _opaque(seed: int, *parts: str) -> str:
    return hashlib.sha256("/".join([str(seed), *parts]).encode()).hexdigest()[:16]


class Study:
    """A study folder: its trials in each rater's own order, and their answers, which are on disk when `answer` returns.

    Raises UnreadableError when the folder holds none.
    """

    def __init__(self, folder: Path) -> None:
        try:
            tree = json.loads((folder / FILE).read_text())
            self.trials = {row["id"]: Trial(**row) for row in tree["trials"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnreadableError(
                f"{folder / FILE} is no study ({error}): make one with `codeswap study build`"
            ) from None
        self.folder, self._seed = folder, tree["seed"]
        self._store = sqlite3.connect(folder / ANSWERS, check_same_thread=False, isolation_level=None)
        self._store.execute("pragma journal_mode=wal")
        self._store.execute("pragma synchronous=full")
        self._store.execute(_TABLE)

    def close(self) -> None:
        self._store.close()

    def order(self, person: str) -> list[str]:
        """All trials, shuffled for this rater: the same order at every visit."""
        return sorted(self.trials, key=lambda trial: _opaque(self._seed, person, trial))

    def left(self, person: str) -> list[str]:
        """What a rater has not rated yet."""
        rows = self._store.execute("select trial from answers where person = ?", (person,)).fetchall()
        rated = {trial for (trial,) in rows}
        return [trial for trial in self.order(person) if trial not in rated]

    def answer(self, person: str, trial: str, ratings: Mapping[str, int]) -> None:
        """Keeps one rating, the newest if there are two. Raises UnreadableError for what is none."""
        if trial not in self.trials:
            raise UnreadableError(f"there is no trial {trial!r}")
        values = [ratings.get(question) for question in QUESTIONS]
        if not all(isinstance(value, int) and 1 <= value <= 5 for value in values):
            raise UnreadableError(f"expected 1 to 5 for each of {', '.join(QUESTIONS)}")
        row = (person, trial, *values)
        self._store.execute(
            "insert or replace into answers (person, trial, identity, attributes, realism) values (?, ?, ?, ?, ?)", row
        )

    def ratings(self) -> list[tuple[str, Trial, tuple[int, int, int]]]:
        """(person, trial, ratings) of all answers."""
        rows = self._store.execute("select person, trial, identity, attributes, realism from answers").fetchall()
        return [(person, self.trials[trial], tuple(values)) for person, trial, *values in rows if trial in self.trials]


class Report(NamedTuple):
    """The table, and in words: how many rated, who was left out, how far raters agree."""

    table: Table
    sentences: list[str]


def report(study: Study, seed: int = 0) -> Report:
    """Means with 95 % bootstrap intervals over answers. Raises UnreadableError when nobody has answered."""
    answers = study.ratings()
    careless = {p for p, trial, values in answers if trial.method == CATCH and values[0] >= SEEN}
    kept = [row for row in answers if row[0] not in careless and row[1].method != CATCH]
    if not kept:
        raise UnreadableError(f"{study.folder}: there are no answers to report yet")
    rows = []
    for method in sorted({trial.method for _, trial, _ in kept}):
        values = np.array([row for _, trial, row in kept if trial.method == method], dtype=np.float64)
        means = bootstrap_means(values, seed)
        rows.append((method, *(f"{m.value:.2f} [{m.low:.2f}, {m.high:.2f}]" for m in means), str(len(values))))
    people = sorted({person for person, _, _ in kept})
    sentences = [f"{len(kept)} answers of {len(people)} raters."]
    if careless:
        sentences.append(
            f"Left out, because they found the source in an untouched target: {', '.join(sorted(careless))}."
        )
    for number, question in enumerate(QUESTIONS):
        alpha = agreement([(p, trial.id, values[number]) for p, trial, values in kept])
        text = "cannot be said: no trial has two raters" if alpha is None else f"{alpha:.2f}"
        sentences.append(f"Agreement on {question} (Krippendorff's alpha, interval): {text}.")
    header = ("method", "ID similarity ↑", "attribute consistency ↑", "realism ↑", "answers")
    return Report(
        Table("Table 2: user study (1 to 5)", header, rows, "Means with 95 % intervals over answers."), sentences
    )


def agreement(ratings: Sequence[tuple[str, str, int]]) -> float | None:
    """Krippendorff's alpha of (rater, trial, value); None without a trial that two rated, or with one value only."""
    people, trials = (sorted({row[part] for row in ratings}) for part in (0, 1))
    table = np.full((len(people), len(trials)), np.nan)
    for person, trial, value in ratings:
        table[people.index(person), trials.index(trial)] = value
    shared = (~np.isnan(table)).sum(axis=0) > 1
    if not shared.any() or len(np.unique(table[:, shared][~np.isnan(table[:, shared])])) < 2:
        return None
    return float(krippendorff.alpha(table, level_of_measurement="interval"))


def sync(folder: Path) -> None:
    """Everything of a folder on the disk, so that a study survives the machine."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
