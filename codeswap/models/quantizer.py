"""The prior codebook Q: nearest and soft quantisation, its two ways of learning, and what is known of its use."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from codeswap.types import Codes, Config, Flags, Latent, Scalar

ROWS_AT_ONCE = 4_096  # bounds the table: 4,096 x 1,024 codes in fp32 = 16 MiB, which a processor's cache still likes


class QuantizerConfig(Config):
    """The codebook and Eq. 4. The defaults are the paper's; `rotation`, `index`, `kmeans`, `ema`, `linear`, restarts,
    soft shares and `normalised` are off-paper.

    `passes`: how the encoder learns through the choice of a code. `copy` is the paper's "gradient replication";
    `rotation` turns and scales the gradient as the code lies to the token (Fifty et al., arXiv 2410.06424); `index`
    passes it through the softmax of the distances, to every code too (IBQ, Shi et al., arXiv 2412.02692).
    `update`: by the gradient of Eq. 4; by moving averages (`ema`); or `linear`, a fixed random basis whose linear map
    is learnt, so that every code moves with every other (SimVQ, Zhu et al., arXiv 2411.02038).
    `normalised`: tokens and codes have unit length, so that the nearest code is the one of largest cosine (ViT-VQGAN,
    Yu et al., arXiv 2110.04627; their low dimension is `vqgan.embed_dim` with `quant_conv`).
    """

    n_codes: PositiveInt = 1024
    beta: NonNegativeFloat = 0.25
    beta_on: Literal["codebook", "commitment"] = "codebook"  # Eq. 4 as printed; VQ-VAE puts it on the commitment term
    norm: Literal["mse", "l2norm"] = "mse"  # Eq. 4 prints an unsquared norm, the cited code takes the mean square
    init: Literal["uniform", "kmeans"] = "uniform"
    passes: Literal["copy", "rotation", "index"] = "copy"
    update: Literal["gradient", "ema", "linear"] = "gradient"
    ema_decay: float = Field(0.99, ge=0, lt=1)
    restart_below: float = Field(0.0, ge=0, lt=1)  # a code used less than this share of the mean is dead; 0 = never
    normalised: bool = False
    soft_share: float = Field(0.0, ge=0, le=1)  # share of training samples decoded from soft codes
    continuous_share: float = Field(0.0, ge=0, le=1)  # share decoded without quantisation
    soft_temperature: tuple[PositiveFloat, PositiveFloat] = (0.3, 1.8)  # uniform range, in mean nearest distances

    @model_validator(mode="after")
    def _shares_and_range(self) -> "QuantizerConfig":
        if self.soft_share + self.continuous_share > 1:
            raise ValueError(f"soft_share + continuous_share = {self.soft_share + self.continuous_share}, at most 1")
        if self.update == "linear" and self.restart_below:
            raise ValueError("update: linear has no codes of their own that could restart: set restart_below to 0")
        if self.soft_temperature[0] > self.soft_temperature[1]:
            raise ValueError(f"soft_temperature={self.soft_temperature}: expected (low, high)")
        return self


class Quantised(NamedTuple):
    """`passed` has the value of `z_q` and the gradient of z; `z_q` carries the gradient of the codes themselves."""

    passed: Latent
    z_q: Latent
    codes: Codes


class Assignments(NamedTuple):
    """What a batch tells the codebook, as weighted sums: add them over ranks before using them."""

    count: Float[Tensor, " k"]
    total: Float[Tensor, "k d"]
    distance: Scalar


class DecodingMix(NamedTuple):
    """How each training sample is decoded: continuous, soft at a temperature > 0, or nearest (temperature 0)."""

    temperature: Float[Tensor, " b"]
    continuous: Flags


def decoding_mix(config: QuantizerConfig, batch: int, generator: torch.Generator) -> DecodingMix:
    """Draws the kinds of one batch. A decoder that has also seen soft codes decodes Stage 2's soft mixtures far better
    (prototype: expression error through the codebook .49 -> .13, 27.5 against 26.4 dB)."""
    kind, where = torch.rand(2, batch, generator=generator, device=generator.device)
    low, high = config.soft_temperature
    continuous = kind < config.continuous_share
    soft = ~continuous & (kind < config.continuous_share + config.soft_share)
    return DecodingMix(torch.where(soft, low + (high - low) * where, 0.0), continuous)


def _rotated(z: Latent, z_q: Latent) -> Latent:
    """`z_q` as z times a constant rotation and scale: its gradient reaches z turned back, angles kept."""
    e, q = (F.normalize(x.detach().float(), dim=-1, eps=1e-6) for x in (z, z_q))
    half = F.normalize(e + q, dim=-1, eps=1e-6)
    scale = z_q.float().norm(dim=-1, keepdim=True) / z.detach().float().norm(dim=-1, keepdim=True).clamp(min=1e-6)
    turned = z - 2 * half * (half * z).sum(-1, keepdim=True) + 2 * q * (e * z).sum(-1, keepdim=True)
    return scale * turned


def perplexity(counts: Float[Tensor, " k"]) -> Scalar:
    """exp of the entropy of the code histogram: the number of codes in effective use, 1..k (0 for no counts)."""
    share = counts / counts.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp() * (counts.sum() > 0)


def codes_used(counts: Float[Tensor, " k"]) -> Scalar:
    """How many codes were chosen at least once."""
    return (counts > 0).sum().to(torch.float32)


class Codebook(nn.Module):
    """N codes of width d. All state (codes, moving averages, usage) lies in parameters and buffers.

    `weight` holds the codes as one [N, d] matrix however they learn: trained by gradient; with `update: ema` moved by
    `ema_update_`, with `linear` written by `refresh_` after every step, and frozen for optimisers in both.
    Methods ending in `_` change state and take sums or vectors that the caller has already made equal on all ranks.
    """

    def __init__(self, config: QuantizerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        bound = 1 / config.n_codes
        weight = torch.empty(config.n_codes, width).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight, requires_grad=config.update == "gradient")
        self.register_buffer("usage", torch.zeros(config.n_codes))  # decayed tokens per code and batch
        self.register_buffer("nearest_distance", torch.ones(()))  # running mean of min_k ||z - q_k||^2
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64))
        if config.update == "ema":
            self.register_buffer("ema_count", torch.zeros(config.n_codes))
            self.register_buffer("ema_total", torch.zeros(config.n_codes, width))
        if config.update == "linear":
            self.register_buffer("basis", torch.randn(config.n_codes, width) * width**-0.5)
            self.turn = nn.Parameter(torch.eye(width))
        self.refresh_()

    def current(self) -> Float[Tensor, "k d"]:
        """The codes with the gradient of what they learn by; `weight` has their values."""
        codes = self.basis @ self.turn if self.config.update == "linear" else self.weight
        return F.normalize(codes, dim=-1) if self.config.normalised else codes

    @torch.no_grad()
    def refresh_(self) -> None:
        """Writes what a step has learnt to `weight`."""
        if self.config.update == "linear" or self.config.normalised:
            self.weight.copy_(self.current())

    def distances(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Squared Euclidean distances ||z - q_k||^2, fp32 also in a mixed-precision region (torch.cdist is kept in
        fp32 there, where a product of matrices would be rounded to 8 bits and nearest codes would flip)."""
        z, codes = z.float(), self.weight.float()
        return torch.cdist(z.reshape(-1, z.shape[-1]), codes).square().view(*z.shape[:-1], len(codes))

    @torch.no_grad()
    def nearest(self, z: Latent) -> Codes:
        """Eq. (1): argmin_k ||z - q_k||_2 of every token, fp32 also in a mixed-precision region.

        Of ||q_k||^2 / 2 - z q_k, which has the same order: one product, no root. Holds at most ROWS_AT_ONCE rows of it.
        """
        codes = self.weight.float()
        half_norm = codes.square().sum(dim=-1) / 2
        with torch.autocast("cuda" if z.is_cuda else "cpu", enabled=False):  # `meta` knows no autocast
            rows = z.float().reshape(-1, z.shape[-1]).split(ROWS_AT_ONCE)
            found = [torch.addmm(half_norm, part, codes.T, alpha=-1).argmin(dim=-1) for part in rows]
        return torch.cat(found).view(z.shape[:-1])

    def lookup(self, codes: Codes) -> Latent:
        """The code vectors; gradients reach what the codes learn by."""
        return F.embedding(codes, self.current())

    def straight_through(self, z: Latent) -> Quantised:
        """Nearest codes, and how their gradient reaches z: by default the paper's "gradient replication"."""
        codes = self.nearest(z)
        z_q = self.lookup(codes)
        match self.config.passes:
            case "copy":
                passed = z + (z_q - z).detach()
            case "rotation":
                passed = _rotated(z, z_q.detach())
            case "index":
                soft = (-self.distances(z) / self.nearest_distance).softmax(dim=-1)
                passed = z_q + (soft - soft.detach()) @ self.current()
        return Quantised(passed, z_q, codes)

    def soft(self, z: Latent, temperature: Float[Tensor, " b"] | float) -> Latent:
        """softmax(-||z - q||^2 / (temperature * running mean nearest distance)) Q; temperature per sample or for all.

        Temperatures must be > 0. Gradients reach z and what the codes learn by.
        """
        scale = torch.as_tensor(temperature, device=z.device, dtype=torch.float32) * self.nearest_distance
        if scale.ndim:
            scale = scale[:, None, None]
        return (-self.distances(z) / scale).softmax(dim=-1) @ self.current()

    def mixed(self, z: Latent, quantised: Quantised, mix: DecodingMix) -> Latent:
        """The decoder's training input: every sample quantised in its own way (see `DecodingMix`)."""
        decoded = torch.where(mix.continuous[:, None, None], z, quantised.passed)
        rows = (mix.temperature > 0).nonzero()[:, 0]
        return decoded.index_copy(0, rows, self.soft(z[rows], mix.temperature[rows]).to(decoded.dtype))

    @torch.no_grad()
    def assignments(self, z: Latent, codes: Codes, weights: Float[Tensor, "b n"] | None = None) -> Assignments:
        """Weighted sums of this rank's tokens per code (weight 1 each by default)."""
        vectors, index = z.detach().float().reshape(-1, z.shape[-1]), codes.reshape(-1)
        weight = torch.ones_like(vectors[:, 0]) if weights is None else weights.detach().float().reshape(-1)
        count = torch.zeros_like(self.usage).index_add_(0, index, weight)
        total = torch.zeros_like(self.weight).float().index_add_(0, index, vectors * weight[:, None])
        distance = ((vectors - self.weight[index]).square().sum(-1) * weight).sum()
        return Assignments(count, total, distance)

    @torch.no_grad()
    def observe_(self, sums: Assignments) -> None:
        """Updates usage and the running mean nearest distance; to be called once per step whatever `update` says."""
        mean = sums.distance / sums.count.sum().clamp(min=1e-12)
        new = torch.where(self.observed > 0, 1 - self.config.ema_decay, 1.0)  # no branch: it would wait for the device
        self.nearest_distance.lerp_(mean.to(self.nearest_distance), new)
        self.usage.lerp_(sums.count, new)
        self.observed += 1

    @torch.no_grad()
    def ema_update_(self, sums: Assignments) -> None:
        """Moves every code towards the moving average of the tokens that chose it (VQ-VAE appendix A.1)."""
        if self.config.update != "ema":
            raise ValueError(f"ema_update_ needs `quantizer.update: ema`, found {self.config.update!r}")
        first = ~self.ema_count.any()  # then the present codes count as one average batch
        self.ema_count.copy_(torch.where(first, sums.count.mean(), self.ema_count))
        self.ema_total.copy_(torch.where(first, self.weight * self.ema_count[:, None], self.ema_total))
        self.ema_count.lerp_(sums.count, 1 - self.config.ema_decay)
        self.ema_total.lerp_(sums.total, 1 - self.config.ema_decay)
        moved = self.ema_total / self.ema_count.clamp(min=1e-6)[:, None]
        self.weight.copy_(torch.where(self.ema_count[:, None] > 1e-6, moved, self.weight))

    @torch.no_grad()
    def start_averages_(self) -> None:
        """Moving averages go on from the codes as they are, which `codebook.ema` may have averaged themselves."""
        if self.config.update == "ema":
            self.ema_total.copy_(self.weight * self.ema_count[:, None])

    @torch.no_grad()
    def restart_dead_(self, vectors: Float[Tensor, "r d"]) -> int:
        """Replaces codes used less than `restart_below` of the mean by the first of `vectors`; returns how many.

        A restarted code gets the mean usage, so it has time to be found before it can be called dead again.
        """
        dead = (self.usage < self.config.restart_below * self.usage.mean()).nonzero()[: len(vectors), 0]
        mean = self.usage.mean()
        self.weight[dead] = vectors[: len(dead)].to(self.weight)
        self.usage[dead] = mean
        if self.config.update == "ema":
            count = self.ema_count.mean()
            self.ema_count[dead] = count
            self.ema_total[dead] = self.weight[dead] * count
        return len(dead)

    @torch.no_grad()
    def kmeans_(
        self,
        vectors: Float[Tensor, "t d"],
        weights: Float[Tensor, " t"] | None,
        generator: torch.Generator,
        iterations: int = 8,
    ) -> None:
        """Sets the codes to weighted k-means centres of `vectors`; an empty cluster restarts at a drawn vector.

        Raises ValueError when there are fewer vectors of positive weight than codes.
        """
        vectors = vectors.float()
        weight = torch.ones_like(vectors[:, 0]) if weights is None else weights.float()
        drawable, k = int((weight > 0).sum()), len(self.weight)
        if drawable < k:
            raise ValueError(f"kmeans_ got {drawable} vectors of positive weight for {k} codes: give it more images")
        self.weight.copy_(vectors[torch.multinomial(weight, k, generator=generator)])
        self._settle_()
        sums = self.assignments(vectors[None], self.nearest(vectors[None]), weight[None])
        for _ in range(iterations):
            spare = vectors[torch.multinomial(weight, k, generator=generator)]
            centre = sums.total / sums.count.clamp(min=1e-12)[:, None]
            self.weight.copy_(torch.where(sums.count[:, None] > 0, centre, spare))
            self._settle_()
            sums = self.assignments(vectors[None], self.nearest(vectors[None]), weight[None])
        self.nearest_distance.copy_(sums.distance / sums.count.sum())
        if self.config.update == "ema":
            self.ema_count.copy_(sums.count.clamp(min=1e-3))
            self.start_averages_()

    def _settle_(self) -> None:
        """After `weight` was set from outside: a basis takes its place."""
        if self.config.update == "linear":
            self.basis.copy_(self.weight)
            self.turn.copy_(torch.eye(len(self.turn)))
        self.refresh_()
