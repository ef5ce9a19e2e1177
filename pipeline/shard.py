"""Stage `shard@<dataset>`: raw faces -> data/shards/<split>/<dataset>/."""

from pathlib import Path

from codeswap.config import fingerprint, load_params
from codeswap.data.manifest import CARD
from codeswap.data.shards import ImageConfig
from codeswap.data.sources import DatasetConfig
from codeswap.perception.roles import RoleConfig
from codeswap.prepare.ingest import ingest, plan
from codeswap.train.tracking import log_out
from codeswap.types import Config
from pipeline.cli import PARAMS_FILE, run_stage


class ShardParams(Config):
    """All that this stage reads of params.yaml."""

    image: ImageConfig
    dataset: DatasetConfig
    landmarks: RoleConfig | None = None  # perception.landmarks: finds the faces of sources that are not aligned


PARAMS = ShardParams


def main(dataset: str) -> None:
    """Makes the shards, manifest and quarantine of one data set."""
    params = load_params(Path(PARAMS_FILE), PARAMS, dataset)
    planned = Path("runs/shard") / dataset / "plan.parquet"
    plan(dataset, params.dataset, planned)
    run = planned.parent / fingerprint(params, [planned])
    out = Path("data/shards") / params.dataset.split / dataset
    print(f"{dataset}: {ingest(dataset, params.dataset, params.image, planned, run, out, params.landmarks)}")
    log_out("shard", dataset, params.model_dump(mode="json"), run.name, out / CARD)


if __name__ == "__main__":
    run_stage(main, dataset="a key of `datasets` in params.yaml")
