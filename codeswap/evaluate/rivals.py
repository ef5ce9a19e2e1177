"""Other swappers in the same tables: a folder of their results, or their network as an ONNX file.

How each network wants its input is not in its file. The recipes are those by which these files are used everywhere:
facefusion's face swapper (`facefusion/processors/modules/face_swapper/core.py`, commit 0280661: templates, sizes,
means, conversion of embeddings, which outputs are scaled back) and insightface's inswapper (`model_zoo/inswapper.py`:
the embedding matrix is the graph's last initializer). Templates are five points in units of the crop's side
(`facefusion/face_helper.py`). Test faces are FFHQ-aligned, so each template is a constant box of the crop
(perception/boxes.py), and a result goes back into that box with a soft border.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from pydantic import model_validator
from torch import Tensor

from codeswap.evaluate.baselines import read_results
from codeswap.perception.boxes import ARCFACE_112, Box, box_of, crop, resampling
from codeswap.types import Config, Image

Adapter = Literal[
    "simswap_256", "simswap_512", "inswapper_128", "blendswap_256", "ghost_256", "uniface_256", "hififace_256",
    "hyperswap_256",
]  # fmt: skip
Source = Literal["emap", "converted", "converted_unit", "unit", "arcface_picture", "ffhq_picture"]

Points = tuple[tuple[float, float], ...]
TEMPLATES: dict[str, Points] = {  # eyes, nose, corners of the mouth, in units of the side
    "arcface_112_v1": (
        (0.35473214, 0.45658929),
        (0.64526786, 0.45658929),
        (0.5, 0.61154464),
        (0.37913393, 0.776875),
        (0.62086607, 0.776875),
    ),
    "arcface_128": (
        (0.36167656, 0.40387734),
        (0.63696719, 0.40235469),
        (0.50019687, 0.56044219),
        (0.38710391, 0.72160547),
        (0.61507734, 0.72034453),
    ),
    "mtcnn_512": (
        (0.36562865, 0.46733799),
        (0.63305391, 0.46585885),
        (0.50019127, 0.61942959),
        (0.39032951, 0.77598822),
        (0.61178945, 0.77476328),
    ),
}
BORDER = 0.15  # of the box's side, over which a result fades out (facefusion's box mask fades over about as much)


class Recipe(NamedTuple):
    """What a network is given: the target's box and size, its units, and what it wants to know of the source.

    Sources: `emap` the unit ArcFace embedding times the file's own matrix; `converted` ArcFace's embedding through the
    converter's network, `converted_unit` the same at unit length; `unit` the unit embedding; or a picture of the
    source.
    `scaled`: whether the output has the input's units (else 0..1).
    """

    box: Box
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: Source
    scaled: bool


def _box(template: str, size: int) -> Box:
    return box_of([(x * size, y * size) for x, y in TEMPLATES[template]], size)


_ZERO, _ONE, _HALF = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)
_WHOLE = Box(0.0, 0.0, 1.0)
RECIPES: dict[str, Recipe] = {
    "simswap_256": Recipe(
        _box("arcface_112_v1", 256), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "converted_unit", False
    ),
    "simswap_512": Recipe(_box("arcface_112_v1", 512), 512, _ZERO, _ONE, "converted_unit", False),
    "inswapper_128": Recipe(_box("arcface_128", 128), 128, _ZERO, _ONE, "emap", False),
    "blendswap_256": Recipe(_WHOLE, 256, _ZERO, _ONE, "arcface_picture", False),
    "ghost_256": Recipe(_box("arcface_112_v1", 256), 256, _HALF, _HALF, "converted", True),
    "uniface_256": Recipe(_WHOLE, 256, _HALF, _HALF, "ffhq_picture", True),
    "hififace_256": Recipe(_box("mtcnn_512", 256), 256, _HALF, _HALF, "converted_unit", True),
    "hyperswap_256": Recipe(_box("arcface_128", 256), 256, _HALF, _HALF, "unit", True),
}


class OnnxConfig(Config):
    """A rival's network. `embedder`: ArcFace w600k_r50.onnx; `converter`: arcface_converter_* or crossface_*.onnx."""

    adapter: Adapter
    file: Path
    embedder: Path | None = None
    converter: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> "OnnxConfig":
        source = RECIPES[self.adapter].source
        if source in ("emap", "converted", "converted_unit", "unit") and self.embedder is None:
            raise ValueError(f"{self.adapter} takes an ArcFace embedding: name w600k_r50.onnx as `embedder`")
        if source.startswith("converted") and self.converter is None:
            raise ValueError(
                f"{self.adapter} takes an embedding of its own network: name the file that converts ArcFace's "
                "(crossface_*.onnx or arcface_converter_*.onnx) as `converter`"
            )
        return self

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.file, self.embedder, self.converter) if path is not None]


class Rival(Protocol):
    """(pairs' names, sources, targets) -> the rival's pictures in [-1, 1], and which of them there are."""

    def __call__(
        self, pairs: Sequence[tuple[str, str]], source: Image, target: Image
    ) -> tuple[Image, Bool[Tensor, " b"]]: ...


