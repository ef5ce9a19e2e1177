"""Stage 2: the fusion module and the code selector (METHOD §B, §C). `train_swap` is the whole training."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from codeswap.data.faces import to_float
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pairs import PairConfig, Pairing
from codeswap.data.pictures import grid
from codeswap.losses.image import discriminator_loss, generator_loss
from codeswap.losses.swap import cycle_loss
from codeswap.models.codeswap import decoder_of, fill_fusion, load_vqgan, new_fusion
from codeswap.models.discriminator import DiscriminatorConfig, new_discriminator
from codeswap.models.fusion import FusionConfig, second_pass
from codeswap.models.store import CARD, read_model
from codeswap.models.vqgan import feature_map, tokens
from codeswap.train.alarms import discriminator_alarms, swap_alarms
from codeswap.train.averaging import average_, check_averages, given_out
from codeswap.train.cost import flops_of, swap_step
from codeswap.train.diversity import glance
from codeswap.train.engine import Engine, held
from codeswap.train.feeds import PairFeed, Whose, open_training_faces
from codeswap.train.latents import LATENTS, Latents
from codeswap.train.machine import EngineConfig
from codeswap.train.objective import Pictures, SwapWeights, by_role, calibrate, load_judges, picture_terms
from codeswap.train.run import Run
from codeswap.train.schedule import TrainingConfig, set_lr
from codeswap.train.state import TrainState
from codeswap.train.triplets import TripletConfig, make_triplets, triplet_loss, triplet_terms
from codeswap.train.truth import TruthConfig, dress, truth_terms
from codeswap.train.validation import HeldOut, load_critics, validate_swap
from codeswap.types import Config, SwappedCodes, variant_of

ROLES = ("identity_train", "expression_train", "pose")
CALIBRATION_PAIRS = 256


class LaterWeights(Config):
    """Weights that take over while a training goes on: what gets Stage 2 off its start is not what finishes it."""

    begins: PositiveInt  # the first sample that they weigh
    weights: SwapWeights


class SwapTraining(TrainingConfig):
    """Stage 2. The defaults are the paper's (batch 32 pairs, 600,000 steps, Eq. 9); what is off-paper is off."""

    samples: PositiveInt = 19_200_000  # pairs
    batch: PositiveInt = 32
    order: OrderConfig = OrderConfig()
    pairs: PairConfig = PairConfig()
    weights: SwapWeights = SwapWeights()
    triplets: TripletConfig = TripletConfig()
    truth: TruthConfig | None = None
    both_directions: bool = False  # no_symmetry: train on (a, b) and (b, a), as many swapped faces as the others
    # off-paper
    start_from: Path | None = None  # a trained swap model (folder, relative to the project) to train on from
    forehead: Whose = "source"  # the target's: what lies above the brows counts as background
    own_decoder: bool = False  # Stage 1's decoder is copied and learns with the fusion
    optimizer: Literal["adam", "muon"] = "adam"  # muon: for the fusion layers' linear maps (train/muon.py)
    later: LaterWeights | None = None
    identity_moves: NonNegativeInt = 0  # pixels: identity is judged mirrored and moved at random (train/diversity.py)
    cycle_share: float = Field(1.0, gt=0, le=1)  # of the batch that takes the second pass
    adversarial: NonNegativeFloat = 0.0  # weight of a patch discriminator on the target faces and the swaps
    adversarial_from: NonNegativeInt = 0
    discriminator_lr: PositiveFloat = 1e-4
    cache_latents: bool = False  # every face is encoded once, before the first step (train/latents.py)
    recompute_from: PositiveInt | None = None  # decoder levels of at least this size are recomputed, to save memory

    @model_validator(mode="after")
    def _later_fits(self) -> "SwapTraining":
        if self.later is not None and self.later.weights.identity_of != self.weights.identity_of:
            raise ValueError("weights.identity_of and later.weights.identity_of differ: what is wanted cannot change")
        return self

    def weights_at(self, position: int) -> SwapWeights:
        """Eq. 9's weights at `position`."""
        return self.weights if self.later is None or position < self.later.begins else self.later.weights

    @property
    def ever(self) -> SwapWeights:
        """Of every term its largest weight: above 0 where a network is needed at some time."""
        if self.later is None:
            return self.weights
        one, other = self.weights.model_dump(), self.later.weights.model_dump()
        return SwapWeights(**one | {k: max(v, other[k]) for k, v in one.items() if isinstance(v, float)})


class SwapParams(Config):
    """All that the stage reads of params.yaml."""

    seed: int
    fusion: FusionConfig
    discriminator: DiscriminatorConfig
    swap: SwapTraining
    engine: EngineConfig


