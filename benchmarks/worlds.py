"""Worlds in which benchmarks train: another project's faces and networks, and a params.yaml of their own."""

import os
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]
PAPERS_QUANTIZER = {"n_codes": 1024, "beta": 0.25, "beta_on": "codebook"}  # profiles/paper.yaml


def environment() -> dict[str, str]:
    """Of a stage that is trained in such a world: this project's code, one thread, no MLflow."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CODESWAP_MLFLOW": "off", "PYTHONPATH": str(PROJECT)}


def make_world(project: Path, place: Path, params: dict[str, object]) -> None:
    """A folder with the project's data and perception networks, linked, and `params` as its params.yaml."""
    (place / "models").mkdir(parents=True)
    for part in ("data", "models/perception"):
        (place / part).symlink_to((project / part).resolve())
    (place / "params.yaml").write_text(yaml.safe_dump(params))
