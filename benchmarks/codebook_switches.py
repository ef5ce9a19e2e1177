"""Stage 1's switches, on and off: the same faces, networks and number of samples, one seed; numbers of unseen persons.

    dvc repro survey                         # in a clone with params.yaml = profiles/ablation.yaml: faces, networks
    python -m benchmarks.codebook_switches CLONE [--samples 8000] [--only paper k-means ...]

`paper` is Eq. 2 to 4 without an adversary at this profile's size of networks, with its fast learning rate (the paper's
needs a million steps: a row of its own); each further row changes one thing of it. `ours` is the profile's recipe, and
the rows after it change one thing of that. Trained by `pipeline.train_codebook`, one
process on one thread. Printed: PSNR from nearest and from soft codes, distance of the perceptual network's features,
Frechet distance in the judges' features, cosine of I and its reconstruction by `identity_eval`, codes used, perplexity,
processor seconds.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from benchmarks.worlds import PAPERS_QUANTIZER, environment, make_world
from codeswap.data.faces import Faces, to_float
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.metrics import FeatureMoments, cosine, frechet_distance
from codeswap.models.codeswap import load_vqgan
from codeswap.models.quantizer import codes_used, perplexity
from codeswap.models.vqgan import feature_map, tokens

PAPER = {
    "quantizer": PAPERS_QUANTIZER,
    "codebook": {"batch": 8, "lr": 2e-3, "betas": [0.9, 0.99], "schedule": "onecycle", "adversarial": 0.0},
}
GROUPS = ("vqgan", "quantizer", "discriminator", "codebook")
SWITCHES: dict[str, dict[str, dict[str, object]]] = {  # on top of PAPER, group by group
    "paper": {},
    "beta on commitment": {"quantizer": {"beta_on": "commitment"}},
    "lr 1e-4, constant": {"codebook": {"lr": 1e-4, "schedule": "constant", "betas": [0.5, 0.9]}},
    "adversary": {"codebook": {"adversarial": 0.8, "adversarial_from": 2000}},
    "EMA weights": {"codebook": {"ema": 0.99}},
    "k-means": {"quantizer": {"init": "kmeans"}, "codebook": {"warm_up": 800}},
    "restarts": {"quantizer": {"restart_below": 0.03}},
    "EMA codes": {"quantizer": {"update": "ema", "ema_decay": 0.98}},
    "k-means, EMA codes, restarts": {
        "quantizer": {"update": "ema", "ema_decay": 0.98, "init": "kmeans", "restart_below": 0.03},
        "codebook": {"warm_up": 800},
    },
    "rotation": {"quantizer": {"passes": "rotation"}},
    "index": {"quantizer": {"passes": "index"}},
    "linear map of a basis": {"quantizer": {"update": "linear"}},
    "normalised": {"quantizer": {"normalised": True}},
    "low dimension (8)": {"vqgan": {"embed_dim": 8, "quant_conv": True}},
    "normalised, low dimension": {"quantizer": {"normalised": True}, "vqgan": {"embed_dim": 8, "quant_conv": True}},
    "adversary on frozen features": {
        "codebook": {"adversarial": 0.8, "adversarial_from": 2000},
        "discriminator": {"frozen_features": True},
    },
    "non-saturating adversary on them": {
        "codebook": {"adversarial": 0.8, "adversarial_from": 2000, "adversarial_form": "vanilla"},
        "discriminator": {"frozen_features": True},
    },
    "soft and continuous shares": {"quantizer": {"soft_share": 0.35, "continuous_share": 0.125}},
}
WITHOUT: dict[str, dict[str, dict[str, object]]] = {  # on top of the profile
    "ours": {},
    "ours, rotation": {"quantizer": {"passes": "rotation"}},
    "ours, no soft or continuous shares": {"quantizer": {"soft_share": 0.0, "continuous_share": 0.0}},
    "ours, linear map of a basis": {"quantizer": {"update": "linear", "restart_below": 0.0}},
    "ours, normalised": {"quantizer": {"normalised": True}},
    "ours, adversary on frozen features": {
        "codebook": {"adversarial": 0.2, "adversarial_from": 2000},
        "discriminator": {"frozen_features": True},
    },
    "ours, gradient codes": {"quantizer": {"update": "gradient"}},
    "ours, no identity and expression": {"codebook": {"identity": 0.0, "expression": 0.0}},
    "ours, all pixels alike": {"codebook": {"skin_weight": 0.0, "feature_weight": 0.0}},
}


def train(project: Path, place: Path, name: str, samples: int) -> float:
    """Trains a row into `place`; its processor seconds."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    groups = params if name in WITHOUT else params | PAPER
    switched = (WITHOUT | SWITCHES)[name]
    params |= {group: groups[group] | switched.get(group, {}) for group in GROUPS}
    params["codebook"] |= {"samples": samples, "validate_every": samples, "checkpoint_every": samples}
    make_world(project, place, params)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.train_codebook"],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@torch.inference_mode()
def measured(place: Path, faces: Faces, judges: Judges) -> list[float]:
    """What the module's docstring lists, but the seconds, of a test set's faces."""
    vqgan = load_vqgan(place / "models/codebook")
    book, columns, counts = vqgan.codebook, [], torch.zeros(len(vqgan.codebook.weight))
    moments = [FeatureMoments(), FeatureMoments()]
    for start in range(0, len(faces), 32):
        rows = torch.arange(start, min(start + 32, len(faces))).numpy()
        image = to_float(faces.images(rows, rows < 0))
        z = tokens(vqgan.encode(image))
        codes = book.nearest(z)
        counts += torch.bincount(codes.flatten(), minlength=len(counts))
        nearest, soft = (vqgan.decode(feature_map(x)).clamp(-1, 1) for x in (book.lookup(codes), book.soft(z, 1.0)))
        psnr = [10 * (4 / (x - image).square().flatten(1).mean(1)).log10() for x in (nearest, soft)]
        seen, wanted = judges.judge(nearest), judges.judge(image)
        for moment, judged in zip(moments, (seen, wanted), strict=True):
            moment.add(judged.features)
        distance = judges.perceptual_distance(judges.maps(nearest), judges.maps(image))
        columns.append(torch.stack([*psnr, distance, cosine(seen.identity, wanted.identity)], dim=1))
    means = torch.cat(columns).mean(dim=0).tolist()
    return [*means[:3], frechet_distance(*moments), means[3], codes_used(counts).item(), perplexity(counts).item()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--only", nargs="+", choices=SWITCHES | WITHOUT, default=list(SWITCHES | WITHOUT))
    options = parser.parse_args()
    torch.set_num_threads(1)
    faces = Faces([options.project / "data/shards/test/images"])
    judges = Judges.load(options.project / "models/perception", torch.device("cpu"))
    print(f"{options.samples} samples each, {len(faces)} faces of unseen persons")
    print("| | PSNR nearest | soft | features | FD | identity | codes | perplexity | CPU-s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            seconds = train(options.project, Path(scratch) / "world", name, options.samples)
            nearest, soft, features, fd, identity, codes, spread = measured(Path(scratch) / "world", faces, judges)
        print(
            f"| {name} | {nearest:.1f} | {soft:.1f} | {features:.4f} | {fd:.2f} | {identity:.3f} | {codes:.0f} | "
            f"{spread:.0f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
