"""Thousands of damaged and hostile inputs through the shard stage, and damaged shards through the readers.

    python -m benchmarks.fuzz_data --pictures 2000 --shards 2000

Every picture must end in the manifest or in the quarantine, every read must give the right pixels or one ValueError,
and no file may appear outside the output folder. Ends with exit code 1 and the seed when one does not.
"""

import argparse
import io
import os
import random
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from pydantic import TypeAdapter

from codeswap.data.faces import Faces
from codeswap.data.manifest import read_manifest, read_quarantine
from codeswap.data.shards import HEADER, ImageConfig, read_facts, stream
from codeswap.data.sources import DatasetConfig
from codeswap.data.synthetic import attributes, identities, render
from codeswap.prepare.ingest import ingest, plan

SIZE = 48
Draw = random.Random
NAMES = (
    "-rf", "a b", "a;b", "a'b\"c", "line\nbreak", "tab\tbed", "..", "...", "%2e%2e%2f", "$(touch x)", "ünïcødé",
    "日本語", "🙂", "e\u0301", "\u202egnp", "CON", "x" * 200, "~", "*", "?", "\\..\\..", "a:b", "00000", "\x7f", "#",
    "{}", "%s%n",
)  # fmt: skip


def _face(draw: Draw) -> PILImage.Image:
    number = draw.randrange(1000)
    image, _ = render(identities(number, 1, 7), attributes(number, 1, 7), SIZE)
    return PILImage.fromarray(image[0].permute(1, 2, 0).numpy())


