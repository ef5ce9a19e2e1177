"""How much of an evaluation's time its networks take: reading, rendering, metrics and writing are the rest.

    python -m benchmarks.scoring_throughput PROJECT [--testset images] [--pairs 512] [--threads 1]

PROJECT is a folder in which the pipeline ran (models/, data/shards/test/). The networks are those of the evaluation:
Stage 1, the fusion module, the mask generator and all judges; the time inside their calls is what running them alone on
the same batches would take. Scoring runs at (their time / whole time) of their own speed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from codeswap.data.faces import Faces
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.judging import judge_parts
from codeswap.evaluate.parts import Parts, Team
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of
from codeswap.evaluate.stream import Pairs
from codeswap.models.codeswap import load_codeswap


class Clock:
    """Seconds spent inside some modules' methods; a call within a call counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def watch(self, module: nn.Module, method: str) -> None:
        function = getattr(module, method)

        def timed(*args: object, **kwargs: object) -> object:
            self._depth += 1
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begun

        setattr(module, method, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--testset", default="images")
    parser.add_argument("--variant", default="ours")
    for name, default in (("pairs", 512), ("batch", 32), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models, device = options.project / "models", torch.device("cpu")
    faces = Faces([options.project / "data/shards/test" / options.testset])
    model = load_codeswap(models / "codebook", models / "swap" / options.variant, models / "mask" / options.variant)
    model.to(memory_format=torch.channels_last)
    judges = Judges.load(models / "perception", device)
    pairs = Pairs(faces, pairs_of(faces.manifest, ProtocolConfig(pairs=options.pairs)), judges, device)
    clock = Clock()
    for network in (*judges.modules, model.fusion, model.mask_generator):
        clock.watch(network, "forward")
    for method in ("encoder_features", "encode", "decode", "decode_features"):
        clock.watch(model.vqgan, method)
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        judge_parts(Parts(Path(scratch), len(pairs), 256), Team(), model, judges, pairs, {}, options.batch, 0.5)
        whole = time.perf_counter() - begun
    print(f"{len(pairs)} pairs of {options.testset}, {options.threads} thread(s): {len(pairs) / whole:.1f} pairs/s")
    print(
        f"the networks take {clock.seconds:.1f} of {whole:.1f} s: scoring runs at {clock.seconds / whole:.2f} of theirs"
    )


if __name__ == "__main__":
    main()
