"""Training of the `train: synthetic` perception roles on rendered faces, whose labels are exact (DESIGN §5, §6).

Three trainings fill eight roles: one expert whose heads are used *by* training (identity_train, expression_train,
perceptual), one of another architecture, loss, seed and persons that *judges* (identity_eval, expression_eval, pose,
features), and the parsing network. The heads of an expert learn together because identity is found sooner beside pose
and expression, and because one trunk costs a third of three.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from codeswap.data.manifest import write_bytes
from codeswap.data.synthetic import ATTRIBUTES, IDENTITY, attributes, expression_of, identities, pose_of, render
from codeswap.perception.networks import (
    POSE_UNIT,
    RENDERED_LABELS,
    ExpressionNetwork,
    FeatureMaps,
    FeatureNetwork,
    IdentityNetwork,
    NetworkConfig,
    ParsingNetwork,
    PoseNetwork,
    build,
)
from codeswap.perception.roles import OWN, ExpertTraining
from codeswap.prepare.validation import judge_expert, judge_parsing

Job = Literal["train", "eval", "parsing"]
JOBS: dict[Job, tuple[str, ...]] = {
    "train": ("identity_train", "expression_train", "perceptual"),
    "eval": ("identity_eval", "expression_eval", "pose", "features"),
    "parsing": ("parsing",),
}
LICENCE = "as this project: trained by its perception stage on its own rendered faces"


class RenderedFaces(NamedTuple):
    """Rendered pictures with all that is known of them."""

    image: Tensor  # (n, 3, s, s) uint8
    label: Tensor  # (n, s, s) uint8
    person: Tensor  # (n,) number of the person within this set
    identity: Tensor  # (n, IDENTITY) in [-1, 1]
    attribute: Tensor  # (n, ATTRIBUTES) in [-1, 1]
    expression: Tensor  # (n, 6) in [-1, 1]
    pose: Tensor  # (n, 3) degrees

    @classmethod
    def of(cls, first: int, persons: int, each: int, seed: int, size: int) -> "RenderedFaces":
        """`each` pictures of the persons first..first+persons-1 of `seed`."""
        person = torch.arange(persons).repeat_interleave(each)
        identity = identities(first, persons, seed)[person]
        attribute = attributes(first * each, persons * each, seed)
        image, label = render(identity, attribute, size)
        return cls(
            image, label, person, identity * 2 - 1, attribute * 2 - 1, expression_of(attribute), pose_of(attribute)
        )  # fmt: skip

    def pick(self, rows: Tensor, device: torch.device) -> "RenderedFaces":
        """Some rows, on a device."""
        return RenderedFaces(*(column[rows].to(device) for column in self))


def train_experts(training: ExpertTraining, roles: Sequence[str], run: Path) -> dict[str, dict]:
    """Trains every expert that `roles` need and that `run` does not hold finished yet; returns role -> card entry.

    Leaves `<role>.safetensors` and `<role>.json` in `run`, so that a run that was stopped goes on with the next expert.
    """
    run.mkdir(parents=True, exist_ok=True)
    open_jobs = [
        job for job, members in JOBS.items() if any(r in roles and not _entry(run, r).exists() for r in members)
    ]
    if training.processes == 1 or torch.cuda.is_available() or len(open_jobs) < 2:
        for job in open_jobs:
            _work(job, training, run)
    else:
        # spawned, as forked threads of torch can hang; one thread each, as more make each other wait
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(training.processes, context, torch.set_num_threads, (1,)) as pool:
            for result in [pool.submit(_work, job, training, run) for job in open_jobs]:
                result.result()
    return {role: json.loads(_entry(run, role).read_text()) for role in roles}


def _entry(run: Path, role: str) -> Path:
    return run / f"{role}.json"


def _work(job: Job, training: ExpertTraining, run: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed = training.seed + tuple(JOBS).index(job)
    begun, cpu = time.perf_counter(), time.process_time()
    # Initial weights come from torch's global generator: seeded here, and put back as it was afterwards.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if job == "parsing":
            networks = _train_parsing(training, seed, device)
        else:
            networks = _train_expert(job, training, seed, device)
    spent = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    for role, (network, config, metrics) in networks.items():
        weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        entry = {
            "architecture": OWN,
            "name": "rendered_" + (config.trunk or "parsing"),
            "input_size": config.input_size,
            "licence": LICENCE,
            "source": f"trained on {training.identities} rendered persons of seed {seed}",
            "config": config.model_dump(mode="json"),
            "metrics": metrics,
            "trained_with": [other for other in networks if other != role],
            "training": spent,
        }
        write_bytes(run / f"{role}.safetensors", save(weights))
        write_bytes(_entry(run, role), json.dumps(entry, indent=2).encode())


Trained = dict[str, tuple[nn.Module, NetworkConfig, dict[str, float]]]


class Margin(nn.Module):
    """Softmax over the training persons' cosines with a margin: ArcFace (angle) or CosFace (cosine)."""

    def __init__(self, embedding: int, persons: int, scale: float, margin: float, angular: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(persons, embedding))
        self.scale, self.margin, self.angular = scale, margin, angular

    def forward(self, embedding: Tensor, person: Tensor, share: float) -> Tensor:
        """Mean loss of (b, e) embeddings; `share` in [0, 1] of the margin is applied."""
        cosine = F.normalize(embedding) @ F.normalize(self.weight).t()
        own = cosine.gather(1, person[:, None])
        if self.angular:
            angle = torch.acos(own.clamp(-0.999, 0.999)) + share * self.margin
            own = torch.cos(angle.clamp(max=math.pi - 0.05))
        else:
            own = own - share * self.margin
        return F.cross_entropy(self.scale * cosine.scatter(1, person[:, None], own), person)


