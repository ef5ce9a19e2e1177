"""The sources of faces there are, and the check that everything a data set needs is in its place."""

import re
from typing import Annotated

from pydantic import Field

from codeswap.data.folders import Folder
from codeswap.data.published import FFHQ, CelebAHQ, VGGFace2HQ
from codeswap.data.records import Record, Source, draw
from codeswap.data.rendered import Synthetic
from codeswap.data.videos import FFPP

# One entry of `datasets` in params.yaml; its key `source` says which.
DatasetConfig = Annotated[Synthetic | Folder | FFHQ | VGGFace2HQ | CelebAHQ | FFPP, Field(discriminator="source")]


class MissingDataError(ValueError):
    """Files that a data set needs and that are not where they should be."""


def require(name: str, source: Source) -> None:
    """Raises MissingDataError naming everything that is missing, where it belongs, and where to get it."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or len(name) > 40:
        raise ValueError(f"data set name {name!r}: use letters, digits and underscores only, 40 at most")
    if missing := source.missing():
        raise MissingDataError(
            f"data set {name!r} is not complete; expected\n  "
            + "\n  ".join(missing)
            + f"\nTo mend it: {source.origin()}"
        )


def listed(name: str, source: Source) -> list[Record]:
    """The records to ingest, in the order of the shards: sorted for a test set, drawn by the seed for a training set.

    A shuffled training set lets a reader mix faces well while it touches few shards.
    Raises MissingDataError, or ValueError for two files that would get the same key.
    """
    require(name, source)
    records = list(source.records(name))
    if not records:
        raise MissingDataError(f"data set {name!r} selects no face: {source.origin()}")
    seen: dict[str, str] = {}
    for record in records:
        if (other := seen.setdefault(record.key, record.source)) != record.source:
            raise ValueError(f"data set {name!r}: {other} and {record.source} differ by suffix only: keep one of them")
    drawn = draw(records, source.seed)[: source.limit]
    return drawn if source.split == "train" else sorted(drawn, key=lambda record: record.key)
