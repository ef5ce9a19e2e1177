"""Stage 1: the VQGAN whose codebook is the prior (METHOD §A). `train_codebook` is the whole training."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from codeswap.data.faces import to_float
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pictures import grid
from codeswap.losses.codebook import codebook_loss
from codeswap.losses.image import (
    adaptive_weight,
    discriminator_loss,
    feature_mse,
    generator_loss,
    gradient_loss,
    l1_loss,
    last_layer_gradient_from_image,
    lpips_loss,
)
from codeswap.models.discriminator import DiscriminatorConfig, new_discriminator
from codeswap.models.quantizer import (
    DecodingMix,
    QuantizerConfig,
    codes_used,
    decoding_mix,
    perplexity,
)
from codeswap.models.store import CARD, read_model
from codeswap.models.vqgan import VQGAN, VQGANConfig, feature_map, tokens
from codeswap.perception.roles import load
from codeswap.train.alarms import codebook_alarms
from codeswap.train.averaging import average_, given_out
from codeswap.train.codes import fill_vqgan, learn_codes, same_codes_as, start_codes
from codeswap.train.cost import codebook_step, flops_of
from codeswap.train.engine import Engine, held
from codeswap.train.feeds import FaceFeed, open_training_faces, pixel_weights
from codeswap.train.machine import EngineConfig
from codeswap.train.run import Run
from codeswap.train.schedule import TrainingConfig, set_lr
from codeswap.train.state import TrainState
from codeswap.train.validation import HeldOut, load_critics, validate_codebook
from codeswap.types import Config, Image

ROLES = ("identity_train", "expression_train")


class CodebookTraining(TrainingConfig):
    """Stage 1. The defaults are the paper's (batch 32, 1,000,000 steps); what is off-paper is off."""

    samples: PositiveInt = 32_000_000
    batch: PositiveInt = 32
    betas: tuple[float, float] = (0.5, 0.9)  # taming
    flip: bool = True
    order: OrderConfig = OrderConfig()
    # Eq. 2
    perceptual: NonNegativeFloat = 1.0
    perceptual_form: Literal["lpips", "mse"] = "lpips"
    code: NonNegativeFloat = 1.0
    adversarial: NonNegativeFloat = 0.8  # times the adaptive weight
    adversarial_from: NonNegativeInt = 960_000  # samples: 30,000 steps
    adversarial_form: Literal["hinge", "vanilla"] = "hinge"
    adaptive_maximum: PositiveFloat = 1e4
    # off-paper
    start_from: Path | None = None  # a trained codebook model (folder, relative to the project) to train on from
    decoder_only: bool = False  # with start_from: its encoder and codes stay, so swap models over it can train on
    gradient: NonNegativeFloat = 0.0  # L1 of neighbouring pixels' differences
    identity: NonNegativeFloat = 0.0  # 1 - cosine of training embeddings
    expression: NonNegativeFloat = 0.0  # mean squared difference of expression vectors
    skin_weight: NonNegativeFloat = 0.0  # L1, its gradient, codes and their loss weigh skin by 1 + this
    feature_weight: NonNegativeFloat = 0.0  # ... and brows, eyes, nose and mouth by 1 + this
    warm_up: NonNegativeInt = 0  # samples trained without codes
    warm_up_images: PositiveInt = 256  # from which codes and principal patches start
    restart_until: float = Field(0.8, ge=0, le=1)  # share of the samples in which dead codes restart
    restart_every: PositiveInt = 8  # steps
    recompute_from: PositiveInt | None = None  # levels of at least this size are recomputed, to save memory

    @model_validator(mode="after")
    def _start_fits(self) -> "CodebookTraining":
        if self.decoder_only and self.start_from is None:
            raise ValueError("decoder_only keeps the encoder and codes of a trained model: name it by start_from")
        if self.start_from is not None and self.warm_up:
            raise ValueError("warm_up trains without codes, and start_from brings some: set warm_up to 0")
        return self

    @property
    def weighs_regions(self) -> bool:
        return self.skin_weight > 0 or self.feature_weight > 0


class CodebookParams(Config):
    """All that the stage reads of params.yaml."""

    seed: int
    vqgan: VQGANConfig
    quantizer: QuantizerConfig
    discriminator: DiscriminatorConfig
    codebook: CodebookTraining
    engine: EngineConfig


