"""The rules that a reader relies on: who imports whom, one door per third party, files of readable size."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("codeswap/**/*.py"), *ROOT.glob("pipeline/*.py")])
DOORS = {
    "accelerate": ("codeswap/train/engine.py", "codeswap/train/accelerate_launch.py"),
    "deepspeed": ("codeswap/train/zero.py",),
    "torch.distributed": ("codeswap/train/engine.py", "codeswap/train/accelerate_launch.py"),
    "ray": ("codeswap/train/launch.py", "codeswap/prepare/"),
    "mlflow": ("codeswap/train/tracking.py", "codeswap/use/mlflow_model.py", "codeswap/use/served_model.py"),
    "webdataset": ("codeswap/data/shards.py",),
    "yaml": ("codeswap/config.py",),
    "c2pa": ("codeswap/use/credentials.py",),
    "cryptography": ("codeswap/use/credentials.py",),
    "typer": ("codeswap/cli.py", "codeswap/use/"),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed"):
            names.add("torch.distributed")
    return names


@pytest.mark.parametrize("third_party", DOORS)
def test_each_third_party_comes_through_one_door(third_party: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name == third_party or name.startswith(f"{third_party}.") for name in imported(path))
    }
    assert users, f"{third_party} is a dependency that nothing uses"
    outside = {user for user in users if not user.startswith(DOORS[third_party])}
    assert not outside, f"{third_party} is imported in {sorted(outside)}; its door is {DOORS[third_party]}"


def test_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_readable_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 300, f"{path.relative_to(ROOT)} has {lines} lines; split it by what it is about"
    assert path.stem not in {"utils", "common", "helpers", "misc"}


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.stem != "__main__"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_module_imports(path: Path) -> None:
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
