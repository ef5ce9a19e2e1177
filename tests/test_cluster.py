"""Sharding on a Ray cluster that is already there: two nodes of it, found by address, left as they were."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from pydantic import TypeAdapter
from ray.cluster_utils import Cluster

from codeswap.data.shards import ImageConfig
from codeswap.data.sources import DatasetConfig
from codeswap.prepare.blocks import cluster, run_blocks
from codeswap.prepare.ingest import ingest, plan


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1, object_store_memory=10**8)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes.address
    nodes.shutdown()


class Meet:
    """Leaves its node's name in a folder and waits there for one of another node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> dict[str, float]:
        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        patience = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < patience:
            time.sleep(0.05)
        return {}


def test_both_nodes_of_a_cluster_at_an_address_work_and_the_bytes_are_the_same(address: str, tmp_path: Path) -> None:
    config = {"source": "synthetic", "split": "train", "identities": 6, "images_per_identity": 2, "shard_size": 3}
    source, planned = TypeAdapter(DatasetConfig).validate_python(config), tmp_path / "plan.parquet"
    plan("set", source, planned)
    with cluster():
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        (tmp_path / "met").mkdir()
        list(run_blocks(Meet, (tmp_path / "met",), range(4), "meet", holds=True))
        assert len(list((tmp_path / "met").iterdir())) == 2  # two actors, one processor on each node
    ingest("set", source, ImageConfig(size=32), planned, tmp_path / "run", tmp_path / "cluster", None)
    assert not ray.is_initialized()  # ours was a visit; the cluster goes on
    ray.init(address=address, logging_level="ERROR")
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    ray.shutdown()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        ingest("set", source, ImageConfig(size=32), planned, tmp_path / "run", tmp_path / "alone", None)
    there, here = (sorted((tmp_path / name).iterdir()) for name in ("cluster", "alone"))
    assert [path.name for path in there] == [path.name for path in here]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(there, here, strict=True))
