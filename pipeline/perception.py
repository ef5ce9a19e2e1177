"""Stage `perception`: files of real weights, or our own networks trained on rendered faces -> models/perception/."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.data.shards import ImageConfig
from codeswap.perception.roles import PerceptionConfig
from codeswap.prepare.perception import fill_roles, summary, weight_files
from codeswap.train.tracking import log_out
from codeswap.types import Config
from pipeline.cli import PARAMS_FILE, run_stage


class PerceptionParams(Config):
    """All that this stage reads of params.yaml."""

    perception: PerceptionConfig
    image: ImageConfig = ImageConfig()  # its framing


PARAMS = PerceptionParams
OUT = Path("models/perception")


def main() -> None:
    """Fills the perception roles and verifies each."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    root = Path()
    run = Path("runs/perception/-") / fingerprint(params, weight_files(params.perception, root))
    print(summary(fill_roles(params.perception, root, run, OUT, params.image.framing)))
    log_out("perception", "-", params.model_dump(mode="json"), run.name, OUT / "card.json")


if __name__ == "__main__":
    run_stage(main)
