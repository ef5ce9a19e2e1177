"""Held-out faces, on which every training says now and then how good it is. All processes share the work."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeswap.data.faces import Faces, held_out_folders, to_float
from codeswap.data.labels import without_forehead
from codeswap.losses.detectors import exchange_ratio, is_copy, is_exchange
from codeswap.losses.image import feature_norm
from codeswap.losses.mask import mask_statistics
from codeswap.losses.swap import cycle_loss
from codeswap.models.codeswap import decoder_of
from codeswap.models.fusion import Fusion, second_pass
from codeswap.models.mask import blend
from codeswap.models.quantizer import codes_used, perplexity
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.perception.roles import card, load
from codeswap.train.engine import Engine
from codeswap.train.feeds import Whose, wanted_mask
from codeswap.types import Embedding, Image, Mask

AT_ONCE = 16  # images of a forward pass


class Critics(NamedTuple):
    """Frozen networks that look at validation pictures; None where the role is not filled."""

    identity: nn.Module | None
    expression: nn.Module | None
    pose: nn.Module | None
    perceptual: nn.Module | None
    parsing: nn.Module | None


def load_critics(engine: Engine, perception: Path, **loaded: nn.Module | None) -> Critics:
    """The networks of the training roles, on the device; those that the objective has `loaded` by role are shared."""
    filled = card(perception)["roles"]

    def critic(role: str) -> nn.Module | None:
        known = loaded.get(role)
        return known if known is not None or role not in filled else engine.frozen(load(perception, role))

    return Critics(*map(critic, ("identity_train", "expression_train", "pose", "perceptual", "parsing")))


class Sums:
    """Means over the faces of all processes: each adds its own, `means` joins them."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._sums = engine, dict[str, Tensor]()

    def add(self, **values: Tensor) -> None:
        """Adds one number for each face."""
        for name, value in values.items():
            pair = torch.stack([value.double().sum(), torch.tensor(float(value.numel()), device=value.device).double()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def count(self, codes: Tensor, n_codes: int) -> None:
        """Adds the codes that were used."""
        counts = torch.bincount(codes.flatten(), minlength=n_codes).double()
        self._sums["codes"] = self._sums["codes"] + counts if "codes" in self._sums else counts

    def means(self) -> dict[str, float]:
        """`val/<name>` of everything that was added, the same on all processes. Collective."""
        joined = {name: self._engine.sum(value) for name, value in self._sums.items()}
        counts = joined.pop("codes", None)
        found = {f"val/{name}": (total / count).item() for name, (total, count) in joined.items()}
        if counts is not None:
            found |= {"val/codes_used": codes_used(counts).item(), "val/perplexity": perplexity(counts).item()}
        return found


class HeldOut:
    """The faces that a training is validated on, this process' share of them on the device.

    At most `count` faces of those that `shard` held out (`datasets.<name>.validation`), evenly over them. Where nobody
    is held out, training faces, which says nothing of new ones: `unseen` is False then.
    """

    def __init__(self, engine: Engine, root: Path, training: Faces, count: int) -> None:
        folders = held_out_folders(root / "data" / "shards" / "train")
        self.unseen = bool(folders)
        faces = Faces(folders) if folders else training
        whole = np.unique(np.linspace(0, len(faces) - 1, min(count, len(faces))).astype(np.int64))
        other = _partners(faces.identity[whole])
        share = len(whole) // engine.world
        mine = np.arange(engine.rank * share, (engine.rank + 1) * share) if share else np.arange(len(whole))
        straight = np.zeros(len(mine), dtype=bool)
        self.image: Image = to_float(engine.to_device(faces.images(whole[mine], straight)))
        self.target: Image = to_float(engine.to_device(faces.images(whole[other[mine]], straight)))  # another person's
        if engine.main and not self.unseen:
            print(
                "no faces are held out (datasets.<name>.validation): validation shows faces of the training", flush=True
            )

    def parts(self) -> Sequence[tuple[Image, Image]]:
        """Sources and targets of this process' pairs, as many at once as a forward pass takes."""
        return list(zip(self.image.split(AT_ONCE), self.target.split(AT_ONCE), strict=True))


def _partners(person: np.ndarray) -> np.ndarray:
    """For each face another one, of another person where there is one: half way round the row and on from there."""
    n = len(person)
    rows = np.arange(n)
    chosen = (rows + n // 2) % n
    for _ in range(n):
        again = (chosen == rows) | ((person >= 0) & (person == person[chosen]))
        if not again.any():
            break
        chosen = np.where(again, (chosen + 1) % n, chosen)
    return chosen


def _psnr(x: Image, y: Image) -> Tensor:
    """Per image, of pictures in [-1, 1]."""
    return 10 * (4 / (x.clamp(-1, 1) - y).square().flatten(1).mean(dim=1).clamp(min=1e-10)).log10()


def _distance(critics: Critics, x: Image, y: Image) -> Tensor:
    """Per image: of perceptual features, or of pixels when nothing fills that role."""
    if critics.perceptual is None:
        return (x - y).abs().flatten(1).mean(dim=1)
    return feature_norm(critics.perceptual(x), critics.perceptual(y))


def _to(critics: Critics, swap: Image, source: Image, target: Image) -> dict[str, Tensor]:
    """Per pair: how a swap stands to its source's identity and to its target's attributes."""
    e_swap, e_source, e_target = (critics.identity(x).float() for x in (swap, source, target))
    found = {
        "identity_to_source": F.cosine_similarity(e_swap, e_source),
        "identity_to_target": F.cosine_similarity(e_swap, e_target),
    }
    if critics.expression is not None:
        x_swap, x_target = critics.expression(swap).float(), critics.expression(target).float()
        found["expression"] = (x_swap - x_target).norm(dim=1)
    if critics.pose is not None:
        found["pose"] = (critics.pose(swap).float() - critics.pose(target).float()).norm(dim=1)  # degrees
    return found


@torch.no_grad()
def validate_codebook(engine: Engine, critics: Critics, held_out: HeldOut, vqgan: VQGAN) -> dict[str, float]:
    """Stage 1: PSNR from nearest and soft codes, feature distance, identity cosine to the input, codes in use."""
    sums, was = Sums(engine), vqgan.training
    vqgan.eval()
    for x in held_out.image.split(AT_ONCE):
        z, book = tokens(vqgan.encode(x)), vqgan.codebook
        codes = book.nearest(z)
        nearest = vqgan.decode(feature_map(book.lookup(codes))).float()
        soft = vqgan.decode(feature_map(book.soft(z, 1.0))).float()
        sums.add(psnr_nearest=_psnr(nearest, x), psnr_soft=_psnr(soft, x), features=_distance(critics, nearest, x))
        sums.count(codes, len(book.weight))
        if critics.identity is not None:
            embeddings: tuple[Embedding, Embedding] = (critics.identity(nearest).float(), critics.identity(x).float())
            sums.add(identity_cosine=F.cosine_similarity(*embeddings))
    vqgan.train(was)
    return sums.means()


@torch.no_grad()
def validate_swap(
    engine: Engine, critics: Critics, held_out: HeldOut, vqgan: VQGAN, fusion: Fusion
) -> tuple[dict[str, float], Image]:
    """Stage 2: identity, expression and pose of the swaps, exchange and copy, L_cyc and its floor, codes in use.

    Also this process' naive swaps. The floor is L_cyc of nearest quantisation: soft codes cannot reach 0 (METHOD §B.1).
    """
    sums, was, swaps = Sums(engine), fusion.training, []
    fusion.eval()
    for a, b in held_out.parts():
        z_a, z_b, codes = tokens(vqgan.encode(a)), tokens(vqgan.encode(b)), vqgan.codebook.weight
        first = fusion(z_a, z_b, codes)
        z_aba, z_bab = second_pass(fusion, first, z_b, codes, None)
        nearest = vqgan.codebook.lookup(vqgan.codebook.nearest(z_a))
        swap = decoder_of(vqgan, fusion).decode(feature_map(first.z_q_ab)).float()
        of_pair = torch.ones(len(a), device=a.device)
        sums.add(
            cycle=cycle_loss(z_bab.float(), z_b, z_aba, z_a) * of_pair,
            cycle_floor=cycle_loss(nearest, z_a, nearest, z_a) * of_pair,
        )
        known = _to(critics, swap, a, b)
        ratio = exchange_ratio(_distance(critics, swap, b), _distance(critics, swap, a))
        sums.add(
            **known,
            exchange_ratio=ratio,
            exchanged=is_exchange(ratio).float(),
            copied=is_copy(ratio, known["identity_to_source"]).float(),
        )
        if first.logits_ab is not None:
            sums.count(first.logits_ab.argmax(-1), len(codes))
            entropy = torch.special.entr(first.logits_ab.float().softmax(-1)).sum(-1)
            sums.add(entropy=entropy.mean(dim=1))
        swaps.append(swap)
    fusion.train(was)
    return sums.means(), torch.cat(swaps)


@torch.no_grad()
def validate_mask(
    engine: Engine,
    critics: Critics,
    held_out: HeldOut,
    masked: Sequence[tuple[Image, Mask]],
    forehead: Whose = "source",
    mouth: Whose = "source",
) -> dict[str, float]:
    """Stage 3: mean, overlap with the parsed face and undecided share of the masks; the blended pictures as in Stage 2.

    `masked` are naive swaps and their masks, in the parts of `held_out`. `forehead` and `mouth`: what the masks were
    taught (MaskTraining).
    """
    sums = Sums(engine)
    for (a, b), (naive, mask) in zip(held_out.parts(), masked, strict=True):
        of_pair = torch.ones(len(a), device=a.device)
        if critics.parsing is not None:
            labels = critics.parsing.label_map(b)
            own = critics.parsing.label_map(a) if mouth == "target" else labels  # asked for mouths alone
            labels = without_forehead(labels) if forehead == "target" else labels
            statistics = mask_statistics(mask, wanted_mask(own, labels, mouth))
            sums.add(**{f"mask_{name}": value * of_pair for name, value in statistics._asdict().items()})
        sums.add(**_to(critics, blend(naive, b, mask), a, b))
    return sums.means()
