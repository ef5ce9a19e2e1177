"""The codebook, off-paper: codes of a linear basis, codes of unit length."""

import pytest
import torch

from codeswap.models.quantizer import Codebook, QuantizerConfig


def test_a_linear_basis_moves_every_code_and_stays_one_matrix():
    torch.manual_seed(0)
    book = Codebook(QuantizerConfig(n_codes=6, update="linear"), 3)
    assert not book.weight.requires_grad and torch.equal(book.weight, book.basis)  # it starts at the identity
    z = torch.randn(2, 4, 3, requires_grad=True)
    quantised = book.straight_through(z)
    (quantised.z_q - z.detach()).square().mean().backward()
    assert z.grad is None and book.weight.grad is None and book.turn.grad.abs().min() > 0
    before = book.weight.clone()
    torch.optim.SGD([book.turn], lr=1.0).step()
    book.refresh_()
    assert ((book.weight - before).norm(dim=1) > 0).all()  # codes that nobody chose too
    torch.testing.assert_close(book.weight, book.basis @ book.turn)
    vectors = torch.randn(50, 3)
    book.kmeans_(vectors, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(book.weight, book.basis @ book.turn)
    plain = Codebook(QuantizerConfig(n_codes=6), 3)
    plain.kmeans_(vectors, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(book.weight, plain.weight)
    with pytest.raises(ValueError, match="no codes of their own that could restart"):
        QuantizerConfig(update="linear", restart_below=0.1)


@pytest.mark.parametrize("update", ["gradient", "ema", "linear"])
def test_normalised_codes_have_unit_length_however_they_learn(update):
    torch.manual_seed(0)
    book = Codebook(QuantizerConfig(n_codes=6, update=update, normalised=True), 3)

    def unit() -> bool:
        return torch.allclose(book.weight.norm(dim=1), torch.ones(6), atol=1e-5)

    assert unit()
    z = torch.nn.functional.normalize(torch.randn(2, 8, 3), dim=-1)
    assert torch.equal(book.nearest(z), (z @ book.weight.T).argmax(dim=-1))
    if update == "ema":
        book.ema_update_(book.assignments(z, book.nearest(z)))
    else:
        (book.straight_through(z).z_q - z).square().mean().backward()
        torch.optim.SGD([p for p in book.parameters() if p.requires_grad], lr=5.0).step()
    before = book.weight.clone()
    book.refresh_()
    assert unit() and (update == "linear" or not torch.equal(before, book.weight))
    book.kmeans_(z.flatten(0, 1), None, torch.Generator().manual_seed(0))
    assert unit()
