"""Camera, head and relief of the rendered faces: where each pixel's ray meets the face, and how that point is lit.

Head units: x right, y up, z out of the face; the head is an ellipsoid of about 0.55 x 0.72 x 0.62. Every plane is
(b, 1, h, w), every parameter (b, 1, 1, 1). The camera is orthographic.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from codeswap.data.synthetic_parameters import POSE_DEGREES, Attributes, Identity

EYE_Y = 0.06
DEPTH = 0.62


class View(NamedTuple):
    """The picture's pixels in head units after undoing shift, scale and roll."""

    u: Tensor  # picture coordinates in [-1, 1], right and up
    v: Tensor
    x: Tensor
    y: Tensor
    pixel: Tensor  # size of a pixel in head units
    cos_roll: Tensor
    sin_roll: Tensor
    light: tuple[Tensor, Tensor, Tensor]  # unit vector towards the light, in the rolled camera frame


class Surface(NamedTuple):
    """The face under each pixel."""

    coverage: Tensor  # of the head's silhouette, antialiased
    x: Tensor  # where on the face, in head units
    y: Tensor
    z: Tensor
    normal: tuple[Tensor, Tensor, Tensor]  # in the rolled camera frame
    diffuse: Tensor  # wrapped Lambert term in [0, 1]
    gloss: Tensor


def between(low: float, high: float, t: Tensor) -> Tensor:
    """`low` at t = 0, `high` at t = 1."""
    return low + (high - low) * t


