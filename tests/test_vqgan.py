"""Stage 1's autoencoder: sizes as published, shapes, taps, off-paper switches, gradients."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from codeswap.models.layers import ConvDown, ConvUp, Res
from codeswap.models.quantizer import DecodingMix, QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig, feature_map, tokens

TINY = VQGANConfig(
    image_size=32, ch=16, ch_mult=(1, 2, 2), n_res_enc=1, n_res_dec=1, attn_res=(8,), z_ch=8, embed_dim=8
)
FAST = VQGANConfig(
    image_size=32, patch=2, ch=16, ch_mult=(1, 2), n_res_enc=(0, 2), n_res_dec=(1, 2), attn_res=(), mid="none",
    resample="shuffle", norm="none", z_ch=48, embed_dim=48, quant_conv=False, linear_shortcut=True,
)  # fmt: skip


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(batch: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def model(config: VQGANConfig = TINY, **quantizer) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(config, QuantizerConfig(**{"n_codes": 16, **quantizer}))


@pytest.mark.parametrize(
    ("knobs", "encoder", "decoder", "total"),
    [
        ({}, 30_595_904, 44_042_755, 75_688_259),
        ({"n_res_dec": 2}, 30_595_904, 35_241_603, 66_887_107),
        ({"ch": 128, "ch_mult": (1, 1, 2, 2, 4, 4)}, 42_281_216, 60_154_243, 103_485_059),
        ({"ch": 128, "ch_mult": (1, 1, 2, 2, 2, 4)}, 33_430_528, 47_763_075, 82_243_203),
        (
            {"z_ch": 256, "embed_dim": 256, "quant_conv": False, "n_res_dec": 2, "last_swish": False},
            29_416_000, 34_061_955, 63_740_099,
        ),
        (
            {"image_size": 256, "ch": 128, "ch_mult": (1, 1, 2, 2, 4), "z_ch": 256, "embed_dim": 256},
            29_298_176, 42_449_795, 72_141_699,
        ),
    ],
)  # fmt: skip
def test_parameter_counts_of_the_published_networks(knobs, encoder, decoder, total):
    with torch.device("meta"):
        built = VQGAN(VQGANConfig(**knobs), QuantizerConfig())
    assert (parameters(built.encoder), parameters(built.decoder), parameters(built)) == (encoder, decoder, total)


def test_paper_shapes_without_computing_them():
    with torch.device("meta"):
        built = VQGAN(VQGANConfig(), QuantizerConfig())
        z, encoded = built.encoder_features(torch.empty(1, 3, 512, 512))
        image, decoded = built.decode_features(z)
    assert z.shape == (1, 512, 16, 16)
    assert image.shape == (1, 3, 512, 512)
    taps = [(64, 512), (128, 256), (128, 128), (256, 64), (256, 32), (512, 16)]
    assert [(f.shape[1], f.shape[2]) for f in encoded] == [(f.shape[1], f.shape[2]) for f in decoded] == taps


@pytest.mark.parametrize("config", [TINY, FAST])
def test_shapes_and_equal_taps_of_encoder_and_decoder(config):
    vqgan = model(config)
    z, encoded = vqgan.encoder_features(images(2))
    image, decoded = vqgan.decode_features(z)
    assert z.shape == (2, config.embed_dim, config.grid, config.grid)
    assert image.shape == (2, 3, 32, 32)
    assert [f.shape for f in encoded] == [f.shape for f in decoded]
    assert [f.shape[1] for f in encoded] == list(config.widths)
    assert config.grid == 8


def test_tokens_run_row_by_row_and_back():
    x = torch.arange(2.0 * 3 * 2 * 2).view(2, 3, 2, 2)
    assert tokens(x)[0, 1].tolist() == [1, 5, 9]  # second column of the first row, all channels
    assert torch.equal(feature_map(tokens(x)), x)
    with pytest.raises(ValueError, match="6 tokens are no square map"):
        feature_map(torch.zeros(1, 6, 3))


def test_down_sampling_pads_right_and_bottom_only():
    down = ConvDown(1)
    with torch.no_grad():
        down.conv.weight.zero_()[0, 0, 0, 0] = 1.0  # picks the upper left pixel of each window
        down.conv.bias.zero_()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert down(x).flatten().tolist() == [0.0, 2.0, 8.0, 10.0]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_up_sampling_without_gradients_gives_the_same_in_fewer_operations(form):
    torch.manual_seed(0)
    up, x = ConvUp(6), torch.randn(2, 6, 5, 7).contiguous(memory_format=form)
    with FlopCounterMode(display=False) as written:
        expected = up(x)
    with FlopCounterMode(display=False) as fewer, torch.no_grad():
        found = up(x)
    assert expected.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=form)
    assert fewer.get_total_flops() < 0.65 * written.get_total_flops()  # 4/9 and a row and a column, on so small a map


def test_norm_free_block_starts_as_its_shortcut():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(Res(8, 8, "none")(x), x)
    assert not torch.equal(Res(8, 8, "group")(x), x)


def test_linear_shortcut_alone_is_a_lossless_autoencoder_at_full_width():
    vqgan = model(FAST)
    x = images(24)
    for start in (lambda: None, lambda: vqgan.start_from_principal_patches_(x)):
        start()
        with torch.no_grad():
            for conv in (vqgan.encoder.conv_out, vqgan.decoder.conv_out):
                conv.weight.zero_()
            assert torch.allclose(vqgan.decode(vqgan.encode(x)), x, atol=1e-5)


def test_principal_patches_keep_the_best_directions():
    narrow = FAST.model_copy(update={"z_ch": 3, "embed_dim": 3})
    vqgan = model(narrow)
    with torch.no_grad():
        for conv in (vqgan.encoder.conv_out, vqgan.decoder.conv_out):
            conv.weight.zero_()
    flat = images(24)[:, :, :1, :1].expand(-1, -1, 32, 32).contiguous()  # one colour each: three directions suffice
    assert (vqgan.decode(vqgan.encode(flat)) - flat).abs().max() > 0.1
    vqgan.start_from_principal_patches_(flat)
    assert torch.allclose(vqgan.decode(vqgan.encode(flat)), flat, atol=1e-5)
    with pytest.raises(ValueError, match="linear_shortcut: true"):
        model(TINY).start_from_principal_patches_(flat)
    with pytest.raises(ValueError, match="too few"):
        vqgan.start_from_principal_patches_(flat[:0])


def test_straight_through_reaches_the_encoder_but_not_the_codes():
    vqgan = model()
    out = vqgan(images(2))
    out.image.square().mean().backward()
    assert vqgan.codebook.weight.grad is None
    assert all(p.grad is not None and p.grad.any() for p in vqgan.encoder.conv_in.parameters())
    assert torch.equal(out.z_q, vqgan.codebook.weight[out.codes])
    assert torch.equal(out.image, vqgan.decode(feature_map(out.z + (out.z_q - out.z))))


def test_head_is_the_input_of_the_last_convolution():
    vqgan = model()
    out = vqgan(images(1))
    assert not out.head.requires_grad
    assert torch.allclose(vqgan.last_layer(out.head), out.image)


def test_each_sample_is_decoded_as_the_mix_says():
    vqgan = model(init="uniform")
    x = images(3)
    mix = DecodingMix(torch.tensor([0.0, 0.7, 0.0]), torch.tensor([False, False, True]))
    out, z = vqgan(x, mix), tokens(vqgan.encode(x))
    nearest = vqgan.codebook.lookup(vqgan.codebook.nearest(z[:1]))
    soft = vqgan.codebook.soft(z[1:2], 0.7)
    for got, latent in zip(out.image, (nearest, soft, z[2:]), strict=True):
        assert torch.allclose(got, vqgan.decode(feature_map(latent))[0], atol=1e-5)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_mixed_precision_step_runs_with_every_kind_of_mix(update):
    vqgan = model(FAST, update=update)
    for temperature, continuous in ((0.0, False), (0.5, False), (0.0, True)):
        mix = DecodingMix(torch.tensor([temperature, 0.0]), torch.tensor([continuous, False]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = vqgan(images(2), mix)
        out.image.float().square().mean().backward()
        vqgan.codebook.observe_(vqgan.codebook.assignments(out.z, out.codes))
    assert all(p.grad.isfinite().all() for p in vqgan.encoder.parameters())


def test_recomputed_levels_give_the_same_gradients():
    vqgan, x, gradients = model(), images(2), []
    for size in (None, 16):
        vqgan.zero_grad()
        vqgan.recompute_from_(size)
        vqgan(x).image.square().mean().backward()
        gradients.append([p.grad.clone() for p in vqgan.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("config", [TINY, FAST])
def test_channels_last_computes_the_same(config):
    vqgan, x = model(config), images(2)
    expected = vqgan.decode(vqgan.encode(x))
    vqgan.to(memory_format=torch.channels_last)
    found = vqgan.decode(vqgan.encode(x.contiguous(memory_format=torch.channels_last)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_small_model_learns_to_reconstruct():
    vqgan, x = model(FAST, n_codes=64), F.interpolate(images(4, size=4), 32, mode="bilinear")
    vqgan.codebook.kmeans_(tokens(vqgan.encode(x)).flatten(0, 1), None, torch.Generator().manual_seed(0))
    optimiser, losses = torch.optim.Adam(vqgan.parameters(), 2e-3), []
    for _ in range(30):
        out = vqgan(x)
        loss = (out.image - x).abs().mean() + (out.z - out.z_q).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"image_size": 100}, "no multiple of patch"),
        ({"quant_conv": False, "z_ch": 256}, "needs z_ch == embed_dim"),
        ({"n_res_enc": (2, 2)}, "one number >= 0 for each of 6 levels"),
        ({"n_res_enc": (2, 0, 2, 2, 2, 2)}, "cannot change its width"),
        ({"ch_mul": (1, 2)}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_configurations_say_why(knobs, says):
    with pytest.raises(ValidationError, match=says):
        VQGANConfig(**knobs)


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match="image of 64x64 px, this model was built for 32 px squares"):
        model().encode(images(1, size=64))
