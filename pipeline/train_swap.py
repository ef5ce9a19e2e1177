"""Stage 2: codebook, shards, annotations and perception networks in, `models/swap/<variant>` out."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.train.inputs import swap_inputs
from codeswap.train.swap import SwapParams, train_swap
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS = SwapParams


def main(variant: str) -> None:
    """Train the fusion module of one variant; run again to resume."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    train_swap(params, variant, Path(), fingerprint(params, swap_inputs(Path())))


if __name__ == "__main__":
    run_stage(main, variant="ours, no_codebook, no_symmetry, hard or gumbel; ours-1 is another training of ours")