def train_swap(params: SwapParams, variant: str, root: Path, fingerprint: str) -> None:
    """Trains Stage 2 of a variant of Table 3 and writes `models/swap/<variant>`; called again, it resumes.

    Raises ValueError when the inputs do not fit, FloatingPointError when a term is not finite.
    """
    config, perception, codebook = params.swap, root / "models" / "perception", root / "models" / "codebook"
    kind, repetition = variant_of(variant)
    seed = params.seed + repetition
    engine = Engine(params.engine, seed, config.batch)
    check_averages(engine, "swap.ema", config.ema)
    if config.own_decoder and engine.zero_stage == 3:
        raise ValueError("swap.own_decoder needs whole weights, which ZeRO-3 has cut into pieces: use ZeRO-2 or DDP")
    source = open_training_faces(root, *ROLES)
    parents = {"codebook": codebook / "card.json", "perception": perception / "card.json"}
    if config.start_from is not None:
        parents["start"] = read_model(root / config.start_from, "swap").folder / CARD
    with Run(
        root, ("swap", variant, fingerprint), engine=engine, training=config, params=params, parents=parents
    ) as run:
        place = root / "models" / "swap" / variant
        if run.finished(place):
            return
        order = order_faces(source.faces.shards, config.order, seed)
        pairing = Pairing(order, source.faces.identity, config.pairs, seed)
        triplets = round(config.triplets.share * engine.micro_batch / engine.world)
        if triplets and not pairing.siblings and config.triplets.alone == "skip":
            raise ValueError(
                "swap.triplets needs two pictures of a person: use a labelled data set, set triplets.alone to "
                "another_look, or share to 0"
            )
        different = config.pairs.model_copy(update={"same": 0.0, "flip": False})
        among = Pairing(order.rekeyed("calibration"), source.faces.identity, different, seed)

        vqgan = engine.frozen(load_vqgan(codebook))
        source.check(vqgan.config)
        vqgan.recompute_from_(config.recompute_from)
        codes = vqgan.codebook.weight
        dressing = config.truth is not None and config.truth.of == "dressed"
        feed = PairFeed(
            source,
            pairing,
            parsing=triplets > 0 or config.ever.background > 0 or dressing,
            siblings=triplets,
            person=config.weights.identity_of == "person",
            truth=config.truth is not None and not dressing,
            forehead=config.forehead,
            latents=Latents(engine, vqgan, source.faces, run.folder / LATENTS) if config.cache_latents else None,
        )
        on_features = config.adversarial > 0 and params.discriminator.frozen_features
        told_features = config.truth is not None and config.truth.perceptual > 0
        judges = load_judges(engine, perception, config.ever, perceptual=on_features or told_features)
        calibration = calibrate(
            engine, judges, config.weights, PairFeed(source, among, parsing=False)(np.arange(CALIBRATION_PAIRS))
        )
        with engine.initialising("stage 2"):
            fusion = new_fusion(params.fusion, kind, vqgan, config.own_decoder)
            if config.start_from is not None:
                fill_fusion(fusion, root / config.start_from, codebook, vqgan)
            discriminator = None
            if config.adversarial:
                discriminator, look = new_discriminator(
                    params.discriminator, judges.perceptual, vqgan.config.image_size
                )
        engine.place(fusion)
        decoder = decoder_of(vqgan, fusion)
        held_out = HeldOut(engine, root, source.faces, config.validation)
        critics = load_critics(engine, perception, **by_role(judges))

        if config.optimizer == "muon":
            optimizer = engine.muon(fusion, fusion.layers, config.lr, config.betas, config.weight_decay)
        else:
            optimizer = engine.adam(fusion, config.lr, config.betas, config.weight_decay)
        state = TrainState({"fusion": fusion}, {"fusion": optimizer})
        kept = given_out(state, fusion, config.ema)
        if discriminator is not None:
            engine.place(discriminator)
            opt_d = engine.adam(discriminator, config.discriminator_lr, (0.5, 0.9))
            state.modules["discriminator"], state.optimizers["discriminator"] = discriminator, opt_d
        run.count(flops_of(swap_step(config, vqgan, fusion, discriminator)))
        run.resume(state)
        trained, optimizer = engine.prepare(fusion, optimizer, config.clip)
        if discriminator is not None:
            judge, opt_d = engine.prepare(discriminator, opt_d)
        stream = run.batches(state, feed)

        while state.position < config.samples:
            begin = state.position
            state.position, pairs = run.next(stream)
            if dressing:
                pairs = dress(pairs)
            if fusion.one_sided and config.both_directions:
                pairs = pairs.in_both_directions()
            set_lr(optimizer, config.lr_at(begin))
            noise = engine.seed_for(state.step, "gumbel", apart=True) if kind == "gumbel" else None
            playing = discriminator is not None and begin >= config.adversarial_from

            with engine.autocast():
                if config.cache_latents:
                    z_a, z_b = pairs.latent_a, pairs.latent_b
                else:
                    with torch.no_grad():
                        z_a, z_b = (tokens(vqgan.encode(to_float(image))) for image in (pairs.image_a, pairs.image_b))
                first: SwappedCodes = trained(z_a, z_b, codes, noise)
                both = Pictures(first.z_q_ab, first.z_q_ba)
                swapped = Pictures(*both.pair(decoder.decode(feature_map(both.stacked)).float()))
                maps = judges.perceptual(swapped.stacked) if told_features or (playing and on_features) else None

                # Eq. (9): L_recon + 1.5 L_id + 0.002 L_per + 0.5 L_exp + L_cyc
                weights = config.weights_at(begin)
                most = config.identity_moves
                glances = glance(engine, most, swapped.stacked, state.step) if most else None
                terms = picture_terms(judges, weights, pairs, swapped, maps, glances)
                loss = weights.total(terms)
                if weights.cycle:
                    n = max(1, round(config.cycle_share * len(z_a)))
                    part = SwappedCodes(*(None if x is None else x[-n:] for x in first))
                    z_aba, z_bab = second_pass(trained, part, z_b[-n:], codes, None if noise is None else noise + 1)
                    terms["cycle"] = cycle_loss(z_bab.float(), z_b[-n:], z_aba, z_a[-n:])
                    loss = loss + weights.cycle * terms["cycle"]
                if config.truth is not None:
                    terms |= (known := truth_terms(config.truth, vqgan, pairs, swapped, both, judges.perceptual, maps))
                    loss = loss + config.truth.total(known)
                if triplets:
                    third = make_triplets(engine, config.triplets, pairs, swapped.ab, state.step)
                    with torch.no_grad():
                        z_s, z_t = (tokens(vqgan.encode(image)) for image in (third.source, third.target))
                    z_answer = trained(z_s, z_t, codes, noise).z_q_ab
                    picture = decoder.decode(feature_map(z_answer)).float()
                    known = triplet_terms(config.triplets, third, picture, z_answer, z_b[:triplets], judges.identity)
                    terms |= known
                    loss = loss + triplet_loss(config.triplets, known)
                if playing:
                    with held(discriminator):
                        terms["adversarial"] = generator_loss(discriminator(maps if on_features else swapped.stacked))
                    loss = loss + config.adversarial * terms["adversarial"]
                terms["total"] = loss
            if not engine.step(loss, trained, optimizer, guard=config.skip_nonfinite > 0):
                run.skip(state)
                continue

            if playing:
                with engine.autocast():
                    faces = pairs.image_b if swapped.ba is None else torch.cat([pairs.image_b, pairs.image_a])
                    shown = [part.detach() for part in maps] if on_features else swapped.stacked.detach()
                    real, fake = (judge(x).float() for x in (look(to_float(faces)), shown))
                    terms["discriminator"] = discriminator_loss(real, fake)
                engine.step(terms["discriminator"], judge, opt_d)

            state.step += engine.complete
            if config.ema and engine.complete:
                average_(kept, fusion, config.ema)
            run.add(state, terms)
            if run.due(state, config.log_every):
                run.alarm(*discriminator_alarms(run.log(state)))
            if run.due(state, config.validate_every):
                metrics, swaps = validate_swap(engine, critics, held_out, vqgan, kept)
                run.alarm(*swap_alarms(config, state.position, metrics))
                run.validated(state, metrics, kept)
                if engine.main:
                    rows = [x[: config.pictures] for x in (held_out.image, held_out.target, swaps)]
                    run.picture(state, "swap", grid(rows, ["source a", "target b", "a's identity on b"]))
            if run.due(state, config.checkpoint_every):
                run.checkpoint(state)
            run.stop_if_asked(state)
        stream.close()
        run.finish(
            place,
            kept,
            {
                "kind": "swap",
                "config": {
                    "variant": kind,
                    "fusion": params.fusion.model_dump(mode="json"),
                    "swap": config.model_dump(mode="json"),
                },
                "calibration": calibration._asdict(),
                "seed": seed,
                "licences": source.faces.licences,
                "data": source.faces.hashes,
                "intended_use": "research on face swapping; swaps the codes of two faces",
            },
        )
