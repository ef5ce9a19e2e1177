"""`codeswap swap` and `codeswap verify`: two photographs in, both swaps out, marked as what they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.ndimage import gaussian_filter, maximum_filter

from codeswap.types import REGIONS
from codeswap.use import credentials, photographs, watermark
from codeswap.use.errors import UnreadableError, UseError, ended
from codeswap.use.loading import load_detector, load_identity, load_swapper
from codeswap.use.output import MIME, check_suffix, write_picture
from codeswap.use.pairs import Choice, Tools, pairs_of, read_pairs, result_name, swap_pair, swap_pairs
from codeswap.use.photographs import Like, portrait
from codeswap.use.regions import region_of
from codeswap.use.video import VIDEOS, FrameSwapper, Report, Tracker, first_frame, swap_video
from codeswap.use.view_commands import PrecisionOption

SOME_FAILED = 6  # exit code of a batch of which something could not be swapped


def _choice(text: str | None, tools: Tools, perception: Path) -> Choice:
    """A position, or the face that is most like that of a reference picture. Raises UseError."""
    if text is None or tools.detector is None:
        return None
    if text.lstrip("-").isdigit():
        return int(text)
    _, reference = portrait(Path(text), tools.detector, tools.swapper.cut, None)
    return Like(reference.crop, load_identity(perception, tools.swapper.cut.framing))


def swap_region(
    tools: Tools, a: Path, b: Path, out: Path, region: str, perception: Path, faces: Sequence[Choice]
) -> Path:
    """Gives the face of `b` a part of a's only, and writes `<a>_on_<b>_<region>` to `out`. Raises UseError."""
    (_, first), (picture, second) = (
        portrait(path, tools.detector, tools.swapper.cut, face) for path, face in zip((a, b), faces, strict=True)
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
    _, source = portrait(a, tools.detector, tools.swapper.cut, face_a)
    if isinstance(face_b, Like):
        raise UnreadableError("a video's face is chosen by its position from the left where a shot begins")
    tracker = Tracker(tools.detector, face_b)
    frames = FrameSwapper(tools.swapper, source.crop, tools.match_colour)
    return swap_video(frames, tracker, video, out, tools.swapper.facts, tools.mark)


def swap(
    a: Annotated[Path | None, typer.Argument(help="a photograph, a folder of them, or a 'pattern*.jpg'")] = None,
    b: Annotated[
        Path | None, typer.Argument(help="another one, a video; of two folders or patterns the same names are pairs")
    ] = None,
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
        str | None, typer.Option(help=f"only this part of B's face: {', '.join(REGIONS)}, or a mask painted over B")
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="also write crops, naive swaps and masks")] = False,
    precision: PrecisionOption = "fp32",
    batch: Annotated[
        int | None, typer.Option(min=1, help="pairs in one pass; without it as many as hold 512x512 pixels")
    ] = None,
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
    place, 5 no face, 6 a batch of which something failed or a video that
    breaks off, 7 a face too small or seen from the side.
    """
    if (pairs is None) == (a is None or b is None):
        raise typer.BadParameter("give two photographs, or --pairs FILE.csv")
    try:
        if b is not None and b.suffix.lower() in VIDEOS:
            swapper = load_swapper(models, variant, precision, photographs=True)
            tools = Tools(swapper, load_detector(weights), match_colour, not no_marks, "", False)
            target = out if out.suffix else out / f"{result_name(a, b)}.mp4"
            chosen = [_choice(text, tools, models / "perception") for text in (face_a, face_b)]
            report = swap_onto_video(tools, a, b, target, *chosen)
            typer.echo(f"{target}: {report}")
            if report.broken:
                raise typer.Exit(SOME_FAILED)
            return
        check_suffix(Path(f"x{suffix}"))
        todo = pairs_of(a, b) if pairs is None else read_pairs(pairs)
        if todo is not None and (region is not None or face_a is not None or face_b is not None):
            raise typer.BadParameter("--region, --face-a and --face-b take two photographs")
        detector = None if aligned else load_detector(weights)
        swapper = load_swapper(models, variant, precision, photographs=not aligned)
        tools = Tools(swapper, detector, match_colour, not no_marks, suffix, parts)
        chosen = [_choice(text, tools, models / "perception") for text in (face_a, face_b)]
        if region is not None:
            typer.echo(str(swap_region(tools, a, b, out, region, models / "perception", chosen)))
            return
        if todo is None:
            for path in swap_pair(tools, a, b, out, *chosen):
                typer.echo(str(path))
            return
        failed = swap_pairs(tools, todo, out, batch)
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
