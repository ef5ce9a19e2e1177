"""Shards: plain WebDataset tars of `<key>.png|jpg|webp` and `<key>.json`, byte-identical for the same faces.

They are read by offset (`read_image`), which makes any order exact and cheap, or by stock WebDataset (`stream`) where
random access does not pay.
"""

import io
import json
import os
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image as PILImage
from pydantic import Field

from codeswap.types import Config

_LARGEST_FACTS = 2**20  # bytes of a face's json; a damaged header may claim any size
HEADER = tarfile.BLOCKSIZE  # every member of a plain tar is one 512-byte header and its data, padded to 512


class ImageConfig(Config):
    """How face crops are stored."""

    size: int = Field(64, ge=16, le=4096)  # pixels, square
    format: Literal["png", "jpg", "webp"] = "png"
    quality: int = Field(95, ge=1, le=100)  # of jpg and webp
    framing: float = Field(1.0, ge=0.6, le=1)  # side of the square shown, of FFHQ's (data/align.py); 1 in the paper


class Sample(NamedTuple):
    """One face to be written: encoded image and what is known of it."""

    key: str
    image: bytes
    facts: dict[str, object]


class Place(NamedTuple):
    """Where an encoded image lies in its shard, in bytes, and the CRC-32 of its bytes.

    Decoders do not notice all damage: libpng's readers skip checksums of pixel data, and jpegs have none.
    """

    offset: int
    size: int
    crc32: int


class DamagedShardError(ValueError):
    """A shard that does not hold what its manifest says."""


def encode(pixels: np.ndarray, config: ImageConfig) -> bytes:
    """Encodes a uint8 (h, w, 3) RGB picture. Jpegs keep full chroma: face crops are small and lips are red."""
    image = PILImage.fromarray(pixels)
    out = io.BytesIO()
    match config.format:
        case "png":
            image.save(out, "PNG", compress_level=1)  # half the time of the default for 7 % more bytes
        case "jpg":
            image.save(out, "JPEG", quality=config.quality, subsampling=0)
        case "webp":
            image.save(out, "WEBP", quality=config.quality)
    return out.getvalue()


def decode(data: bytes, into: np.ndarray | None = None) -> np.ndarray:
    """Decodes a png, jpg or webp to uint8 (h, w, 3) RGB; a jpg `into` a contiguous array, when one is given.

    Raises ValueError when it cannot be decoded, or the array has too few bytes.
    """
    if data[:2] == b"\xff\xd8":
        return simplejpeg.decode_jpeg(data, "RGB", buffer=into)
    try:
        with PILImage.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # PIL reports a broken PNG as SyntaxError
        raise ValueError(str(error)) from None


def write_shard(path: Path, samples: Iterable[Sample], config: ImageConfig) -> list[Place]:
    """Writes a tar whole or not at all; the places of the images, in order.

    Times and owners are zero, so that the bytes depend on the samples only.
    """
    partial = path.with_name(f".{path.name}.partial")
    places = []
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in samples:
                    places.append(Place(tar.offset + HEADER, len(sample.image), zlib.crc32(sample.image)))
                    _add(tar, f"{sample.key}.{config.format}", sample.image)
                    _add(tar, f"{sample.key}.json", json.dumps(sample.facts, sort_keys=True).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk: give the room back, and say where (the system does not)
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.replace(partial, path)
    return places


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def read_image(shard: int, place: Place) -> bytes:
    """The encoded image at `place` of the open file descriptor `shard`, by one positioned read.

    Raises DamagedShardError when the file ends early, or these are not the bytes that were written there.
    """
    data = os.pread(shard, place.size, place.offset)
    if len(data) < place.size:
        raise DamagedShardError("the file ends inside it")
    if zlib.crc32(data) != place.crc32:
        name = _name(os.pread(shard, HEADER, place.offset - HEADER))
        raise DamagedShardError(f"other bytes than were written lie at {place.offset}, in a member called {name!r}")
    return data


def read_facts(shard: int, place: Place, key: str) -> dict[str, object]:
    """The json of `key`, which follows its image at `place`. Raises DamagedShardError as `read_image` does."""
    start = place.offset + -(-place.size // HEADER) * HEADER
    header = os.pread(shard, HEADER, start)
    if len(header) < HEADER or _name(header) != f"{key}.json":
        raise DamagedShardError(f"at byte {start} it should hold {key}.json")
    try:
        size = tarfile.TarInfo.frombuf(header, "ascii", "strict").size
        if size > _LARGEST_FACTS:
            raise ValueError(f"its header claims {size:,} bytes")
        facts = json.loads(os.pread(shard, size, start + HEADER))
        if facts.get("key", key) != key:
            raise ValueError(f"it is of face {facts['key']!r}")
        return facts
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedShardError(f"{key}.json cannot be read ({error})") from None


def _name(header: bytes) -> str:
    return header[:100].rstrip(b"\0").decode("ascii", "replace")


def stream(folder: Path) -> Iterator[tuple[str, np.ndarray, dict[str, object]]]:
    """(key, uint8 (h, w, 3), facts) of every face of a folder in file order, by the stock WebDataset reader.

    For object stores and other people's tools. Training does not use it: it cannot resume in the middle, and it loses
    the rest of a shard silently behind a corrupt header.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset  # imported here: half a second that no training should pay

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        image = next(sample[suffix] for suffix in ("png", "jpg", "webp") if suffix in sample)
        yield sample["__key__"], decode(image), json.loads(sample["json"])
