"""The whole method: directions, naming, masks, regions, and model folders."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeswap.losses.codebook import difference
from codeswap.losses.swap import cycle_loss, expression_loss, identity_loss, perceptual_loss, reconstruction_loss
from codeswap.models.codeswap import CodeSwap, load_codeswap, load_vqgan, new_fusion
from codeswap.models.fusion import Fusion, FusionConfig, second_pass
from codeswap.models.mask import MaskConfig, MaskGenerator
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.regional import mixed_codes, region_tokens, swap_region
from codeswap.models.store import StoredModelError, save_model
from codeswap.models.vqgan import VQGAN, VQGANConfig, tokens
from codeswap.types import SwappedCodes

VQ = VQGANConfig(
    image_size=16, patch=2, ch=8, ch_mult=(1, 2), n_res_enc=1, n_res_dec=1, attn_res=(), mid="none", resample="shuffle",
    norm="none", z_ch=48, embed_dim=48, quant_conv=False, linear_shortcut=True,
)  # fmt: skip
QUANTIZER = QuantizerConfig(n_codes=24, update="ema")
FUSION = FusionConfig(layers=2, width=16, heads=4, ffn=32)


def images(batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def lossless_vqgan() -> VQGAN:
    """The linear shortcut alone: decode(encode(x)) == x, so trivial swaps have exact values."""
    torch.manual_seed(0)
    vqgan = VQGAN(VQ, QUANTIZER)
    with torch.no_grad():
        vqgan.encoder.conv_out.weight.zero_()
        vqgan.decoder.conv_out.weight.zero_()
        vqgan.codebook.weight.copy_(torch.randn(24, 48, generator=torch.Generator().manual_seed(5)))
    return vqgan


def model(variant: str = "ours", mask: bool = True, fusion: FusionConfig = FUSION) -> CodeSwap:
    vqgan = lossless_vqgan()
    built = new_fusion(fusion, variant, vqgan)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return CodeSwap(vqgan, built, MaskGenerator(MaskConfig(), VQ) if mask else None).eval()


class Stub(Fusion):
    """A trivial Stage 2: `exchange` writes each face over the other's place, `copy` leaves both."""

    def __init__(self, exchange: bool) -> None:
        nn.Module.__init__(self)
        self.exchange, self.decoder = exchange, None

    def forward(self, z_a, z_b, codebook, noise_seed=None) -> SwappedCodes:
        ba, ab = (z_b, z_a) if self.exchange else (z_a, z_b)
        return SwappedCodes(ab, ba, None, None)


@pytest.mark.parametrize("variant", ["ours", "no_codebook", "hard", "gumbel"])
@pytest.mark.parametrize("mask", [True, False])
def test_exchanging_the_inputs_exchanges_every_output(variant, mask):
    built, a, b = model(variant, mask), images(), images(seed=1)
    with torch.no_grad():
        one, other = built.swap(a, b), built.swap(b, a)
    for x, y in ((one.image_ab, other.image_ba), (one.naive_ba, other.naive_ab), (one.mask_a, other.mask_b)):
        assert (x is None and y is None) or (x - y).abs().max() < 1e-5
    assert (one.image_ab - one.image_ba).abs().max() > 1e-2


def terms(exchange: bool, same: bool) -> dict[str, float]:
    """Every loss of Eq. 9 for a trivial Stage 2 on different faces or on equal ones."""
    a, b = images(), images() if same else images(seed=1)
    built = CodeSwap(lossless_vqgan(), Stub(exchange), None)
    out = built.swap(a, b)
    z_a, z_b = tokens(built.vqgan.encode(a)), tokens(built.vqgan.encode(b))
    z_aba, z_bab = second_pass(built.fusion, built.fusion(z_a, z_b, None), z_b, built.vqgan.codebook.weight)
    flags = torch.full((3,), same)
    return {
        "identity": identity_loss(out.image_ab.flatten(1), a.flatten(1), out.image_ba.flatten(1), b.flatten(1)).item(),
        "expression": expression_loss(
            out.image_ab.flatten(1), b.flatten(1), out.image_ba.flatten(1), a.flatten(1)
        ).item(),
        "perceptual": perceptual_loss([out.image_ab], [b], [out.image_ba], [a]).item(),
        "reconstruction": reconstruction_loss(out.image_ab, b, out.image_ba, a, same=flags).item(),
        "cycle": cycle_loss(z_bab, z_b, z_aba, z_a).item(),
    }


