"""`codeswap swap` and `codeswap verify`: two photographs in, both swaps out, marked as what they are."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from scipy.ndimage import gaussian_filter, maximum_filter
from tqdm import tqdm

from codeswap.perception.mtcnn import MTCNN
from codeswap.use import credentials, photographs, watermark
from codeswap.use.errors import NoFaceError, UnreadableError, UseError, ended
from codeswap.use.loading import Swapper, load_detector, load_identity, load_swapper
from codeswap.use.output import MIME, check_suffix, write_picture
from codeswap.use.photographs import Like, face_of
from codeswap.use.regions import NAMES, region_of
from codeswap.use.video import VIDEOS, FrameSwapper, Report, Tracker, first_frame, swap_video

Choice = int | Like | None
SOME_FAILED = 6  # exit code of a batch of which something could not be swapped


class Tools(NamedTuple):
    """What a pair of photographs passes through."""

    swapper: Swapper
    detector: MTCNN | None  # None: pictures are aligned crops
    match_colour: bool
    mark: bool
    suffix: str
    parts: bool


def _choice(text: str | None, tools: Tools, perception: Path) -> Choice:
    """A position, or the face that is most like that of a reference picture. Raises UseError."""
    if text is None or tools.detector is None:
        return None
    if text.lstrip("-").isdigit():
        return int(text)
    _, reference = face_of(Path(text), tools.detector, tools.swapper.size, None)
    return Like(reference.crop, load_identity(perception))


def result_name(a: Path, b: Path) -> str:
    """What the swap of `a` onto `b` is called; files of the same name are told apart by their folders."""
    if a.stem == b.stem:
        return f"{a.parent.name}-{a.stem}_on_{b.parent.name}-{b.stem}"
    return f"{a.stem}_on_{b.stem}"


def swap_pair(tools: Tools, a: Path, b: Path, out: Path, face_a: Choice = None, face_b: Choice = None) -> list[Path]:
    """Swaps the faces of two photographs and writes `<a>_on_<b>` and `<b>_on_<a>` to `out`; their paths.

    Raises UseError.
    """
    detector, size = tools.detector, tools.swapper.size
    pictures, faces = zip(face_of(a, detector, size, face_a), face_of(b, detector, size, face_b), strict=True)
    found = tools.swapper.swap(faces[0].crop, faces[1].crop)
    names = result_name(a, b), result_name(b, a)
    written = []
    for name, target, naive, mask in (
        (names[0], 1, found.naive_ab, found.mask_b),
        (names[1], 0, found.naive_ba, found.mask_a),
    ):
        if naive is None:  # a model that swaps one way only
            continue
        result = photographs.paste(pictures[target], faces[target], naive, mask, tools.match_colour)
        generated, taken = {"": result}, {}
        if tools.parts:
            generated["_naive"] = naive
            taken["_crop"] = faces[target].crop
            if mask is not None:
                taken["_mask"] = np.rint(mask * 255).astype(np.uint8)[..., None].repeat(3, 2)
        for part, pixels in (generated | taken).items():
            written.append(out / f"{name}{part}{tools.suffix}")
            write_picture(written[-1], pixels, tools.swapper.facts, tools.mark and part in generated)
    return written


def swap_region(
    tools: Tools, a: Path, b: Path, out: Path, region: str, perception: Path, faces: Sequence[Choice]
) -> Path:
    """Gives the face of `b` a part of a's only, and writes `<a>_on_<b>_<region>` to `out`. Raises UseError."""
    (_, first), (picture, second) = (
        face_of(path, tools.detector, tools.swapper.size, face) for path, face in zip((a, b), faces, strict=True)
    )
    inside = region_of(region, second, picture, tools.swapper, perception)
    crop = tools.swapper.swap_region(first.crop, second.crop, inside)
    cell = tools.swapper.cell
    soft = gaussian_filter(maximum_filter(inside.astype(np.float32), 2 * cell + 1), cell / 2)
    path = out / f"{result_name(a, b)}_{Path(region).stem}{tools.suffix}"
    result = photographs.paste(picture, second, crop, soft, tools.match_colour)
    write_picture(path, result, tools.swapper.facts, tools.mark)
    return path


def swap_onto_video(
    tools: Tools, a: Path, video: Path, out: Path, face_a: Choice = None, face_b: Choice = None
) -> Report:
    """Puts the person of photograph `a` on a video. Raises UseError."""
    _, source = face_of(a, tools.detector, tools.swapper.size, face_a)
    if isinstance(face_b, Like):
        raise UnreadableError("a video's face is chosen by its position from the left where a shot begins")
    tracker = Tracker(tools.detector, face_b)
    frames = FrameSwapper(tools.swapper, source.crop, tracker, tools.match_colour)
    return swap_video(frames, tracker, video, out, tools.swapper.facts, tools.mark)


