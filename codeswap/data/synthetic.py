"""Rendered faces with ground truth: image, parsing, exact labels, and the true swap (DESIGN §6).

    python -m codeswap.data.synthetic OUT.png        # rows are persons, columns are attributes

The true swap of a's identity into b's picture is `render(identity_a, attributes_b, size)`.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from codeswap.data.synthetic_face import paint_face
from codeswap.data.synthetic_geometry import cast, signed, view
from codeswap.data.synthetic_parameters import (
    ATTRIBUTES,
    IDENTITY,
    Attributes,
    Identity,
    attributes,
    expression_of,
    identities,
    mirror_attributes,
    mirror_identity,
    pose_of,
)
from codeswap.data.synthetic_scene import paint_background, paint_cloth, paint_hair

__all__ = [
    "ATTRIBUTES", "IDENTITY", "LABELS", "attributes", "expression_of", "identities", "mirror_attributes",
    "mirror_identity", "pose_of", "render",
]  # fmt: skip

LABELS = (0, 1, 2, 4, 10, 12, 16, 17)  # of types.PARSING_LABELS; left and right are not told apart
_CACHE_PIXELS = 32 * 64 * 64  # pixels rendered at once: the planes of one chunk stay in the processor's cache


@torch.no_grad()
def render(identity: Tensor, attribute: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of persons (b, IDENTITY) under attributes (b, ATTRIBUTES), both in [0, 1], at size x size pixels.

    Returns uint8 RGB (b, 3, size, size) in 0..255 and the uint8 parsing (b, size, size) with the ids of `LABELS`.
    Raises ValueError for shapes that do not fit each other or a size below 8.
    """
    if identity.ndim != 2 or identity.shape[1] != IDENTITY or attribute.shape != (len(identity), ATTRIBUTES):
        raise ValueError(
            f"identity {tuple(identity.shape)} and attribute {tuple(attribute.shape)}: expected (b, {IDENTITY}) and "
            f"(b, {ATTRIBUTES}) with the same b"
        )
    if size < 8:
        raise ValueError(f"size {size} is too small for a face, use at least 8")
    images = torch.empty(len(identity), 3, size, size, dtype=torch.uint8, device=identity.device)
    labels = torch.empty(len(identity), size, size, dtype=torch.uint8, device=identity.device)
    chunk = max(1, _CACHE_PIXELS // size**2)
    for start in range(0, len(identity), chunk):
        part = slice(start, start + chunk)
        images[part], labels[part] = _render(_columns(identity[part]), _columns(attribute[part]), size)
    return images, labels


def _columns(parameters: Tensor) -> list[Tensor]:
    return list(parameters.float().t()[:, :, None, None, None])


def _render(identity_columns: list[Tensor], attribute_columns: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Paints from back to front: background, hair behind, clothes, head, hair in front."""
    identity, attribute = Identity(*identity_columns), Attributes(*attribute_columns)
    look = view(attribute, size)
    surface = cast(look, identity, attribute)
    face = paint_face(look, surface, identity, attribute)
    hair = paint_hair(look, surface, attribute)
    cloth, clothed = paint_cloth(look, surface, attribute)

    image = paint_background(look, attribute)
    image = torch.lerp(image, hair.image * 0.86, hair.behind)
    image = torch.lerp(image, cloth, clothed)
    image = torch.lerp(image, face.image, face.coverage)
    image = torch.lerp(image, hair.image, hair.front)
    warmth = 0.07 * signed(attribute.warmth)
    image = image * torch.cat([1 + warmth, torch.ones_like(warmth), 1 - warmth], dim=1)

    label = torch.zeros_like(hair.behind, dtype=torch.uint8)
    label[hair.behind > 0.5] = 17
    label[clothed > 0.5] = 16
    head = face.coverage > 0.5
    for number, covered in face.parts.items():
        label[head & (covered > 0.5)] = number
    label[hair.front > 0.5] = 17
    return (image.clamp_(0, 1) * 255).round_().byte(), label[:, 0]


def contact_sheet(rows: int, columns: int, size: int, seed: int) -> Image.Image:
    """Persons (rows) under the same attributes (columns): down a column every picture is a true swap of the others."""
    people, looks = identities(0, rows, seed), attributes(0, columns, seed)
    pictures, _ = render(people.repeat_interleave(columns, 0), looks.repeat(rows, 1), size)
    sheet = pictures.view(rows, columns, 3, size, size).permute(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    return Image.fromarray(sheet.numpy())


def main() -> None:
    """Writes a contact sheet."""
    parser = argparse.ArgumentParser(description=contact_sheet.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    contact_sheet(options.rows, options.columns, options.size, options.seed).save(options.out)


if __name__ == "__main__":
    main()
