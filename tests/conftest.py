"""What several training tests share: a tiny world, trained once."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from playwright.sync_api import Browser, sync_playwright

from codeswap.evaluate.judges import Judges
from codeswap.prepare.blocks import cluster
from codeswap.use import credentials
from tests.evaluation_world import small_judges


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny_training.py as a module."""
    spec = importlib.util.spec_from_file_location("tiny_training", Path(__file__).with_name("tiny_training.py"))
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ray_is_running() -> Iterator[None]:
    """One Ray for the tests of a file."""
    with cluster():
        yield


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing mlflow and making its tables takes seconds; test_tracking.py has it."""
    monkeypatch.setenv("CODESWAP_MLFLOW", "off")


@pytest.fixture(scope="session")
def trained(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world after all three trainings, uninterrupted, in one process. Not to be changed: take a `copy`."""
    root = tiny.make_world(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODESWAP_MLFLOW", "off")
        tiny.train(root, ["codebook", "swap", "mask"])
    return root


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """`copy("mask")`: the trained world without the outs and the runs of `mask`."""

    def without(*stages: str) -> Path:
        root = shutil.copytree(trained, tmp_path / "world")
        for stage in stages:
            for place in ("models", "runs"):
                shutil.rmtree(root / place / stage, ignore_errors=True)
        return root

    return without


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Judges:
    """Networks that compute something known, given to every evaluation of the test."""
    made = small_judges()
    monkeypatch.setattr(Judges, "load", classmethod(lambda cls, folder, device, framing: made))
    return made


@pytest.fixture
def own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are signed by a certificate that is made for this test alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (credentials.CERTIFICATE, credentials.KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless chromium of this machine (Debian: `apt-get install chromium`)."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()
