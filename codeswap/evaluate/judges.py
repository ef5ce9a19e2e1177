"""The networks that judge, none of them used in training but the one that says so (METHOD §F.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from codeswap.evaluate.baselines import Truth, face_of
from codeswap.evaluate.metrics import pose_error
from codeswap.evaluate.results import NetworkName
from codeswap.losses.image import lpips_distance
from codeswap.perception import roles
from codeswap.types import Embedding, Image

# `identity_train` judges too, as the column "seen": how far a swapper has only learnt to please its own loss.
ROLES = ("identity_eval", "identity_train", "expression_eval", "pose", "features", "parsing", "perceptual")

# pt_inception-2015-12-05-6726825d.pth: only a distance in these features may be called FID (METHOD §F.2, §H).
FID_WEIGHTS = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Judgement(NamedTuple):
    """What the networks see in some images; identity vectors have unit length, pose is in degrees.

    `embedding` is what the identity network says of the picture as it is, at its own length.
    """

    identity: Embedding
    embedding: Embedding
    identity_seen: Embedding
    expression: Float[Tensor, "b x"]
    pose: Float[Tensor, "b 3"]
    features: Float[Tensor, "b f"]


class Judges:
    """The evaluation roles. `networks` names the file behind each."""

    def __init__(self, networks: Mapping[str, nn.Module], device: torch.device) -> None:
        # channels last: 1.2 to 1.4 times as fast on a CPU
        self._networks = {role: networks[role].to(device, memory_format=torch.channels_last) for role in ROLES}
        identity = self._networks["identity_eval"]
        # the distance below which its publisher takes two pictures for one person, where there is one
        self.same_person: float | None = getattr(getattr(identity, "net", identity), "same_person", None)
        self.networks = {
            role: NetworkName(name=network.name, sha256=network.sha256, preprocessing=network.preprocessing)
            for role, network in self._networks.items()
        }
        features = self.networks["features"]
        official = features.sha256 == FID_WEIGHTS
        self.frechet_name, self.kernel_name = (
            ("fid", "kid") if official else (f"fd_{features.name}", f"kd_{features.name}")
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device, framing: float | None = None) -> "Judges":
        """The networks in `folder`, verified, that look at faces of `framing` (`roles.load`).

        Raises ValueError naming a role that nothing fills.
        """
        return cls({role: roles.load(folder, role, framing) for role in ROLES}, device)

    @property
    def modules(self) -> list[nn.Module]:
        """All networks, each once."""
        return list(dict.fromkeys(self._networks.values()))

    @torch.no_grad()
    def identity(self, image: Image) -> Embedding:
        """Unit vector of f(x) ++ f(mirrored x), which cancels what differs between a face's two sides."""
        return self._identity(self._networks["identity_eval"](image), image)

    def _identity(self, embedding: Embedding, image: Image) -> Embedding:
        mirrored = self._networks["identity_eval"](image.flip(-1))
        return F.normalize(torch.cat([embedding, mirrored], dim=1), dim=1)

    @torch.no_grad()
    def identity_seen(self, image: Image) -> Embedding:
        """Unit vector of the training network, as its loss uses it."""
        return F.normalize(self._networks["identity_train"](image), dim=1)

    @torch.no_grad()
    def judge(self, image: Image) -> Judgement:
        """All that is compared between a result, its source and its target. Images in [-1, 1]."""
        embedding = self._networks["identity_eval"](image)
        return Judgement(
            identity=self._identity(embedding, image),
            embedding=embedding,
            identity_seen=self.identity_seen(image),
            expression=self._networks["expression_eval"](image),
            pose=self._networks["pose"](image),
            features=self._networks["features"](image),
        )

    def accepted(self, seen: Judgement, source: Judgement) -> dict[str, Tensor]:
        """Whether the identity network takes each for the source's person, 0 or 1; {} where it names no limit."""
        if self.same_person is None:
            return {}
        distance = (seen.embedding - source.embedding).norm(dim=1)
        return {"id_distance": distance, "id_accepted": (distance < self.same_person).float()}

    @torch.no_grad()
    def maps(self, image: Image) -> list[Tensor]:
        """The `perceptual` network's feature maps."""
        return self._networks["perceptual"](image)

    def perceptual_distance(self, maps: list[Tensor], others: list[Tensor]) -> Float[Tensor, " b"]:
        """LPIPS of what `maps` gave: with VGG16's learnt heads it is LPIPS, else the same without them."""
        return lpips_distance(maps, others, getattr(self._networks["perceptual"], "heads", None))

    def exact_errors(self, seen: Judgement, truth: Truth) -> dict[str, Tensor]:
        """Errors in the renderer's own parameters, by our networks, which were trained to tell them; {} by others."""
        if not getattr(self._networks["expression_eval"], "rendered", False):
            return {}
        expression = (seen.expression[:, : truth.expression.shape[1]] - truth.expression).abs().mean(dim=1)
        return {"expression_exact": expression, "pose_exact_deg": pose_error(seen.pose, truth.pose)}

    @torch.no_grad()
    def labels(self, image: Image) -> UInt8[Tensor, "b h w"]:
        """The parsing network's label map, ids of types.PARSING_LABELS."""
        return self._networks["parsing"].label_map(image)

    def face(self, image: Image) -> Bool[Tensor, "b 1 h w"]:
        """Where the parsing network sees the face."""
        return face_of(self.labels(image))
