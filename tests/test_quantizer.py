"""The codebook: nearest and soft codes, both ways of learning, statistics."""

import pytest
import torch
from pydantic import ValidationError

from codeswap.models import quantizer
from codeswap.models.quantizer import Assignments, Codebook, QuantizerConfig, codes_used, decoding_mix, perplexity


def codebook(n_codes: int = 4, width: int = 2, **knobs) -> Codebook:
    torch.manual_seed(0)
    return Codebook(QuantizerConfig(n_codes=n_codes, **knobs), width)


def with_codes(codes: list[list[float]], **knobs) -> Codebook:
    book = codebook(len(codes), len(codes[0]), **knobs)
    with torch.no_grad():
        book.weight.copy_(torch.tensor(codes))
    return book


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_paper_initialisation():
    book = codebook(1024, 8)
    assert book.weight.abs().max() <= 1 / 1024
    assert book.weight.requires_grad


def test_nearest_equals_brute_force_in_float64(monkeypatch):
    book, z = codebook(64, 16), torch.randn(3, 50, 16) / 64
    brute = (z.double()[..., None, :] - book.weight.double()).square().sum(-1).argmin(-1)
    assert torch.equal(book.nearest(z), brute)
    monkeypatch.setattr(quantizer, "ROWS_AT_ONCE", 7)  # several parts, the last one short
    assert torch.equal(book.nearest(z), brute)


def test_codes_do_not_flip_in_mixed_precision():
    book, z = codebook(256, 32), torch.randn(4, 64, 32) / 256
    expected = book.nearest(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book.nearest(z), expected)
        assert book.distances(z).dtype == torch.float32


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_z():
    book = with_codes([[0.0, 0.0], [1.0, 1.0]])
    z = torch.tensor([[[0.9, 0.7], [0.1, 0.2]]], requires_grad=True)
    out = book.straight_through(z)
    assert out.codes.tolist() == [[1, 0]]
    assert torch.equal(out.passed, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    weights = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    (dz,) = torch.autograd.grad((out.passed * weights).sum(), z, retain_graph=True)
    assert torch.equal(dz, weights)
    (dq,) = torch.autograd.grad(out.z_q.sum(), book.weight)
    assert torch.equal(dq, torch.ones(2, 2))


def test_rotation_has_the_value_of_the_code_and_turns_the_gradient_with_it():
    book = Codebook(QuantizerConfig(n_codes=2, passes="rotation"), 2)
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[0.0, 2.0], [-9.0, -9.0]]))
    z = torch.tensor([[[1.0, 0.0]]], requires_grad=True)  # a quarter turn and twice the length away from its code
    out = book.straight_through(z)
    torch.testing.assert_close(out.passed, out.z_q)
    out.passed.backward(torch.tensor([[[0.0, 1.0]]]))  # along the code: along the token, by the scale
    torch.testing.assert_close(z.grad, torch.tensor([[[2.0, 0.0]]]))
    assert book.weight.grad is None
    torch.manual_seed(0)
    z = torch.randn(3, 5, 4)
    big = Codebook(QuantizerConfig(n_codes=7, passes="rotation"), 4)
    with torch.no_grad():
        big.weight.normal_()
    torch.testing.assert_close(big.straight_through(z).passed, big.straight_through(z).z_q, rtol=1e-4, atol=1e-5)


def test_index_has_the_value_of_the_code_and_its_gradient_reaches_every_code():
    torch.manual_seed(0)
    book = Codebook(QuantizerConfig(n_codes=5, passes="index"), 3)
    with torch.no_grad():
        book.weight.normal_()
    z = torch.randn(2, 4, 3, requires_grad=True)
    out = book.straight_through(z)
    torch.testing.assert_close(out.passed, out.z_q)
    slope = torch.randn(2, 4, 3)
    out.passed.backward(slope)
    found = z.grad.clone(), book.weight.grad.clone()
    z.grad = book.weight.grad = None
    chosen = -torch.cdist(z, book.weight).square()  # of the soft choice, and of the code that was chosen
    (chosen.softmax(-1) @ book.weight.detach() + book.weight[chosen.argmax(-1)]).backward(slope)
    torch.testing.assert_close(found, (z.grad, book.weight.grad), rtol=1e-4, atol=1e-5)
    assert (found[1].abs().sum(1) > 0).all()


