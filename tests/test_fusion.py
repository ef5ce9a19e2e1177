"""Stage 2's networks: exchange symmetry, options, ablations, attention maps."""

import pytest
import torch
from pydantic import ValidationError

from codeswap.models.attention import gaussian_windows
from codeswap.models.fusion import Fusion, FusionConfig, concat, second_pass
from codeswap.models.selector import gumbel_quantise, hard_quantise, soft_quantise
from codeswap.types import SwappedCodes

TOKENS, WIDTH, CODES = 9, 8, 12
SMALL = {"layers": 2, "width": 16, "heads": 4, "ffn": 32}
LOCAL = {"windows": (0.8, 1.5, None)}
DISTANCE = {"selector": "linear", "selector_init": "distance"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, batch, TOKENS, WIDTH, generator=generator(seed)).unbind(0)


def codebook() -> torch.Tensor:
    return torch.randn(CODES, WIDTH, generator=generator(7))


def fusion(variant: str = "ours", randomise: bool = True, **knobs) -> Fusion:
    """A small module whose zero-initialised parameters (positions, sides) are randomised, or they would hide faults."""
    torch.manual_seed(0)
    built = Fusion(FusionConfig(**{**SMALL, **knobs}), variant, TOKENS, WIDTH, CODES)
    built.start_from_codebook_(codebook(), torch.tensor(1.0))
    if randomise:
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return built.eval()


def exchange_error(built: Fusion) -> float:
    z_a, z_b = latents()
    with torch.no_grad():
        one, other = built(z_a, z_b, codebook()), built(z_b, z_a, codebook())
    return max((one.z_q_ab - other.z_q_ba).abs().max().item(), (one.z_q_ba - other.z_q_ab).abs().max().item())


@pytest.mark.parametrize(
    ("knobs", "variant", "count"),
    [
        ({}, "ours", 13_536_864),
        ({"ffn": 2048}, "ours", 19_834_464),
        ({"selector": "linear"}, "ours", 13_536_864 - 787_968 + 524_288),
        ({}, "hard", 13_536_864),
        ({}, "gumbel", 13_536_864),
        ({}, "no_symmetry", 13_536_864 - 96),  # no side to be biased towards
        ({}, "no_codebook", 13_536_864 - 787_968 + 262_656),
    ],
)
def test_parameter_counts_at_paper_scale(knobs, variant, count):
    with torch.device("meta"):
        built = Fusion(FusionConfig(**knobs), variant, 256, 512, 1024)
    assert sum(p.numel() for p in built.parameters()) == count


@pytest.mark.parametrize("variant", ["ours", "no_codebook", "hard", "gumbel"])
@pytest.mark.parametrize("side", ["none", "rel_bias", "rel_vec", "rel_offset"])
@pytest.mark.parametrize("rest", [{}, {"position": "none"}, {"position_into": "stream"} | LOCAL | DISTANCE])
def test_exchanging_the_faces_exchanges_the_results(variant, side, rest):
    assert exchange_error(fusion(variant, side=side, **rest)) < 1e-5


@pytest.mark.parametrize(
    "knobs", [{"position": "abs512"}, {"side": "segment"}, {"side": "segment", "position": "none"}]
)
def test_absolute_sides_break_the_symmetry_unless_symmetrised(knobs):
    assert exchange_error(fusion(**knobs)) > 1e-3
    assert exchange_error(fusion(**knobs, symmetrise_eval=True)) < 1e-5


def trade_places(built: Fusion) -> float:
    """One token of a and b's at the same place trade places: the largest change at all *other* places."""
    z_a, z_b = latents()
    x_a, x_b = z_a.clone(), z_b.clone()
    x_a[:, 4], x_b[:, 4] = z_b[:, 4], z_a[:, 4]
    with torch.no_grad():
        before, after = built(z_a, z_b, codebook()), built(x_a, x_b, codebook())
    others = [place for place in range(TOKENS) if place != 4]
    return (before.z_q_ab - after.z_q_ab)[:, others].abs().max().item()


