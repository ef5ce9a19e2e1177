"""Painting a rendered face: skin, beard, lips, eyes, brows and nose as antialiased shapes on the head's surface."""

from typing import NamedTuple

import torch
from torch import Tensor

from codeswap.data.synthetic_geometry import (
    EYE_Y,
    Surface,
    View,
    bell,
    bend,
    between,
    bump,
    coverage,
    eye_spacing,
    nose_tip,
    rise,
    signed,
)
from codeswap.data.synthetic_parameters import Attributes, Identity

Palette = tuple[tuple[float, float, float], ...]
SKIN: Palette = ((0.30, 0.19, 0.14), (0.46, 0.31, 0.23), (0.64, 0.46, 0.36), (0.80, 0.61, 0.50), (0.90, 0.74, 0.64),
                 (0.95, 0.83, 0.76))  # fmt: skip
IRIS: Palette = ((0.17, 0.10, 0.06), (0.36, 0.22, 0.11), (0.42, 0.40, 0.18), (0.24, 0.44, 0.27), (0.22, 0.42, 0.64),
                 (0.46, 0.56, 0.63))  # fmt: skip
BROWS: Palette = ((0.07, 0.055, 0.05), (0.20, 0.12, 0.08), (0.40, 0.25, 0.14), (0.60, 0.45, 0.27))


class Painted(NamedTuple):
    """The lit face (b, 3, h, w), the head's coverage, and the coverage of each labelled part."""

    image: Tensor
    coverage: Tensor
    parts: dict[int, Tensor]  # PARSING_LABELS id -> (b, 1, h, w), in painting order


class Canvas(NamedTuple):
    """What every part of the face is painted on; the albedo is painted in place."""

    albedo: Tensor
    skin: Tensor
    front: Tensor  # 0 on the far side of the head, where no features are
    pixel: Tensor


def palette(colours: Palette, t: Tensor) -> Tensor:
    """The colour at t in [0, 1] along a list of colours; t (b, 1, 1, 1) -> (b, 3, 1, 1)."""
    table = torch.tensor(colours, device=t.device)
    place = t.flatten() * (len(colours) - 1)
    index = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(table[index], table[index + 1], (place - index)[:, None])[:, :, None, None]


