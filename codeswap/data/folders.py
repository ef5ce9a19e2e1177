"""Any tree of pictures as a data set, with rules that keep its training and test parts apart."""

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from codeswap.data.records import PICTURES, Raw, Record, Source, key_for, pictures_below, read_pictures
from codeswap.types import Config


class Holdout(Config):
    """Which files or persons of a folder are test faces. A `test` data set takes them, a `train` one all others.

    Give the same rule to both data sets. Exactly one of `pattern`, `csv` and `share` says which.
    """

    by: Literal["file", "identity"] = "file"
    pattern: str | None = None  # regular expression found anywhere in the relative path or the person's name
    csv: Path | None = None  # table with a column named as `by`, relative to the folder's root
    share: float | None = Field(None, gt=0, lt=1)  # drawn by the hash of each name: more data never moves a name

    @model_validator(mode="after")
    def _one_rule(self) -> "Holdout":
        if sum(rule is not None for rule in (self.pattern, self.csv, self.share)) != 1:
            raise ValueError("a holdout needs exactly one of pattern, csv and share")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        return self

    def selects(self, name: str, listed: frozenset[str]) -> bool:
        """Whether `name` is held out; `listed` are the names of the csv."""
        if self.pattern is not None:
            return re.search(self.pattern, name) is not None
        if self.share is not None:
            draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
            return draw < self.share * 2**64
        return name in listed


class Folder(Source):
    """Pictures in any tree; a picture's person is its first sub-folder, or unknown."""

    source: Literal["folder"]
    root: Path
    licence: str  # stated by whoever adds the data: it is carried into every model's card
    identity: Literal["folder", "none"] = "folder"  # whose picture it is: the first sub-folder's name, or unknown
    landmarks: Path | None = None  # csv of known points of unaligned pictures, relative to root: file,x0,y0,...,x4,y4
    holdout: Holdout | None = None

    def origin(self) -> str:
        return f"put your own pictures there ({', '.join(PICTURES)}); licence as you state it: {self.licence}"

    def missing(self) -> list[str]:
        if not self.root.is_dir():
            return [f"{self.root}: a folder of pictures"]
        if next(pictures_below(self.root), None) is None:
            return [f"{self.root}: at least one picture below it ({', '.join(PICTURES)})"]
        tables = [self.landmarks, self.holdout.csv if self.holdout else None]
        problems = [
            f"{self.root / table}: a csv table" for table in tables if table and not (self.root / table).is_file()
        ]
        return problems or self._rule_problems()

    def _rule_problems(self) -> list[str]:
        """What is wrong inside the tables and with the holdout rule, once all files are there."""
        try:
            listed = self._listed()
            self._known_points()
        except ValueError as error:
            return [str(error)]
        if self.holdout is None:
            return []
        strangers, last, count, chosen = set(listed), None, 0, 0
        for file in pictures_below(self.root):
            name = self._name(file)
            if name is None or name == last:  # a person's pictures come one after another
                continue
            last, count = name, count + 1
            strangers.discard(name)
            chosen += self.holdout.selects(name, listed)
        if count == 0:
            return [f"{self.root}: one sub-folder for each person, because the holdout goes by identity"]
        if strangers:
            table = self.root / self.holdout.csv
            return [f"{table}: names that exist in the folder, found {sorted(strangers)[:5]}"]
        if chosen in (0, count):
            return [f"{self.root}: a holdout that divides it; this one selects {chosen} of {count} names"]
        return []

    def _person(self, file: str) -> str | None:
        return file.split("/", maxsplit=1)[0] if self.identity == "folder" and "/" in file else None

    def _name(self, file: str) -> str | None:
        """What the holdout rule is asked about `file`."""
        return file if self.holdout and self.holdout.by == "file" else self._person(file)

    def _listed(self) -> frozenset[str]:
        if self.holdout is None or self.holdout.csv is None:
            return frozenset()
        return frozenset(row[self.holdout.by] for row in read_table(self.root / self.holdout.csv, [self.holdout.by]))

    def _known_points(self) -> dict[str, list[float]]:
        if self.landmarks is None:
            return {}
        columns = [f"{axis}{number}" for number in range(5) for axis in "xy"]
        points, problems = {}, []
        for line, row in enumerate(read_table(self.root / self.landmarks, ["file", *columns]), start=2):
            try:
                points[row["file"]] = [float(row[column]) for column in columns]
            except ValueError as error:
                problems.append(f"line {line}: {error}")
        if problems:
            raise ValueError(f"{self.root / self.landmarks}: ten numbers a line, found {'; '.join(problems[:5])}")
        return points

    def records(self, name: str) -> Iterator[Record]:
        listed, points = self._listed(), self._known_points()
        for file in pictures_below(self.root):
            held_out = self.holdout is not None and self.holdout.selects(self._name(file) or "", listed)
            if self.holdout is None or held_out == (self.split == "test"):
                yield Record(key_for(name, file), file, self._person(file), None, None, self.licence, points.get(file))

    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        return read_pictures(self.root, records)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a csv file with a header. Raises ValueError naming missing columns and short lines."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            found = [name.strip() for name in rows.fieldnames or []]
            rows.fieldnames = found
            table = list(rows)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: a csv table, found {error}") from None
    if absent := sorted(set(columns) - set(found)):
        raise ValueError(f"{path}: columns {list(columns)}; {absent} are absent, found {found}")
    short = [number for number, row in enumerate(table, start=2) if any(not row[column] for column in columns)]
    if short:
        raise ValueError(f"{path}: a value in each column; lines {short[:5]} are too short")
    return [{column: row[column].strip() for column in columns} for row in table]
