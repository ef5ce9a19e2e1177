"""Stage 3: codebook, a variant's swap model, shards, annotations and perception in, `models/mask/<variant>` out."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.train.inputs import mask_inputs
from codeswap.train.mask import MaskParams, train_mask
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS = MaskParams


def main(variant: str) -> None:
    """Train the mask generator on one variant's swaps; run again to resume."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    train_mask(params, variant, Path(), fingerprint(params, mask_inputs(Path(), variant)))


if __name__ == "__main__":
    run_stage(main, variant="ours, no_codebook, no_symmetry, hard or gumbel; ours-1 is another training of ours")
