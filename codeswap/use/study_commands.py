"""`codeswap study build`, `serve` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from codeswap.data.faces import Faces
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of
from codeswap.evaluate.tables import as_text
from codeswap.use.errors import UnreadableError, UseError, ended
from codeswap.use.loading import load_swapper
from codeswap.use.photographs import Portrait, aligned
from codeswap.use.study import Result, Study, folder_of_results, sync
from codeswap.use.study import build as build_study
from codeswap.use.study import report as report_of
from codeswap.use.swapping import swap_portraits

study = typer.Typer(no_args_is_help=True, help="Blind user studies: build trials, let people rate them, print Table 2.")


@study.command()
def build(
    out: Annotated[Path, typer.Argument(help="folder of the new study")],
    shards: Annotated[Path, typer.Option(help="test set, e.g. data/shards/test/images")],
    results: Annotated[
        list[str] | None, typer.Option("--result", help="NAME=FOLDER of <source>_<target>.png; repeat for several")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="NAME=FOLDER of trained models; repeat for several")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="pair list; without it the test set's own")] = None,
    trials: Annotated[int, typer.Option(help="pairs, each shown by every method")] = 20,
    catches: Annotated[int, typer.Option(help="trials that show whether somebody looks")] = 3,
    seed: Annotated[int, typer.Option(help="of the draw and the orders")] = 0,
) -> None:
    """Makes blind trials of any methods' results on the same pairs."""
    try:
        faces = Faces([shards])
        methods = {name: folder_of_results(folder) for name, folder in _named(results)}
        methods |= {name: _results_of(folder, faces) for name, folder in _named(models)}
        made = build_study(
            out, faces, pairs_of(faces.manifest, ProtocolConfig(file=pairs)), methods, trials, catches, seed
        )
        sync(out)
    except UseError as error:
        raise ended(error) from None
    except (ValueError, OSError) as error:
        raise ended(UnreadableError(str(error))) from None
    typer.echo(f"{len(made)} trials in {out}: `codeswap study serve {out}`")


def _named(texts: list[str] | None) -> list[tuple[str, Path]]:
    pairs = [text.partition("=") for text in texts or []]
    if bad := [name for name, sign, folder in pairs if not sign or not name or not folder]:
        raise UnreadableError(f"{bad[0]!r}: expected NAME=FOLDER")
    return [(name, Path(folder)) for name, _, folder in pairs]


def _results_of(models: Path, faces: Faces) -> Result:
    swapper = load_swapper(models, "ours")
    index = {key: row for row, key in enumerate(faces.keys)}

    def result(source: str, target: str):
        pictures = {key: faces.read(index[key]) for key in (source, target)}
        pair = [Portrait(pixels, aligned(key, pixels, swapper.cut)) for key, pixels in pictures.items()]
        return swap_portraits(swapper, [tuple(pair)])[0].ab

    return result


@study.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="folder of a study")],
    host: Annotated[str, typer.Option(help="0.0.0.0 lets others in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="of the page")] = 7861,
) -> None:
    """The page on which people rate; answers are on the disk at once, and everybody can go on later."""
    import uvicorn

    from codeswap.use.study_service import create_app

    try:
        app = create_app(Study(folder))
    except UseError as error:
        raise ended(error) from None
    uvicorn.run(app, host=host, port=port, log_level="warning", lifespan="off")


@study.command()
def report(folder: Annotated[Path, typer.Argument(help="folder of a study")]) -> None:
    """Means with intervals in the layout of Table 2, and how far raters agree."""
    try:
        found = report_of(Study(folder))
    except UseError as error:
        raise ended(error) from None
    typer.echo(as_text(found.table))
    for sentence in found.sentences:
        typer.echo(sentence)
