"""The evaluation end to end on rendered faces and on pictures without ground truth, with small networks that compute
something known, so that the rows whose values follow from their definition can be checked."""

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from safetensors.torch import save
from torch import Tensor, nn

import pipeline.evaluate
import pipeline.pairs
from codeswap.data.faces import Faces, to_float
from codeswap.data.manifest import MANIFEST, SCHEMA, write_card, write_rows
from codeswap.data.scenes import scenes
from codeswap.data.shards import ImageConfig, Sample, encode, write_shard
from codeswap.data.synthetic import attributes, identities, render
from codeswap.evaluate import runner
from codeswap.evaluate.baselines import face_of, paste, read_results, truth_of
from codeswap.evaluate.judges import FID_WEIGHTS, ROLES, Judges
from codeswap.evaluate.methods import Batch, eight_bits, exchange_error, pictures
from codeswap.evaluate.protocol import ProtocolConfig, read_pairs
from codeswap.evaluate.results import Evaluation, read_evaluations
from codeswap.evaluate.runner import EvaluateConfig, Places, evaluate
from codeswap.evaluate.scores import ScoreTable, ranked_by_success, shown_pairs
from codeswap.evaluate.temporal import clips, steadiness
from codeswap.models.codeswap import CodeSwap, new_fusion
from codeswap.models.fusion import FusionConfig
from codeswap.models.mask import MaskConfig, MaskGenerator
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.store import save_model
from codeswap.models.vqgan import VQGAN, VQGANConfig
from codeswap.perception.networks import NetworkConfig, build
from codeswap.perception.roles import OWN

ROOT = Path(__file__).parent.parent
SIZE = 16
VQ = VQGANConfig(
    image_size=SIZE, patch=2, ch=8, ch_mult=(1, 2), n_res_enc=1, n_res_dec=1, attn_res=(), mid="none",
    resample="shuffle", norm="none", z_ch=12, embed_dim=12, quant_conv=False,
)  # fmt: skip
QUANTIZER, FUSION, MASK = QuantizerConfig(n_codes=16), FusionConfig(layers=1, width=16, heads=4, ffn=16), MaskConfig()


def tiny(variant: str = "ours", fusion: FusionConfig = FUSION) -> CodeSwap:
    torch.manual_seed(0)
    vqgan = VQGAN(VQ, QUANTIZER)
    built = CodeSwap(vqgan, new_fusion(fusion, variant, vqgan), MaskGenerator(MASK, VQ))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval().requires_grad_(False)


