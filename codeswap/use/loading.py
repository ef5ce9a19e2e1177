"""Trained models and the face detector, from the folders where they are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codeswap.data.align import Cut
from codeswap.data.faces import to_float
from codeswap.data.pictures import to_bytes
from codeswap.models.codeswap import CodeSwap, load_codeswap
from codeswap.models.regional import swap_region
from codeswap.models.store import CARD, StoredModelError, read_model
from codeswap.perception.mtcnn import MTCNN
from codeswap.perception.published import NETWORKS
from codeswap.perception.roles import PerceptionError, load
from codeswap.perception.weights import default_folder
from codeswap.types import Image, Swap
from codeswap.use.errors import MissingModelError
from codeswap.use.examples import examples
from codeswap.use.int8 import to_int8_
from codeswap.use.memory import keep_freed_memory

Precision = Literal["fp32", "bf16", "int8"]
# Below the models' folder: what is committed with the project. One model has seen rendered faces only, one photographs.
RELEASE, PHOTOGRAPHS = "release", "release/photographs"


class SwappedCrops(NamedTuple):
    """Of one pair of crops, `xy` = identity of x on y: uint8 (s, s, 3), masks float (s, s) in 0..1 or None.

    The `ba` fields and `mask_a` are None where the model swaps one way only.
    """

    naive_ab: np.ndarray
    naive_ba: np.ndarray | None
    mask_b: np.ndarray | None
    mask_a: np.ndarray | None


class Swapper:
    """A trained CodeSwap.

    `size` is the side of its crops and `cell` that of a token in them, in pixels, `grid` the tokens on a side; `cut`
    how faces are cut out for it; `facts` name its weights, for the marks of what it makes; `one_sided` makes no swap
    of b onto a (w/o S).
    """

    def __init__(
        self, model: CodeSwap, facts: dict[str, str], device: torch.device, precision: Precision = "fp32"
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last).eval()
        self.facts, self._device = facts, device
        config = model.vqgan.config
        self.size, self.cell, self.grid = config.image_size, config.downsample, config.grid
        self.cut = Cut(config.image_size, config.framing)
        self.one_sided = model.fusion.one_sided
        self._bf16 = precision == "bf16"
        if precision == "int8":
            if device.type != "cpu":
                raise MissingModelError("8 bits are for the processor: use --precision bf16 on a GPU")
            to_int8_(self.model, self.tensor(*examples(self.size, 2)))

    def tensor(self, *crops: np.ndarray) -> Image:
        """Aligned uint8 (size, size, 3) crops as images in [-1, 1] on the model's device."""
        return to_float(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self._device))  # channels last already

    def autocast(self) -> torch.autocast:
        """The region in which its model computes at its precision."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    @torch.inference_mode()
    def swap_region(self, a: np.ndarray, b: np.ndarray, region: np.ndarray) -> np.ndarray:
        """b's crop with the identity of a inside `region` (s, s) only (Fig. 8), blended already; uint8 (s, s, 3)."""
        inside = torch.from_numpy(region.astype(np.float32))[None, None].to(self._device)
        with self.autocast():
            return _pixels(swap_region(self.model, self.tensor(a), self.tensor(b), inside)[0])

    @torch.inference_mode()
    def swap_all(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[SwappedCrops]:
        """Both directions of pairs of aligned uint8 (size, size, 3) crops in one pass."""
        with self.autocast():
            found: Swap = self.model.swap(*(self.tensor(*side) for side in zip(*pairs, strict=True)))
        images, masks = (found.naive_ab, found.naive_ba), (found.mask_b, found.mask_a)
        columns = [*(_each(_pixels, x, len(pairs)) for x in images), *(_each(_numbers, x, len(pairs)) for x in masks)]
        return [SwappedCrops(*row) for row in zip(*columns, strict=True)]

    @torch.inference_mode()
    def onto(self, a: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
        """What puts the person of one crop on others, one direction only: crop -> naive image and mask."""
        with self.autocast():
            z_a = self.model.vqgan.encode(self.tensor(a))

        @torch.inference_mode()
        def swap(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            with self.autocast():
                naive, mask = self.model.swap_onto(z_a, self.tensor(b))
            return _pixels(naive[0]), None if mask is None else _numbers(mask[0])

        return swap

    def swap(self, a: np.ndarray, b: np.ndarray) -> SwappedCrops:
        """Both directions of one pair."""
        return self.swap_all([(a, b)])[0]


def _each(convert: Callable[[Tensor], np.ndarray], batch: Tensor | None, count: int) -> list[np.ndarray] | list[None]:
    return [None] * count if batch is None else [convert(one) for one in batch]


def _pixels(image: Tensor) -> np.ndarray:
    return to_bytes(image).permute(1, 2, 0).numpy()


def _numbers(mask: Tensor) -> np.ndarray:
    return mask[0].float().cpu().numpy()


def load_swapper(models: Path, variant: str, precision: Precision = "fp32", *, photographs: bool = False) -> Swapper:
    """The model in a folder as the pipeline writes it (`models/`): codebook, swap/<variant> and mask/<variant>.

    A folder without variants (codebook, swap, mask) does too, and one without mask swaps without one. So does the URI
    of a registered MLflow model (models:/codeswap-ours/1). Where nothing was trained yet, a released model is taken:
    with `photographs` that of `<models>/release/photographs`, else that of rendered faces in `<models>/release`.
    `precision` of the networks: bf16 on processors and GPUs that multiply it, int8 on processors (use/int8.py);
    `benchmarks.inference_speed` and `export_quality` say what they gain and cost.
    Raises MissingModelError saying what is not there, or what is damaged.
    """
    if str(models).startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        from codeswap.use.mlflow_model import folder_of  # seconds of imports

        models = folder_of(str(models))
    released = models / (PHOTOGRAPHS if photographs else RELEASE)
    if not (models / "codebook").exists() and (released / "codebook").exists():
        models = released
    codebook = models / "codebook"
    swap, mask = (
        folder if (folder / CARD).exists() else folder / variant for folder in (models / "swap", models / "mask")
    )
    missing = [str(folder) for folder in (codebook, swap) if not (folder / CARD).exists()]
    if missing:
        raise MissingModelError(
            f"there is no trained model in {', '.join(missing)}: train one (`make demo`, or `dvc repro` on your own "
            "faces), or name its folder with --models"
        )
    with_mask = (mask / CARD).exists()
    try:
        model = load_codeswap(codebook, swap, mask if with_mask else None)
        parts = [("codebook", codebook), ("swap", swap), *([("mask", mask)] if with_mask else [])]
        facts = {kind: str(read_model(folder, kind).card["weights_sha256"]) for kind, folder in parts}
    except StoredModelError as error:
        raise MissingModelError(str(error)) from None
    keep_freed_memory()
    return Swapper(model, facts, torch.device("cuda" if torch.cuda.is_available() else "cpu"), precision)


def load_identity(perception: Path, framing: float) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (n, s, s, 3) aligned crops of `framing` -> unit identity vectors (n, e). Raises MissingModelError."""
    try:
        network = load(perception, "identity_train", framing)
    except PerceptionError as error:
        raise MissingModelError(f"faces cannot be compared: {error}; choose them by position") from None

    @torch.inference_mode()
    def embed(crops: np.ndarray) -> np.ndarray:
        return F.normalize(network(to_float(torch.from_numpy(crops).permute(0, 3, 1, 2))).float(), dim=1).numpy()

    return embed


def load_detector(folder: Path | None = None) -> MTCNN:
    """The face detector from the weights' folder. Raises MissingModelError when it has not been fetched."""
    from codeswap.perception import packaged  # readers of foreign formats

    (files,) = (network.files for network in NETWORKS if network.architecture == "mtcnn")
    place = (folder or default_folder()) / files[0].usable
    if not place.exists():
        raise MissingModelError(
            f"the face detector is not there ({place}): `codeswap weights fetch --only mtcnn`, or give aligned "
            "crops with --aligned"
        )
    return packaged.build("mtcnn", place)
