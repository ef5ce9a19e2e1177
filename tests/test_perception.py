"""Roles: filled by trained networks or verified files, never by anything else; networks keep their promised shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import mobilenet_v2

from codeswap.config import ParamsError, load_params
from codeswap.data import synthetic
from codeswap.perception import networks, roles
from codeswap.perception.convert import convert
from codeswap.perception.networks import NetworkConfig
from codeswap.perception.roles import ExpertTraining, PerceptionError, load, sha256_of
from codeswap.prepare.experts import JOBS, Margin, RenderedFaces, train_experts
from codeswap.prepare.validation import explained, judge_retrieval
from codeswap.types import PARSING_LABELS
from pipeline.perception import PARAMS

ROOT = Path(__file__).parent.parent
TINY = {
    "image_size": 32, "identities": 6, "images_per_identity": 2, "width": 4, "embedding": 8, "features": 5, "steps": 2,
    "parsing_steps": 2, "parsing_width": 4, "batch": 4, "validation_identities": 3, "validation_images": 2,
}  # fmt: skip
SYNTHETIC = {role: {"train": "synthetic"} for role in roles.TRAINABLE}


def run_stage(folder: Path, perception: dict) -> subprocess.CompletedProcess[str]:
    (folder / "params.yaml").write_text(yaml.safe_dump({"perception": perception}))
    return subprocess.run(
        [sys.executable, "-m", "pipeline.perception"], cwd=folder, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose perception stage has run, in two processes; only the landmarks role is left empty."""
    folder = tmp_path_factory.mktemp("project")
    done = run_stage(folder, {**SYNTHETIC, "training": {**TINY, "processes": 2}})
    assert done.returncode == 0, done.stderr
    assert "identity_eval: rendered_residual (persons 3, rank1" in done.stdout
    assert done.stderr == ""  # progress bars are quiet where nobody watches
    return folder


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A perception folder that may be damaged."""
    folder = tmp_path / "perception"
    folder.mkdir()
    for path in (project / "models/perception").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_stage_fills_every_role_and_removes_its_state(project: Path) -> None:
    card = roles.card(project / "models/perception")
    assert set(card["roles"]) == set(roles.TRAINABLE)
    for role, entry in card["roles"].items():
        assert {"architecture", "name", "sha256", "input_size", "licence", "source", "config", "metrics"} <= set(entry)
        assert entry["sha256"] == sha256_of(project / "models/perception" / f"{role}.safetensors")
    assert card["roles"]["identity_train"]["name"] != card["roles"]["identity_eval"]["name"]
    assert not list((project / "runs/perception/-").iterdir())


@pytest.mark.parametrize("size", [32, 50])
@pytest.mark.parametrize("role", roles.TRAINABLE)
def test_a_role_is_a_frozen_network_with_a_gradient_to_the_image(project: Path, role: str, size: int) -> None:
    network = load(project / "models/perception", role)
    assert network.role == role and network.name.startswith("rendered_") and len(network.sha256) == 64
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    image = torch.rand(3, 3, size, size).mul(2).sub(1).requires_grad_()
    found = network(image)
    shapes = [tuple(one.shape) for one in (found if isinstance(found, list) else [found])]
    expected = {
        "identity_train": [(3, 8)], "identity_eval": [(3, 8)], "expression_train": [(3, 9)],
        "expression_eval": [(3, 6)], "pose": [(3, 3)], "features": [(3, 5)], "parsing": [(3, 8, size, size)],
        "perceptual": [(3, 4, 16, 16), (3, 8, 8, 8), (3, 16, 4, 4)],
    }  # fmt: skip
    assert shapes == expected[role]
    sum(one.square().sum() for one in (found if isinstance(found, list) else [found])).backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().sum() > 0


def test_expression_holds_the_pose_that_the_pose_role_gives_in_degrees(project: Path) -> None:
    image, folder = torch.zeros(2, 3, 32, 32), project / "models/perception"
    both = load(folder, "expression_train")
    torch.testing.assert_close(both(image), both.attributes(image))
    judge = load(folder, "expression_eval")
    torch.testing.assert_close(judge(image), judge.attributes(image)[:, :6])
    pose = load(folder, "pose")
    torch.testing.assert_close(pose(image), pose.out(pose.backbone(image)) * 45)


def test_parsing_speaks_the_fields_label_ids(project: Path) -> None:
    network = load(project / "models/perception", "parsing")
    found = network.label_map(torch.rand(2, 3, 40, 40))
    assert found.shape == (2, 40, 40) and found.dtype == torch.uint8
    assert tuple(network.labels.tolist()) == synthetic.LABELS
    assert set(found.unique().tolist()) <= set(network.labels.tolist()) <= set(PARSING_LABELS)


def test_judges_share_no_weights_with_what_trains(project: Path) -> None:
    folder = project / "models/perception"

    def tensors(job: str) -> list[torch.Tensor]:
        return [one for role in JOBS[job] for one in load(folder, role).state_dict().values() if one.numel() > 100]

    assert not any(a.shape == b.shape and torch.equal(a, b) for a in tensors("train") for b in tensors("eval"))


def test_a_damaged_or_other_file_is_refused_with_both_hashes(copied: Path) -> None:
    path = copied / "pose.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    expected = roles.card(copied)["roles"]["pose"]["sha256"]
    with pytest.raises(PerceptionError, match=f"role pose: .*sha256 {sha256_of(path)}, expected {expected}"):
        load(copied, "pose")


def test_a_card_that_does_not_fit_its_file_is_refused(copied: Path) -> None:
    card = roles.card(copied)
    card["roles"]["pose"]["config"]["width"] = 8
    (copied / "card.json").write_text(json.dumps(card))
    with pytest.raises(PerceptionError, match="does not fit its card"):
        load(copied, "pose")


def test_an_unfilled_role_says_what_to_fetch_and_where_to_put_it(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(PerceptionError, match=r"perception.landmarks file: PATH .*facenet-pytorch==2.6.0 \(MIT\)"):
        load(copied, "landmarks")
    card = roles.card(copied)
    del card["roles"]["identity_eval"]
    (copied / "card.json").write_text(json.dumps(card))
    with pytest.raises(PerceptionError, match=r"train: synthetic .* or file: .*CC0"):
        load(copied, "identity_eval")
    with pytest.raises(PerceptionError, match="there is no role 'identity'"):
        load(copied, "identity")
    with pytest.raises(PerceptionError, match="dvc repro perception"):
        load(tmp_path / "nothing", "pose")


def weights_file(folder: Path) -> dict[str, str]:
    torch.save(mobilenet_v2(weights=None).state_dict(), folder / "mobilenet.pth")
    path = folder / "mobilenet.safetensors"
    convert("mobilenet_v2", [folder / "mobilenet.pth"], path)
    facts = {"architecture": "mobilenet_v2", "source": "made in a test", "licence": "none", "name": "mobile"}
    return {"file": path.name, "sha256": sha256_of(path), **facts}


def test_a_file_of_weights_fills_a_role_after_its_hash_is_verified(tmp_path: Path) -> None:
    given = weights_file(tmp_path)
    done = run_stage(tmp_path, {"perceptual": given})
    assert done.returncode == 0, done.stderr
    entry = roles.card(tmp_path / "models/perception")["roles"]["perceptual"]
    assert (
        entry["original_sha256"] == sha256_of(tmp_path / "mobilenet.pth")
        and entry["licence"] == "none"
        and entry["name"] == "mobile"
    )
    network = load(tmp_path / "models/perception", "perceptual")
    assert network.name == "mobile" and len(network(torch.zeros(1, 3, 64, 64))) == 4

    wrong = "0" * 64
    done = run_stage(tmp_path, {"perceptual": {**given, "sha256": wrong}})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert given["sha256"] in done.stderr and wrong in done.stderr
    assert (tmp_path / "models/perception/card.json").exists()  # the good folder of before is still whole


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "give either `train: synthetic` or `file: PATH`"),
        ({"train": "synthetic", "file": "a.pth", "architecture": "mtcnn"}, "give either"),
        ({"file": "a.pth", "architecture": "vgg11", "source": "x", "licence": "y"}, "no packaged architecture 'vgg11'"),
        ({"file": "a.pth", "architecture": "mtcnn"}, "`source` and `licence`"),
        ({"train": "random"}, "Input should be 'synthetic'"),
    ],
)
def test_a_role_is_filled_in_one_way_or_refused_before_any_work(entry: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"perception": {"pose": entry}}))
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml", PARAMS)


def test_landmarks_cannot_be_trained_on_rendered_faces(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"perception": {"landmarks": {"train": "synthetic"}}}))
    with pytest.raises(ParamsError, match="landmarks cannot be trained"):
        load_params(tmp_path / "params.yaml", PARAMS)


def test_a_stopped_run_goes_on_with_the_next_expert(tmp_path: Path) -> None:
    training = ExpertTraining(**{**TINY, "processes": 1})
    train_experts(training, ["parsing"], tmp_path)
    before = (tmp_path / "parsing.safetensors").stat().st_mtime_ns
    entries = train_experts(training, ["parsing", "pose"], tmp_path)
    assert (tmp_path / "parsing.safetensors").stat().st_mtime_ns == before
    assert entries["pose"]["trained_with"] == ["identity_eval", "expression_eval", "features"]
    weights = (tmp_path / "pose.safetensors").read_bytes()
    (tmp_path / "pose.json").unlink()  # killed between weights and entry: done again, with the same result
    train_experts(training, ["parsing", "pose"], tmp_path)
    assert (tmp_path / "pose.safetensors").read_bytes() == weights


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_experts(ExpertTraining(**{**TINY, "processes": 1}), ["parsing"], tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_parsing_learns(tmp_path: Path) -> None:
    training = ExpertTraining(**{**TINY, "identities": 100, "parsing_steps": 80, "batch": 8, "processes": 1,
                                 "parsing_width": 8, "validation_identities": 40})  # fmt: skip
    metrics = train_experts(training, ["parsing"], tmp_path)["parsing"]["metrics"]
    assert metrics["iou_background"] > 0.6 and metrics["iou_skin"] > 0.5 and metrics["iou"] > 0.3


def test_validation_persons_are_not_training_persons() -> None:
    training, held_out = RenderedFaces.of(0, 4, 2, 9, 32), RenderedFaces.of(4, 3, 2, 9, 32)
    assert not any((row == training.identity).all(1).any() for row in held_out.identity)
    assert not any((row == training.attribute).all(1).any() for row in held_out.attribute)


def test_retrieval_by_hand() -> None:
    # persons: A at 0 degrees, B at 90; A's query is right, B's query points at A
    embedding = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [3.0, 0.0]])
    found = judge_retrieval(embedding, each=2)
    assert found == pytest.approx(
        {"persons": 2, "rank1": 0.0, "cosine_same": (0.6 + 0) / 2, "cosine_different": (0.8 + 1) / 2}
    )
    embedding[1] = torch.tensor([0.8, 0.6])
    assert judge_retrieval(embedding, each=2)["rank1"] == 0.5
    true = torch.tensor([[0.0], [2.0]])
    assert explained(true, true).item() == 1 and explained(torch.ones(2, 1), true).item() == 0


@pytest.mark.parametrize("angular", [True, False])
def test_the_margin_makes_the_own_person_harder(angular: bool) -> None:
    margin = Margin(embedding=2, persons=2, scale=10.0, margin=0.3, angular=angular)
    margin.weight.data = torch.eye(2)
    angle = torch.tensor(0.5)
    embedding = torch.stack([angle.cos(), angle.sin()])[None].requires_grad_()
    own = torch.cos(angle + 0.3) if angular else torch.cos(angle) - 0.3
    expected = torch.log(1 + torch.exp(10 * (torch.sin(angle) - own)))
    loss = margin(embedding, torch.tensor([0]), 1.0)
    torch.testing.assert_close(loss, expected)
    assert margin(embedding, torch.tensor([0]), 0.0) < loss
    loss.backward()
    assert embedding.grad[0, 0] < 0 < embedding.grad[0, 1]  # descent turns it towards its own person


def test_the_face_box_keeps_every_rendered_face() -> None:
    _, label = synthetic.render(synthetic.identities(0, 200, seed=0), synthetic.attributes(0, 200, seed=0), 64)
    features = torch.isin(label, torch.tensor([2, 4, 10, 12], dtype=torch.uint8))[:, None].float()
    assert networks.face_box(features).shape[-2:] == (48, 48)
    assert networks.face_box(features).sum() > 0.999 * features.sum()


def test_resize_is_exact_at_its_own_size_and_antialiased_below() -> None:
    image = torch.rand(1, 3, 48, 48)
    assert networks.resize(image, 48) is image
    stripes = torch.ones(1, 3, 48, 48)
    stripes[..., ::2] = -1
    assert networks.resize(stripes, 12).abs().max() < 0.2


def test_networks_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        networks.Backbone("strided", 20, 4)
    with pytest.raises(ValueError, match=r"labels \[40\]"):
        networks.ParsingNetwork(32, 4, (0, 40))
    with pytest.raises(ValueError, match="names no trunk"):
        networks.build("pose", NetworkConfig(input_size=32, width=4))
    with pytest.raises(ValueError, match="no network of our own fills the role 'landmarks'"):
        networks.build("landmarks", NetworkConfig(input_size=32, width=4))
