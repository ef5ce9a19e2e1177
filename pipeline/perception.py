"""Stage `perception`: files of real weights, or our own networks trained on rendered faces -> models/perception/."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.perception.roles import PerceptionConfig
from codeswap.prepare.perception import fill_roles, summary, weight_files
from codeswap.types import Config
from pipeline.cli import PARAMS_FILE, run_stage


class PerceptionParams(Config):
    """All that this stage reads of params.yaml."""

    perception: PerceptionConfig


PARAMS = PerceptionParams


def main() -> None:
    """Fills the perception roles and verifies each."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    root = Path()
    run = Path("runs/perception/-") / fingerprint(params, weight_files(params.perception, root))
    print(summary(fill_roles(params.perception, root, run, Path("models/perception"))))


if __name__ == "__main__":
    run_stage(main)
