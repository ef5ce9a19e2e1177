"""Stage 3's network: sizes, range, where gradients go."""

import pytest
import torch

from codeswap.models.mask import MaskConfig, MaskGenerator, blend
from codeswap.models.vqgan import VQGANConfig

PLAIN = VQGANConfig(image_size=32, ch=8, ch_mult=(1, 2, 2), z_ch=8, embed_dim=8, attn_res=())
PATCHED = VQGANConfig(image_size=32, patch=2, ch=8, ch_mult=(1, 2), z_ch=8, embed_dim=8, attn_res=())


def features(config: VQGANConfig, seed: int = 0, batch: int = 2) -> list[torch.Tensor]:
    generator, size = torch.Generator().manual_seed(seed), config.image_size // config.patch
    return [
        torch.randn(batch, width, size // 2**level, size // 2**level, generator=generator)
        for level, width in enumerate(config.widths)
    ]


def mask_generator(config: VQGANConfig, **knobs) -> MaskGenerator:
    torch.manual_seed(0)
    return MaskGenerator(MaskConfig(**knobs), config)


def test_parameter_count_at_paper_scale():
    with torch.device("meta"):
        built = MaskGenerator(MaskConfig(), VQGANConfig())
    assert sum(p.numel() for p in built.parameters()) == 62_817
    assert built.levels == (4, 3, 2, 1, 0)  # 32 px to 512 px: all but the 16 px level


@pytest.mark.parametrize("config", [PLAIN, PATCHED])
@pytest.mark.parametrize("knobs", [{}, {"levels": (1,)}, {"kernel": 3, "normalise": True}, {"head": "shuffle"}])
def test_soft_mask_of_the_image_size(config, knobs):
    mask = mask_generator(config, **knobs)(features(config), features(config, 1))
    assert mask.shape == (2, 1, 32, 32)
    assert mask.min() > 0
    assert mask.max() < 1


def test_encoder_and_decoder_and_every_level_count():
    built, encoded, decoded = mask_generator(PLAIN, levels=(0, 1, 2)), features(PLAIN), features(PLAIN, 1)
    for maps in (encoded, decoded):
        for feature in maps:
            feature.requires_grad_()
    built(encoded, decoded).sum().backward()
    assert all(feature.grad.any() for feature in (*encoded, *decoded))
    assert all(p.grad.any() for p in built.parameters())


def test_normalisation_makes_the_mask_blind_to_the_features_scale():
    scaled = [1000 * feature for feature in features(PLAIN)]
    for normalise, blind in ((True, True), (False, False)):
        built = mask_generator(PLAIN, normalise=normalise)
        one, other = built(features(PLAIN), features(PLAIN, 1)), built(scaled, features(PLAIN, 1))
        assert torch.allclose(one, other, atol=1e-4) == blind


def test_shuffled_logits_keep_detail_that_bilinear_ones_lose():
    smooth, sharp = (
        mask_generator(PATCHED, head=head)(features(PATCHED), features(PATCHED, 1)) for head in ("bilinear", "shuffle")
    )
    roughness = [(m[..., 1:] - m[..., :-1]).abs().mean().item() for m in (smooth, sharp)]
    assert roughness[0] < roughness[1]


def test_blend_by_hand():
    naive, target = torch.full((1, 3, 2, 2), 4.0), torch.full((1, 3, 2, 2), 8.0)
    assert torch.equal(blend(naive, target, torch.ones(1, 1, 2, 2)), naive)
    assert torch.equal(blend(naive, target, torch.zeros(1, 1, 2, 2)), target)
    assert (blend(naive, target, torch.full((1, 1, 2, 2), 0.25)) == 7.0).all()


def test_the_mask_learns_a_region():
    built, encoded, decoded = mask_generator(PLAIN), features(PLAIN), features(PLAIN, 1)
    truth = (encoded[0][:, :1] > 0).float()
    optimiser, losses = torch.optim.Adam(built.parameters(), 1e-2), []
    for _ in range(60):
        loss = (built(encoded, decoded) - truth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("levels", [(3,), (-1,), ()])
def test_levels_that_do_not_exist(levels):
    with pytest.raises(ValueError, match=r"the VQGAN has levels 0\.\.2"):
        mask_generator(PLAIN, levels=levels)
