"""What the identity network is shown while Stage 2 trains: mirrored, moved, the same on any number of processes."""

import pytest
import torch

from codeswap.train.diversity import Moves, glance, moved
from codeswap.train.engine import Engine
from codeswap.train.machine import EngineConfig


def test_pictures_are_mirrored_and_moved_by_hand():
    image = torch.arange(9.0).view(1, 1, 3, 3).repeat(3, 1, 1, 1).requires_grad_()
    moves = Moves(torch.tensor([False, True, True]), torch.tensor([[1, 0], [0, 0], [0, -2]]))
    seen = moved(image, moves)
    assert seen[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]], "down by one, the edge repeated"
    assert seen[1, 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]], "mirrored"
    assert seen[2, 0].tolist() == [[0, 0, 0], [3, 3, 3], [6, 6, 6]], "mirrored, then left by two"
    (gradient,) = torch.autograd.grad(seen.sum(), image)
    assert gradient[0, 0].tolist() == [[2, 2, 2], [1, 1, 1], [0, 0, 0]], "it goes to the pixels that were shown"


def test_half_are_mirrored_and_ways_are_whole_pixels_both_ways():
    moves = Moves.draw(4000, 2, torch.Generator().manual_seed(0))
    assert moves.mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert moves.way.unique().tolist() == [-2, -1, 0, 1, 2]
    assert moves.way.float().mean(0).abs().max() < 0.1


def test_a_process_shows_its_rows_of_what_the_whole_batch_is_shown():
    engine = Engine(EngineConfig(device="cpu"), 0, 8)
    try:
        both = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))  # ab and ba of 8 pairs
        alone = glance(engine, 2, both, step=3)
        assert not torch.equal(alone, both)
        assert not torch.equal(alone, glance(engine, 2, both, step=4))
        engine.world = 2
        for engine.rank in (0, 1):
            part = torch.cat([both[:8][engine.rank :: 2], both[8:][engine.rank :: 2]])
            expected = torch.cat([alone[:8][engine.rank :: 2], alone[8:][engine.rank :: 2]])
            assert torch.equal(glance(engine, 2, part, step=3), expected)
            assert torch.equal(glance(engine, 2, part[:4], step=3), expected[:4]), "one-sided: the same ab"
    finally:
        engine.world, engine.rank = 1, 0
        engine.close()
