"""Every profile is a complete, valid parameter file; params.yaml is the demo; paper scale has the paper's size."""

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from codeswap.config import ParamsError, load_params
from codeswap.models.discriminator import DiscriminatorConfig, PatchGAN
from codeswap.models.fusion import Fusion, FusionConfig
from codeswap.models.mask import MaskConfig, MaskGenerator
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig
from codeswap.types import variant_of
from tests.test_dvc import STAGES, module_of

ROOT = Path(__file__).parent.parent
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_stage_reads_the_profile(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    assert set(tree["testsets"]) == {name for name, entry in tree["datasets"].items() if entry["split"] == "test"}
    assert set(tree["trainsets"]) == {name for name, entry in tree["datasets"].items() if entry["split"] == "train"}
    for stage in STAGES:
        params = importlib.import_module(module_of(stage)).PARAMS
        for dataset in tree["datasets"] if "dataset" in params.model_fields else [None]:
            load_params(path, params, dataset)
    assert tree["vqgan"]["image_size"] == tree["image"]["size"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_networks_of_the_profile_can_be_built(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    vqgan_config, quantizer = VQGANConfig(**tree["vqgan"]), QuantizerConfig(**tree["quantizer"])
    with torch.device("meta"):
        vqgan = VQGAN(vqgan_config, quantizer)
        PatchGAN(DiscriminatorConfig(**tree["discriminator"]))
        MaskGenerator(MaskConfig(**tree["mask_generator"]), vqgan_config)
        fusions = [
            Fusion(
                FusionConfig(**tree["fusion"]),
                variant_of(name)[0],
                vqgan_config.grid**2,
                *reversed(vqgan.codebook.weight.shape),
            )
            for name in tree["variants"]
        ]
    assert vqgan_config.grid == {"demo": 12, "ablation": 8}.get(path.stem, 16), "16 is the paper's; small pictures less"
    if path.stem == "paper":
        assert sum(p.numel() for p in vqgan.parameters()) == 75_688_259
        assert sum(p.numel() for p in fusions[0].parameters()) == 13_536_864


def test_params_yaml_is_the_demo_profile() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "profiles" / "demo.yaml").read_text()


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["swap"] |= {"sampels": 5, "lr": "fast", "batch": -1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ParamsError) as caught:
        load_params(tmp_path / "params.yaml", importlib.import_module("pipeline.train_swap").PARAMS)
    text = str(caught.value)
    assert "3 problem(s)" in text
    for expected in ("swap.sampels", "swap.lr", "'fast'", "swap.batch", "-1"):
        assert expected in text


def test_an_unknown_dataset_names_those_that_exist() -> None:
    with pytest.raises(ParamsError, match=r"no dataset 'faces'.*'images', 'train', 'videos'"):
        load_params(ROOT / "params.yaml", importlib.import_module("pipeline.shard").PARAMS, "faces")