def to_input(image: Tensor) -> Tensor:
    """uint8 -> [-1, 1], in the memory format that convolutions like."""
    return (image.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _disturbed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Sometimes blurred, sometimes noisy: what a swap's decoder makes must not fool a network that judges it."""
    blur, noise, amount = torch.rand(3, generator=generator).tolist()
    if blur < 0.3:
        image = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if noise < 0.5:
        image = image + 0.06 * amount * torch.randn(image.shape, generator=generator).to(image.device)
    return image


def _optimiser(
    modules: Sequence[nn.Module], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    parameters = nn.ModuleList(modules).parameters()  # shared ones once
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=5e-4)
    # OneCycleLR needs at least one step on each side of its peak
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 10), pct_start=0.15)


def _configs(job: Job, training: ExpertTraining) -> dict[str, NetworkConfig]:
    trunk = training.train_trunk if job == "train" else training.eval_trunk
    box = training.image_size * 3 // 4  # the side of the face box; the trunks halve three times
    face = {"trunk": trunk, "input_size": box + -box % 8, "width": training.width}
    with_pose = training.targets == "expression_and_pose"
    return {
        "identity": NetworkConfig(**face, outputs=training.embedding),
        "expression": NetworkConfig(**face, pose=job == "train" and with_pose),
        "pose": NetworkConfig(**face),
        "features": NetworkConfig(**face, outputs=training.features),
        "perceptual": NetworkConfig(trunk=trunk, input_size=training.image_size, width=training.width),
    }


