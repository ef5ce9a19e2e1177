"""Stage `annotate@<dataset>`: what the frozen networks say of each face -> data/annotations/<split>/<dataset>/."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.data.manifest import CARD, MANIFEST
from codeswap.data.sources import DatasetConfig
from codeswap.prepare.annotate import annotate
from codeswap.train.tracking import log_out
from codeswap.types import Config
from pipeline.cli import PARAMS_FILE, run_stage


class AnnotateParams(Config):
    """All that this stage reads of params.yaml."""

    dataset: DatasetConfig


PARAMS = AnnotateParams


def main(dataset: str) -> None:
    """Annotates every face of one data set with the training networks."""
    params = load_params(Path(PARAMS_FILE), PARAMS, dataset)
    place = Path(params.dataset.split) / dataset
    shards, perception = Path("data/shards") / place, Path("models/perception")
    inputs = [path for path in (shards / CARD, shards / MANIFEST, perception / CARD) if path.exists()]
    run = Path("runs/annotate") / dataset / fingerprint(params, inputs)
    out = Path("data/annotations") / place
    print(f"{dataset}: {annotate(shards, perception, run, out)}")
    parents = {"shards": shards / CARD, "perception": perception / CARD}
    log_out("annotate", dataset, params.model_dump(mode="json"), run.name, out / CARD, parents)


if __name__ == "__main__":
    run_stage(main, dataset="a key of `datasets` in params.yaml")
