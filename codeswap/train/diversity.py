"""Input diversity: a frozen network judges pictures mirrored and moved at random (off-paper).

What pleases one network at exactly these pixels need not please another. Gradients through randomly changed inputs
transfer better between networks (Xie et al. 2019, arXiv 1803.06978, for adversarial pictures), and a swap should be
the source for networks that did not train.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from codeswap.train.engine import Engine
from codeswap.types import Image


class Moves(NamedTuple):
    """Of each picture: whether it is mirrored (n,), and its way down and to the right in pixels (n, 2)."""

    mirrored: Tensor
    way: Tensor

    @classmethod
    def draw(cls, count: int, most: int, generator: torch.Generator) -> "Moves":
        """Half are mirrored; ways are whole pixels of -most..most, so that nothing is blurred."""
        mirrored = torch.rand(count, generator=generator) < 0.5
        return cls(mirrored, torch.randint(-most, most + 1, (count, 2), generator=generator))


def moved(image: Image, moves: Moves) -> Image:
    """The pictures as `moves` say, the edge's pixels repeated where nothing is known."""
    n, c, h, w = image.shape
    down, right = moves.way.unbind(1)
    rows = (torch.arange(h, device=image.device) - down[:, None]).clamp(0, h - 1)
    columns = (torch.arange(w, device=image.device) - right[:, None]).clamp(0, w - 1)
    columns = torch.where(moves.mirrored[:, None], w - 1 - columns, columns)
    image = image.gather(2, rows.view(n, 1, h, 1).expand(n, c, h, w))
    return image.gather(3, columns.view(n, 1, 1, w).expand(n, c, h, w))


def glance(engine: Engine, most: int, images: Image, step: int) -> Image:
    """This process' pictures of the batch (n or, both directions after each other, 2n), each moved by its own draw."""
    generator, whole = engine.generator(step, "glances"), engine.micro_batch
    drawn = [Moves.draw(whole, most, generator) for _ in range(len(images) * engine.world // whole)]
    return moved(images, Moves(*(torch.cat([engine.rows(one) for one in part]) for part in zip(*drawn, strict=True))))