def _train_expert(job: Job, training: ExpertTraining, seed: int, device: torch.device) -> Trained:
    faces = RenderedFaces.of(0, training.identities, training.images_per_identity, seed, training.image_size)
    configs = _configs(job, training)
    identity = build(f"identity_{job}", configs["identity"])
    backbone = identity.backbone
    expression = ExpressionNetwork(backbone, configs["expression"].pose)
    pose, features = PoseNetwork(backbone), FeatureNetwork(backbone, training.features)
    read_identity = nn.Linear(training.embedding, IDENTITY)
    read_all = nn.Sequential(nn.SiLU(), nn.Linear(training.features, IDENTITY + ATTRIBUTES))
    margin = Margin(training.embedding, training.identities, training.scale, training.margin, angular=job == "train")
    modules = nn.ModuleList([identity, expression, pose, features, read_identity, read_all, margin])
    modules.to(device, memory_format=torch.channels_last)
    optimiser, schedule = _optimiser([modules], training.learning_rate, training.steps)
    generator = torch.Generator().manual_seed(seed)
    for step in trange(training.steps, desc=f"{job} expert", disable=None):
        batch = faces.pick(torch.randint(len(faces.image), (training.batch,), generator=generator), device)
        pooled = backbone(_disturbed(to_input(batch.image), generator))
        embedding = identity.head(pooled)
        done = step / training.steps
        attitude = torch.cat([batch.expression, batch.pose / POSE_UNIT], dim=1)
        everything = torch.cat([batch.identity, batch.attribute], dim=1)
        # Regression finds the features; the margin, phased in, then spreads the persons (alone it hardly starts).
        loss = (
            5 * F.smooth_l1_loss(read_identity(embedding), batch.identity, beta=0.3)
            + training.margin_weight * min(1, done / 0.1) * margin(embedding, batch.person, min(1, done / 0.5))
            + 2 * F.mse_loss(expression.out(pooled), attitude)
            + F.mse_loss(pose.out(pooled), batch.pose / POSE_UNIT)
            + 2 * F.mse_loss(read_all(features.out(pooled)), everything)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    modules.eval()
    held_out = RenderedFaces.of(
        training.identities, training.validation_identities, training.validation_images, seed, training.image_size
    )
    metrics = judge_expert(
        identity,
        expression,
        pose,
        image=held_out.image,
        expression_true=held_out.expression,
        pose_true=held_out.pose,
        each=training.validation_images,
        device=device,
    )
    modules_of = {
        f"identity_{job}": ("identity", identity), f"expression_{job}": ("expression", expression),
        "pose": ("pose", pose), "features": ("features", features),
        "perceptual": ("perceptual", _maps(configs["perceptual"], identity, faces, device)),
    }  # fmt: skip
    return {
        role: (modules_of[role][1], configs[modules_of[role][0]], metrics.get(modules_of[role][0], {}))
        for role in JOBS[job]
    }


@torch.no_grad()
def _maps(config: NetworkConfig, expert: IdentityNetwork, faces: RenderedFaces, device: torch.device) -> FeatureMaps:
    """The expert's trunk as feature maps of the whole image, scaled by their root mean square over 256 faces."""
    maps = build("perceptual", config)
    maps.trunk.load_state_dict(expert.backbone.trunk.state_dict())
    maps.to(device).eval()
    for level, one in enumerate(maps(to_input(faces.image[:: max(1, len(faces.image) // 256)].to(device)))):
        maps.scale[level] = one.square().mean().sqrt()
    return maps


def _train_parsing(training: ExpertTraining, seed: int, device: torch.device) -> Trained:
    steps, batch = training.parsing_steps, training.batch
    count = min(training.identities, steps * batch)
    faces = RenderedFaces.of(0, count, 1, seed, training.image_size)
    config = NetworkConfig(input_size=training.image_size, width=training.parsing_width)
    network = ParsingNetwork(config.input_size, config.width, RENDERED_LABELS)
    network.to(device, memory_format=torch.channels_last)
    number = torch.zeros(256, dtype=torch.long, device=device)
    number[torch.tensor(RENDERED_LABELS, device=device)] = torch.arange(len(RENDERED_LABELS), device=device)
    optimiser, schedule = _optimiser([network], 2 * training.learning_rate, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in trange(steps, desc="parsing", disable=None):
        chosen = faces.pick(torch.randint(count, (batch,), generator=generator), device)
        logits = network(_disturbed(to_input(chosen.image), generator))
        loss = F.cross_entropy(logits, number[chosen.label.long()])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    held_out = RenderedFaces.of(count, training.validation_identities, 1, seed, training.image_size)
    return {"parsing": (network, config, judge_parsing(network, held_out.image, held_out.label, device))}