def test_soft_codes_by_hand():
    book = with_codes([[0.0], [1.0]])
    book.nearest_distance.fill_(0.5)
    z = torch.tensor([[[0.0]]])
    # distances 0 and 1, scale 2 * 0.5: weights 1 and e^-1
    assert book.soft(z, 2.0).item() == pytest.approx(1 / (1 + torch.e), abs=1e-6)
    per_sample = book.soft(z.expand(2, 1, 1), torch.tensor([2.0, 1e-3]))
    assert per_sample.flatten().tolist() == pytest.approx([1 / (1 + torch.e), 0.0], abs=1e-6)


def test_soft_codes_stay_in_the_hull_and_pass_gradients():
    book, z = codebook(16, 4), (torch.randn(2, 5, 4) * 3).requires_grad_()
    book.nearest_distance.fill_(10.0)
    soft = book.soft(z, 1.0)
    assert (soft >= book.weight.min(0).values - 1e-6).all()
    assert (soft <= book.weight.max(0).values + 1e-6).all()
    dz, dq = torch.autograd.grad(soft.square().sum(), [z, book.weight])
    assert dz.any()
    assert dq.any()


def test_soft_gradient_is_finite_on_a_code():
    book = with_codes([[0.0, 0.0], [1.0, 1.0]])
    z = torch.zeros(1, 1, 2, requires_grad=True)
    (dz,) = torch.autograd.grad(book.soft(z, 1.0).sum(), z)
    assert dz.isfinite().all()


def test_assignments_by_hand_and_additive_over_ranks():
    book = with_codes([[0.0], [10.0]])
    z, codes, weights = (
        torch.tensor([[[1.0], [9.0], [8.0]]]),
        torch.tensor([[0, 1, 1]]),
        torch.tensor([[1.0, 2.0, 1.0]]),
    )
    sums = book.assignments(z, codes, weights)
    assert sums.count.tolist() == [1.0, 3.0]
    assert sums.total.tolist() == [[1.0], [26.0]]
    assert sums.distance.item() == 1 + 2 * 1 + 4
    parts = [book.assignments(z[:, s], codes[:, s], weights[:, s]) for s in (slice(0, 1), slice(1, 3))]
    for whole, *split in zip(sums, *parts, strict=True):
        assert torch.equal(whole, sum(split))


def test_ema_update_by_hand():
    book = with_codes([[0.0], [10.0]], update="ema", ema_decay=0.75)
    assert not book.weight.requires_grad
    # first update: both codes start with the mean count 2 and totals 0 and 20
    book.ema_update_(Assignments(torch.tensor([1.0, 3.0]), torch.tensor([[2.0], [33.0]]), torch.tensor(0.0)))
    assert book.ema_count.tolist() == [1.75, 2.25]
    assert book.weight.flatten().tolist() == pytest.approx([0.5 / 1.75, (15 + 8.25) / 2.25])


def test_ema_brings_codes_to_their_tokens():
    torch.manual_seed(0)
    book = with_codes([[0.3, 0.0], [0.0, 0.3]], update="ema", ema_decay=0.5)
    z = torch.cat([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])])[None]
    for _ in range(40):
        book.ema_update_(book.assignments(z, book.nearest(z)))
    assert torch.allclose(book.weight, z[0], atol=1e-3)


def test_ema_update_needs_ema():
    with pytest.raises(ValueError, match=r"needs `quantizer.update: ema`, found 'gradient'"):
        codebook().ema_update_(Assignments(torch.zeros(4), torch.zeros(4, 2), torch.zeros(())))


def test_observation_keeps_usage_and_distance():
    book = with_codes([[0.0], [10.0]], ema_decay=0.5)
    sums = Assignments(torch.tensor([4.0, 0.0]), torch.zeros(2, 1), torch.tensor(8.0))
    book.observe_(sums)
    assert (book.usage.tolist(), book.nearest_distance.item()) == ([4.0, 0.0], 2.0)
    book.observe_(sums._replace(distance=torch.tensor(16.0)))
    assert (book.usage.tolist(), book.nearest_distance.item()) == ([4.0, 0.0], 3.0)


