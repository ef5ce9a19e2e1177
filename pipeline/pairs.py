"""Writes a test set's pair list, so that the owner of another method can make results for it. Not a stage."""

from pathlib import Path

from codeswap.config import load_params
from codeswap.data.manifest import read_manifest
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of, write_pairs
from codeswap.evaluate.runner import EvaluateParams
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS = EvaluateParams


def main(testset: str, out: str) -> None:
    """Writes the pair list of `testset` to `out`; results are expected as <source>_<target>.png."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    manifest = read_manifest(Path("data/shards/test") / testset)
    pairs = pairs_of(manifest, params.evaluate.protocol.get(testset, ProtocolConfig()))
    write_pairs(Path(out), pairs)
    print(f"{len(pairs.sources)} pairs ({pairs.shape}, seed {pairs.seed}), sha256 {pairs.sha256}: {out}")


if __name__ == "__main__":
    run_stage(main, testset="name of a test set under data/shards/test", out="file to write")
