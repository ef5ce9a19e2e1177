"""A world small enough to be judged in a second: rendered faces, a tiny untrained method, and networks that compute
something known. What the tests of the evaluation and of what builds on it share."""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from codeswap.data.manifest import MANIFEST, SCHEMA, write_card, write_rows
from codeswap.data.shards import ImageConfig, Sample, encode, write_shard
from codeswap.data.synthetic import attributes, identities, render
from codeswap.evaluate.judges import ROLES, Judges
from codeswap.evaluate.results import Evaluation
from codeswap.evaluate.runner import Places
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


def small_judges() -> Judges:
    networks = {role: Pool(4) for role in ROLES} | {"pose": Pool(1, 3), "features": Pool(2), "perceptual": Maps()}
    return Judges(networks, torch.device("cpu"))


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