def test_plain_exchange_pleases_identity_and_displeases_expression():
    value = terms(exchange=True, same=False)
    assert value["identity"] == pytest.approx(0, abs=1e-5)
    assert value["cycle"] == pytest.approx(0, abs=1e-10)
    assert value["reconstruction"] == 0
    assert value["expression"] > 1
    assert value["perceptual"] > 1


def test_plain_copy_pleases_everything_but_identity():
    value = terms(exchange=False, same=False)
    assert value["identity"] > 0.5
    assert {name: round(x, 3) for name, x in value.items() if name != "identity"} == {
        "expression": 0, "perceptual": 0, "reconstruction": 0, "cycle": 0,
    }  # fmt: skip


@pytest.mark.parametrize("exchange", [True, False])
def test_equal_faces_are_pleased_by_both(exchange):
    assert max(terms(exchange, same=True).values()) < 1e-3


def test_ab_stands_at_the_place_of_b():
    a, b = images(), images(seed=1)
    exchanged = CodeSwap(lossless_vqgan(), Stub(exchange=True), None).swap(a, b)
    assert torch.allclose(exchanged.image_ab, a, atol=1e-5)  # all of a, so surely a's identity
    kept = CodeSwap(lossless_vqgan(), Stub(exchange=False), None).swap(a, b)
    assert torch.allclose(kept.image_ab, b, atol=1e-5)


def test_the_mask_blends_each_swap_into_its_own_target():
    built, a, b = model(), images(), images(seed=1)
    with torch.no_grad():
        for bias, of_ab, of_ba in ((50.0, "naive_ab", "naive_ba"), (-50.0, None, None)):
            built.mask_generator.head.bias.fill_(bias)  # all swap, all target
            out = built.swap(a, b)
            assert torch.allclose(out.image_ab, b if of_ab is None else getattr(out, of_ab), atol=1e-5)
            assert torch.allclose(out.image_ba, a if of_ba is None else getattr(out, of_ba), atol=1e-5)


def test_a_loss_on_the_blend_trains_the_mask_generator_alone():
    built, a, b = model(), images(), images(seed=1)
    built.vqgan.requires_grad_(False)
    built.fusion.requires_grad_(False)
    built.swap(a, b).image_ab.square().mean().backward()
    trained = {name.split(".")[0] for name, p in built.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"mask_generator"}


def test_one_sided_variant_yields_ab_only():
    out = model("no_symmetry").swap(images(), images(seed=1))
    assert out.image_ba is None
    assert out.mask_a is None
    assert out.image_ab.shape == (3, 3, 16, 16)


def test_warm_start_is_the_soft_copy():
    warm = FusionConfig(
        layers=1, width=16, heads=2, ffn=16, selector="linear", selector_init="distance", update_std=0.0
    )
    vqgan, b = lossless_vqgan(), images(seed=1)
    out = CodeSwap(vqgan, new_fusion(warm, "ours", vqgan), None).swap(images(), b)
    soft = vqgan.codebook.soft(tokens(vqgan.encode(b)), 1.0)
    assert difference(tokens(vqgan.encode(out.image_ab)), soft, "mse") < 1e-8


def test_region_tokens_by_hand():
    region = torch.zeros(3, 1, 8, 8)
    region[0, :, :4, :4] = 1  # one of 2x2 tokens, whole
    region[1, :, 0, 0] = 1  # a pixel: below the threshold, but no region may vanish
    assert region_tokens(region, 2).tolist() == [[True, False, False, False]] * 2 + [[False] * 4]
    region[0, :, :4, 4:6] = 1  # half of the second token
    assert region_tokens(region[:1], 2, threshold=0.5).tolist() == [[True, True, False, False]]
    assert region_tokens(region[:1], 2, threshold=0.6).tolist() == [[True, False, False, False]]