class ResultFolder:
    """A folder of pictures called <source>_<target>.png (baselines.read_results)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, pairs: Sequence[tuple[str, str]], source: Image, target: Image
    ) -> tuple[Image, Bool[Tensor, " b"]]:
        images, there = read_results(self._folder, pairs, target.shape[-1])
        return images.to(target), there.to(target.device)


class OnnxSwapper:
    """A rival's ONNX file by its recipe. Raises ValueError for files that are missing or have other inputs."""

    def __init__(self, config: OnnxConfig) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ValueError("evaluate.onnx needs onnxruntime: pip install -e '.[onnx]'") from None
        if missing := [str(path) for path in config.files if not path.is_file()]:
            raise ValueError(f"evaluate.onnx: {', '.join(missing)} does not exist; put it there or correct the path")
        self._recipe = RECIPES[config.adapter]

        def session(path: Path | None) -> "onnxruntime.InferenceSession | None":
            if path is None:
                return None
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            try:
                return onnxruntime.InferenceSession(str(path), options, onnxruntime.get_available_providers())
            except Exception as error:  # onnxruntime's own exceptions have no common class
                raise ValueError(f"evaluate.onnx: {path} cannot be loaded: {str(error).splitlines()[0]}") from None

        self._swap, self._embed, self._convert = map(session, (config.file, config.embedder, config.converter))
        names = {value.name for value in self._swap.get_inputs()}
        if names != {"source", "target"}:
            raise ValueError(f"evaluate.onnx: {config.file} has the inputs {sorted(names)}, expected source and target")
        self._emap = _last_initializer(config.file) if self._recipe.source == "emap" else None

    def __call__(
        self, pairs: Sequence[tuple[str, str]], source: Image, target: Image
    ) -> tuple[Image, Bool[Tensor, " b"]]:
        recipe = self._recipe
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (recipe.mean, recipe.std))
        known = self._known_of(source.float().cpu())
        shown = (_unit_range(crop(target.float().cpu(), recipe.box, recipe.size)) - mean) / std
        outputs = []
        for one, face in zip(known, shown, strict=True):  # these files are made for one face at a time
            (out, *_) = self._swap.run(None, {"source": one[None].numpy(), "target": face[None].numpy()})
            outputs.append(torch.from_numpy(np.asarray(out[0], dtype=np.float32)))
        result = torch.stack(outputs)
        result = (result * std + mean if recipe.scaled else result).clamp(0, 1) * 2 - 1
        there = result.flatten(1).isfinite().all(dim=1)
        return put_back(result.nan_to_num(), target.float().cpu(), recipe.box).to(target), there.to(target.device)

    def _known_of(self, source: Image) -> Tensor:
        match self._recipe.source:
            case "arcface_picture":
                return _unit_range(crop(source, box_of(ARCFACE_112, 112), 112))
            case "ffhq_picture":
                return _unit_range(crop(source, _WHOLE, 256))
        face = crop(source, box_of(ARCFACE_112, 112), 112)
        embedding = torch.cat([torch.from_numpy(_run(self._embed, one[None])) for one in face])
        match self._recipe.source:
            case "emap":
                return embedding @ torch.from_numpy(self._emap) / embedding.norm(dim=1, keepdim=True)
            case "unit":
                return F.normalize(embedding, dim=1)
        converted = torch.cat([torch.from_numpy(_run(self._convert, one[None])) for one in embedding])
        return F.normalize(converted, dim=1) if self._recipe.source == "converted_unit" else converted


def put_back(result: Image, target: Image, box: Box) -> Image:
    """`result` (any size) in its box of `target`, fading out over the box's border; outside the target is unchanged."""
    height, width = target.shape[-2:]
    size = result.shape[-1]
    ramp = (torch.arange(size) + 0.5) / size
    fade = (torch.minimum(ramp, 1 - ramp) / BORDER).clamp(max=1)
    # the crop's pixels lie at these places of the box; beyond it the weight is 0
    rows, columns = (
        _inverse(pixels, start, box.side, size) for pixels, start in ((height, box.top), (width, box.left))
    )
    weight = (rows.weight @ fade)[:, None] * (columns.weight @ fade)[None]
    return torch.lerp(target, rows.matrix @ result @ columns.matrix.t(), weight)


class _Inverse(NamedTuple):
    matrix: Tensor
    weight: Tensor


def _inverse(pixels: int, start: float, side: float, size: int) -> _Inverse:
    """Matrices (pixels, size) that sample a box's content at the crop's pixels: edges repeated, and zero outside."""
    matrix = resampling(size, -start / side, 1 / side, pixels, torch.zeros(()))
    centre = ((torch.arange(pixels) + 0.5) / pixels - start) / side
    inside = ((centre >= 0) & (centre <= 1)).float()
    return _Inverse(matrix, matrix * inside[:, None])


def _unit_range(image: Image) -> Tensor:
    return ((image + 1) / 2).contiguous()


def _run(session: object, value: Tensor) -> np.ndarray:
    (name,) = (found.name for found in session.get_inputs())
    return np.asarray(session.run(None, {name: value.numpy()})[0], dtype=np.float32)


def _last_initializer(path: Path) -> np.ndarray:
    import onnx
    from onnx import numpy_helper

    matrix = numpy_helper.to_array(onnx.load(str(path)).graph.initializer[-1]).astype(np.float32)
    if matrix.ndim != 2 or matrix.shape[0] != 512:
        raise ValueError(
            f"evaluate.onnx: the last initializer of {path} is {matrix.shape}, expected an embedding matrix"
        )
    return matrix