def test_plain_attention_cannot_tell_own_from_foreign_but_a_side_bias_can():
    assert trade_places(fusion(side="none")) < 1e-5
    for side in ("rel_bias", "rel_vec", "rel_offset"):
        assert trade_places(fusion(side=side)) > 1e-3


@pytest.mark.parametrize(
    "knobs", [{}, LOCAL, {"side": "none"}, {"side": "rel_vec"}, {"side": "rel_offset"}, {"side": "segment"}]
)
@pytest.mark.parametrize("variant", ["ours", "no_symmetry"])
def test_explicit_attention_equals_the_fused_kernel(knobs, variant):
    built, (z_a, z_b) = fusion(variant, **knobs), latents()
    results = []
    for explicit in (False, True):
        built.zero_grad()
        z_last, _ = built._fuse(z_a, z_b, explicit)
        z_last.square().mean().backward()
        results.append([z_last.detach(), *(p.grad.clone() for p in built.layers.parameters())])
    for fused, explicit in zip(*results, strict=True):
        assert torch.allclose(fused, explicit, atol=1e-5)


def test_attention_maps_are_probabilities_over_own_and_other_tokens():
    maps = fusion(**LOCAL).attention_maps(*latents())
    assert len(maps) == 2
    assert maps[0].shape == (2, 2, 4, TOKENS, 2, TOKENS)
    assert torch.allclose(maps[0].sum((-1, -2)), torch.ones(2, 2, 4, TOKENS), atol=1e-5)
    one_sided = fusion("no_symmetry").attention_maps(*latents())
    assert one_sided[0].shape == (2, 1, 4, TOKENS, 1, TOKENS)


def test_side_bias_moves_attention_between_the_faces():
    built = fusion(randomise=False)
    with torch.no_grad():
        built.layers[0].attention.side_bias[0] = torch.tensor([-30.0, 0.0])  # head 0 looks at the other face only
    first = built.attention_maps(*latents())[0]
    assert first[:, :, 0, :, 0].max() < 1e-6
    assert first[:, :, 1, :, 0].sum(-1).mean() > 0.2


def test_windows_by_hand():
    window = gaussian_windows(4, 3, (1.0, None))  # 2x2 tokens
    assert torch.allclose(window[0, 0], torch.tensor([0.0, -0.5, -0.5, -1.0]))
    assert not window[1].any()
    assert torch.equal(window[2], window[0])  # repeated over the heads
    assert gaussian_windows(4, 3, ()) is None


def test_a_narrow_window_sees_the_same_place_of_both_faces():
    first = fusion(randomise=False, windows=(0.1,)).attention_maps(*latents())[0]
    same_place = first.diagonal(dim1=3, dim2=5)  # b, side, head, own/other, place
    assert torch.allclose(same_place.sum(3), torch.ones(()), atol=1e-4)


def test_concat_keeps_a_before_b():
    z_a, z_b = latents()
    assert torch.equal(concat(z_a, z_b)[:, 0], z_a)
    assert torch.equal(concat(z_a, z_b)[:, 1], z_b)


def test_soft_quantisation():
    codes, logits = codebook(), torch.randn(2, TOKENS, CODES)
    soft = soft_quantise(logits, codes)
    assert torch.allclose(soft, logits.softmax(-1) @ codes)
    assert (soft >= codes.min(0).values - 1e-6).all()  # in the convex hull, hence within the codes' range
    assert (soft <= codes.max(0).values + 1e-6).all()
    certain = torch.zeros(1, 1, CODES)
    certain[..., 3] = 1e4
    assert torch.allclose(soft_quantise(certain, codes), codes[3])
    assert torch.allclose(soft_quantise(logits, codes, 0.5), soft_quantise(2 * logits, codes))


def test_hard_quantisation_is_argmax_forward_and_softmax_backward():
    codes, logits = codebook(), torch.randn(2, TOKENS, CODES, requires_grad=True)
    hard = hard_quantise(logits, codes)
    assert torch.allclose(hard, codes[logits.argmax(-1)], atol=1e-6)
    weights = torch.randn_like(hard)
    (found,) = torch.autograd.grad((hard * weights).sum(), logits)
    (expected,) = torch.autograd.grad((soft_quantise(logits, codes) * weights).sum(), logits)
    assert torch.allclose(found, expected, atol=1e-6)


