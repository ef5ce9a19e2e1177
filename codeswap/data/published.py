"""The public image sets of the paper in their official layouts (METHOD §E): FFHQ, VGGFace2-HQ, CelebA-HQ."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from codeswap.data.records import PICTURES, Raw, Record, Source, key_for, read_pictures

_NAMED = 5  # of many missing files, so many are named


def _some(missing: list[str]) -> str:
    return ", ".join(missing[:_NAMED]) + (f" ... ({len(missing):,} in all)" if len(missing) > _NAMED else "")


class FFHQ(Source):
    """`images1024x1024/00000/00000.png` ...; official parts are 0-59,999 (training) and 60,000-69,999 (validation).

    With `ffhq-dataset-v2.json` beside it, each picture carries its own photographer's licence and its 68 landmarks.
    """

    source: Literal["ffhq"]
    root: Path = Path("data/raw/ffhq")
    first: int = Field(0, ge=0)
    last: int = Field(69_999, ge=0)  # the paper trains on all 70,000
    licence: str = "CC BY-NC-SA 4.0 (FFHQ; single pictures CC BY, CC BY-NC, CC0, Public Domain or US Gov)"

    def origin(self) -> str:
        return f"download images1024x1024 from https://github.com/NVlabs/ffhq-dataset; licence {self.licence}"

    def _file(self, number: int) -> str:
        return f"images1024x1024/{number - number % 1000:05d}/{number:05d}.png"

    def missing(self) -> list[str]:
        folder = self.root / "images1024x1024"
        if not folder.is_dir():
            return [f"{folder}: folders 00000, 01000, ... of 1024 px pictures"]
        absent = [file for number in self._numbers() if not (self.root / (file := self._file(number))).exists()]
        return [f"{self.root}: {_some(absent)}"] if absent else []

    def _numbers(self) -> range:
        return range(self.first, self.last + 1)

    def records(self, name: str) -> Iterator[Record]:
        facts = self._facts()
        for number in self._numbers():
            entry = facts.get(str(number), {})
            licence = entry.get("metadata", {}).get("license", self.licence)
            points = entry.get("image", {}).get("face_landmarks")
            flat = None if points is None else [float(value) for point in points for value in point]
            yield Record(f"{name}-{number:05d}", self._file(number), None, None, None, licence, flat)

    def _facts(self) -> dict[str, dict]:
        path = self.root / "ffhq-dataset-v2.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        return read_pictures(self.root, records)


class VGGFace2HQ(Source):
    """One folder of 512 px pictures for each person, `n000002/*.jpg`."""

    source: Literal["vggface2hq"]
    root: Path = Path("data/raw/vggface2hq")
    licence: str = "non-commercial research (VGGFace2-HQ, VGGFace2)"

    def origin(self) -> str:
        return f"download the 512 px set from https://github.com/NNNNAI/VGGFace2-HQ; licence: {self.licence}"

    def _people(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if re.fullmatch(r"n\d+", path.name) and path.is_dir())

    def missing(self) -> list[str]:
        people = self._people()
        if not people:
            return [f"{self.root}: a folder for each person, n000002, n000003, ..."]
        empty = [path.name for path in people if next(_pictures(path), None) is None]
        return [f"{self.root}: pictures in {_some(empty)}"] if empty else []

    def records(self, name: str) -> Iterator[Record]:
        for person in self._people():
            for picture in sorted(_pictures(person)):
                source = f"{person.name}/{picture.name}"
                yield Record(key_for(name, source), source, person.name, None, None, self.licence, None)

    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        return read_pictures(self.root, records)


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith("."))


class CelebAHQ(Source):
    """The test faces of METHOD §E.4: `identities` persons of CelebA-HQ, one picture of each, drawn by the seed.

    Needs `CelebA-HQ-img/0.jpg` ... `29999.jpg` (or .png) and the tables that lead from a picture to its person.
    """

    source: Literal["celebahq"]
    root: Path = Path("data/raw/celebahq")
    pictures: int = Field(30_000, ge=1)  # in the official set
    identities: int | None = Field(1000, ge=1)  # persons to draw; null: every picture of all of them
    licence: str = "non-commercial research (CelebA-HQ, CelebAMask-HQ)"

    def origin(self) -> str:
        return (
            "get CelebA-HQ-img and CelebA-HQ-to-CelebA-mapping.txt with CelebAMask-HQ "
            "(https://github.com/switchablenorms/CelebAMask-HQ), identity_CelebA.txt with CelebA "
            f"(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html); licence: {self.licence}"
        )

    @property
    def _mapping(self) -> Path:
        return self.root / "CelebA-HQ-to-CelebA-mapping.txt"

    @property
    def _people(self) -> Path:
        return self.root / "identity_CelebA.txt"

    def missing(self) -> list[str]:
        problems = [f"{path}: the table" for path in (self._mapping, self._people) if not path.is_file()]
        if not (self.root / "CelebA-HQ-img").is_dir():
            return [*problems, f"{self.root / 'CelebA-HQ-img'}: 0.jpg ... {self.pictures - 1}.jpg (or .png)"]
        files = self._files()
        absent = [f"{number}.jpg" for number in range(self.pictures) if number not in files]
        if absent:
            problems.append(f"{self.root / 'CelebA-HQ-img'}: {_some(absent)}")
        if problems:
            return problems
        try:
            found = len(set(self._identity_of().values()))
        except ValueError as error:
            return [str(error)]
        if self.identities is not None and found < self.identities:
            return [f"{self._people}: {self.identities:,} persons in the set, found {found:,}"]
        return []

    def _files(self) -> dict[int, str]:
        names = (path.name for path in (self.root / "CelebA-HQ-img").iterdir())
        return {int(name.split(".")[0]): name for name in names if re.fullmatch(r"\d+\.(jpg|png)", name)}

    def _identity_of(self) -> dict[int, str]:
        """Person of each picture. Raises ValueError naming the line that does not read as it should."""
        people = {file: person for file, person in _columns(self._people, 2, header=False)}
        identity = {}
        for number, _, original in _columns(self._mapping, 3, header=True):
            if original not in people or not number.isdigit():
                raise ValueError(f"{self._people}: a line for {original}, which {self._mapping.name} gives to {number}")
            identity[int(number)] = people[original]
        lost = [str(number) for number in range(self.pictures) if number not in identity]
        if lost:
            raise ValueError(f"{self._mapping}: a line for each picture; absent: {_some(lost)}")
        return identity

    def records(self, name: str) -> Iterator[Record]:
        files, identity = self._files(), self._identity_of()
        for number in self._drawn(identity):
            key, source = f"{name}-{number:05d}", f"CelebA-HQ-img/{files[number]}"
            yield Record(key, source, identity[number], None, None, self.licence, None)

    def _drawn(self, identity: dict[int, str]) -> list[int]:
        numbers = range(self.pictures)
        if self.identities is None:
            return list(numbers)
        one: dict[str, int] = {}
        for number in sorted(numbers, key=lambda number: self._lot(f"picture {number}")):
            one.setdefault(identity[number], number)
        people = sorted(one, key=lambda person: self._lot(f"person {person}"))
        return sorted(one[person] for person in people[: self.identities])

    def _lot(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.seed}/{name}".encode()).digest()

    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        return read_pictures(self.root, records)


def _columns(path: Path, width: int, header: bool) -> Iterator[list[str]]:
    """The words of each line. Raises ValueError naming the first line that has not `width` of them."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if not words or (header and number == 1 and not words[0].isdigit()):
            continue
        if len(words) != width:
            raise ValueError(f"{path}: {width} words a line; line {number} is {line[:60]!r}")
        yield words
