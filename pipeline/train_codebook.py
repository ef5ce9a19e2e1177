"""Stage 1: training shards and perception networks in, `models/codebook` out."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.train.codebook import CodebookParams, train_codebook
from codeswap.train.inputs import codebook_inputs
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS = CodebookParams


def main() -> None:
    """Train the VQGAN and its codebook; run again to resume."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    train_codebook(params, Path(), fingerprint(params, codebook_inputs(Path())))


if __name__ == "__main__":
    run_stage(main)
