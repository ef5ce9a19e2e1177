"""The attention of the global fusion module and its pre-norm block (Eq. 6, METHOD §B.1-B.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Side = Literal["none", "rel_bias", "rel_vec", "rel_offset", "segment"]
Sides = Float[Tensor, "b s n width"]  # s = 2: side a, side b; s = 1: one face only


def gaussian_windows(tokens: int, heads: int, windows: tuple[float | None, ...]) -> Float[Tensor, "heads n n"] | None:
    """Log of a Gaussian of the token distance, one sigma (in tokens) per head, repeated over the heads; None is free.

    Off-paper: local heads leave the copy-target plateau several times sooner (prototype: cosine to the source .51
    against .06 after 200 steps).
    """
    if not windows:
        return None
    side = int(tokens**0.5)
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1).view(-1, 2)
    square = (place[:, None] - place[None]).square().sum(-1).float()
    sigmas = [windows[head % len(windows)] for head in range(heads)]
    return torch.stack([torch.zeros_like(square) if s is None else -square / (2 * s * s) for s in sigmas])


class FusionAttention(nn.Module):
    """Multi-head attention of every token to all tokens of its own and of the other face.

    The two faces lie on a side axis and each side's keys are ordered (own, other), so both sides run through the same
    arithmetic and exchanging the faces exchanges the results exactly. Attention does not care about the order of keys:
    this is the attention over Concat(Z^a, Z^b) of Eq. 5. With `source` only the source's tokens are keys.
    """

    def __init__(self, width: int, heads: int, tokens: int, side: Side, windows: tuple[float | None, ...]) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)  # as nn.MultiheadAttention's joint in-projection
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.project.bias)
        self.side_bias = nn.Parameter(torch.zeros(heads, 2)) if side == "rel_bias" else None
        self.key_offset = self.value_offset = None
        if side in ("rel_vec", "rel_offset"):
            self.key_offset = nn.Parameter(torch.zeros(2, heads, 1, width // heads))
        if side == "rel_offset":
            nn.init.normal_(self.key_offset, std=0.3)
            self.value_offset = nn.Parameter(torch.zeros(2, heads, 1, width // heads))
        self.register_buffer("windows", gaussian_windows(tokens, heads, windows), persistent=False)

    def _bias(self, n: int, sides: int) -> Float[Tensor, "heads n m"] | None:
        """What is added to the scores: windows and the relative same/other-side scalar, keys ordered (own, other)."""
        if self.windows is None and self.side_bias is None:
            return None
        parts = []
        for side in range(sides):
            part = torch.zeros((), device=self.query.weight.device) if self.windows is None else self.windows
            if self.side_bias is not None:
                part = part + self.side_bias[:, side, None, None]
            parts.append(part.expand(self.heads, n, n))
        return torch.cat(parts, dim=-1)

    def _split(self, x: Sides) -> Float[Tensor, "b s heads n c"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def forward(
        self, x: Sides, position: Tensor | None, source: Sides | None = None, explicit: bool = False
    ) -> tuple[Sides, Float[Tensor, "b s heads n m"] | None]:
        """Eq. (6): Softmax(Q K^T / sqrt(d_k)) V, then the linear projection.

        `position` (1 or 2, n, width) is added to the inputs of queries and keys, not of values. `explicit` also
        returns the attention map A; keys m = own tokens then the other's.
        """
        context = x if source is None else source
        placed, placed_context = x, context
        if position is not None:
            placed = x + (position if source is None else position[-1:])
            placed_context = context + (position if source is None else position[:1])
        q, k, v = (
            self._split(self.query(placed)),
            self._split(self.key(placed_context)),
            self._split(self.value(context)),
        )
        if source is None:
            k, v = self._own_and_other(k, self.key_offset), self._own_and_other(v, self.value_offset)
        bias = self._bias(x.shape[2], 1 if source is not None else 2)
        bias = None if bias is None else bias.to(q.dtype)
        # The fused kernel's backward pass in bf16 on a processor is 2 to 3 times slower than the written out one's.
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
        if explicit or slow:
            attention = self._attention(q, k, bias)
            y = attention @ v
        else:
            attention = None
            flat = F.scaled_dot_product_attention(
                q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=None if bias is None else bias[None]
            )
            y = flat.unflatten(0, q.shape[:2])
        return self.project(y.transpose(2, 3).flatten(3)), attention

    @staticmethod
    def _attention(q: Tensor, k: Tensor, bias: Tensor | None) -> Float[Tensor, "b s heads n m"]:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(dim=-1)

    @staticmethod
    def _own_and_other(x: Tensor, offset: Tensor | None) -> Tensor:
        own, other = x, x.flip(1)
        if offset is not None:
            own, other = own + offset[0], other + offset[1]
        return torch.cat([own, other], dim=3)


class FusionLayer(nn.Module):
    """x + Attention(LN x), then x + FFN(LN x). With `cross`, attention reads the source face (METHOD §C, w/o S)."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn: int,
        tokens: int,
        side: Side,
        windows: tuple[float | None, ...],
        cross: Literal["no", "cross", "self_and_cross"],
    ) -> None:
        super().__init__()
        side = side if cross == "no" else "none"
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusionAttention(width, heads, tokens, side, windows)
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.GELU(), nn.Linear(ffn, width))
        self.self_attention = None
        if cross == "self_and_cross":
            self.self_norm = nn.LayerNorm(width)
            self.self_attention = FusionAttention(width, heads, tokens, "none", windows)

    def forward(
        self, x: Sides, position: Tensor | None, source: Sides | None = None, explicit: bool = False
    ) -> tuple[Sides, Tensor | None]:
        """The updated tokens and, if asked for, the attention map."""
        if self.self_attention is not None:
            own = self.self_norm(x)
            x = x + self.self_attention(own, None if position is None else position[-1:], source=own)[0]
        y, attention = self.attention(self.norm1(x), position, source, explicit)
        x = x + y
        return x + self.ffn(self.norm2(x)), attention