def read_pairs(path: Path) -> list[tuple[Path, Path]]:
    """The pairs of a CSV with the columns `a` and `b`, paths from the CSV's folder. Raises UnreadableError."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableError(f"{path} cannot be read ({error})") from None
    if not rows or not {"a", "b"} <= rows[0].keys():
        raise UnreadableError(f"{path}: expected a CSV with the columns a and b, and a line for each pair")
    return [(path.parent / row["a"], path.parent / row["b"]) for row in rows]


def pair_folders(a: Path, b: Path) -> list[tuple[Path, Path]]:
    """Pictures of two folders that have the same name but for the ending. Raises UnreadableError when none do."""
    found = [{path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in MIME} for folder in (a, b)]
    both = sorted(found[0].keys() & found[1].keys())
    if not both:
        raise UnreadableError(f"{a} and {b} hold no pictures of the same names ({', '.join(MIME)}): use --pairs")
    return [(found[0][name], found[1][name]) for name in both]


def swap_all(tools: Tools, pairs: list[tuple[Path, Path]], out: Path) -> dict[str, str]:
    """Swaps pair after pair; what is in `out` already is left. Why each pair that failed did."""
    failed = {}
    for a, b in tqdm(pairs, unit="pair", disable=None):
        if (out / f"{result_name(a, b)}{tools.suffix}").exists():
            continue
        try:
            swap_pair(tools, a, b, out)
        except (NoFaceError, UnreadableError) as error:
            failed[f"{a} {b}"] = str(error)
    return failed


def swap(
    a: Annotated[Path | None, typer.Argument(help="a photograph, or a folder of them")] = None,
    b: Annotated[Path | None, typer.Argument(help="another one, a video, or a folder of the same names")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the results, or an .mp4")] = Path("swapped"),
    pairs: Annotated[Path | None, typer.Option(help="a CSV with columns a and b instead of two photographs")] = None,
    models: Annotated[Path, typer.Option(help="folder of trained models")] = Path("models"),
    variant: Annotated[str, typer.Option(help="of Table 3")] = "ours",
    face_a: Annotated[
        str | None, typer.Option(help="which face of A: its number from the left, or a picture of that person")
    ] = None,
    face_b: Annotated[str | None, typer.Option(help="which face of B; without it the largest")] = None,
    aligned: Annotated[bool, typer.Option("--aligned", help="the pictures are FFHQ-aligned crops")] = False,
    weights: Annotated[Path | None, typer.Option(help="folder of the face detector's weights")] = None,
    match_colour: Annotated[bool, typer.Option(help="give the swapped face the target's colours")] = False,
    region: Annotated[
        str | None, typer.Option(help=f"only this part of B's face: {', '.join(NAMES)}, or a mask painted over B")
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="also write crops, naive swaps and masks")] = False,
    suffix: Annotated[str, typer.Option(help=f"format of the results: {', '.join(MIME)}")] = ".png",
    no_marks: Annotated[
        bool,
        typer.Option(
            "--no-marks",
            help="leave out watermark and Content Credentials: nothing will then tell viewers that faces are generated",
        ),
    ] = False,
) -> None:
    """Swaps the faces of two photographs, both ways in one pass: A_on_B has the identity of A. B may be a video.

    Only with the consent of everybody shown (docs/ethics.md). Results carry an invisible watermark and signed Content
    Credentials; `codeswap verify` reads them. Exit codes: 3 no model or detector, 4 unreadable picture or unwritable
    place, 5 no usable face, 6 a batch of which something failed.
    """
    if (pairs is None) == (a is None or b is None):
        raise typer.BadParameter("give two photographs, or --pairs FILE.csv")
    if region is not None and (pairs is not None or a.is_dir()):
        raise typer.BadParameter("--region takes two photographs")
    try:
        if b is not None and b.suffix.lower() in VIDEOS:
            tools = Tools(load_swapper(models, variant), load_detector(weights), match_colour, not no_marks, "", False)
            target = out if out.suffix else out / f"{result_name(a, b)}.mp4"
            chosen = [_choice(text, tools, models / "perception") for text in (face_a, face_b)]
            typer.echo(f"{target}: {swap_onto_video(tools, a, b, target, *chosen)}")
            return
        check_suffix(Path(f"x{suffix}"))
        folders = pairs is None and a.is_dir() and b.is_dir()
        todo = pair_folders(a, b) if folders else [] if pairs is None else read_pairs(pairs)
        detector = None if aligned else load_detector(weights)
        tools = Tools(load_swapper(models, variant), detector, match_colour, not no_marks, suffix, parts)
        chosen = [_choice(text, tools, models / "perception") for text in (face_a, face_b)]
        if region is not None:
            typer.echo(str(swap_region(tools, a, b, out, region, models / "perception", chosen)))
            return
        if not todo:
            for path in swap_pair(tools, a, b, out, *chosen):
                typer.echo(str(path))
            return
        failed = swap_all(tools, todo, out)
    except UseError as error:
        raise ended(error) from None
    typer.echo(f"{len(todo) - len(failed)} of {len(todo)} pairs are in {out}")
    for pair, why in failed.items():
        typer.echo(f"  {pair}: {why}", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


def verify(file: Annotated[Path, typer.Argument(help="a png, jpg, webp or mp4")]) -> None:
    """Says whether a file carries CodeSwap's marks: Content Credentials, watermark. Exit code 1 when it has none."""
    try:
        kinds = MIME | {".mp4": "video/mp4"}
        if file.suffix.lower() not in kinds:
            raise UnreadableError(f"{file}: expected one of {', '.join(kinds)}")
        pixels = first_frame(file) if file.suffix.lower() == ".mp4" else photographs.read(file)
        found = credentials.read_file(file, kinds[file.suffix.lower()])
    except UseError as error:
        raise ended(error) from None
    strength = watermark.score(pixels)
    marked = strength > watermark.THRESHOLD
    typer.echo(f"watermark: {'found' if marked else 'not found'} ({strength:.1f}, found above {watermark.THRESHOLD})")
    if found is None:
        typer.echo("Content Credentials: none")
    else:
        typer.echo(
            f"Content Credentials: signed by {found.signer!r}; {'intact' if found.intact else 'BROKEN'} ({found.state})"
        )
        typer.echo(f"  source type: {found.source_type}")
        for name, value in sorted(found.model.items()):
            typer.echo(f"  {name}: {value}")
    if not marked and found is None:
        raise typer.Exit(1)