def colour(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    """One colour as (1, 3, 1, 1)."""
    return torch.tensor([red, green, blue], device=like.device).view(1, 3, 1, 1)


def skin_colour(identity: Identity) -> Tensor:
    """(b, 3, 1, 1): tone from dark to light, hue from rosy to golden."""
    hue = identity.skin_hue - 0.5
    return palette(SKIN, identity.skin_tone) * torch.cat([1 + 0.06 * hue, 1 + 0.05 * hue, 1 - 0.20 * hue], dim=1)


def paint_face(view: View, surface: Surface, identity: Identity, attribute: Attributes) -> Painted:
    """Albedo first, in layers from the skin up, then light."""
    skin, pixel = skin_colour(identity), view.pixel
    front = (surface.z * 6 + 0.2).clamp(0, 1)
    brow_colour = palette(BROWS, identity.brow_colour * between(0.3, 1.0, identity.skin_tone))
    albedo = skin.expand(-1, -1, *surface.x.shape[-2:]).clone(memory_format=torch.contiguous_format)
    canvas = Canvas(albedo, skin, front, pixel)
    _paint_skin(canvas, surface, identity)
    mouth = _paint_mouth(canvas, surface, identity, attribute, brow_colour)
    eyes, wet = _paint_eyes(canvas, surface, identity, attribute)
    brows = _paint_brows(canvas, surface, identity, attribute, brow_colour)
    nose = _paint_nose(canvas, surface, identity)
    ambient = between(0.50, 0.72, attribute.ambient)
    light = ambient + (1.06 - ambient) * surface.diffuse
    gloss = 0.05 * surface.gloss + 0.9 * wet
    parts = {1: torch.ones_like(eyes), 10: nose, 2: brows, 4: eyes, 12: mouth}
    return Painted(albedo.mul_(light).add_(gloss * light), surface.coverage, parts)


def _paint_skin(canvas: Canvas, surface: Surface, identity: Identity) -> None:
    albedo, skin, front, pixel = canvas
    x, y, side = surface.x, surface.y, surface.x.abs()
    blush = bump(side - 0.27, y + 0.13, 0.13, 0.11) * (0.08 + 0.32 * identity.blush)
    albedo.lerp_(skin * colour(1.06, 0.72, 0.70, skin), blush)
    speckle = (torch.sin(side * 61 + 9 * y) * torch.sin(y * 57 - 11 * side) - 0.35).clamp_(min=0)
    freckles = speckle * bump(side - 0.17, y + 0.07, 0.20, 0.11) * ((identity.freckles - 0.6) * 2.2).clamp(min=0)
    albedo.lerp_(skin * colour(0.62, 0.46, 0.40, skin), freckles.mul_(front))
    socket = bump(side - eye_spacing(identity), y - EYE_Y + 0.01, 0.13, 0.085)
    albedo.lerp_(skin * colour(0.74, 0.62, 0.62, skin), 0.35 * socket)
    radius = ((identity.mole_size - 0.5) * 0.09).clamp(min=0)
    away = torch.sqrt((x - between(-0.33, 0.33, identity.mole_x)) ** 2
                      + (y - between(-0.45, 0.34, identity.mole_y)) ** 2 + 1e-9)  # fmt: skip
    mole = coverage(radius - away, pixel) * (radius > 0.004)
    albedo.lerp_(skin * colour(0.42, 0.30, 0.27, skin), mole.mul_(front))


def _paint_mouth(canvas: Canvas, surface: Surface, identity: Identity, attribute: Attributes, hair: Tensor) -> Tensor:
    """Beard, moustache, lips, and what an open mouth shows. Returns the mouth's coverage."""
    albedo, skin, front, pixel = canvas
    x, y, side = surface.x, surface.y, surface.x.abs()
    smile, opening = bend(attribute), attribute.mouth_open
    centre = between(-0.395, -0.315, identity.mouth_height)
    width = between(0.125, 0.225, identity.mouth_width) * (1 + 0.16 * smile)
    across = (x / width) ** 2
    profile = (1 - across).clamp(min=0)
    line = centre + smile * 0.11 * (across.clamp(max=1.3) - 0.45)
    gap = opening * 0.115 * profile.sqrt()
    thickness = between(0.018, 0.058, identity.lip_thickness)
    bow = 1 - 0.30 * bell(x / 0.028) + 0.18 * bell((side - 0.05) / 0.035)
    inner_top, inner_bottom = line + 0.30 * gap, line - 0.95 * gap
    top = inner_top + thickness * profile * bow
    bottom = inner_bottom - 1.3 * thickness * profile.sqrt() * (profile + 0.25) / 1.25
    inside = front * coverage(width - side, pixel)

    beard = ((identity.beard - 0.5) * 2).clamp(min=0)
    grain = 0.90 + 0.10 * torch.cos(x * 83) * torch.sin(y * 71 + 4 * torch.cos(x * 29))
    jaw = rise(-0.20 - y + 0.55 * side * side - 0.09 * (1 - side / 0.25).clamp(min=0), 0.035)
    bare = rise(torch.maximum((side - 1.25 * width) * 0.9, torch.maximum(y - top, bottom - 0.02 - y)), 0.02)
    albedo.lerp_(hair * 0.9, (front * 4).clamp(max=1) * jaw * bare * grain * beard.sqrt() * 0.82)
    moustache = ((identity.moustache - 0.6) * 2.5).clamp(0, 1)
    above = torch.minimum(torch.minimum(y - top, top + 0.085 - 0.20 * side - y), 1.15 * width - side)
    albedo.lerp_(hair * 0.9, coverage(above, pixel, 2.0) * moustache * grain * front * 0.88)

    natural = skin * colour(0.88, 0.60, 0.58, skin)
    painted = colour(0.70, 0.20, 0.25, skin)
    lips = torch.lerp(natural, painted, 0.8 * identity.lip_colour)
    mouth = inside * coverage(torch.minimum(top - y, y - bottom), pixel)
    albedo.lerp_(lips, mouth)
    albedo.lerp_(lips * 0.78, mouth * (y > line) * 0.7)
    open_ = inside * coverage(torch.minimum(inner_top - y, y - inner_bottom), pixel) * (opening * 12).clamp(max=1)
    albedo.lerp_(colour(0.20, 0.06, 0.07, skin), open_)
    tongue = open_ * bump(x, y - (line - 0.95 * opening * 0.115), 0.75 * width, 0.045 * opening + 0.01)
    albedo.lerp_(colour(0.62, 0.25, 0.27, skin), tongue * 0.8)
    teeth = open_ * coverage(y - (inner_top - 0.12 * gap - 0.026), pixel) * (profile * 3).clamp(max=1)
    albedo.lerp_(colour(0.86, 0.84, 0.80, skin), teeth * (opening * 4).clamp(max=1) * 0.92)
    closed = inside * coverage(0.007 - (y - line).abs(), pixel) * (1 - opening * 6).clamp(min=0)
    albedo.lerp_(lips * 0.38, closed * 0.85)
    corner = bump(side - width, y - line - 0.02 * smile, 0.025, 0.025)
    albedo.lerp_(skin * colour(0.55, 0.42, 0.40, skin), corner * front * 0.5)
    fold = bump(
        (side - 1.35 * width - 0.45 * (centre + 0.10 - y).clamp(-0.2, 0.2)) * 1.0, y - centre - 0.07, 0.022, 0.09
    )
    albedo.lerp_(skin * 0.62, fold * front * 0.40 * attribute.smile)
    return mouth.maximum(open_)


def _paint_eyes(canvas: Canvas, surface: Surface, identity: Identity, attribute: Attributes) -> tuple[Tensor, Tensor]:
    """Eyeball, lids, lashes. Returns the coverage of the open eyes and of their highlights."""
    albedo, skin, front, pixel = canvas
    x, y, side = surface.x, surface.y, surface.x.abs()
    spacing = eye_spacing(identity)
    half_width = between(0.092, 0.142, identity.eye_size)
    half_height = half_width * between(0.40, 0.74, identity.eye_shape)
    across = side - spacing
    level = y - EYE_Y - across * signed(identity.eye_tilt) * 0.24
    arc = 1 - (across / half_width) ** 2
    low = -0.60 * half_height * arc
    full = half_height * 1.15 * arc * (1 - 0.18 * across / half_width)
    top = low + (full - low) * between(0.02, 1.0, attribute.eye_open * (1.5 - 0.5 * attribute.eye_open))
    depth = torch.minimum(top - level, level - low)
    eye = front * coverage(depth, pixel)

    lid = front * coverage(torch.minimum(full + 0.016 - level, level - top), pixel, 1.5) * (arc > 0)
    albedo.lerp_(skin * colour(0.84, 0.74, 0.73, skin), lid * 0.55)
    crease = front * coverage(0.006 - (level - full - 0.022).abs(), pixel, 1.5) * (arc > -0.15)
    albedo.lerp_(skin * 0.50, crease * 0.45)
    white = colour(0.90, 0.88, 0.87, skin) * (1 - 0.30 * bell((top - level) / 0.035))
    albedo.copy_(torch.lerp(albedo, white, eye))

    gaze_x, gaze_y = signed(attribute.gaze_x) * 0.052, signed(attribute.gaze_y) * 0.034
    from_x = x - torch.sign(x) * spacing - gaze_x
    from_y = y - EYE_Y - 0.006 - gaze_y
    away = torch.sqrt(from_x * from_x + from_y * from_y + 1e-9)
    radius = between(0.054, 0.068, identity.eye_size)
    iris = palette(IRIS, identity.iris)
    ring = (away / radius).clamp_(max=1).square_().square_()
    albedo.copy_(torch.lerp(albedo, iris * (1.12 - 0.75 * ring), eye * coverage(radius - away, pixel)))
    albedo.lerp_(colour(0.03, 0.025, 0.03, skin), eye * coverage(0.45 * radius - away, pixel))
    shine_x = 0.35 * radius * signed(attribute.light_x)
    glint = torch.sqrt((from_x - shine_x) ** 2 + (from_y - 0.38 * radius) ** 2 + 1e-9)
    wet = eye * coverage(0.30 * radius - glint, pixel)

    lash = front * coverage(0.009 - (level - top).abs(), pixel, 1.2) * (arc > -0.06)
    albedo.lerp_(colour(0.10, 0.07, 0.06, skin), lash * 0.85)
    under = front * coverage(0.005 - (level - low + 0.004).abs(), pixel, 1.5) * (arc > 0)
    albedo.lerp_(skin * colour(0.60, 0.45, 0.44, skin), under * 0.5)
    return eye, wet


def _paint_brows(canvas: Canvas, surface: Surface, identity: Identity, attribute: Attributes, hair: Tensor) -> Tensor:
    albedo, _, front, pixel = canvas
    x, y = surface.x, surface.y
    across = x.abs() - eye_spacing(identity) - 0.012
    half_width = between(0.12, 0.16, identity.eye_size)
    along = across / half_width
    raised = 0.060 * signed(attribute.brow_raise)
    height = EYE_Y + between(0.145, 0.20, identity.brow_height) + raised
    height = height + between(-0.005, 0.075, identity.brow_arch) * (1 - along * along) - 0.014 * along
    height = height + across * signed(identity.eye_tilt) * 0.12
    thickness = between(0.012, 0.042, identity.brow_thickness) * (1 - 0.45 * along.clamp(-0.6, 1))
    brow = front * coverage(torch.minimum(thickness - (y - height).abs(), half_width - across.abs()), pixel, 1.4)
    albedo.lerp_(hair, brow * 0.88)
    return brow


def _paint_nose(canvas: Canvas, surface: Surface, identity: Identity) -> Tensor:
    """Nostrils and the shade under the tip; the nose itself is relief. Returns the nose's region."""
    albedo, skin, front, pixel = canvas
    y, side, tip = surface.y, surface.x.abs(), nose_tip(identity)
    width = between(0.042, 0.095, identity.nose_width)
    under = bump(surface.x, y - tip + 0.065, 1.3 * width, 0.028) * front
    albedo.lerp_(skin * colour(0.62, 0.50, 0.48, skin), under * 0.55)
    nostril = torch.sqrt((side - 0.62 * width) ** 2 + ((y - tip + 0.046) * 1.5) ** 2 + 1e-9)
    albedo.lerp_(skin * 0.28, front * coverage(0.30 * width - nostril, pixel, 1.6) * 0.75)
    wing = bump(side - 1.62 * width, y - tip + 0.02, 0.016, 0.035) * front
    albedo.lerp_(skin * colour(0.66, 0.52, 0.50, skin), wing * 0.5)
    share = ((EYE_Y + 0.03 - y) / (EYE_Y + 0.03 - tip)).clamp(0, 1)
    outline = between(0.035, 0.05, identity.nose_bridge) + (1.65 * width - 0.04) * share**2
    return front * coverage(torch.minimum(outline - side, torch.minimum(y - tip + 0.07, EYE_Y + 0.03 - y)), pixel)
