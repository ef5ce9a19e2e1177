"""The sources of faces there are, and the check that everything a data set needs is in its place."""

import hashlib
import re
from itertools import islice
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from codeswap.data.folders import Folder
from codeswap.data.published import FFHQ, CelebAHQ, VGGFace2HQ
from codeswap.data.records import Record, Source
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


# The columns of a listing, those of Record. Large strings: one column of 100 million paths is over 2 GB.
LISTING = pa.schema(
    [
        ("key", pa.large_string()),
        ("source", pa.large_string()),
        ("identity", pa.large_string()),
        ("video", pa.large_string()),
        ("frame", pa.int32()),
        ("licence", pa.large_string()),
        ("points", pa.list_(pa.float64())),
        ("wanted", pa.int32()),
    ]
)
_VALIDATION_PART = 16
_AT_ONCE = 50_000  # records that are Python objects at a time


def listed(name: str, source: Source) -> pa.Table:
    """The records to ingest (LISTING), in the order of the shards: sorted for a test set, drawn for a training set.

    A record's lot depends only on the seed and its key, so that other records do not disturb it; a shuffled training
    set lets a reader mix faces well while it touches few shards.
    Raises MissingDataError, or ValueError for two files that would get the same key.
    """
    require(name, source)
    records, parts = source.records(name), []
    while some := list(islice(records, _AT_ONCE)):
        columns = dict(zip(Record._fields, zip(*some, strict=True), strict=True))
        columns["lot"] = [hashlib.sha256(f"{source.seed}/{record.key}".encode()).digest() for record in some]
        parts.append(pa.table(columns, schema=LISTING.append(pa.field("lot", pa.large_binary()))))
    if not parts:
        raise MissingDataError(f"data set {name!r} selects no face: {source.origin()}")
    table = pa.concat_tables(parts)
    keys = table.group_by("key").aggregate([("source", "count"), ("source", "min"), ("source", "max")])
    for twins in keys.filter(pc.field("source_count") > 1).slice(0, 1).to_pylist():
        one, other = twins["source_min"], twins["source_max"]
        raise ValueError(f"data set {name!r}: {one} and {other} differ by suffix only: keep one of them")
    table = table.sort_by("lot").slice(0, source.limit).drop_columns("lot")
    return table if source.split == "train" else table.sort_by("key")


def split_validation(table: pa.Table, source: Source) -> tuple[pa.Table, pa.Table]:
    """A listing cut into what is trained on and what is held out: all pictures of some persons, about
    `source.validation` of them and at most a sixteenth of the set.

    Persons are taken in the listing's order, which is drawn by lot; those with more pictures than are still wanted are
    passed over, so that a set of a few persons may give none.
    """
    wanted = min(source.validation, len(table) // _VALIDATION_PART)
    if not wanted:
        return table, table.slice(0, 0)
    person = table["identity"].combine_chunks().dictionary_encode()
    code = person.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    alone = code < 0
    code[alone] = len(person.dictionary) + np.arange(alone.sum())  # of nobody known: a person each
    pictures = np.bincount(code)
    first = np.unique(code, return_index=True)
    chosen, taken = [], 0
    for one in first[0][np.argsort(first[1])].tolist():
        if taken + pictures[one] <= wanted:
            chosen.append(one)
            taken += pictures[one]
        if taken == wanted:
            break
    held = np.isin(code, chosen)
    return table.filter(pa.array(~held)), table.filter(pa.array(held))