def signed(t: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return t * 2 - 1


def coverage(distance: Tensor, pixel: Tensor, softness: float = 1.0) -> Tensor:
    """Share of a pixel covered by a shape whose signed distance (positive inside, head units) is given."""
    return (distance / (pixel * softness) + 0.5).clamp_(0, 1)


def bell(t: Tensor) -> Tensor:
    """About exp(-t^2), but zero from |t| = 2 on: no exponential, and no denormal numbers, which are slow."""
    fall = (1 - 0.25 * t * t).clamp_(min=0)
    return fall.square_().square_()


def bump(x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """A smooth hill of about exp(-(x/width)^2 - (y/height)^2), zero beyond twice its width."""
    across, up = x * (0.5 / width), y * (0.5 / height)
    return (1 - across * across - up * up).clamp_(min=0).square_().square_()


def rise(x: Tensor, width: float) -> Tensor:
    """A smooth step from 0 to 1 around x = 0, over 4 widths."""
    t = (x * (0.25 / width) + 0.5).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def view(attribute: Attributes, size: int) -> View:
    """Pixel coordinates and light of each picture."""
    ramp = (torch.arange(size, device=attribute.yaw.device) + 0.5) / size * 2 - 1
    u, v = ramp.view(1, 1, 1, size), -ramp.view(1, 1, size, 1)
    roll = signed(attribute.roll) * math.radians(POSE_DEGREES[2])
    cos_roll, sin_roll = torch.cos(roll), torch.sin(roll)
    scale = between(1.27, 1.37, attribute.scale)
    shifted_u = u - 0.03 * signed(attribute.shift_x)
    shifted_v = v - 0.03 * signed(attribute.shift_y) - 0.02
    light_x, light_y = 0.8 * signed(attribute.light_x), between(-0.1, 0.8, attribute.light_y)
    length = torch.sqrt(light_x**2 + light_y**2 + 0.75**2)
    light = (
        (light_x * cos_roll + light_y * sin_roll) / length,
        (-light_x * sin_roll + light_y * cos_roll) / length,
        0.75 / length,
    )
    return View(
        u=u,
        v=v,
        x=(shifted_u * cos_roll + shifted_v * sin_roll) / scale,
        y=(-shifted_u * sin_roll + shifted_v * cos_roll) / scale,
        pixel=2 / size / scale,
        cos_roll=cos_roll,
        sin_roll=sin_roll,
        light=light,
    )


def rotation(attribute: Attributes) -> list[list[Tensor]]:
    """Head -> camera, rows of (b, 1, 1, 1): pitch (positive = looking up), then yaw (positive = to the right)."""
    yaw = signed(attribute.yaw) * math.radians(POSE_DEGREES[0])
    pitch = signed(attribute.pitch) * math.radians(POSE_DEGREES[1])
    cy, sy, cp, sp = torch.cos(yaw), torch.sin(yaw), torch.cos(pitch), torch.sin(pitch)
    return [[cy, -sy * sp, sy * cp], [torch.zeros_like(cy), cp, sp], [-sy, -cy * sp, cy * cp]]


def bend(attribute: Attributes) -> Tensor:
    """How far the mouth's corners go up: -0.6 (frown) .. 1 (broad smile), (b, 1, 1, 1)."""
    return between(-0.6, 1.0, attribute.smile)


def relief(x: Tensor, y: Tensor, identity: Identity, smile: Tensor) -> Tensor:
    """Height of the skin above the ellipsoid at face position (x, y): nose, cheeks, eye sockets, lips, chin."""
    side = x.abs()
    tip = nose_tip(identity)
    width = between(0.042, 0.095, identity.nose_width)
    ridge = bell(x / between(0.030, 0.058, identity.nose_bridge))
    slope = ((EYE_Y + 0.05 - y) / (EYE_Y + 0.05 - tip)).clamp(0, 1) * rise(y - tip + 0.02, 0.025)
    nose = 0.085 * ridge * slope + 0.062 * bump(x, y - tip, width, 0.055)
    nose = nose + 0.036 * bump(side - width * 1.02, y - tip + 0.012, 0.034, 0.034)
    eyes = -0.050 * bump(side - eye_spacing(identity), y - EYE_Y, 0.11, 0.075)
    cheek = between(0.015, 0.05, identity.cheeks) + 0.022 * smile
    cheeks = cheek * bump(side - 0.30, y + 0.13 - 0.03 * smile, 0.13, 0.12)
    mouth_y = between(-0.395, -0.315, identity.mouth_height)
    mouth = 0.030 * bump(x, y - mouth_y, 0.17, 0.085)
    chin = 0.045 * bump(x, y + 0.58, 0.12, 0.09)
    return nose + eyes + cheeks + mouth + chin


def eye_spacing(identity: Identity) -> Tensor:
    """Distance of an eye from the face's middle line, (b, 1, 1, 1)."""
    return between(0.172, 0.232, identity.eye_spacing)


def nose_tip(identity: Identity) -> Tensor:
    """Height of the nose's tip on the face, (b, 1, 1, 1)."""
    return between(-0.085, -0.205, identity.nose_length)


def cast(view: View, identity: Identity, attribute: Attributes) -> Surface:
    """Meets each pixel's ray with the head ellipsoid (narrowed towards the chin), then with its relief."""
    turn = rotation(attribute)
    radii = (between(0.425, 0.55, identity.face_width), between(0.61, 0.73, identity.face_height), DEPTH)
    x, y = view.x / _taper(view.y / radii[1], identity, attribute), view.y
    inverse = [1 / radius**2 for radius in radii]
    form = {
        (i, j): sum(turn[i][k] * inverse[k] * turn[j][k] for k in range(3))
        for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))
    }
    half = form[0, 2] * x + form[1, 2] * y
    rest = form[0, 0] * x * x + 2 * form[0, 1] * x * y + form[1, 1] * y * y - 1
    inside = (half * half - form[2, 2] * rest) / form[2, 2] ** 2  # square of half the ray's way through the head
    z = inside.clamp(min=1e-6).sqrt() - half / form[2, 2]
    px, py, pz = (turn[0][k] * x + turn[1][k] * y + turn[2][k] * z for k in range(3))
    normal = [inverse[0] * px, inverse[1] * py, inverse[2] * pz]

    # What stands out of the ellipsoid is seen displaced when the head turns: a wide bump carries nose and mouth along.
    lift = 0.17 * bump(px, py - nose_tip(identity), 0.17, 0.24) / turn[2][2]
    px, py = px + lift * turn[2][0], py + lift * turn[2][1]
    height = relief(px, py, identity, bend(attribute))
    step_y, step_x = torch.gradient(height, dim=(-2, -1))
    grad_u, grad_v = step_x / view.pixel, -step_y / view.pixel
    grad_x = grad_u * view.cos_roll + grad_v * view.sin_roll
    grad_y = grad_v * view.cos_roll - grad_u * view.sin_roll
    nx, ny, nz = (sum(turn[i][k] * normal[k] for k in range(3)) for i in range(3))
    nx, ny = nx - nz * grad_x, ny - nz * grad_y
    length = torch.rsqrt(nx * nx + ny * ny + nz * nz + 1e-8)
    nx, ny, nz = nx * length, ny * length, nz * length
    lx, ly, lz = view.light
    cosine = nx * lx + ny * ly + nz * lz
    # half vector of Blinn's model; the viewer is at +z
    half_length = torch.rsqrt(2 + 2 * lz)
    mirror = ((cosine + nz) * half_length).clamp(min=0)
    return Surface(
        coverage=coverage(inside * (0.5 * radii[0] / DEPTH**2), view.pixel, 1.2),
        x=px,
        y=py,
        z=pz,
        normal=(nx, ny, nz),
        diffuse=((cosine + 0.25) / 1.25).clamp(min=0),
        gloss=mirror.square_().square_().square_().square_(),
    )


def _taper(height: Tensor, identity: Identity, attribute: Attributes) -> Tensor:
    """Width relative to the ellipsoid's at a relative height in [-1, 1]: full above the eyes, less below."""
    pitch = signed(attribute.pitch)
    down = (0.08 * pitch - height).clamp(0, 1.2)
    jaw = between(0.02, 0.36, identity.jaw) * down * down
    square = down * down
    chin = between(0.0, 0.22, identity.chin) * square * square
    full = 0.10 * (1 - identity.jaw) * (down * (1 - down)).clamp(min=0)
    return 1 - jaw - chin + full
