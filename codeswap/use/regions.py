"""The part of a face that is to be swapped (Fig. 8): by name, or as a painted mask."""

from pathlib import Path

import numpy as np

from codeswap.data.align import align
from codeswap.data.labels import among
from codeswap.perception.roles import PerceptionError, load
from codeswap.types import REGIONS
from codeswap.use.errors import MissingModelError, UnreadableError
from codeswap.use.loading import Swapper
from codeswap.use.photographs import Face, read


def region_of(name: str, face: Face, picture: np.ndarray, swapper: Swapper, perception: Path) -> np.ndarray:
    """The region of a face's crop, bool (s, s): of REGIONS by the parsing network, or painted over the photograph.

    Raises MissingModelError when nothing fills the role `parsing`, UnreadableError for another name or size, or when
    the region is empty.
    """
    if name in REGIONS:
        try:
            parsing = load(perception, "parsing", swapper.cut.framing)
            labels = parsing.label_map(swapper.tensor(face.crop).cpu())[0]
        except PerceptionError as error:
            raise MissingModelError(f"{error}, or paint the region and give its file") from None
        inside = among(labels, REGIONS[name]).numpy()
    else:
        painted = read(Path(name)) if Path(name).suffix else None
        if painted is None:
            raise UnreadableError(f"there is no region {name!r}: give {', '.join(REGIONS)}, or a mask's file")
        if painted.shape != picture.shape:
            found, wanted = ("x".join(map(str, x.shape[1::-1])) for x in (painted, picture))
            raise UnreadableError(f"{name} is {found}, the photograph {wanted}: paint the region over the photograph")
        inside = align(painted, face.quad, swapper.size).pixels.mean(axis=2) > 127
    if not inside.any():
        raise UnreadableError(f"the region {name} is empty in this face")
    return inside
