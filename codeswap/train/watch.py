"""What is looked at during Stage 2 and 3 on pairs that never change: trivial solutions, code use, pictures."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from codeswap.data.faces import to_float
from codeswap.data.pictures import grid
from codeswap.losses.detectors import exchange_ratio, is_copy, is_exchange
from codeswap.losses.image import feature_norm
from codeswap.losses.swap import cycle_loss
from codeswap.models.fusion import Fusion
from codeswap.models.quantizer import codes_used, perplexity
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.train.engine import Engine
from codeswap.train.feeds import PairBatch
from codeswap.train.objective import Judges
from codeswap.train.run import Run
from codeswap.train.state import TrainState
from codeswap.types import Codes, Embedding, Image

AT_ONCE = 16
ALARM_SHARE = 0.5  # of the fixed pairs
COPY_ALLOWED = 0.25  # share of the samples in which a copy is no alarm: a warm start begins as one


class FixedPairs(NamedTuple):
    """Pairs of different faces, images in [-1, 1] on the device; `shown` of them go into picture grids."""

    image_a: Image
    image_b: Image
    identity_a: Embedding
    shown: int

    @classmethod
    def of(cls, engine: Engine, pairs: PairBatch, shown: int) -> "FixedPairs":
        image_a, image_b = (to_float(engine.to_device(image)) for image in (pairs.image_a, pairs.image_b))
        return cls(image_a, image_b, engine.to_device(pairs.identity_a), shown)

    @torch.no_grad()
    def cycle_floor(self, vqgan: VQGAN) -> float:
        """L_cyc of nearest quantisation: soft codes cannot reach 0 either (METHOD §B.1)."""
        z = tokens(vqgan.encode(self.image_a[:AT_ONCE]))
        nearest = vqgan.codebook.lookup(vqgan.codebook.nearest(z))
        return cycle_loss(nearest, z, nearest, z).item()


def _distance(judges: Judges, x: Image, y: Image) -> Tensor:
    """Per image: of perceptual features, or of pixels when no perceptual network is loaded."""
    if judges.perceptual is None:
        return (x - y).abs().flatten(1).mean(dim=1)
    return feature_norm(judges.perceptual(x), judges.perceptual(y))


@torch.no_grad()
def watch(run: Run, state: TrainState, models: tuple[VQGAN, Fusion], judges: Judges, fixed: FixedPairs) -> None:
    """Logs identity to source and target, the exchange ratio and code use; raises alarms; draws a grid."""
    vqgan, fusion = models
    fusion.eval()
    pictures, logits = [], []
    for a, b in zip(fixed.image_a.split(AT_ONCE), fixed.image_b.split(AT_ONCE), strict=True):
        first = fusion(tokens(vqgan.encode(a)), tokens(vqgan.encode(b)), vqgan.codebook.weight)
        pictures.append(vqgan.decode(feature_map(first.z_q_ab)).float())
        if first.logits_ab is not None:
            logits.append((first.logits_ab.argmax(-1), first.logits_ab.float().softmax(-1)))
    fusion.train()
    metrics = judge_swaps(run, state, judges, fixed, torch.cat(pictures))
    if logits:
        chosen: Codes = torch.cat([codes for codes, _ in logits])
        counts = torch.bincount(chosen.flatten(), minlength=len(vqgan.codebook.weight)).float()
        metrics["fixed/codes_used"] = codes_used(counts).item()
        metrics["fixed/perplexity"] = perplexity(counts).item()
        metrics["fixed/entropy"] = torch.cat([torch.special.entr(p).sum(-1).flatten() for _, p in logits]).mean().item()
    run.note(state, metrics)
    n = fixed.shown
    rows = [fixed.image_a[:n], fixed.image_b[:n], torch.cat(pictures)[:n]]
    run.picture(state, "swap", grid(rows, ["source a", "target b", "a's identity on b"]))


def judge_swaps(run: Run, state: TrainState, judges: Judges, fixed: FixedPairs, swaps: Image) -> dict[str, float]:
    """How near `swaps` are to source and target; alarms for the trivial minima of Eq. 9 (METHOD §B.4)."""
    to_target, to_source, cosine, cosine_target = [], [], [], []
    parts = zip(*(x.split(AT_ONCE) for x in (fixed.image_a, fixed.image_b, fixed.identity_a, swaps)), strict=True)
    for a, b, e_a, swap in parts:
        to_target.append(_distance(judges, swap, b))
        to_source.append(_distance(judges, swap, a))
        e = judges.identity(swap).float()
        cosine.append(F.cosine_similarity(e, e_a))
        cosine_target.append(F.cosine_similarity(e, judges.identity(b).float()))
    ratio, identity = exchange_ratio(torch.cat(to_target), torch.cat(to_source)), torch.cat(cosine)
    exchanged, copied = is_exchange(ratio).float().mean().item(), is_copy(ratio, identity).float().mean().item()
    if exchanged > ALARM_SHARE:
        run.alarm("exchange", f"{exchanged:.0%} of the fixed pairs look like their source: a plain exchange")
    if copied > ALARM_SHARE and state.position > COPY_ALLOWED * run.training.samples:
        run.alarm("copy", f"{copied:.0%} of the fixed pairs are their target unchanged")
    return {
        "fixed/identity_to_source": identity.mean().item(),
        "fixed/identity_to_target": torch.cat(cosine_target).mean().item(),
        "fixed/exchange_ratio": ratio.mean().item(),
        "fixed/exchanged": exchanged,
        "fixed/copied": copied,
    }
