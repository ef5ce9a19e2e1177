"""A trained variant as an MLflow model: registered by the pipeline, served by `mlflow models serve`, loaded by its URI.

A request has pictures in base64, `a` and `b` of each row; the answer has `ab` and `ba`, marked PNGs. The parameter
`aligned` (default true) says that they are aligned crops; photographs need the face detector where it is served.
"""

import base64
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext

from codeswap.train.tracking import EXPERIMENT, OFF, store_uri
from codeswap.use.errors import MissingModelError
from codeswap.use.examples import examples
from codeswap.use.loading import load_detector, load_swapper
from codeswap.use.output import encode_picture
from codeswap.use.photographs import Portrait, face_in
from codeswap.use.service import picture_of, png_of
from codeswap.use.swapping import swap_portraits

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("codebook", "swap", "mask")
KEPT = ("model.safetensors", "card.json")
ROLE = "models"  # the artifact's name inside the logged model
_MOST_PIXELS = 24_000_000


class CodeSwapModel(PythonModel):
    """The pyfunc flavour."""

    def load_context(self, context: PythonModelContext) -> None:
        self._swapper, self._detector = load_swapper(Path(context.artifacts[ROLE]), "ours"), None

    def predict(self, context, model_input, params=None):  # typed, MLflow would demand its own validation of hints
        """Rows of `a` and `b` (base64) to rows of `ab` and `ba`, a pandas DataFrame each."""
        import pandas as pd

        aligned = bool((params or {}).get("aligned", True))
        if not aligned and self._detector is None:
            self._detector = load_detector()
        rows = [self._swapped(row.a, row.b, aligned) for row in model_input.itertuples()]
        return pd.DataFrame(rows, columns=["ab", "ba"])

    def _swapped(self, a: str, b: str, aligned: bool) -> tuple[str, str | None]:
        finder, pair = None if aligned else self._detector, []
        for text, name in ((a, "a"), (b, "b")):
            pixels = picture_of(_url(text), name, _MOST_PIXELS)
            pair.append(Portrait(pixels, face_in(f"picture {name}", pixels, finder, self._swapper.cut)))
        (found,) = swap_portraits(self._swapper, [tuple(pair)])
        return self._encoded(found.ab), None if found.ba is None else self._encoded(found.ba)

    def _encoded(self, pixels: np.ndarray) -> str:
        return base64.b64encode(encode_picture(pixels, ".png", "swap.png", self._swapper.facts)).decode()


def _url(text: str) -> str:
    return text if text.startswith("data:") else f"data:image/png;base64,{text}"


def example(size: int) -> "pd.DataFrame":
    """A request: two rendered faces of nobody."""
    import pandas as pd

    row = [base64.b64encode(png_of(pixels)).decode() for pixels in examples(size, 2)]
    return pd.DataFrame([row], columns=["a", "b"])


def register(models: Path, variant: str, metrics: Mapping[str, float]) -> str | None:
    """Registers a variant's models as `codeswap-<variant>` unless these very weights are; the version's URI.

    None where MLflow is switched off. Raises MissingModelError when the models are not all there.
    """
    if os.environ.get(OFF) == "off":
        return None
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    swapper, name = load_swapper(models, variant), f"codeswap-{variant}"
    mlflow.set_tracking_uri(store_uri())
    client = mlflow.MlflowClient()
    tags = {kind: sha256 for kind, sha256 in swapper.facts.items() if kind in PARTS}
    for known in client.search_model_versions(f"name = '{name}'"):
        if {kind: known.tags.get(kind) for kind in tags} == tags:
            return f"models:/{name}/{known.version}"
    strings = [[ColSpec("string", column) for column in columns] for columns in (("a", "b"), ("ab", "ba"))]
    signature = ModelSignature(
        *(Schema(columns) for columns in strings), ParamSchema([ParamSpec("aligned", "boolean", True)])
    )
    mlflow.set_experiment(EXPERIMENT)
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_name=f"model-{variant}"):
        for kind in PARTS:
            folder = models / kind if (models / kind / KEPT[0]).exists() else models / kind / variant
            for file in KEPT:
                if (folder / file).exists():
                    (Path(scratch) / kind).mkdir(exist_ok=True)
                    shutil.copyfile(folder / file, Path(scratch) / kind / file)
        mlflow.log_metrics(dict(metrics))
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={ROLE: scratch},
            code_paths=[str(Path(__file__).parents[1])],
            signature=signature,
            input_example=example(swapper.size),
            pip_requirements=[f"{package}=={version(package)}" for package in ("torch", "numpy", "pillow", "scipy")],
            registered_model_name=name,
        )
    made = str(logged.registered_model_version)
    for kind, sha256 in tags.items():
        client.set_model_version_tag(name, made, kind, sha256)
    return f"models:/{name}/{made}"


def folder_of(uri: str) -> Path:
    """The trained models inside a registered or logged model, fetched. Raises MissingModelError."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(store_uri())
    try:
        place = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError, ValueError) as error:
        raise MissingModelError(f"{uri} cannot be had: {str(error).splitlines()[0]}") from None
    found = sorted(place.glob("artifacts/*/codebook"))
    if not found:
        raise MissingModelError(f"{uri} is no model that this pipeline registered")
    return found[0].parent
