"""Pairs of photographs on the disk: which ones are meant, and both results of each, marked, in a folder."""

import csv
import glob
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from codeswap.perception.mtcnn import MTCNN
from codeswap.use.errors import NoFaceError, UnfitFaceError, UnreadableError
from codeswap.use.loading import Swapper
from codeswap.use.output import MIME, write_picture
from codeswap.use.photographs import Like, Portrait, portrait
from codeswap.use.swapping import Swapped, swap_portraits

Choice = int | Like | None
Pair = tuple[Path, Path]
_HELD = 2**28  # bytes of photographs read before their pass
_PIXELS = 512 * 512  # of one side of a pass: a pair at the paper's size, more of smaller models'


class Tools(NamedTuple):
    """What a pair of photographs passes through."""

    swapper: Swapper
    detector: MTCNN | None  # None: pictures are aligned crops
    match_colour: bool
    mark: bool
    suffix: str
    parts: bool


def result_name(a: Path, b: Path) -> str:
    """What the swap of `a` onto `b` is called; files of the same name are told apart by their folders."""
    if a.stem == b.stem:
        return f"{a.parent.name}-{a.stem}_on_{b.parent.name}-{b.stem}"
    return f"{a.stem}_on_{b.stem}"


def swap_pair(tools: Tools, a: Path, b: Path, out: Path, face_a: Choice = None, face_b: Choice = None) -> list[Path]:
    """Swaps the faces of two photographs and writes `<a>_on_<b>` and `<b>_on_<a>` to `out`; their paths.

    Raises UseError.
    """
    found = _portraits(tools, (a, b), (face_a, face_b))
    (swapped,) = swap_portraits(tools.swapper, [found], tools.match_colour)
    return _write(tools, (a, b), found, swapped, out)


def swap_pairs(tools: Tools, pairs: list[Pair], out: Path, together: int | None) -> dict[str, str]:
    """Swaps `together` pairs in a pass; those whose results are in `out` already are left. Why each that failed did.

    Raises UnreadableError when `out` cannot be written.
    """
    together = together or max(1, _PIXELS // tools.swapper.size**2)
    failed, todo = {}, [pair for pair in pairs if not _finished(tools, pair, out)]
    waiting: dict[Pair, tuple[Portrait, Portrait]] = {}

    def swap_waiting() -> None:
        made = swap_portraits(tools.swapper, list(waiting.values()), tools.match_colour)
        for (pair, found), swapped in zip(waiting.items(), made, strict=True):
            _write(tools, pair, found, swapped, out)
        waiting.clear()

    for pair in tqdm(todo, total=len(pairs), initial=len(pairs) - len(todo), unit="pair", disable=None):
        try:
            waiting[pair] = _portraits(tools, pair)
        except (NoFaceError, UnfitFaceError, UnreadableError) as error:
            failed[" ".join(map(str, pair))] = str(error)
        held = sum(side.pixels.nbytes for both in waiting.values() for side in both)
        if len(waiting) == together or held > _HELD:
            swap_waiting()
    if waiting:
        swap_waiting()
    return failed


def _portraits(tools: Tools, pair: Pair, choices: tuple[Choice, Choice] = (None, None)) -> tuple[Portrait, Portrait]:
    """Both photographs with their faces; aligning one takes about as long as a small swap, so side by side."""
    with ThreadPoolExecutor(2) as pool:
        one, other = (
            pool.submit(portrait, path, tools.detector, tools.swapper.cut, choice)
            for path, choice in zip(pair, choices, strict=True)
        )
    return one.result(), other.result()


def _finished(tools: Tools, pair: Pair, out: Path) -> bool:
    a, b = pair
    names = [result_name(a, b)] if tools.swapper.one_sided else [result_name(a, b), result_name(b, a)]
    return all((out / f"{name}{tools.suffix}").exists() for name in names)


def _write(tools: Tools, pair: Pair, found: tuple[Portrait, Portrait], swapped: Swapped, out: Path) -> list[Path]:
    (a, b), crops = pair, swapped.crops

    def write(
        name: str, target: Portrait, result: np.ndarray | None, naive: np.ndarray | None, mask: np.ndarray | None
    ) -> list[Path]:
        if result is None:
            return []
        generated, taken, written = {"": result}, {}, []
        if tools.parts:
            generated["_naive"] = naive
            taken["_crop"] = target.face.crop
            if mask is not None:
                taken["_mask"] = np.rint(mask * 255).astype(np.uint8)[..., None].repeat(3, 2)
        for part, pixels in reversed((generated | taken).items()):  # the result last: it says that all is there
            path = out / f"{name}{part}{tools.suffix}"
            write_picture(path, pixels, tools.swapper.facts, tools.mark and part in generated)
            written.append(path)
        return written

    with ThreadPoolExecutor(2) as pool:
        ab = pool.submit(write, result_name(a, b), found[1], swapped.ab, crops.naive_ab, crops.mask_b)
        ba = pool.submit(write, result_name(b, a), found[0], swapped.ba, crops.naive_ba, crops.mask_a)
    return ab.result() + ba.result()


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a CSV with the columns `a` and `b`, paths from the CSV's folder. Raises UnreadableError."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableError(f"{path} cannot be read ({error})") from None
    if not rows or not {"a", "b"} <= rows[0].keys():
        raise UnreadableError(f"{path}: expected a CSV with the columns a and b, and a line for each pair")
    return [(path.parent / row["a"], path.parent / row["b"]) for row in rows]


def pairs_of(a: Path, b: Path) -> list[Pair] | None:
    """The pairs that two arguments mean: None for two files, else those of two folders or globs by their names, or one
    photograph with each picture of a folder or glob.

    Raises UnreadableError when nothing fits.
    """
    left, right = _many(a), _many(b)
    if left is None and right is None:
        return None
    if right is None:
        return [(path, b) for path in left]
    if left is None:
        return [(a, path) for path in right]
    named = [{path.stem: path for path in found} for found in (left, right)]
    both = sorted(named[0].keys() & named[1].keys())
    if not both:
        raise UnreadableError(f"{a} and {b} hold no pictures of the same names: use --pairs")
    return [(named[0][name], named[1][name]) for name in both]


def _many(place: Path) -> list[Path] | None:
    """The pictures of a folder or of a pattern with `*`, `?` or `[`; None for a file."""
    if place.is_dir():
        found = list(place.iterdir())
    elif glob.has_magic(str(place)) and not place.exists():
        found = [Path(name) for name in glob.glob(str(place), recursive=True)]
    else:
        return None
    pictures = sorted(path for path in found if path.suffix.lower() in MIME)
    if not pictures:
        raise UnreadableError(f"{place} holds no pictures ({', '.join(MIME)})")
    return pictures
