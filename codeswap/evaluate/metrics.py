"""What is measured, as pure functions: tensors in, one number per pair out (METHOD §F). Images are RGB in [0, 1]."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from codeswap.types import Embedding, Image, Mask

PerPair = Float[Tensor, " b"]


def cosine(x: Embedding, y: Embedding) -> PerPair:
    """Cosine of each row of `x` with the same row of `y`, in [-1, 1]; 0 for a row of zeros."""
    return (F.normalize(x.double(), dim=1) * F.normalize(y.double(), dim=1)).sum(dim=1).float()


def retrieval_ranks(
    query: Float[Tensor, "n e"], gallery: Float[Tensor, "g e"], answer: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Rank (1 = found) of gallery entry `answer[i]` among all entries sorted by cosine to `query[i]`.

    Ties count against the query, so that a network or a method that makes all faces alike finds nobody; a query that is
    not finite is a miss of rank g + 1. Exact duplicates of the answer in the gallery are therefore never found first.
    """
    gallery = F.normalize(gallery.double(), dim=1)
    ranks = []
    for rows, right in zip(query.split(1024), answer.split(1024), strict=True):  # n x g is never held whole
        finite = rows.isfinite().all(dim=1)
        similarity = F.normalize(rows.double().nan_to_num(0.0, 0.0, 0.0), dim=1) @ gallery.T
        wanted = similarity.gather(1, right[:, None])
        rank = (similarity >= wanted - 1e-9).sum(dim=1)  # the answer itself makes the count start at 1
        ranks.append(torch.where(finite, rank, len(gallery) + 1))
    return torch.cat(ranks) if ranks else answer.clone()


def pose_error(x: Float[Tensor, "b 3"], y: Float[Tensor, "b 3"]) -> PerPair:
    """L2 over (yaw, pitch, roll) in degrees."""
    return (x - y).norm(dim=1)


# The paper's pose numbers are no degrees and its unit is not given (METHOD §F.3): the three units that would fit.
POSE_UNITS = {"pose_rad": math.pi / 180, "pose_180": 1 / 180, "pose_99": 1 / 99}


def expression_errors(x: Float[Tensor, "b x"], y: Float[Tensor, "b x"]) -> dict[str, PerPair]:
    """The three readings of "expression error": L2, mean square, and L2 of unit vectors (METHOD §F.2)."""
    difference = x - y
    return {
        "expression_l2": difference.norm(dim=1),
        "expression_mse": difference.square().mean(dim=1),
        "expression_l2_unit": (F.normalize(x, dim=1) - F.normalize(y, dim=1)).norm(dim=1),
    }


def masked_l1(x: Image, y: Image, where: Mask) -> PerPair:
    """Mean absolute difference over the pixels that `where` weights; NaN for a pair in which it weights none."""
    weight = where.sum(dim=(1, 2, 3)) * x.shape[1]
    total = ((x - y).abs() * where).sum(dim=(1, 2, 3))
    return torch.where(weight > 0, total / weight.clamp(min=1e-12), torch.nan)


def colour_difference(x: Image, y: Image, where: Mask) -> PerPair:
    """Mean absolute difference of the mean R, G and B where `where` weights pixels; NaN where it weights none."""
    weight = where.sum(dim=(2, 3))
    difference = (((x - y) * where).sum(dim=(2, 3)) / weight.clamp(min=1e-12)).abs().mean(dim=1)
    return torch.where(weight[:, 0] > 0, difference, torch.nan)


def background(face: Bool[Tensor, "b 1 h w"]) -> Mask:
    """1 outside the face and its edge: a 64th of the picture, where antialiased pixels show both sides."""
    reach = max(1, face.shape[-1] // 64)
    return 1 - F.max_pool2d(face.float(), 2 * reach + 1, stride=1, padding=reach)


def masked_psnr(x: Image, y: Image, where: Mask) -> PerPair:
    """PSNR in dB over the pixels that `where` weights; at most 100 dB; NaN for a pair in which it weights none."""
    weight = where.sum(dim=(1, 2, 3)) * x.shape[1]
    total = ((x - y).square() * where).sum(dim=(1, 2, 3))
    mse = torch.where(weight > 0, total / weight.clamp(min=1e-12), torch.nan)
    return -10 * mse.clamp(min=1e-10).log10()


def mask_iou(mask: Mask, truth: Bool[Tensor, "b 1 h w"]) -> PerPair:
    """Intersection over union of `mask` > 0.5 with `truth`; 1 where both are empty."""
    inside = mask > 0.5
    union = (inside | truth).sum(dim=(1, 2, 3))
    both = (inside & truth).sum(dim=(1, 2, 3))
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)


class FeatureMoments:
    """Mean and covariance of features that arrive in batches: memory stays at width x width however many come."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._outer: Tensor | None = None

    def add(self, features: Float[Tensor, "b f"]) -> None:
        """Rows that are not finite are left out; `count` says how many were taken."""
        rows = features.detach().cpu().double()
        rows = rows[rows.isfinite().all(dim=1)]
        if self._sum is None or self._outer is None:
            self._sum, self._outer = rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1], rows.shape[1])
        self.count += len(rows)
        self._sum += rows.sum(dim=0)
        self._outer += rows.T @ rows

    def mean_and_covariance(self) -> tuple[Float[Tensor, " f"], Float[Tensor, "f f"]]:
        """Unbiased covariance, in double precision. Raises ValueError for fewer than two rows."""
        if self.count < 2 or self._sum is None or self._outer is None:
            raise ValueError(f"a Fréchet distance needs at least two feature vectors, got {self.count}")
        mean = self._sum / self.count
        return mean, (self._outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def kernel_distance(
    x: Float[Tensor, "n f"], y: Float[Tensor, "m f"], seed: int, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): the unbiased squared MMD with the kernel (x.y / f + 1)^3, mean and standard
    deviation over `subsets` draws of `size` features (of all where there are fewer) from each side without replacement.

    Unlike the Frechet distance it is not biased by the number of pictures. Raises ValueError for fewer than two rows.
    """
    size = min(size, len(x), len(y))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least two feature vectors on each side, got {len(x)}, {len(y)}")
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(subsets):
        one, other = (rows[torch.randperm(len(rows), generator=generator)[:size]].double() for rows in (x, y))
        inner, outer, across = (_cubic(a, b) for a, b in ((one, one), (other, other), (one, other)))
        within = sum((kernel.sum() - kernel.diagonal().sum()) / (size * (size - 1)) for kernel in (inner, outer))
        found.append(float(within - 2 * across.mean()))
    return float(torch.tensor(found).mean()), float(torch.tensor(found).std(correction=0))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def frechet_distance(x: FeatureMoments, y: FeatureMoments) -> float:
    """‖μ_x − μ_y‖² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½), the trace of the root by eigenvalues (never negative)."""
    (mean_x, cov_x), (mean_y, cov_y) = x.mean_and_covariance(), y.mean_and_covariance()
    root_trace = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * root_trace
    return max(float(distance), 0.0)
