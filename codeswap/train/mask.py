"""Stage 3: the mask generator (METHOD §D), first to the parsed face (Eq. 15), then by the losses of Stage 2."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from codeswap.data.faces import to_float
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pairs import PairConfig, Pairing
from codeswap.data.pictures import grid
from codeswap.data.spoil import soften
from codeswap.losses.mask import binarisation_loss, coverage_loss, mask_loss, mask_statistics
from codeswap.models.codeswap import load_fusion, load_vqgan, swap_with_features
from codeswap.models.fusion import Fusion
from codeswap.models.mask import MaskConfig, MaskGenerator, blend
from codeswap.models.vqgan import VQGAN
from codeswap.train.alarms import mask_alarms
from codeswap.train.averaging import average_, check_averages, given_out
from codeswap.train.cost import flops_of, mask_step
from codeswap.train.engine import Engine
from codeswap.train.feeds import PairFeed, Whose, open_training_faces, wanted_mask
from codeswap.train.machine import EngineConfig
from codeswap.train.objective import Pictures, SwapWeights, by_role, load_judges, picture_terms
from codeswap.train.run import Run
from codeswap.train.schedule import TrainingConfig, set_lr
from codeswap.train.state import TrainState
from codeswap.train.validation import HeldOut, load_critics, validate_mask
from codeswap.types import Config, Image, Mask, variant_of

ROLES = ("identity_train", "expression_train", "pose")


class MaskTraining(TrainingConfig):
    """Stage 3. The defaults are METHOD §D.4's: the paper's 10,000 steps, half of them supervised."""

    samples: PositiveInt = 320_000  # pairs
    supervised: NonNegativeInt = 160_000  # of them, first
    batch: PositiveInt = 32
    order: OrderConfig = OrderConfig()
    pairs: PairConfig = PairConfig()
    weights: SwapWeights = SwapWeights(cycle=0.0)  # L_cyc does not depend on the mask
    soften: NonNegativeFloat = 0.0  # sigma in pixels of a Gaussian over M_GT
    unsupervised_lr: PositiveFloat | None = None  # lr of the second phase where it differs
    # off-paper: with the target's forehead, M_GT ends at the brows, with its mouth it has none where only one is open
    forehead: Whose = "source"
    mouth: Whose = "source"
    # off-paper safety of the second phase, and one off-paper help of the first
    anchor: NonNegativeFloat = 0.1
    coverage: NonNegativeFloat = 1.0
    coverage_range: tuple[float, float] = (0.10, 0.60)
    binarisation: NonNegativeFloat = 0.0
    cross_entropy: NonNegativeFloat = 0.0  # added to Eq. 15
    cross_entropy_share: float = Field(0.6, ge=0, le=1)  # of the first phase


class MaskParams(Config):
    """All that the stage reads of params.yaml."""

    seed: int
    mask_generator: MaskConfig
    mask: MaskTraining
    engine: EngineConfig


def train_mask(params: MaskParams, variant: str, root: Path, fingerprint: str) -> None:
    """Trains Stage 3 on a variant's swaps and writes `models/mask/<variant>`; called again, it resumes.

    Only the mask generator learns. Raises ValueError when the inputs do not fit,
    FloatingPointError when a term is not finite.
    """
    config, perception = params.mask, root / "models" / "perception"
    codebook, swap = root / "models" / "codebook", root / "models" / "swap" / variant
    kind, repetition = variant_of(variant)
    seed = params.seed + repetition
    engine = Engine(params.engine, seed, config.batch)
    check_averages(engine, "mask.ema", config.ema)
    source = open_training_faces(root, *ROLES)
    parents = {"codebook": codebook, "swap": swap, "perception": perception}
    with Run(
        root,
        ("mask", variant, fingerprint),
        engine=engine,
        training=config,
        params=params,
        parents={k: v / "card.json" for k, v in parents.items()},
    ) as run:
        place = root / "models" / "mask" / variant
        if run.finished(place):
            return
        order = order_faces(source.faces.shards, config.order, seed)
        pairing = Pairing(order, source.faces.identity, config.pairs, seed)
        person = config.weights.identity_of == "person"
        feed = PairFeed(source, pairing, parsing=True, person=person, forehead=config.forehead)

        vqgan = engine.frozen(load_vqgan(codebook))
        source.check(vqgan.config)
        fusion = engine.frozen(load_fusion(swap, vqgan))
        judges = load_judges(engine, perception, config.weights)
        held_out = HeldOut(engine, root, source.faces, config.validation)
        critics = load_critics(engine, perception, **by_role(judges))
        with engine.initialising("stage 3"):
            generator = engine.place(MaskGenerator(params.mask_generator, vqgan.config))

        optimizer = engine.adam(generator, config.lr, config.betas, config.weight_decay)
        state = TrainState({"mask": generator}, {"mask": optimizer})
        kept = given_out(state, generator, config.ema)
        run.count(flops_of(mask_step(generator, vqgan, fusion)))
        run.resume(state)
        trained, optimizer = engine.prepare(generator, optimizer, config.clip)
        stream = run.batches(state, feed)

        while state.position < config.samples:
            begin = state.position
            state.position, pairs = run.next(stream)
            supervised = begin < config.supervised
            lr = config.lr_at(begin) if supervised or config.unsupervised_lr is None else config.unsupervised_lr
            set_lr(optimizer, lr)

            with engine.autocast():
                naive, target, from_target, from_swap = swap_with_features(
                    vqgan, fusion, to_float(pairs.image_a), to_float(pairs.image_b)
                )
                parsing = pairs.parsing_b if fusion.one_sided else torch.cat([pairs.parsing_b, pairs.parsing_a])
                own = pairs.parsing_a if fusion.one_sided else torch.cat([pairs.parsing_a, pairs.parsing_b])
                truth = soften(wanted_mask(own, parsing, config.mouth), config.soften)
                mask = trained(from_target, from_swap).float()

                # Eq. (15), then Eq. (9) on the blended pictures of Eq. (14); an anchor and hinges against collapse
                terms = {"mask": mask_loss(mask, truth)}
                if supervised:
                    loss = terms["mask"]
                    if config.cross_entropy and begin < config.cross_entropy_share * config.supervised:
                        with torch.autocast(engine.device.type, enabled=False):
                            terms["cross_entropy"] = F.binary_cross_entropy(mask.clamp(1e-6, 1 - 1e-6), truth)
                        loss = loss + config.cross_entropy * terms["cross_entropy"]
                else:
                    blended = blend(naive, target, mask)
                    halves = (blended, None) if fusion.one_sided else blended.chunk(2)
                    swapped = picture_terms(judges, config.weights, pairs, Pictures(*halves))
                    terms |= swapped
                    terms["coverage"] = coverage_loss(mask, *config.coverage_range)
                    terms["binarisation"] = binarisation_loss(mask)
                    loss = config.weights.total(swapped) + config.anchor * terms["mask"]
                    loss = loss + config.coverage * terms["coverage"] + config.binarisation * terms["binarisation"]
                terms["total"] = loss
            if not engine.step(loss, trained, optimizer, guard=config.skip_nonfinite > 0):
                run.skip(state)
                continue

            state.step += engine.complete
            if config.ema and engine.complete:
                average_(kept, generator, config.ema)
            with torch.no_grad():
                statistics = mask_statistics(mask, truth)
            run.add(state, terms | {f"mask_{name}": value for name, value in statistics._asdict().items()})
            if run.due(state, config.log_every):
                run.alarm(*mask_alarms(run.log(state)))
            if run.due(state, config.validate_every):
                masked = [mask_swap(vqgan, fusion, kept, a, b) for a, b in held_out.parts()]
                metrics = validate_mask(engine, critics, held_out, masked, config.forehead, config.mouth)
                run.validated(state, metrics, kept)
                if engine.main:
                    run.picture(state, "mask", show(held_out, masked, config.pictures))
            if run.due(state, config.checkpoint_every):
                run.checkpoint(state)
            run.stop_if_asked(state)
        stream.close()
        run.finish(
            place,
            kept,
            {
                "kind": "mask",
                "config": {
                    "variant": kind,
                    "mask_generator": params.mask_generator.model_dump(mode="json"),
                    "mask": config.model_dump(mode="json"),
                },
                "seed": seed,
                "licences": source.faces.licences,
                "data": source.faces.hashes,
                "intended_use": "research on face swapping; blends a swapped face into its target",
            },
        )


@torch.no_grad()
def mask_swap(vqgan: VQGAN, fusion: Fusion, generator: MaskGenerator, a: Image, b: Image) -> tuple[Image, Mask]:
    """The naive swaps of a onto b, and their masks."""
    naive, _, from_target, from_swap = swap_with_features(vqgan, fusion, a, b)
    n = len(b)
    return naive[:n], generator([x[:n] for x in from_target], [x[:n] for x in from_swap]).float()


def show(held_out: HeldOut, masked: Sequence[tuple[Image, Mask]], count: int) -> Picture:
    """A grid of pairs: source, target, naive swap, mask, blend."""
    naive, mask = (torch.cat(parts)[:count] for parts in zip(*masked, strict=True))
    a, b = held_out.image[:count], held_out.target[:count]
    rows = [a, b, naive, mask * 2 - 1, blend(naive, b, mask)]
    return grid(rows, ["source a", "target b", "naive swap", "mask", "blended"])