def test_gumbel_noise_is_a_function_of_the_seed_and_samples_the_softmax():
    codes, logits = codebook(), torch.randn(1, 1, CODES).expand(1, 20_000, CODES)
    one, same, other = (gumbel_quantise(logits, codes, 1.0, seed, hard=True) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    # the Gumbel-max trick: hard samples follow softmax(P), so their mean is the soft code
    assert torch.allclose(one.mean(1), soft_quantise(logits[:, :1], codes)[:, 0], atol=0.05)


def test_gumbel_is_noisy_in_training_and_noise_free_in_evaluation():
    built, (z_a, z_b) = fusion("gumbel"), latents()
    quiet = built(z_a, z_b, codebook())
    assert torch.allclose(quiet.z_q_ab, soft_quantise(quiet.logits_ab, codebook()))
    built.train()
    with pytest.raises(ValueError, match="noise_seed"):
        built(z_a, z_b, codebook())
    assert torch.equal(built(z_a, z_b, codebook(), 5).z_q_ab, built(z_a, z_b, codebook(), 5).z_q_ab)
    assert not torch.equal(built(z_a, z_b, codebook(), 5).z_q_ab, built(z_a, z_b, codebook(), 6).z_q_ab)


def test_hard_variant_yields_codes():
    out = fusion("hard")(*latents(), codebook())
    assert torch.cdist(out.z_q_ba.flatten(0, 1), codebook()).min(-1).values.max() < 1e-3


def test_without_codebook_nothing_depends_on_it():
    built, (z_a, z_b) = fusion("no_codebook"), latents()
    out = built(z_a, z_b, codebook())
    assert out.logits_ab is None
    assert out.z_q_ab.shape == z_a.shape
    assert torch.equal(out.z_q_ab, built(z_a, z_b, torch.zeros(CODES, WIDTH)).z_q_ab)


@pytest.mark.parametrize("knobs", [{}, {"cross_self_attention": True}, {"position": "abs512"}, DISTANCE | LOCAL])
def test_one_sided_variant_has_b_as_target_and_reads_both_faces(knobs):
    built, (z_a, z_b) = fusion("no_symmetry", **knobs), latents()
    out = built(z_a, z_b, codebook())
    assert out.z_q_ba is None
    assert out.logits_ba is None
    assert out.z_q_ab.shape == z_b.shape
    for changed in ((z_a.flip(0), z_b), (z_a, z_b.flip(0))):
        assert not torch.allclose(built(*changed, codebook()).z_q_ab, out.z_q_ab)


def test_one_sided_output_follows_the_targets_places_not_the_sources():
    built, (z_a, z_b) = fusion("no_symmetry", position="none"), latents()
    out, order = built(z_a, z_b, codebook()).z_q_ab, torch.randperm(TOKENS, generator=generator())
    assert torch.allclose(built(z_a[:, order], z_b, codebook()).z_q_ab, out, atol=1e-5)
    assert torch.allclose(built(z_a, z_b[:, order], codebook()).z_q_ab, out[:, order], atol=1e-5)


@pytest.mark.parametrize("variant", ["ours", "no_symmetry", "no_codebook"])
def test_distance_selector_starts_exactly_at_the_soft_copy_of_the_target(variant):
    built, (z_a, z_b) = (
        fusion(variant, randomise=False, update_std=0.0, selector_temperature=0.7, **DISTANCE),
        latents(),
    )
    built.start_from_codebook_(codebook(), torch.tensor(3.0))
    out = built(z_a, z_b, codebook())
    logits = -(z_b[:, :, None] - codebook()).square().sum(-1) / (0.7 * 3.0)
    expected = z_b if variant == "no_codebook" else logits.softmax(-1) @ codebook()
    assert torch.allclose(out.z_q_ab, expected, atol=1e-5)


def test_default_start_does_not_depend_on_the_codebook():
    built = fusion(randomise=False)
    state = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    built.start_from_codebook_(3 * codebook(), torch.tensor(3.0))
    assert all(torch.equal(state[name], tensor) for name, tensor in built.state_dict().items())


@pytest.mark.parametrize("variant", ["ours", "no_codebook", "no_symmetry", "hard", "gumbel"])
@pytest.mark.parametrize("knobs", [{}, {"side": "rel_offset"} | LOCAL | DISTANCE])
def test_every_parameter_learns(variant, knobs):
    built, (z_a, z_b) = fusion(variant, **knobs).train(), latents()
    out = built(z_a, z_b, codebook(), 1)
    sum(z.square().mean() for z in (out.z_q_ab, out.z_q_ba) if z is not None).backward()
    assert [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("variant", ["ours", "hard", "gumbel", "no_codebook", "no_symmetry"])
def test_mixed_precision_runs_and_stays_near(variant):
    built, (z_a, z_b) = fusion(variant, **LOCAL).train(), latents()
    exact = built(z_a, z_b, codebook(), 1).z_q_ab
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = built(z_a, z_b, codebook(), 1).z_q_ab
    rounded.float().sum().backward()
    if variant != "hard":  # there rounding may choose another code
        assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_exchange_is_exact_in_mixed_precision_with_and_without_gradients():
    built, (z_a, z_b) = fusion("ours", **LOCAL), latents()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
            one, other = built(z_a, z_b, codebook()), built(z_b, z_a, codebook())
        assert torch.equal(one.z_q_ab, other.z_q_ba) and torch.equal(one.z_q_ba, other.z_q_ab)


def exchange_stub(z_a, z_b, codebook, noise_seed=None):
    return SwappedCodes(z_q_ab=z_a, z_q_ba=z_b, logits_ab=None, logits_ba=None)


def identity_stub(z_a, z_b, codebook, noise_seed=None):
    return SwappedCodes(z_q_ab=z_b, z_q_ba=z_a, logits_ab=None, logits_ba=None)


@pytest.mark.parametrize("stub", [exchange_stub, identity_stub])
def test_second_pass_of_exchange_and_of_copy_gives_the_latents_back(stub):
    z_a, z_b = latents()
    z_aba, z_bab = second_pass(stub, stub(z_a, z_b, None), z_b, codebook())
    assert torch.equal(z_aba, z_a)
    assert torch.equal(z_bab, z_b)


def test_one_sided_second_pass_gives_the_target_its_identity_back():
    def stub(z_a, z_b, codebook, noise_seed=None):  # writes the source over the first half of the target's channels
        return SwappedCodes(torch.cat([z_a[..., :4], z_b[..., 4:]], -1), None, None, None)

    z_a, z_b = latents()
    z_aba, z_bab = second_pass(stub, stub(z_a, z_b, None), z_b, codebook())
    assert z_aba is None
    assert torch.equal(z_bab, z_b)


def test_second_pass_keeps_the_gradient_of_the_first():
    built, (z_a, z_b) = fusion(), latents()
    first = built(z_a, z_b, codebook())
    first.z_q_ab.retain_grad()
    second_pass(built, first, z_b, codebook())[1].sum().backward()
    assert first.z_q_ab.grad.any()


@pytest.mark.parametrize(
    ("knobs", "says"),
    [({"width": 10}, "no multiple of heads"), ({"selector_init": "distance"}, "set selector: linear")],
)
def test_impossible_configurations(knobs, says):
    with pytest.raises(ValidationError, match=says):
        FusionConfig(**knobs)


def test_unknown_variant_and_odd_token_numbers():
    with pytest.raises(ValueError, match="expected one of"):
        Fusion(FusionConfig(**SMALL), "theirs", TOKENS, WIDTH, CODES)
    with pytest.raises(ValueError, match="8 tokens are no square map"):
        Fusion(FusionConfig(**SMALL), "ours", 8, WIDTH, CODES)
