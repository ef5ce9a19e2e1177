"""What the rendered faces are made of: every parameter of an identity and of its attributes, and their seeded draw.

All parameters lie in [0, 1]; the renderer's modules say what the ends mean. *Identity* is what a face swap must carry
over from the source; *attributes* are everything that must stay with the target.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Identity(NamedTuple):
    """Who it is. Each field is one parameter, (b, 1, 1, 1) inside the renderer."""

    face_width: Tensor
    face_height: Tensor
    jaw: Tensor  # 0 wide and square .. 1 narrow
    chin: Tensor  # 0 flat .. 1 pointed
    cheeks: Tensor
    skin_tone: Tensor
    skin_hue: Tensor
    eye_size: Tensor
    eye_shape: Tensor  # 0 almond .. 1 round
    eye_spacing: Tensor
    eye_tilt: Tensor  # 0.5 level; more = outer corners higher
    iris: Tensor
    brow_thickness: Tensor
    brow_arch: Tensor
    brow_colour: Tensor
    brow_height: Tensor
    nose_length: Tensor
    nose_width: Tensor
    nose_bridge: Tensor
    lip_thickness: Tensor
    lip_colour: Tensor
    mouth_width: Tensor
    mouth_height: Tensor
    mole_x: Tensor
    mole_y: Tensor
    mole_size: Tensor  # no mole below 0.5
    beard: Tensor  # none below 0.5, stubble, then full
    moustache: Tensor  # none below 0.6
    freckles: Tensor  # none below 0.6
    blush: Tensor


class Attributes(NamedTuple):
    """How it is shown: pose, expression, camera, light, background, hair and clothes."""

    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    mouth_open: Tensor
    smile: Tensor
    brow_raise: Tensor
    eye_open: Tensor
    gaze_x: Tensor
    gaze_y: Tensor
    shift_x: Tensor
    shift_y: Tensor
    scale: Tensor
    light_x: Tensor
    light_y: Tensor
    ambient: Tensor
    warmth: Tensor
    background: Tensor
    background_x: Tensor  # where the bright spot behind the head is
    background_y: Tensor
    background_slope: Tensor  # 0.5 = none
    hair_colour: Tensor
    hair_shade: Tensor
    hair_length: Tensor
    hair_line: Tensor
    hair_fringe: Tensor
    hair_parting: Tensor
    hair_volume: Tensor
    hair_wave: Tensor
    cloth: Tensor
    cloth_shade: Tensor


IDENTITY = len(Identity._fields)
ATTRIBUTES = len(Attributes._fields)
POSE_FIELDS = [Attributes._fields.index(name) for name in ("yaw", "pitch", "roll")]
EXPRESSION_FIELDS = [
    Attributes._fields.index(name)
    for name in ("mouth_open", "smile", "brow_raise", "eye_open", "gaze_x", "gaze_y")
]  # fmt: skip
POSE_DEGREES = (32.0, 16.0, 8.0)  # yaw, pitch, roll at the ends of their range
MIRRORED_IDENTITY = [Identity._fields.index("mole_x")]
MIRRORED_ATTRIBUTES = [
    Attributes._fields.index(name)
    for name in (
        "yaw", "roll", "gaze_x", "shift_x", "light_x", "background_x", "background_slope", "hair_parting",
    )
]  # fmt: skip


def _uniforms(start: int, count: int, width: int, seed: int, stream: int) -> Tensor:
    """(count, width) numbers in [0, 1) by a counter-based hash, so a row depends on its number alone."""
    if start < 0 or count < 0 or seed < 0:
        raise ValueError(f"start {start}, count {count} and seed {seed} must not be negative")
    counter = np.arange(start * width, (start + count) * width, dtype=np.uint64)
    state = _mix(np.full(1, 2 * seed + stream, dtype=np.uint64))
    return torch.from_numpy((_mix(counter + state) >> np.uint64(40)).astype(np.float32) / 2**24).view(count, width)


def _mix(z: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele et al. 2014)."""
    z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def identities(start: int, count: int, seed: int) -> Tensor:
    """Parameters of the persons numbered start..start+count-1, (count, IDENTITY) in [0, 1).

    A number always gives the same person under a seed. Raises ValueError for negative arguments.
    """
    return _uniforms(start, count, IDENTITY, seed, stream=0)


def attributes(start: int, count: int, seed: int) -> Tensor:
    """Parameters of the pictures numbered start..start+count-1, (count, ATTRIBUTES) in [0, 1); as `identities`."""
    return _uniforms(start, count, ATTRIBUTES, seed, stream=1)


def expression_of(attribute: Tensor) -> Tensor:
    """(b, 6) in [-1, 1]: mouth open, smile, brow raise, eye openness, gaze x, gaze y."""
    return attribute[:, EXPRESSION_FIELDS] * 2 - 1


def pose_of(attribute: Tensor) -> Tensor:
    """(b, 3) degrees: yaw (positive = towards the picture's right), pitch (up), roll (counter-clockwise)."""
    return (attribute[:, POSE_FIELDS] * 2 - 1) * attribute.new_tensor(POSE_DEGREES)


def mirror_identity(identity: Tensor) -> Tensor:
    """The person whose picture is the left-right flip (a mole changes sides)."""
    mirrored = identity.clone()
    mirrored[:, MIRRORED_IDENTITY] = 1 - mirrored[:, MIRRORED_IDENTITY]
    return mirrored


def mirror_attributes(attribute: Tensor) -> Tensor:
    """The attributes whose picture is the left-right flip: yaw, roll, gaze x and every other sideways parameter."""
    mirrored = attribute.clone()
    mirrored[:, MIRRORED_ATTRIBUTES] = 1 - mirrored[:, MIRRORED_ATTRIBUTES]
    return mirrored
