"""What surrounds a rendered face and stays with the target: background, hair and clothes."""

from typing import NamedTuple

import torch
from torch import Tensor

from codeswap.data.synthetic_face import Palette, palette
from codeswap.data.synthetic_geometry import Surface, View, bell, between, bump, coverage, rise, signed
from codeswap.data.synthetic_parameters import Attributes

BACKGROUND: Palette = ((0.18, 0.21, 0.27), (0.34, 0.40, 0.46), (0.47, 0.52, 0.47), (0.62, 0.56, 0.48),
                       (0.73, 0.70, 0.66), (0.84, 0.86, 0.88))  # fmt: skip
HAIR: Palette = ((0.07, 0.06, 0.06), (0.20, 0.13, 0.09), (0.40, 0.25, 0.14), (0.56, 0.29, 0.14), (0.80, 0.65, 0.40),
                 (0.70, 0.69, 0.70))  # fmt: skip
CLOTH: Palette = ((0.13, 0.14, 0.17), (0.21, 0.28, 0.42), (0.44, 0.22, 0.22), (0.30, 0.41, 0.33), (0.60, 0.58, 0.54),
                  (0.84, 0.83, 0.80))  # fmt: skip


class Hair(NamedTuple):
    """Lit hair (b, 3, h, w) and where it lies behind and in front of the head."""

    image: Tensor
    behind: Tensor
    front: Tensor


def paint_background(view: View, attribute: Attributes) -> Tensor:
    """A wall with a soft bright spot and a slope of brightness, (b, 3, h, w)."""
    spot = bump(view.u - signed(attribute.background_x), view.v - signed(attribute.background_y), 1.1, 1.1)
    light = 0.82 + 0.28 * spot + 0.16 * signed(attribute.background_slope) * view.u
    return palette(BACKGROUND, attribute.background) * light


def paint_hair(view: View, surface: Surface, attribute: Attributes) -> Hair:
    """A mass behind the head down to `hair_length`, and a cap on it above the hairline and at the temples."""
    x, y, pixel = view.x, view.y, view.pixel
    turned = x + 0.10 * torch.sin(signed(attribute.yaw) * 0.56)  # the back of the head turns the other way
    volume = between(0.02, 0.13, attribute.hair_volume)
    wave = 0.025 * attribute.hair_wave * torch.sin(y * 15 + 3 * attribute.hair_shade)
    across, up = turned / (0.53 + volume), (y - 0.06) / (0.66 + volume)
    cap = 0.5 * (0.53 + volume) * (1 - across**2 - up**2)
    end = between(0.15, -1.1, attribute.hair_length)
    half_width = 0.52 + volume + wave - 0.10 * (-y - 0.35).clamp(min=0).square_()
    curtain = torch.minimum(half_width - turned.abs(), torch.minimum(y - end - 0.35 * turned**2, 0.12 - y))
    behind = coverage(torch.maximum(cap, curtain), pixel, 1.6)

    parting = signed(attribute.hair_parting) * 0.30
    line = between(0.34, 0.54, attribute.hair_line) - 0.14 * attribute.hair_fringe
    edge = line + 0.10 * (1 - attribute.hair_fringe) * bell((surface.x - parting) / 0.14)
    edge = edge - between(0.55, 0.12, attribute.hair_fringe) * (surface.x - 0.35 * parting) ** 2
    edge = edge + 0.02 * attribute.hair_wave * torch.cos((surface.x - parting) * 28)
    above = surface.y - edge
    temple = between(0.10, 0.26, attribute.hair_volume) - surface.z
    temple = torch.minimum(temple, (surface.y - end - 0.25 * surface.x**2) * 0.6)
    nape = torch.minimum(-0.02 - surface.z, surface.y + 0.42)
    front = coverage(torch.maximum(above, torch.maximum(temple, nape)), pixel, 1.8) * torch.lerp(
        behind, surface.coverage.new_ones(()), surface.coverage
    )

    depth = (1 - across**2 * 0.9 - up**2 * 0.9).clamp(min=0.02).sqrt()
    light_x, light_y, light_z = view.light
    diffuse = (across * light_x + up.clamp(-0.6, 1) * light_y + depth * light_z).clamp(min=0)
    strand = (turned - parting * (y + 0.5).clamp(0, 1)).abs() / (1.15 - 0.5 * y.clamp(-0.6, 0.9)) + wave
    texture = 1 + 0.05 * torch.cos(strand * 47) + 0.04 * torch.cos(strand * 83 + 4)
    sheen = 0.22 * bell((up - 0.55 - 0.2 * light_y) / 0.16) * depth
    ambient = between(0.50, 0.72, attribute.ambient)
    light = (ambient + (1.05 - ambient) * diffuse + sheen) * texture
    hair = palette(HAIR, attribute.hair_colour) * between(0.82, 1.18, attribute.hair_shade)
    return Hair(hair * light, behind, front)


def paint_cloth(view: View, surface: Surface, attribute: Attributes) -> tuple[Tensor, Tensor]:
    """Collar and shoulders; they hide the neck, so that no skin lies outside the face. Image and coverage."""
    u, v, pixel = view.u - 0.03 * signed(attribute.shift_x), view.v - 0.03 * signed(attribute.shift_y), view.pixel
    collar = torch.minimum(0.40 + 0.10 * (-0.6 - v).clamp(min=0) - u.abs(), -0.60 - v - 0.25 * u * u)
    shoulders = -0.80 - v - 0.30 * (u.abs() - 0.35).clamp(min=0) ** 1.5
    covered = coverage(torch.maximum(collar, shoulders), pixel, 1.6)
    fold = 0.06 * torch.cos(v * 34 + u * u * 9) * rise(0.42 - u.abs(), 0.05)
    ambient = between(0.50, 0.72, attribute.ambient)
    chin_shadow = 0.30 * bump(view.x, view.y + 0.62, 0.42, 0.16)
    light = ambient + 0.38 * (1 - 0.6 * u.abs()) + 0.12 * u * view.light[0] + fold - chin_shadow
    cloth = palette(CLOTH, attribute.cloth) * between(0.85, 1.15, attribute.cloth_shade)
    return cloth * light, covered