class Pool(nn.Module):
    """Stands in for a face network in these tests: average colours of a grid, so equal pictures have equal vectors."""

    def __init__(self, grid: int, outputs: int | None = None) -> None:
        super().__init__()
        self.grid, self.outputs, self.name, self.sha256 = grid, outputs, f"pool{grid}", "0" * 64
        self.preprocessing, self.rendered = "whole crop", False

    def forward(self, image: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(image, self.grid).flatten(1)[:, : self.outputs]

    def label_map(self, image: Tensor) -> Tensor:
        """Face (label 1) in the middle half of the picture, background elsewhere."""
        labels = torch.zeros(len(image), *image.shape[-2:], dtype=torch.uint8)
        labels[:, 4:12, 4:12] = 1
        return labels


class Maps(Pool):
    """The picture itself and its average colours, as feature maps."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, F.adaptive_avg_pool2d(image, 4)]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Judges:
    networks = {role: Pool(4) for role in ROLES} | {"pose": Pool(1, 3), "features": Pool(2), "perceptual": Maps()}
    made = Judges(networks, torch.device("cpu"))
    monkeypatch.setattr(Judges, "load", classmethod(lambda cls, folder, device: made))
    return made


def shards(
    folder: Path, people: int, each: int, *, rendered: bool = True, size: int = SIZE, video: bool = False
) -> Path:
    """A test set on disk; without `rendered` the facts hold no parameters, as for photographs."""
    person = torch.arange(people).repeat_interleave(each)
    identity, attribute = identities(0, people, 7)[person], attributes(0, people * each, 7)
    images, config = render(identity, attribute, size)[0].permute(0, 2, 3, 1).numpy(), ImageConfig(size=size)
    rows, samples = [], []
    for number, pixels in enumerate(images):
        row = {
            "key": f"t{number:03d}", "dataset": folder.name, "identity": f"p{int(person[number])}", "split": "test",
            "source": str(number), "sha256": "0", "source_width": size, "source_height": size, "licence": "CC0",
        }  # fmt: skip
        if video:
            row |= {"video": row["identity"], "frame": number % each}
        parameters = {"identity": identity[number].tolist(), "attributes": attribute[number].tolist()}
        samples.append(
            Sample(row["key"], encode(pixels, config), row | ({"synthetic": parameters} if rendered else {}))
        )
        rows.append(row)
    folder.mkdir(parents=True)
    places = write_shard(folder / "00000.tar", samples, config)
    rows = [row | {"shard": "00000.tar", **place._asdict()} for row, place in zip(rows, places, strict=True)]
    write_rows(folder / MANIFEST, rows, SCHEMA)
    sizes = {"00000.tar": (folder / "00000.tar").stat().st_size}
    write_card(folder / "card.json", {"dataset": folder.name, "image": {"size": size}, "shards": sizes})
    return folder


def models(root: Path, variant: str = "ours") -> Places:
    """A tiny method's model outs, as the training stages write them."""
    built = tiny(variant)
    groups = {"vqgan": VQ, "quantizer": QUANTIZER, "fusion": FUSION, "mask_generator": MASK}
    config = {name: group.model_dump(mode="json") for name, group in groups.items()} | {"variant": variant}
    places = Places(root / "codebook", root / "swap" / variant, root / "mask" / variant, root, root / "faces")
    save_model(places.codebook, built.vqgan.state_dict(), {"kind": "codebook", "config": config})
    save_model(places.swap, built.fusion.state_dict(), {"kind": "swap", "config": config})
    assert built.mask_generator is not None
    save_model(places.mask, built.mask_generator.state_dict(), {"kind": "mask", "config": config})
    return places


def perception(folder: Path) -> None:
    """Untrained networks of our own where the perception stage puts trained ones: only the stage's plumbing is tested
    with them, not its numbers."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    entries = {}
    for role in ROLES:
        config = NetworkConfig(trunk=None if role == "parsing" else "strided", input_size=32, width=4, outputs=8)
        weights = save(build(role, config).state_dict())
        (folder / f"{role}.safetensors").write_bytes(weights)
        entries[role] = {
            "architecture": OWN, "name": f"tiny-{role}", "sha256": hashlib.sha256(weights).hexdigest(),
            "file": f"{role}.safetensors", "config": config.model_dump(mode="json"),
        }  # fmt: skip
    (folder / "card.json").write_text(json.dumps({"roles": entries}))


def value(evaluation: Evaluation, method: str, name: str) -> float:
    return evaluation.methods[method][name].value


@pytest.fixture
def rendered(tmp_path: Path, judges: Judges) -> Iterator[tuple[Evaluation, Path]]:
    places = models(tmp_path / "models")._replace(shards=shards(tmp_path / "faces", 6, 3))
    yield (
        evaluate(
            "ours", "faces", EvaluateConfig(batch_size=5, resamples=50), places, tmp_path / "metrics", tmp_path / "run"
        ),
        tmp_path,
    )


def test_rows_that_follow_from_their_definition(rendered: tuple[Evaluation, Path]) -> None:
    evaluation, _ = rendered
    assert evaluation.pairs == 12
    assert evaluation.protocol.gallery == 6
    for name in ("pose_deg", "expression_l2", "background_l1", "fd_pool2"):
        assert value(evaluation, "copy_target", name) == pytest.approx(0, abs=1e-5)
    for name in ("pose_deg", "expression_l2", "background_l1"):
        assert value(evaluation, "copy_source", name) > 0.001
    # Sources are the targets in another order, so a Fréchet distance cannot tell a copy from either.
    assert value(evaluation, "copy_source", "fd_pool2") == pytest.approx(0, abs=1e-5)
    assert value(evaluation, "swap", "fd_pool2") > 0.001
    assert value(evaluation, "copy_source", "id_similarity") == pytest.approx(1)
    assert value(evaluation, "true_swap", "l1_true_swap") == 0
    assert value(evaluation, "true_swap", "background_l1") == pytest.approx(0, abs=2e-3)
    for method, same in (("true_swap", True), ("paste", False)):  # a paste is the target outside the face
        assert (value(evaluation, method, "face_perceptual_true_swap") == pytest.approx(0, abs=1e-6)) == same
        assert (value(evaluation, method, "face_id_similarity_true_swap") == pytest.approx(1, abs=1e-6)) == same
        less = value(evaluation, method, "perceptual_true_swap")
        assert value(evaluation, method, "face_perceptual_true_swap") <= less + 1e-6
    assert value(evaluation, "true_swap", "psnr_true_swap") == pytest.approx(100)
    assert value(evaluation, "copy_target", "face_l1_true_swap") > value(evaluation, "copy_target", "l1_true_swap") > 0
    assert value(evaluation, "paste", "background_l1") == pytest.approx(0, abs=1e-6)
    assert value(evaluation, "swap", "exchange_error") < 1e-5
    assert 0 < value(evaluation, "swap", "mask_mean") < 1
    assert value(evaluation, "swap", "pose_99") * 99 == pytest.approx(value(evaluation, "swap", "pose_deg"))
    assert {"swap_without_mask", "swap_hard_codes", "true_swap_through_codebook"} <= evaluation.methods.keys()


def test_files_of_an_evaluation(rendered: tuple[Evaluation, Path]) -> None:
    evaluation, root = rendered
    folder = root / "metrics" / "ours"
    assert read_evaluations(root / "metrics") == [evaluation]
    table = pq.read_table(folder / "faces.pairs.parquet")
    assert table.num_rows == 12 * len(evaluation.methods)
    swaps = table.filter([m == "swap" for m in table["method"].to_pylist()])
    mean = np.mean(swaps["pose_deg"].to_numpy())
    assert mean == pytest.approx(value(evaluation, "swap", "pose_deg"), rel=1e-5)
    pairs = read_pairs(folder / "faces.protocol.json", Faces([root / "faces"]).keys)
    assert pairs.sha256 == evaluation.pair_list_sha256
    assert list(pairs.sources) == swaps["source"].to_pylist()
    with PILImage.open(folder / "faces.grid.png") as grid:
        assert grid.size[0] == 9 * 128
        assert "generated by CodeSwap" in grid.text["Comment"]  # type: ignore[attr-defined]
    assert not list(folder.glob(".*"))


def test_numbers_do_not_depend_on_the_batch_size(rendered: tuple[Evaluation, Path]) -> None:
    evaluation, root = rendered
    places = Places(
        root / "models/codebook", root / "models/swap/ours", root / "models/mask/ours", root, root / "faces"
    )
    again = evaluate(
        "ours", "faces", EvaluateConfig(batch_size=12, resamples=50), places, root / "again", root / "run2"
    )
    for method, estimates in evaluation.methods.items():
        for name, estimate in estimates.items():
            assert value(again, method, name) == pytest.approx(estimate.value, rel=1e-4, abs=1e-4), (method, name)


def test_a_rival_is_judged_as_we_are_and_what_it_lacks_is_a_miss(tmp_path: Path, judges: Judges) -> None:
    places = models(tmp_path / "models")._replace(shards=shards(tmp_path / "faces", 6, 3))
    faces, protocol = Faces([places.shards]), ProtocolConfig(pairs=6)
    pairs = runner.pairs_of(faces.manifest, protocol)
    (tmp_path / "rival" / "faces").mkdir(parents=True)
    for source, target in list(zip(pairs.sources, pairs.targets, strict=True))[1:]:
        facts = [scenes([faces.facts(faces.keys.index(key))]) for key in (source, target)]
        truth = truth_of(*facts, SIZE)
        assert truth is not None
        pixels = ((truth.image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        PILImage.fromarray(pixels).save(tmp_path / "rival" / "faces" / f"{source}_{target}.png")
    config = EvaluateConfig(protocol={"faces": protocol}, results={"rival": tmp_path / "rival"}, resamples=50)
    evaluation = evaluate("ours", "faces", config, places, tmp_path / "metrics", tmp_path / "run")
    assert value(evaluation, "rival", "failures") == 1
    assert value(evaluation, "swap", "failures") == 0
    assert evaluation.methods["rival"]["l1_true_swap"].n == 5
    assert value(evaluation, "rival", "l1_true_swap") == 0
    rows = pq.read_table(tmp_path / "metrics/ours/faces.pairs.parquet").to_pylist()
    missing = next(row for row in rows if row["method"] == "rival" and row["failed"])
    assert (missing["id_rank"], missing["pose_deg"]) == (7, None)
    with pytest.raises(ValueError, match=r"evaluate\.results\.rival: .* has none of the 6 results"):
        wrong = config.model_copy(update={"results": {"rival": tmp_path / "no"}})
        evaluate("ours", "faces", wrong, places, tmp_path, tmp_path / "run")


def test_pictures_without_ground_truth_use_the_parsing_network(tmp_path: Path, judges: Judges) -> None:
    places = models(tmp_path / "models", "no_symmetry")
    places = places._replace(shards=shards(tmp_path / "faces", 5, 1, rendered=False))
    evaluation = evaluate(
        "no_symmetry", "faces", EvaluateConfig(resamples=50), places, tmp_path / "metrics", tmp_path / "run"
    )
    assert evaluation.protocol.shape == "images"
    assert not any(method.startswith("true_swap") for method in evaluation.methods)
    assert value(evaluation, "paste", "background_l1") == pytest.approx(0, abs=1e-6)
    assert value(evaluation, "copy_source", "id_retrieval") == 1
    assert value(evaluation, "copy_target", "id_retrieval") == 0
    assert "exchange_error" not in evaluation.methods["swap"]  # one direction only: nothing to exchange
    assert value(evaluation, "copy_target", "colour_l1") == 0 < value(evaluation, "paste", "colour_l1")
    assert "id_accepted" not in evaluation.methods["swap"]  # the identity network names no limit


def test_who_is_accepted_is_said_by_the_identity_networks_own_limit(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "same_person", 1e-3)
    places = models(tmp_path / "models", "ours")._replace(shards=shards(tmp_path / "faces", 4, 1, rendered=False))
    config = EvaluateConfig(resamples=50, protocol={"faces": ProtocolConfig(rounds=3)})
    evaluation = evaluate("ours", "faces", config, places, tmp_path / "metrics", tmp_path / "run")
    assert evaluation.pairs == 12
    assert value(evaluation, "copy_source", "id_accepted") == 1 and value(evaluation, "copy_source", "id_distance") == 0
    assert value(evaluation, "copy_target", "id_accepted") == 0 < value(evaluation, "copy_target", "id_distance")


def test_videos_are_judged_in_time_too(tmp_path: Path, judges: Judges) -> None:
    places = models(tmp_path / "models")._replace(shards=shards(tmp_path / "faces", 4, 3, video=True))
    evaluation = evaluate(
        "ours", "faces", EvaluateConfig(resamples=50, clips=3), places, tmp_path / "metrics", tmp_path / "run"
    )
    assert evaluation.protocol.shape == "videos"
    assert (evaluation.pairs, evaluation.protocol.gallery) == (12, 4)
    assert value(evaluation, "copy_target", "flicker") == pytest.approx(0, abs=1e-6)
    assert value(evaluation, "swap", "flicker") > 0.001
    assert evaluation.methods["true_swap"]["id_consistency"].n == 3
    assert "flicker" not in evaluation.methods["copy_source"]


def test_clips_put_one_source_on_a_video_s_frames_in_time(tmp_path: Path) -> None:
    faces = Faces([shards(tmp_path / "faces", 4, 3, video=True)])
    pairs = runner.pairs_of(faces.manifest, ProtocolConfig())
    found = list(clips(pairs, faces.manifest, 2))
    assert [[pairs.targets[place] for place in clip.frames] for clip in found] == [
        ["t000", "t001", "t002"], ["t003", "t004", "t005"],
    ]  # fmt: skip
    assert all(clip.source == clip.frames[0] for clip in found)
    assert not list(clips(pairs._replace(shape="images"), faces.manifest, 2))


def test_steadiness_by_hand() -> None:
    targets = torch.zeros(3, 3, 2, 2)
    images = targets + torch.tensor([0.0, 0.4, 0.4]).view(3, 1, 1, 1)
    found = steadiness(images, targets, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert found["flicker"].item() == pytest.approx(0.1)  # (0.4 + 0) / 2 in [-1, 1], half of it in 0..1
    assert found["id_consistency"].item() == pytest.approx(0.5)


def test_faces_of_another_size_than_the_model_are_refused(tmp_path: Path, judges: Judges) -> None:
    places = models(tmp_path / "models")._replace(shards=shards(tmp_path / "faces", 3, 2, size=24))
    with pytest.raises(ValueError, match="holds faces of 24 px, the model was trained for 16 px"):
        evaluate("ours", "faces", EvaluateConfig(), places, tmp_path / "metrics", tmp_path / "run")


def test_only_the_inception_of_the_fid_paper_gives_a_fid() -> None:
    networks = {role: Pool(2) for role in ROLES}
    assert Judges(networks, torch.device("cpu")).frechet_name == "fd_pool2"
    networks["features"].sha256 = FID_WEIGHTS
    assert Judges(networks, torch.device("cpu")).frechet_name == "fid"


def batch(count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    source, target = torch.rand(2, count, 3, SIZE, SIZE, generator=generator) * 2 - 1
    face = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.bool)
    face[:, :, 4:12] = True
    return Batch([(f"s{i}", f"t{i}") for i in range(count)], source, target, face, None)


@pytest.mark.parametrize("variant", ["ours", "no_codebook", "no_symmetry", "hard", "gumbel"])
def test_judged_swap_is_the_method_s_swap(variant: str) -> None:
    model, some = tiny(variant), batch()
    made, swap = pictures(model, some, {}, 0.5), model.swap(some.source, some.target)
    torch.testing.assert_close(made.images["swap"], eight_bits(swap.image_ab), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.images["swap_without_mask"], eight_bits(swap.naive_ab), atol=1e-6, rtol=0)
    assert ("swap_hard_codes" in made.images) == (variant not in ("hard", "no_codebook"))
    assert all(there.all() for there in made.there.values())


def test_argmax_row_is_what_the_hard_variant_does_with_the_same_weights() -> None:
    soft, hard, some = tiny("ours"), tiny("hard"), batch()
    hard.load_state_dict(soft.state_dict())
    expected = eight_bits(hard.swap(some.source, some.target).image_ab)
    torch.testing.assert_close(pictures(soft, some, {}, 0.5).images["swap_hard_codes"], expected, atol=0.02, rtol=0)


def test_a_swap_that_is_not_finite_is_no_result() -> None:
    model, some = tiny(), batch()
    some.source[1] = torch.nan
    made = pictures(model, some, {}, 0.5)
    assert made.there["swap"].tolist() == [True, False, True]
    assert made.images["swap"].isfinite().all()


def test_exchange_error_sees_a_broken_symmetry() -> None:
    some = batch()
    assert exchange_error(tiny(), some.source, some.target) == pytest.approx(0, abs=1e-5)
    broken = exchange_error(tiny(fusion=FUSION.model_copy(update={"side": "segment"})), some.source, some.target)
    assert broken is not None
    assert broken > 1e-4
    assert exchange_error(tiny("no_symmetry"), some.source, some.target) is None


def test_truth_is_the_source_s_identity_under_the_target_s_attributes() -> None:
    identity, attribute = identities(0, 2, 3), attributes(0, 2, 3)
    facts = [{"synthetic": {"identity": i.tolist(), "attributes": a.tolist()}} for i, a in zip(identity, attribute)]  # noqa: B905
    truth = truth_of(scenes(facts[:1]), scenes(facts[1:]), 32)
    image, labels = render(identity[:1], attribute[1:], 32)
    assert truth is not None
    torch.testing.assert_close(truth.image, to_float(image))
    assert (face_of(labels) <= truth.region).all()
    assert (truth.target_face <= truth.region).all()
    assert truth_of(scenes([{}]), scenes(facts[1:]), 32) is None
    with pytest.raises(ValueError, match="the shards were rendered from"):
        scenes([{"synthetic": {"identity": [0.5], "attributes": [0.5]}}])


def test_face_is_skin_and_features_not_hair_or_ears() -> None:
    labels = torch.tensor([[[0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 17]]], dtype=torch.uint8)
    assert face_of(labels)[0, 0, 0].int().tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]


def test_paste_takes_the_source_inside_the_mask_only() -> None:
    some = batch(1)
    pasted = paste(some.source, some.target, some.face)
    assert torch.equal(pasted[:, :, 4:12], some.source[:, :, 4:12])
    assert torch.equal(pasted[:, :, :4], some.target[:, :, :4])


def test_results_of_another_size_are_resized_and_damaged_ones_fail(tmp_path: Path) -> None:
    PILImage.new("RGB", (64, 64), (255, 0, 127)).save(tmp_path / "a_b.png")
    (tmp_path / "c_d.png").write_bytes(b"\x89PNG nothing")
    images, there = read_results(tmp_path, [("a", "b"), ("c", "d"), ("e", "f")], 16)
    assert there.tolist() == [True, False, False]
    assert images.shape == (3, 3, 16, 16)
    torch.testing.assert_close(images[0, :, 8, 8], torch.tensor([1.0, -1.0, 0.0]), atol=0.01, rtol=0)


def test_failures_are_misses_and_otherwise_left_out() -> None:
    table = ScoreTable(gallery_size=9)
    there = torch.tensor([True, True, False, True])
    scores = {name: torch.ones(4) for name in ("id_rank", "id_rank_seen", "id_similarity", "id_similarity_seen")}
    pose = torch.tensor([1.0, 2.0, torch.inf, 3.0])
    scores["id_accepted"] = torch.ones(4)
    table.add("m", scores | {"id_similarity_to_target": torch.zeros(4), "pose_deg": pose}, there)
    found = table.estimates("m", seed=0, resamples=20)
    assert found["id_retrieval"].value == 0.75
    assert found["id_retrieval"].n == 4
    assert (found["pose_deg"].value, found["pose_deg"].n) == (2, 3)
    assert (found["id_closer"].value, found["id_closer"].n) == (1, 3)
    assert found["failures"].value == 1
    assert (found["id_accepted"].value, found["id_accepted"].n) == (0.75, 4)
    assert table.columns("m")["id_rank"].tolist() == [1, 1, 10, 1]


def test_shown_pairs_are_the_best_the_median_and_the_worst() -> None:
    gained = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
    zeros = np.zeros(6)
    scores = {"id_similarity": gained, "id_similarity_to_target": zeros, "pose_deg": 1 - gained, "expression_l2": zeros}
    order = ranked_by_success(scores)
    assert order.tolist()[:2] == [1, 4]
    assert shown_pairs(np.arange(20), 6).tolist() == [0, 1, 9, 10, 18, 19]
    assert shown_pairs(np.arange(20), 7).tolist() == [0, 1, 9, 10, 11, 18, 19]
    assert shown_pairs(np.arange(4), 9).tolist() == [0, 1, 2, 3]


def test_metrics_file_is_json_without_nan(rendered: tuple[Evaluation, Path]) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in a metrics file")

    _, root = rendered
    for path in (root / "metrics" / "ours").glob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shards(tmp_path / "data" / "shards" / "test" / "faces", 4, 3)
    (tmp_path / "params.yaml").write_text("evaluate: {resamples: 50, protocol: {faces: {pairs: 6}}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stage_writes_metrics_and_records_a_run_that_can_be_compared(project: Path) -> None:
    models(project / "models")
    perception(project / "models" / "perception")
    command = [sys.executable, "-m", "pipeline.evaluate", "--variant", "ours", "--testset", "faces"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (evaluation,) = read_evaluations(project / "metrics")
    assert (evaluation.variant, evaluation.testset, evaluation.pairs) == ("ours", "faces", 6)
    assert evaluation.networks["pose"].name == "tiny-pose"
    assert "fd_tiny-features" in evaluation.methods["swap"]
    assert "ID retrieval" in done.stdout
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as store:
        metrics = dict(store.execute("select key, value from latest_metrics").fetchall())
        params = dict(store.execute("select key, value from params").fetchall())
        tags = dict(store.execute("select key, value from tags").fetchall())
    similarity = value(evaluation, "swap", "id_similarity")
    assert metrics["faces.swap.id_similarity"] == pytest.approx(similarity)
    assert params["swap.fusion.layers"] == "1"
    assert tags["parent.swap"] == evaluation.parents["swap"]
    assert tags["pair_list_sha256"] == evaluation.pair_list_sha256


def test_pair_list_can_be_had_without_any_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.pairs.main("faces", "pairs.json")
    assert len(json.loads((project / "pairs.json").read_text())["pairs"]) == 6
    assert hashlib.sha256((project / "pairs.json").read_bytes()).hexdigest() in capsys.readouterr().out


def test_missing_models_and_networks_are_named(project: Path) -> None:
    with pytest.raises(ValueError, match=r"models/codebook/model\.safetensors does not exist"):
        pipeline.evaluate.main("ours", "faces")
    models(project / "models")
    with pytest.raises(ValueError, match=r"models/perception/card\.json does not exist"):
        pipeline.evaluate.main("ours", "faces")
    with pytest.raises(ValueError, match=r"data/shards/test/other/card\.json is missing"):
        pipeline.evaluate.main("ours", "other")
