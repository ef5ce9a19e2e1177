"""From fused tokens to codes: the code selector (Eq. 7) and soft quantisation with its ablations (Eq. 8, METHOD §C)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from codeswap.types import Codebook

Logits = Float[Tensor, "*b n k"]
Tokens = Float[Tensor, "*b n d"]


class MLPSelector(nn.Module):
    """The paper's selector: a two-layer perceptron on the normalised token."""

    def __init__(self, width: int, n_codes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, n_codes))

    def forward(self, z_last: Tensor, z: Tensor) -> Tensor:
        """Eq. (7): P = MLP(Z_last)."""
        return self.layers(z_last)


class LinearSelector(nn.Module):
    """CodeFormer's selector: LayerNorm and one linear map without bias."""

    def __init__(self, width: int, n_codes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_codes, bias=False))

    def forward(self, z_last: Tensor, z: Tensor) -> Tensor:
        """Eq. (7), with one linear map for the MLP."""
        return self.layers(z_last)


class LatentUpdate(nn.Module):
    """The token's own latent plus a linear update of it read from the fused token, in units of the codes' spread."""

    def __init__(self, width: int, code_width: int, std: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.update = nn.Linear(width, code_width)
        nn.init.normal_(self.update.weight, std=std) if std else nn.init.zeros_(self.update.weight)
        nn.init.zeros_(self.update.bias)
        self.register_buffer("spread", torch.ones(()))

    def forward(self, z_last: Tensor, z: Tensor) -> Tensor:
        return z + self.spread * self.update(self.norm(z_last))


class DistanceSelector(nn.Module):
    """Off-paper: logits are negative squared distances of the updated latent to learnt copies of the codes.

    With a zero update the start is exactly the soft copy of the target; see `Fusion.start_from_codebook_`.
    """

    def __init__(self, width: int, code_width: int, n_codes: int, std: float) -> None:
        super().__init__()
        self.latent = LatentUpdate(width, code_width, std)
        self.weight = nn.Parameter(torch.randn(n_codes, code_width))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().square().sum(-1))
        self.log_kappa = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start_from_codebook_(self, codebook: Codebook, temperature: Tensor) -> None:
        """Logits become -||z - q||^2 / temperature up to a constant per token (the softmax does not see it)."""
        self.weight.copy_(codebook)
        self.bias.copy_(-0.5 * codebook.square().sum(-1))
        self.log_kappa.copy_((2 / temperature).log())
        self.latent.spread.copy_(codebook.std())

    def forward(self, z_last: Tensor, z: Tensor) -> Tensor:
        """Eq. (7), with distances for the MLP. Kappa multiplies the narrow factors, not the n_codes wide product."""
        kappa = self.log_kappa.exp()
        return F.linear(self.latent(z_last, z) * kappa, self.weight, self.bias * kappa)


class DirectOutput(nn.Module):
    """w/o C: no selector and no codebook; normalised tokens go through one linear map straight to the decoder."""

    def __init__(self, width: int, code_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, code_width))

    def forward(self, z_last: Tensor, z: Tensor) -> Tensor:
        return self.layers(z_last)


def gumbel_noise(like: Tensor, seed: int) -> Tensor:
    """Standard Gumbel noise of the shape and device of `like`, a pure function of `seed`."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()


def _probabilities(logits: Logits, temperature: float) -> Logits:
    return (logits if temperature == 1 else logits / temperature).softmax(dim=-1)


def soft_quantise(logits: Logits, codebook: Codebook, temperature: float = 1.0) -> Tokens:
    """Eq. (8): Z_q = Softmax(P / temperature) Q: a convex mixture of all codes."""
    return _probabilities(logits, temperature) @ codebook


def hard_quantise(logits: Logits, codebook: Codebook, temperature: float = 1.0) -> Tokens:
    """w/o Q1: the most probable code; backward as if it were Eq. 8 (straight-through)."""
    soft = _probabilities(logits, temperature)
    hard = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
    return (hard + soft - soft.detach()) @ codebook


def gumbel_quantise(logits: Logits, codebook: Codebook, temperature: float, seed: int, hard: bool) -> Tokens:
    """w/o Q2: Softmax((P + g) / temperature) Q with Gumbel noise g, or a straight-through sample of one code."""
    noisy = logits + gumbel_noise(logits, seed)
    return (hard_quantise if hard else soft_quantise)(noisy, codebook, temperature)
