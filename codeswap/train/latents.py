"""Stage 1's latents of every training face in both views, encoded once before Stage 2 instead of at every step."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from codeswap.data.faces import Faces, to_float
from codeswap.models.vqgan import VQGAN, tokens
from codeswap.train.engine import Engine

LATENTS = "latents"  # in the run folder
BLOCK = 32  # faces encoded together: always the same ones, so that latents do not depend on who encodes them


class Latents:
    """Z of face `index` as it is (view 0) and mirrored (view 1), float32 (n, d), from a mapped file.

    The processes share the encoding; what a killed run has finished is not done again. The file holds
    faces x 2 x n x d x 4 bytes. Collective.
    """

    def __init__(self, engine: Engine, vqgan: VQGAN, faces: Faces, folder: Path) -> None:
        shape = (len(faces), 2, vqgan.config.grid**2, vqgan.config.embed_dim)
        path, done = folder / "latents.npy", folder / "done"

        def begin() -> None:
            done.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                partial = path.with_name(".latents.partial.npy")
                np.lib.format.open_memmap(partial, "w+", np.float32, shape).flush()
                partial.rename(path)

        engine.on_main(begin)
        written = np.lib.format.open_memmap(path, "r+")
        blocks = range(engine.rank, -(-len(faces) // BLOCK), engine.world)
        for block in tqdm(blocks, desc="latents", unit="block", disable=None, leave=False):
            mark = done / f"{block:08d}"
            if mark.exists():
                continue
            index = np.arange(block * BLOCK, min((block + 1) * BLOCK, len(faces)))
            for view in (False, True):
                images = engine.to_device(faces.images(index, np.full(len(index), view)))
                with torch.no_grad(), engine.autocast():
                    written[index, int(view)] = tokens(vqgan.encode(to_float(images))).float().cpu().numpy()
            written.flush()
            mark.touch()
        engine.on_main(lambda: None)  # everybody waits for everybody's blocks
        self._latents = np.lib.format.open_memmap(path, "r")

    def __call__(self, index: np.ndarray, flip: np.ndarray) -> Tensor:
        """(b, n, d) of the faces at `index`, mirrored where `flip`; a copy."""
        return torch.from_numpy(np.ascontiguousarray(self._latents[index, flip.astype(np.int64)]))
