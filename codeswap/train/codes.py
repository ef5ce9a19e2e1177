"""How the codes of Stage 1 start and learn where no gradient reaches them (METHOD §A.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codeswap.data.faces import to_float
from codeswap.models.quantizer import Assignments, Codebook, QuantizerConfig
from codeswap.models.store import StoredModel, StoredModelError
from codeswap.models.vqgan import VQGAN, VQGANConfig, tokens
from codeswap.train.engine import Engine
from codeswap.train.feeds import FaceFeed, pixel_weights


def fill_vqgan(vqgan: VQGAN, start: StoredModel) -> None:
    """Gives `vqgan` the weights of a trained codebook model, to train on from them.

    Raises StoredModelError when its networks or codes are others; how codes are mixed and learn may differ.
    """
    networks, codes = start.group("vqgan", VQGANConfig), start.group("quantizer", QuantizerConfig)
    must_fit = [("vqgan", name, networks, vqgan.config) for name in VQGANConfig.model_fields if name != "framing"]
    must_fit += [("quantizer", name, codes, vqgan.codebook.config) for name in ("n_codes", "normalised", "update")]
    wrong = [
        f"{group}.{name}: {getattr(found, name)!r}, asked {getattr(asked, name)!r}"
        for group, name, found, asked in must_fit
        if getattr(found, name) != getattr(asked, name)
    ]
    if wrong:
        raise StoredModelError(
            f"{start.folder} cannot be trained on from, it has " + "; ".join(wrong) + ": give a model that fits, the "
            "parameters it has, or no codebook.start_from"
        )
    start.fill(vqgan)


def same_codes_as(start: StoredModel) -> list[str]:
    """Weights' hashes of the models whose encoder and codes a training of the decoder alone keeps, the oldest first."""
    return [*start.card.get("same_codes_as", []), start.card["weights_sha256"]]


@torch.no_grad()
def start_codes(
    engine: Engine, vqgan: VQGAN, first: FaceFeed, images: int, regions: tuple[float, float] | None
) -> None:
    """Sets the codes to k-means centres of the encodings of the first `images`: the same on every process.

    `regions`: how much more skin and features weigh (`pixel_weights`), None: all alike.
    """
    vectors, weights = [], []
    for start in range(0, images, 32):
        faces = first(torch.arange(start, min(start + 32, images)).numpy())
        vectors.append(tokens(vqgan.encode(to_float(engine.to_device(faces.image)))).flatten(0, 1).float())
        if regions is not None:
            pixels = pixel_weights(faces.parsing, *regions)
            weights.append(F.avg_pool2d(pixels, vqgan.config.downsample).flatten())
    drawn = torch.Generator(engine.device).manual_seed(engine.seed_for(0, "k-means"))
    vqgan.codebook.kmeans_(torch.cat(vectors), torch.cat(weights).to(engine.device) if weights else None, drawn)


@torch.no_grad()
def learn_codes(
    engine: Engine,
    codebook: Codebook,
    seen: tuple[Tensor, Tensor, Tensor | None],
    restart: torch.Generator | None,
) -> Tensor:
    """Code statistics of the global batch: usage, moving averages and, with a generator, restarts of dead codes.

    `seen` are latents (b, n, d), their codes (b, n) and weights. Returns how many codes were restarted.
    """
    sums = Assignments(*(engine.sum(part) for part in codebook.assignments(*seen)))
    codebook.observe_(sums)
    if codebook.config.update == "ema":
        codebook.ema_update_(sums)
    codebook.refresh_()
    restarted = 0
    if codebook.config.restart_below and restart is not None:
        flat = seen[0].detach().float().flatten(0, 1)
        chosen = torch.randperm(len(flat), generator=restart)[:64]
        restarted = codebook.restart_dead_(engine.gather(flat[chosen.to(flat.device)]))
    return torch.tensor(float(restarted), device=engine.device)
