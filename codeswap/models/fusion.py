"""Stage 2: the global fusion module and the code selector swap two faces' codes at once (METHOD §B, §C)."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from codeswap.models.attention import FusionLayer, Side, Sides
from codeswap.models.selector import (
    DirectOutput,
    DistanceSelector,
    LatentUpdate,
    LinearSelector,
    MLPSelector,
    gumbel_quantise,
    hard_quantise,
    soft_quantise,
)
from codeswap.models.vqgan import OwnDecoder
from codeswap.types import VARIANTS, Codebook, Config, Latent, SwappedCodes


class FusionConfig(Config):
    """Transformer and selector. The defaults are METHOD §B.1's: 13,536,864 parameters with 1,024 codes of width 512.

    Exchange of the two faces is exact for every `position`/`side` but `abs512` and `segment`.
    """

    layers: PositiveInt = 6
    width: PositiveInt = 512  # of a token inside; another value than the codes' adds a linear map at the entrance
    heads: PositiveInt = 8
    ffn: PositiveInt = 1024
    position: Literal["none", "shared", "abs512"] = "shared"
    position_into: Literal["attention", "stream"] = "attention"  # stream: added once to the tokens (prototype)
    position_std: NonNegativeFloat = 0.0
    side: Side = "rel_bias"
    windows: tuple[PositiveFloat | None, ...] = ()  # sigma in tokens of each head, repeated; null = free; () = all free
    selector: Literal["mlp", "linear"] = "mlp"
    selector_init: Literal["default", "distance"] = "default"
    selector_temperature: PositiveFloat = 1.0  # start of `distance`, in mean nearest distances of the codebook
    update_std: NonNegativeFloat = 0.02  # start of `distance`'s update; 0 starts at exactly the soft copy
    temperature: PositiveFloat = 1.0  # tau of Eq. 8 and of the Gumbel variant
    gumbel_hard: bool = False
    cross_self_attention: bool = False  # no_symmetry: self-attention before each cross-attention
    symmetrise_eval: bool = False  # average with the exchanged pass: makes abs512 and segment exact at twice the cost

    @model_validator(mode="after")
    def _fits(self) -> "FusionConfig":
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        if self.selector_init == "distance" and self.selector != "linear":
            raise ValueError(f"selector_init: distance is a linear selector: set selector: linear, not {self.selector}")
        return self


def concat(z_a: Latent, z_b: Latent) -> Sides:
    """Eq. (5): Z = Concat(Z^a, Z^b), kept on a side axis (see `FusionAttention`): (b, 2, n, d)."""
    return torch.stack([z_a, z_b], dim=1)


class Fusion(nn.Module):
    """(Z^a, Z^b) -> (Z_q^ab, Z_q^ba) in one pass.

    Tokens keep their places: those at a's places become `ba` (everything of a, identity of b), those at b's `ab`.
    `variant` is one of the ablations of Table 3; `no_symmetry` has b as target, a as source, and no `ba`. `decoder` is
    what makes images of these codes where that is not Stage 1's.
    """

    def __init__(self, config: FusionConfig, variant: str, tokens: int, code_width: int, n_codes: int) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r}: expected one of {VARIANTS}")
        if int(tokens**0.5) ** 2 != tokens:
            raise ValueError(f"{tokens} tokens are no square map")
        self.config, self.variant = config, variant
        self.one_sided = variant == "no_symmetry"
        self.decoder: OwnDecoder | None = None
        width, std = config.width, config.update_std
        self.enter = nn.Identity() if width == code_width else nn.Linear(code_width, width)
        self.register_buffer("latent_scale", torch.ones(()))
        self.position = self.segment = None
        if config.position != "none":
            self.position = nn.Parameter(torch.randn(2 if config.position == "abs512" else 1, tokens, width))
            nn.init.normal_(self.position, std=config.position_std) if config.position_std else nn.init.zeros_(
                self.position
            )
        if config.side == "segment":
            self.segment = nn.Parameter(torch.zeros(2, 1, width))
        cross = "no"
        if self.one_sided:
            self.source_norm = nn.LayerNorm(width, elementwise_affine=False)
            cross = "self_and_cross" if config.cross_self_attention else "cross"
        self.layers = nn.ModuleList(
            FusionLayer(
                width=width,
                heads=config.heads,
                ffn=config.ffn,
                tokens=tokens,
                side=config.side,
                windows=config.windows,
                cross=cross,
            )
            for _ in range(config.layers)
        )
        distance = config.selector_init == "distance"
        if variant == "no_codebook":
            self.selector = LatentUpdate(width, code_width, std) if distance else DirectOutput(width, code_width)
        elif distance:
            self.selector = DistanceSelector(width, code_width, n_codes, std)
        elif config.selector == "mlp":
            self.selector = MLPSelector(width, n_codes)
        else:
            self.selector = LinearSelector(width, n_codes)

    @torch.no_grad()
    def start_from_codebook_(self, codebook: Codebook, nearest_distance: Tensor) -> None:
        """For `selector_init: distance`, once before training: start as (nearly) the soft copy of the target.

        `nearest_distance` is the codebook's running mean squared distance to the nearest code. No-op otherwise.
        """
        if self.config.selector_init != "distance":
            return
        self.latent_scale.copy_(codebook.std())
        if isinstance(self.selector, DistanceSelector):
            self.selector.start_from_codebook_(codebook, self.config.selector_temperature * nearest_distance)
        else:
            self.selector.spread.copy_(codebook.std())

    @torch.no_grad()
    def grow_from_(self, start: "Fusion") -> None:
        """Takes the weights of a model of as many layers or fewer; what it has more passes tokens on as they are."""
        self.load_state_dict(start.state_dict(), strict=False)
        for layer in self.layers[len(start.layers) :]:
            for last in (layer.attention.project, layer.ffn[-1]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def _positions(self) -> Float[Tensor, "s _n width"] | None:
        if self.segment is None:
            return self.position
        return self.segment if self.position is None else self.position + self.segment

    def _fuse(self, z_a: Latent, z_b: Latent, explicit: bool = False) -> tuple[Sides, list[Tensor | None]]:
        """Z_last on the side axis, (ba, ab) or (ab,), and every layer's attention map when asked for."""
        z = self.enter(concat(z_a, z_b) / self.latent_scale)
        position, source = self._positions(), None
        if position is not None and self.config.position_into == "stream":
            z, position = z + position, None
        if self.one_sided:
            source, z = self.source_norm(z[:, :1]), z[:, 1:]
        maps = []
        for layer in self.layers:
            z, attention = layer(z, position, source, explicit)
            maps.append(attention)
        return z, maps

    def _select(self, z_a: Latent, z_b: Latent) -> Tensor:
        """Logits P on the side axis, or codes themselves without a codebook."""
        own = z_b[:, None] if self.one_sided else concat(z_a, z_b)
        return self.selector(self._fuse(z_a, z_b)[0], own)

    def _quantise(self, logits: Tensor, codebook: Codebook, noise_seed: int | None) -> Tensor:
        temperature = self.config.temperature
        if self.variant == "hard":
            return hard_quantise(logits, codebook, temperature)
        if self.variant == "gumbel" and self.training:
            if noise_seed is None:
                raise ValueError(
                    "variant gumbel draws noise in training: forward needs a noise_seed, new at every step"
                )
            return gumbel_quantise(logits, codebook, temperature, noise_seed, self.config.gumbel_hard)
        return soft_quantise(logits, codebook, temperature)

    def forward(self, z_a: Latent, z_b: Latent, codebook: Codebook, noise_seed: int | None = None) -> SwappedCodes:
        """Swap the codes of two faces. Latents are the encoder's, not quantised.

        `noise_seed` is needed by the Gumbel variant in training only. Raises ValueError without it there.
        """
        out = self._select(z_a, z_b)
        if self.config.symmetrise_eval and not self.training and not self.one_sided:
            out = (out + self._select(z_b, z_a).flip(1)) / 2
        logits = None if self.variant == "no_codebook" else out
        z_q = out if logits is None else self._quantise(logits, codebook, noise_seed)
        if self.one_sided:
            return SwappedCodes(z_q[:, 0], None, None if logits is None else logits[:, 0], None)
        ba, ab = z_q.unbind(1)
        logits_ba, logits_ab = (None, None) if logits is None else logits.unbind(1)
        return SwappedCodes(ab, ba, logits_ab, logits_ba)

    def attention_maps(self, z_a: Latent, z_b: Latent) -> list[Float[Tensor, "b s heads n t m"]]:
        """Every layer's attention A (Fig. 9); axes: query's side (a, b), head, query token, own/other face, key token.

        One-sided: only b's queries and only the source's keys (s = t = 1).
        """
        maps = self._fuse(z_a, z_b, explicit=True)[1]
        return [attention.unflatten(-1, (-1, z_a.shape[1])) for attention in maps]


def second_pass(
    fusion: Callable[..., SwappedCodes],
    first: SwappedCodes,
    z_b: Latent,
    codebook: Codebook,
    noise_seed: int | None = None,
) -> tuple[Latent | None, Latent]:
    """Eq. (13), its codes: swap the swapped ones again, (Z_q^aba, Z_q^bab), which should be Z^a and Z^b.

    In (ba, ab) the first has a's attributes and the second a's identity: their swap is a again. One-sided: the target
    Z_q^ab is given b's identity back from Z^b, and there is no Z_q^aba. `fusion` may be wrapped for several ranks.
    """
    if first.z_q_ba is None:
        return None, fusion(z_b, first.z_q_ab, codebook, noise_seed).z_q_ab
    back = fusion(first.z_q_ba, first.z_q_ab, codebook, noise_seed)
    return back.z_q_ba, back.z_q_ab