def _encoded(image: PILImage.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _flipped(data: bytes, draw: Draw) -> bytes:
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 4, 64))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _bomb(draw: Draw) -> bytes:
    """A PNG of a few bytes whose header claims thousands of millions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = draw.choice((20_000, 60_000, 2**31 - 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )


def _grown(draw: Draw) -> bytes:
    frames = [_face(draw) for _ in range(3)]
    kind = draw.choice(("WEBP", "TIFF", "PNG", "GIF"))
    return _encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _rotated(draw: Draw) -> bytes:
    exif = PILImage.Exif()
    exif[0x0112] = draw.randrange(0, 12)  # 1..8 are defined
    return _encoded(_face(draw), "JPEG", exif=exif)


def _deep(draw: Draw) -> bytes:
    pixels = np.full((SIZE, SIZE), draw.randrange(2**16), dtype=np.uint16)
    return _encoded(PILImage.fromarray(pixels), draw.choice(("PNG", "TIFF")))


PICTURES: dict[str, Callable[[Draw], bytes]] = {
    "good": lambda draw: _encoded(_face(draw), draw.choice(("PNG", "JPEG", "WEBP", "BMP", "TIFF"))),
    "truncated": lambda draw: (data := _encoded(_face(draw), draw.choice(("PNG", "JPEG", "WEBP"))))[
        : draw.randrange(1, len(data))
    ],
    "bits flipped": lambda draw: _flipped(_encoded(_face(draw), draw.choice(("PNG", "JPEG", "WEBP", "TIFF"))), draw),
    "no byte": lambda draw: b"",
    "noise": lambda draw: draw.randbytes(draw.randrange(1, 4000)),
    "text": lambda draw: b"<html><body>404 not found</body></html>",
    "bomb": _bomb,
    "cmyk": lambda draw: _encoded(_face(draw).convert("CMYK"), "JPEG"),
    "16 bit": _deep,
    "grey": lambda draw: _encoded(_face(draw).convert("L"), draw.choice(("PNG", "JPEG"))),
    "transparent": lambda draw: _encoded(_face(draw).convert(draw.choice(("RGBA", "LA", "P"))), "PNG"),
    "animated": _grown,
    "exif": _rotated,
    "wide": lambda draw: _encoded(_face(draw).resize((SIZE, SIZE - draw.randrange(1, SIZE))), "PNG"),
    "tiny": lambda draw: _encoded(_face(draw).resize((1, 1)), "PNG"),
}  # fmt: skip


def write_pictures(root: Path, count: int, draw: Draw) -> Counter[str]:
    """`count` pictures of every kind under hostile names, with links and a pipe among them; how many of each kind."""
    kinds: Counter[str] = Counter()
    for number in range(count):
        kind = draw.choice(list(PICTURES))
        person = root / f"{draw.choice(NAMES).replace('/', '_')[:150]}{number % 7}"
        person.mkdir(parents=True, exist_ok=True)
        name = f"{draw.choice(NAMES)[:150]}{number}{draw.choice(('.png', '.jpg', '.JPEG', '.webp', '.tif', '.bmp'))}"
        (person / name.lstrip(".")).write_bytes(PICTURES[kind](draw))
        kinds[kind] += 1
    (root / "nowhere.png").symlink_to(root / "is-not-there.png")
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    kinds["link or pipe"] = 3
    return kinds


def check_ingest(raw: Path, home: Path) -> Counter[str]:
    """Runs the shard stage's work on `raw`; raises AssertionError when an input is lost; the quarantine's reasons."""
    config = {
        "source": "folder",
        "split": "train",
        "root": str(raw),
        "licence": "CC0",
        "shard_size": 100,
        "min_size": 8,
    }
    source = TypeAdapter(DatasetConfig).validate_python(config)
    image, planned, out = ImageConfig(size=32), home / "plan.parquet", home / "shards" / "train" / "fuzz"
    plan("fuzz", source, planned)
    summary = ingest("fuzz", source, image, planned, home / "run", out, None)
    manifest, quarantine = read_manifest(out), read_quarantine(out)
    inputs = sorted(record.source for record in source.records("fuzz"))
    assert sorted(manifest["source"].to_pylist() + quarantine["source"].to_pylist()) == inputs, "an input was lost"
    assert summary.inputs == len(inputs) == len(manifest) + len(quarantine)
    keys = manifest["key"].to_pylist()
    assert len(set(keys)) == len(keys) and all(key.isascii() and key.isprintable() and "/" not in key for key in keys)
    faces = Faces([out])
    for index in range(len(faces)):
        assert faces.read(index).shape == (32, 32, 3) and faces.facts(index)["key"] == keys[index]
    assert sum(1 for _ in stream(out)) == len(faces), "stock webdataset reads another number of faces"
    assert {path.name for path in home.iterdir()} == {"plan.parquet", "shards"}, "files outside the output folder"
    return Counter(quarantine["reason"].to_pylist())


def damage_shard(data: bytes, draw: Draw) -> bytes:
    """A tar whose tail, bytes or headers are not what they were: absolute paths, `..`, links, lying sizes."""
    kind = draw.choice(("tail", "flip", "header", "zero", "swap"))
    if kind == "tail":
        return data[: draw.randrange(len(data))]
    if kind == "flip":
        return _flipped(data, draw)
    damaged = bytearray(data)
    at = draw.randrange(len(data) // HEADER) * HEADER
    if kind == "zero":
        damaged[at : at + HEADER] = bytes(HEADER)
    elif kind == "swap":
        other = draw.randrange(len(data) // HEADER) * HEADER
        damaged[at : at + HEADER] = data[other : other + HEADER]
    else:
        name = draw.choice((b"/etc/passwd", b"../../outside.png", b"a\0b", b"\xff\xfe", b""))
        damaged[at : at + 100] = name.ljust(100, b"\0")
        damaged[at + 124 : at + 136] = draw.choice(
            (b"77777777777\0", b"00000000000\0", b"-1\0" * 4, b"\x80" + b"\xff" * 11)
        )
        damaged[at + 156] = draw.choice(b"0125gxL")  # file, hard link, symbolic link, folder, pax, long name
    return bytes(damaged)


def check_shards(folder: Path, count: int, draw: Draw) -> Counter[str]:
    """Reads `count` damaged versions of a shard of `folder`; raises AssertionError for wrong pixels; the outcomes."""
    faces = Faces([folder])
    right = [faces.read(index) for index in range(len(faces))]
    path = sorted(folder.glob("*.tar"))[0]
    members = [index for index in range(len(faces)) if faces.manifest["shard"][index].as_py() == path.name]
    whole, outcomes = path.read_bytes(), Counter[str]()
    rows = faces.manifest.slice(0, len(faces)).to_pylist()
    for _ in range(count):
        damaged = path.with_suffix(".damaged")
        damaged.write_bytes(damage_shard(whole, draw))
        descriptor = os.open(damaged, os.O_RDONLY)
        for index in draw.sample(members, min(8, len(members))):
            outcomes[_read(descriptor, rows[index], right[index])] += 1
        os.close(descriptor)
        damaged.unlink()
    return outcomes


def _read(descriptor: int, row: dict[str, object], right: np.ndarray) -> str:
    from codeswap.data.shards import Place, decode, read_image

    place = Place(row["offset"], row["size"], row["crc32"])
    try:
        pixels = decode(read_image(descriptor, place))
        assert (pixels == right).all(), f"face {row['key']} was read with wrong pixels"
        facts = read_facts(descriptor, place, row["key"])
    except ValueError:
        return "refused"
    return "whole" if facts["key"] == row["key"] else "other facts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home, raw = Path(folder) / "home", Path(folder) / "raw"
        home.mkdir()
        try:
            kinds = write_pictures(raw, options.pictures, draw)
            print("pictures", dict(sorted(kinds.items())), flush=True)
            print("quarantined", dict(check_ingest(raw, home)), flush=True)
            print("reads of damaged shards", dict(check_shards(home / "shards/train/fuzz", options.shards, draw)))
        except AssertionError as error:
            print(f"seed {options.seed}: {error}", file=sys.stderr)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
