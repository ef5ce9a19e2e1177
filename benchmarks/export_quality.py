"""What fewer bits cost: `--precision` and the exported graphs on the ground-truth benchmark, against torch in fp32.

    pip install -e '.[onnx]'
    python -m benchmarks.export_quality PROJECT [--testset images] [--pairs 200] [--threads 1]

PROJECT is a folder in which the pipeline ran on rendered faces. For each precision: file size, L1 to the true swap
inside the face, cosine to the source by `identity_eval`, mean and largest difference to torch (0..1), milliseconds a
pair (the best batch of 4, interleaved).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import torch

from codeswap.data.faces import Faces
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.metrics import cosine, masked_l1
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of
from codeswap.evaluate.stream import Pairs
from codeswap.use.export import Precision, export
from codeswap.use.loading import Swapper, load_swapper

BATCH = 4


def in_torch(swapper: Swapper) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with swapper.autocast():
            return swapper.model.swap(a, b).image_ab.float()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--testset", default="images")
    for name, default in (("pairs", 200), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = options.project / "models"
    swapper = load_swapper(models, "ours")
    faces = Faces([options.project / "data/shards/test" / options.testset])
    judges = Judges.load(models / "perception", torch.device("cpu"))
    pairs = Pairs(faces, pairs_of(faces.manifest, ProtocolConfig(pairs=options.pairs)), judges, torch.device("cpu"))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        runs, sizes = {"torch": in_torch(swapper)}, {"torch": 0}
        for precision in ("bf16", "int8"):
            runs[f"torch {precision}"] = in_torch(load_swapper(models, "ours", precision))
            sizes[f"torch {precision}"] = 0
        for precision in get_args(Precision):
            path = Path(scratch) / f"{precision}.onnx"
            export(swapper.model, swapper.facts, path, precision)
            session = onnxruntime.InferenceSession(str(path), settings)
            runs[precision] = lambda a, b, session=session: torch.from_numpy(
                session.run(["image_ab"], {"image_a": a.numpy(), "image_b": b.numpy()})[0]
            )
            sizes[precision] = path.stat().st_size
        scores: dict[str, list[torch.Tensor]] = {name: [] for name in runs}
        best = dict.fromkeys(runs, float("inf"))
        with pairs.batches(0, len(pairs), BATCH) as stream:
            for number, batch in enumerate(stream):
                wanted, reference = judges.identity(batch.source), None
                for name, run in runs.items():
                    begun = time.perf_counter()
                    image = run(batch.source.contiguous(), batch.target.contiguous()).clamp(-1, 1)
                    if number and len(image) == BATCH:
                        best[name] = min(best[name], time.perf_counter() - begun)
                    reference = image if reference is None else reference
                    true, region = (batch.truth.image + 1) / 2, batch.truth.region.float()
                    difference = (image - reference).abs().flatten(1) / 2
                    rows = [masked_l1((image + 1) / 2, true, region), cosine(judges.identity(image), wanted)]
                    scores[name].append(torch.stack([*rows, difference.mean(1), difference.amax(1)], dim=1))
    print(f"{len(pairs)} pairs of {options.testset}, {options.threads} thread(s)")
    print("precision      MB   face L1   cosine   mean and largest difference   ms a pair   times torch")
    for name, rows in scores.items():
        values = torch.cat(rows).numpy()
        l1, cosines, mean, largest = *values[:, :3].mean(axis=0), np.max(values[:, 3])
        ms = 1e3 * best[name] / BATCH
        print(
            f"{name:10} {sizes[name] / 2**20:7.2f} {l1:9.4f} {cosines:8.3f} {mean:12.4f} {largest:10.3f} {ms:16.1f} "
            f"{best['torch'] / best[name]:12.2f}"
        )


if __name__ == "__main__":
    main()
