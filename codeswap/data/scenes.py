"""What rendered faces were rendered from, and their true swaps: the identity of one, everything else of another."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from codeswap.data.synthetic import ATTRIBUTES, IDENTITY, mirror_attributes, mirror_identity, render


class Scenes(NamedTuple):
    """Parameters of some rendered faces."""

    identity: Float[Tensor, "b i"]
    attributes: Float[Tensor, "b a"]

    def mirrored(self, where: Tensor) -> "Scenes":
        """Those whose pictures are the left-right flips, at the rows where `where` (b) is true."""
        where = where[:, None]
        return Scenes(
            torch.where(where, mirror_identity(self.identity), self.identity),
            torch.where(where, mirror_attributes(self.attributes), self.attributes),
        )


def scenes(facts: Sequence[dict[str, object]]) -> Scenes | None:
    """The renderer's parameters in the faces' facts; None for photographs. Raises ValueError for another renderer's."""
    found = [fact.get("synthetic") for fact in facts]
    if not all(isinstance(parameters, dict) for parameters in found):
        return None
    identity = torch.tensor([parameters["identity"] for parameters in found])
    attributes = torch.tensor([parameters["attributes"] for parameters in found])
    if identity.shape[1:] != (IDENTITY,) or attributes.shape[1:] != (ATTRIBUTES,):
        raise ValueError(
            f"the shards were rendered from {tuple(identity.shape[1:])} + {tuple(attributes.shape[1:])} parameters, "
            f"this renderer takes ({IDENTITY},) + ({ATTRIBUTES},): run `dvc repro` for the `shard` stage again"
        )
    return Scenes(identity, attributes)


def true_swap(source: Scenes, target: Scenes, size: int) -> tuple[UInt8[Tensor, "b 3 s s"], UInt8[Tensor, "b s s"]]:
    """The sources' identities in the targets' pictures, a perfect result, and its label map (as `render`)."""
    return render(source.identity, target.attributes, size)