def test_mixed_codes_take_each_token_from_one_side():
    z_q, target = torch.ones(1, 4, 2), torch.zeros(1, 4, 2)
    assert mixed_codes(z_q, target, torch.tensor([[True, False, False, True]]))[0, :, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("outside", ["nearest", "self", "continuous"])
def test_a_region_is_swapped_and_the_rest_kept(outside):
    built, a, b = CodeSwap(lossless_vqgan(), Stub(exchange=True), None), images(), images(seed=1)
    region = torch.zeros(3, 1, 16, 16)
    region[..., 4:8, 8:12] = 1  # exactly one token of 4x4 px
    out = swap_region(built, a, b, region, outside=outside)
    assert torch.allclose(out[..., 4:8, 8:12], a[..., 4:8, 8:12], atol=1e-5)
    kept = F.l1_loss(out[..., 8:, :], b[..., 8:, :])
    assert kept > 0.1 if outside == "nearest" else kept < 1e-5


def test_a_masked_region_leaves_far_pixels_alone():
    region = torch.zeros(3, 1, 16, 16)
    region[..., :4, :4] = 1
    b = images(seed=1)
    out = swap_region(model(), images(), b, region)
    assert torch.equal(out[..., 12:, 12:], b[..., 12:, 12:])
    assert not torch.allclose(out[..., :4, :4], b[..., :4, :4])


def saved(folder: Path, built: CodeSwap) -> tuple[Path, Path, Path]:
    def dump(*groups):
        return {name: group.model_dump(mode="json") for name, group in groups}

    codebook, swap, mask = folder / "codebook", folder / "swap", folder / "mask"
    first = save_model(
        codebook,
        built.vqgan.state_dict(),
        {"kind": "codebook", "config": dump(("vqgan", VQ), ("quantizer", QUANTIZER))},
    )
    config = {**dump(("fusion", FUSION)), "variant": built.fusion.variant}
    second = save_model(
        swap, built.fusion.state_dict(), {"kind": "swap", "config": config, "lineage": {"codebook": first}}
    )
    save_model(
        mask,
        built.mask_generator.state_dict(),
        {
            "kind": "mask",
            "config": dump(("mask_generator", built.mask_generator.config)),
            "lineage": {"codebook": first, "swap": second},
        },
    )
    return codebook, swap, mask


@pytest.mark.parametrize("variant", ["ours", "no_symmetry"])
def test_saved_and_loaded_models_swap_alike(tmp_path, variant):
    built, a, b = model(variant), images(), images(seed=1)
    loaded = load_codeswap(*saved(tmp_path, built))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    found, expected = loaded.swap(a, b), built.swap(a, b)  # frozen parameters may take another attention kernel
    assert torch.allclose(found.image_ab, expected.image_ab, atol=1e-5)
    assert load_codeswap(tmp_path / "codebook", tmp_path / "swap").swap(a, b).mask_b is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codebook", "mask", "swap"]  # nothing half-written


def test_a_model_is_replaced_whole(tmp_path):
    folders = saved(tmp_path, model())
    (folders[0] / "left_over").touch()
    other = lossless_vqgan()
    with torch.no_grad():
        other.codebook.weight.fill_(0.5)
    card = json.loads((folders[0] / "card.json").read_text())
    save_model(folders[0], other.state_dict(), card)
    assert (load_vqgan(folders[0]).codebook.weight == 0.5).all()
    assert sorted(path.name for path in folders[0].iterdir()) == ["card.json", "model.safetensors"]
    with pytest.raises(StoredModelError, match="was made from the codebook model"):
        load_codeswap(*folders)


def test_damage_is_named(tmp_path):
    codebook, swap, mask = saved(tmp_path, model())
    weights = codebook / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoredModelError, match=r"model\.safetensors is damaged"):
        load_vqgan(codebook)
    weights.unlink()
    with pytest.raises(StoredModelError, match=r"model\.safetensors does not exist"):
        load_vqgan(codebook)
    with pytest.raises(StoredModelError, match="holds a model of kind 'swap', expected 'codebook'"):
        load_vqgan(swap)
    (mask / "card.json").write_text("{")
    with pytest.raises(StoredModelError, match="not valid JSON"):
        load_codeswap(*saved(tmp_path / "again", model())[:2], mask)


def test_a_card_that_describes_another_network_is_named(tmp_path):
    codebook, _, _ = saved(tmp_path, model())
    card = json.loads((codebook / "card.json").read_text())
    card["config"]["quantizer"]["n_codes"] = 32
    (codebook / "card.json").write_text(json.dumps(card))
    with pytest.raises(StoredModelError, match=r"codebook.weight: expected \(32, 48\), found \(24, 48\)"):
        load_vqgan(codebook)
    card["config"]["quantizer"]["n_code"] = 32
    (codebook / "card.json").write_text(json.dumps(card))
    with pytest.raises(StoredModelError, match=r"config.quantizer is not usable"):
        load_vqgan(codebook)
    del card["config"]["quantizer"]
    (codebook / "card.json").write_text(json.dumps(card))
    with pytest.raises(StoredModelError, match=r"has no config.quantizer"):
        load_vqgan(codebook)


def test_a_card_needs_its_kind(tmp_path):
    with pytest.raises(ValueError, match=r"lacks \['config', 'kind'\]"):
        save_model(tmp_path / "model", nn.Linear(1, 1).state_dict(), {})
    assert not (tmp_path / "model").exists()