def test_dead_codes_restart_at_the_given_vectors():
    book = with_codes([[0.0], [1.0], [2.0], [3.0]], update="ema", restart_below=0.1)
    book.usage.copy_(torch.tensor([5.0, 0.0, 7.0, 0.0]))
    book.ema_count.copy_(torch.tensor([5.0, 1e-9, 7.0, 1e-9]))
    assert book.restart_dead_(torch.tensor([[40.0]])) == 1  # fewer vectors than dead codes
    assert book.weight.flatten().tolist() == [0.0, 40.0, 2.0, 3.0]
    assert book.restart_dead_(torch.tensor([[50.0], [60.0]])) == 1  # the other one; the first is alive again
    assert book.weight.flatten().tolist() == [0.0, 40.0, 2.0, 50.0]
    assert torch.allclose(book.ema_total[1] / book.ema_count[1], torch.tensor([40.0]))
    assert book.restart_dead_(torch.tensor([[70.0]])) == 0


def test_no_restarts_by_default():
    book = codebook()
    assert book.restart_dead_(torch.ones(9, 2)) == 0


def test_kmeans_finds_clusters_and_obeys_weights():
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
    vectors = (centres[:, None] + 0.1 * torch.randn(4, 50, 2, generator=generator())).flatten(0, 1)
    book = codebook(4, 2, init="kmeans", update="ema")
    best = []
    for seed in range(5):  # Lloyd's algorithm depends on its start
        book.kmeans_(vectors, None, generator(seed), iterations=20)
        best.append(torch.cdist(centres, book.weight).min(1).values.max().item())
    assert min(best) < 0.1
    assert torch.allclose(book.ema_total / book.ema_count[:, None], book.weight)
    book.kmeans_(vectors, (vectors[:, 0] < 4).float(), generator())
    assert (book.weight[:, 0] < 4).all()


def test_kmeans_is_reproducible_and_refuses_too_few_vectors():
    vectors, books = torch.randn(40, 2, generator=generator()), (codebook(), codebook())
    for book in books:
        book.kmeans_(vectors, None, generator(3))
    assert torch.equal(books[0].weight, books[1].weight)
    assert books[0].nearest_distance == books[1].nearest_distance != 1
    with pytest.raises(ValueError, match="3 vectors of positive weight for 4 codes"):
        codebook().kmeans_(torch.randn(3, 2), None, generator())


def test_perplexity_and_use_by_hand():
    assert perplexity(torch.tensor([5.0, 5.0, 0.0, 0.0])).item() == pytest.approx(2.0)
    assert perplexity(torch.tensor([1.0, 0.0])).item() == pytest.approx(1.0)
    assert perplexity(torch.zeros(4)).item() == 0.0
    assert codes_used(torch.tensor([5.0, 5.0, 0.0])).item() == 2.0


def test_all_state_survives_a_checkpoint():
    book = codebook(update="ema")
    z = torch.randn(1, 20, 2)
    sums = book.assignments(z, book.nearest(z))
    book.observe_(sums)
    book.ema_update_(sums)
    restored = codebook(update="ema")
    restored.load_state_dict(book.state_dict())
    for other in (book, restored):
        other.observe_(sums)
        other.ema_update_(sums)
    assert all(
        torch.equal(a, b) for a, b in zip(book.state_dict().values(), restored.state_dict().values(), strict=True)
    )


def test_mix_has_the_shares_it_was_asked_for():
    config = QuantizerConfig(soft_share=0.35, continuous_share=0.1, soft_temperature=(0.3, 1.8))
    mix = decoding_mix(config, 10_000, generator())
    soft = mix.temperature > 0
    assert soft.float().mean() == pytest.approx(0.35, abs=0.02)
    assert mix.continuous.float().mean() == pytest.approx(0.1, abs=0.02)
    assert not (soft & mix.continuous).any()
    assert mix.temperature[soft].min() >= 0.3
    assert mix.temperature.max() <= 1.8
    assert torch.equal(mix.temperature, decoding_mix(config, 10_000, generator()).temperature)
    plain = decoding_mix(QuantizerConfig(), 100, generator())
    assert not plain.temperature.any()
    assert not plain.continuous.any()


@pytest.mark.parametrize("knobs", [{"soft_share": 0.7, "continuous_share": 0.7}, {"soft_temperature": (2.0, 1.0)}])
def test_impossible_configurations(knobs):
    with pytest.raises(ValidationError):
        QuantizerConfig(**knobs)
