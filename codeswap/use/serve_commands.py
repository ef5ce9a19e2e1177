"""`codeswap serve`, the page and its API on this machine, and `codeswap export`, the model as an ONNX file."""

import os
from pathlib import Path
from typing import Annotated

import typer

from codeswap.use.errors import MissingModelError, UseError, ended
from codeswap.use.export import Precision as OnnxPrecision
from codeswap.use.export import export as write_onnx
from codeswap.use.loading import load_detector, load_swapper
from codeswap.use.view_commands import Models, PrecisionOption, Variant, Weights

PASSWORD = "CODESWAP_PASSWORD"


def serve(
    models: Models = Path("models"),
    variant: Variant = "ours",
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others in: set a password")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="of the page")] = 7860,
    precision: PrecisionOption = "fp32",
    megabytes: Annotated[float, typer.Option(help="largest request")] = 12.0,
    per_minute: Annotated[int, typer.Option(help="most computing requests of one address in a minute")] = 30,
) -> None:
    """A page to swap faces on, and the same as JSON over HTTP (/docs), on this machine only unless told otherwise.

    CODESWAP_PASSWORD in the environment asks everybody for it.
    """
    import uvicorn

    from codeswap.use.service import Limits, create_app

    password = os.environ.get(PASSWORD)
    if host not in ("127.0.0.1", "localhost", "::1") and not password:
        typer.echo(f"warning: everybody who reaches {host} can use this page; {PASSWORD} would ask for a password")
    try:
        detector = load_detector(weights)
    except MissingModelError as error:
        typer.echo(f"aligned crops only: {error}")
        detector = None
    try:
        swapper = load_swapper(models, variant, precision, photographs=detector is not None)
    except UseError as error:
        raise ended(error) from None
    app = create_app(swapper, detector, Limits(megabytes=megabytes, per_minute=per_minute, password=password))
    uvicorn.run(app, host=host, port=port, log_level="warning", lifespan="off")


def export(
    out: Annotated[Path, typer.Argument(help="the .onnx file to write")],
    models: Models = Path("models"),
    variant: Variant = "ours",
    precision: Annotated[
        OnnxPrecision,
        typer.Option(help="weights8: a quarter of the size; dynamic8 and static8: products of 8 bits too"),
    ] = "fp32",
) -> None:
    """Writes the whole inference as one ONNX graph: image_a, image_b in [-1, 1] to both swaps and masks, any batch."""
    try:
        swapper = load_swapper(models, variant)
        write_onnx(swapper.model.cpu(), swapper.facts, out, precision)
    except UseError as error:
        raise ended(error) from None
    typer.echo(f"{out}: {out.stat().st_size / 2**20:.1f} MB")