def train_codebook(params: CodebookParams, root: Path, fingerprint: str) -> None:
    """Trains Stage 1 on the shards below `root` and writes `models/codebook`; called again, it resumes.

    Raises ValueError when the inputs do not fit, FloatingPointError when a term is not finite.
    """
    config, perception = params.codebook, root / "models" / "perception"
    engine = Engine(params.engine, params.seed, config.batch)
    if engine.zero_stage == 3:
        raise ValueError(
            "Stage 1 writes codes between its steps, where ZeRO-3 has cut them into pieces: launch it with ZeRO-1 or 2 "
            "(configs/accelerate/deepspeed_zero2.yaml), or without DeepSpeed"
        )
    source = open_training_faces(root, *ROLES)
    source.check(params.vqgan)
    parents = {"perception": perception / "card.json"}
    start = None if config.start_from is None else read_model(root / config.start_from, "codebook")
    if start is not None:
        parents["start"] = start.folder / CARD
    with Run(
        root, ("codebook", None, fingerprint), engine=engine, training=config, params=params, parents=parents
    ) as run:
        place = root / "models" / "codebook"
        if run.finished(place):
            return
        order = order_faces(source.faces.shards, config.order, params.seed)
        feed = FaceFeed(source, order, params.seed, config.flip, parsing=config.weighs_regions)
        first = FaceFeed(source, order.rekeyed("first codes"), params.seed, flip=False, parsing=config.weighs_regions)

        needed = config.perceptual > 0 or params.discriminator.frozen_features
        perceptual = engine.frozen(load(perception, "perceptual")) if needed else None
        with engine.initialising("stage 1"):
            vqgan = VQGAN(params.vqgan, params.quantizer)
            vqgan.recompute_from_(config.recompute_from)
            discriminator, look = new_discriminator(params.discriminator, perceptual, params.vqgan.image_size)
            engine.place(discriminator)
        if start is not None:
            fill_vqgan(vqgan, start)
            if config.decoder_only:
                vqgan.hold_codes_()
            else:
                vqgan.codebook.start_averages_()
        elif params.vqgan.linear_shortcut:
            images = first(torch.arange(config.warm_up_images).numpy()).image
            vqgan.start_from_principal_patches_(to_float(images))
        engine.place(vqgan)
        identity = engine.frozen(load(perception, "identity_train")) if config.identity else None
        expression = engine.frozen(load(perception, "expression_train")) if config.expression else None
        held_out = HeldOut(engine, root, source.faces, config.validation)
        critics = load_critics(
            engine, perception, perceptual=perceptual, identity_train=identity, expression_train=expression
        )

        opt_g = engine.adam(vqgan, config.lr, config.betas, config.weight_decay)
        opt_d = engine.adam(discriminator, config.lr, config.betas, config.weight_decay)
        state = TrainState({"vqgan": vqgan, "discriminator": discriminator}, {"g": opt_g, "d": opt_d})
        kept = given_out(state, vqgan, config.ema)
        run.count(flops_of(codebook_step(config, vqgan, discriminator)))
        run.resume(state)
        idle_codes = config.warm_up > 0 and vqgan.codebook.weight.requires_grad
        trained, opt_g = engine.prepare(vqgan, opt_g, config.clip, partly_used=idle_codes)
        judge, opt_d = engine.prepare(discriminator, opt_d, config.clip)
        codes_started = bool(vqgan.codebook.observed > 0) or params.quantizer.init == "uniform"
        stream = run.batches(state, feed)

        while state.position < config.samples:
            begin = state.position
            state.position, faces = run.next(stream)
            with_codes, adversarial = begin >= config.warm_up, begin >= config.adversarial_from and config.adversarial
            learns_codes = with_codes and not config.decoder_only
            x = to_float(faces.image)
            weights = None
            if config.weighs_regions:
                weights = pixel_weights(faces.parsing, config.skin_weight, config.feature_weight)
            token_weights = None if weights is None else F.avg_pool2d(weights, params.vqgan.downsample).flatten(1)
            if with_codes and not codes_started:
                regions = (config.skin_weight, config.feature_weight) if config.weighs_regions else None
                start_codes(engine, vqgan, first, config.warm_up_images, regions)
                codes_started = True
            for optimizer in (opt_g, opt_d):
                set_lr(optimizer, config.lr_at(begin))

            # Generator, Eq. (2): L_1 + L_per + lambda L_adv + L_code. The terms on the picture meet at a detached copy
            # of it, so that one backward pass through the decoder serves them all and lambda costs none.
            with engine.autocast():
                out = trained(x, _mix(engine, params, state.step, with_codes))
                picture = out.image.float().detach().requires_grad_()
                terms = {"l1": l1_loss(picture, x, weights)}
                if config.gradient:
                    terms["gradient"] = config.gradient * gradient_loss(picture, x, weights)
                if config.perceptual:
                    with torch.no_grad():
                        wanted = perceptual(x)
                    seen = perceptual(picture)
                    if config.perceptual_form == "lpips":  # with the learnt heads of a network that has them
                        distance = lpips_loss(seen, wanted, getattr(perceptual, "heads", None))
                    else:
                        distance = feature_mse(seen, wanted)
                    terms["perceptual"] = config.perceptual * distance
                if identity is not None:
                    cosine = F.cosine_similarity(identity(picture), faces.identity)
                    terms["identity"] = config.identity * (1 - cosine.mean())
                if expression is not None:
                    terms["expression"] = config.expression * F.mse_loss(expression(picture), faces.expression)
                (slope,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), picture)
                if adversarial:
                    with held(discriminator):
                        terms["adversarial"] = generator_loss(discriminator(look(picture)), config.adversarial_form)
                        (slope_adv,) = torch.autograd.grad(terms["adversarial"], picture)
                    at_last = [
                        engine.mean(last_layer_gradient_from_image(g, out.head, vqgan.last_layer))
                        for g in (slope, slope_adv)
                    ]
                    terms["lambda"] = config.adversarial * adaptive_weight(*at_last, maximum=config.adaptive_maximum)
                    slope = slope + terms["lambda"] * slope_adv
                loss = (out.image.float() * slope).sum()
                if learns_codes:
                    q = params.quantizer
                    terms["code"] = config.code * codebook_loss(
                        out.z.float(), out.z_q.float(), beta=q.beta, beta_on=q.beta_on, norm=q.norm,
                        weights=token_weights,
                    )  # fmt: skip
                    loss = loss + terms["code"]
            if not engine.step(loss, trained, opt_g, guard=config.skip_nonfinite > 0):
                run.skip(state)
                continue
            if learns_codes:
                restart = begin < config.restart_until * config.samples and state.step % config.restart_every == 0
                drawn = engine.generator(state.step, "restart") if restart else None
                terms["restarted"] = learn_codes(engine, vqgan.codebook, (out.z, out.codes, token_weights), drawn)

            # Discriminator, Eq. (3)
            if adversarial:
                with engine.autocast():
                    # apart: BatchNorm sees one kind
                    real, fake = (judge(look(image)).float() for image in (x, picture.detach()))
                    terms["discriminator"] = discriminator_loss(real, fake, config.adversarial_form)
                engine.step(terms["discriminator"], judge, opt_d)

            state.step += engine.complete
            if config.ema and engine.complete:
                average_(kept, vqgan, config.ema)
            run.add(state, terms)
            if run.due(state, config.log_every):
                usage = vqgan.codebook.usage
                used = {"codes_used": codes_used(usage).item(), "perplexity": perplexity(usage).item()}
                run.alarm(*codebook_alarms(config, state.position, run.log(state, used), params.quantizer.n_codes))
            if run.due(state, config.validate_every):
                run.validated(state, validate_codebook(engine, critics, held_out, kept), kept)
                if engine.main:
                    run.picture(state, "reconstruction", show(kept, held_out.image[: config.pictures]))
            if run.due(state, config.checkpoint_every):
                run.checkpoint(state)
            run.stop_if_asked(state)
        stream.close()
        groups = ("vqgan", "quantizer", "codebook", "discriminator")
        run.finish(
            place,
            kept,
            {
                "kind": "codebook",
                # whose encoder and codes these are, bit for bit: swap models over them can train on over this one
                "same_codes_as": same_codes_as(start) if config.decoder_only else [],
                "config": {name: getattr(params, name).model_dump(mode="json") for name in groups},
                "licences": source.faces.licences,
                "data": source.faces.hashes,
                "intended_use": "research on face swapping; prior codebook of Stage 2",
            },
        )


def _mix(engine: Engine, params: CodebookParams, step: int, with_codes: bool) -> DecodingMix | None:
    q, size = params.quantizer, engine.micro_batch
    if not with_codes:
        share = size // engine.world
        return DecodingMix(torch.zeros(share).to(engine.device), torch.ones(share, dtype=torch.bool).to(engine.device))
    if q.soft_share == q.continuous_share == 0:
        return None
    return DecodingMix(*(engine.rows(whole) for whole in decoding_mix(q, size, engine.generator(step, "decode mix"))))


@torch.no_grad()
def show(vqgan: VQGAN, x: Image) -> Picture:
    """A grid of faces and their reconstructions from nearest and from soft codes."""
    z, book = tokens(vqgan.encode(x)), vqgan.codebook
    nearest = vqgan.decode(feature_map(book.lookup(book.nearest(z))))
    soft = vqgan.decode(feature_map(book.soft(z, 1.0)))
    return grid([x, nearest, soft], ["input", "nearest codes", "soft codes"])
