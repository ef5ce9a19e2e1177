"""`codeswap reconstruct` and `codeswap attention`: pictures that show what a model does."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from codeswap.evaluate.views import attention as attention_picture
from codeswap.evaluate.views import degraded, reconstructions
from codeswap.use import photographs
from codeswap.use.errors import UnreadableError, UseError, ended
from codeswap.use.loading import Precision, Swapper, load_detector, load_swapper
from codeswap.use.output import check_suffix, write_picture

Models = Annotated[Path, typer.Option(help="folder of trained models")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="of the networks: bf16, or int8 on a processor, are faster")
]
Variant = Annotated[str, typer.Option(help="of Table 3")]
Out = Annotated[Path, typer.Option("--out", "-o", help="the picture to write")]
Aligned = Annotated[bool, typer.Option("--aligned", help="the pictures are FFHQ-aligned crops")]
Weights = Annotated[Path | None, typer.Option(help="folder of the face detector's weights")]


def _crops(paths: list[Path], swapper: Swapper, aligned: bool, weights: Path | None) -> list[np.ndarray]:
    detector = None if aligned else load_detector(weights)
    return [photographs.portrait(path, detector, swapper.cut, None).face.crop for path in paths]


def reconstruct(
    pictures: Annotated[list[Path], typer.Argument(help="photographs")],
    out: Out = Path("reconstructed.png"),
    degrade: Annotated[bool, typer.Option("--degrade", help="shrink, add noise and compress them first")] = False,
    models: Models = Path("models"),
    variant: Variant = "ours",
    aligned: Aligned = False,
    weights: Weights = None,
) -> None:
    """What the codebook keeps of faces: each one, and what is decoded of its nearest and of its soft codes (Fig. 3)."""
    try:
        check_suffix(out)
        swapper = load_swapper(models, variant, photographs=not aligned)
        crops = _crops(pictures, swapper, aligned, weights)
        crops = [degraded(crop) for crop in crops] if degrade else crops
        write_picture(out, np.asarray(reconstructions(swapper.model, swapper.tensor(*crops))), swapper.facts)
    except UseError as error:
        raise ended(error) from None
    typer.echo(str(out))


def attention(
    a: Annotated[Path, typer.Argument(help="the source's photograph")],
    b: Annotated[Path, typer.Argument(help="the target's photograph")],
    at: Annotated[str, typer.Option(help="X,Y from 0 to 1 in the target's aligned face")] = "0.5,0.5",
    layer: Annotated[int, typer.Option(help="of the fusion module, from 0; -1 is the last")] = -1,
    out: Out = Path("attention.png"),
    models: Models = Path("models"),
    variant: Variant = "ours",
    aligned: Aligned = False,
    weights: Weights = None,
) -> None:
    """Where a place of the swap of A onto B looks, in B itself and in A (Fig. 9)."""
    try:
        check_suffix(out)
        swapper = load_swapper(models, variant, photographs=not aligned)
        first, second = _crops([a, b], swapper, aligned, weights)
        try:
            x, y = (float(number) for number in at.split(","))
            picture = attention_picture(swapper.model, swapper.tensor(first), swapper.tensor(second), (x, y), layer)
        except ValueError as error:
            raise UnreadableError(f"--at {at} --layer {layer}: {error}") from None
        write_picture(out, np.asarray(picture), swapper.facts)
    except UseError as error:
        raise ended(error) from None
    typer.echo(str(out))
