"""Swaps and photographs shuffled on numbered sheets, so that whoever looks does not know which is which.

    python -m benchmarks.blind_sheet list OUT [--testset portraits_test]
    python -m benchmarks.blind_sheet draw OUT --models old=models/release/photographs new=models [--leave-out 3,17]
    python -m benchmarks.blind_sheet count OUT --flagged 0,4,31

`list` numbers the faces of a test set that look ahead (network of the role `pose`, 20 degrees); `draw` leaves out
those that you name (eyes that are closed or not seen), swaps pairs of the rest by each model and hides them among
photographs; then write down the numbers that do not look like one person, and `count` says whose they were.
Photographs that are flagged tell how strict the eye is. Needs data/shards/test/<testset> and models/perception.
`codeswap study` asks others.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codeswap.data.faces import Faces, to_float
from codeswap.data.pictures import grid, save_png
from codeswap.perception import roles
from codeswap.use.loading import load_swapper

AHEAD, COLUMNS, ROWS, SCALE = 20, 9, 4, 3
KEY = "key.json"


def faces_ahead(testset: str) -> tuple[Tensor, Tensor]:
    """All faces of the test set (n, 3, h, w) in [-1, 1], and which of them look ahead."""
    faces = Faces([Path("data/shards/test") / testset])
    images = to_float(faces.images(np.arange(len(faces)), np.zeros(len(faces), dtype=bool)))
    network = roles.load(Path("models/perception"), "pose", faces.framing)
    with torch.no_grad():
        pose = torch.cat([network(part) for part in images.split(32)])
    return images, torch.nonzero((pose[:, :2].abs() < AHEAD).all(dim=1)).flatten()


def write_sheets(out: Path, images: Tensor) -> None:
    """Numbered from left to right, on as many sheets as it takes."""
    for old in out.glob("sheet-*.png"):
        old.unlink()
    for number, sheet in enumerate(images.split(COLUMNS * ROWS)):
        first = number * COLUMNS * ROWS
        rows = sheet.split(COLUMNS)
        starts = [first + row * COLUMNS for row in range(len(rows))]
        titles = [f"{start} to {start + len(row) - 1}" for start, row in zip(starts, rows, strict=True)]
        save_png(out / f"sheet-{number + 1}.png", grid(rows, titles, SCALE))


def draw(args: argparse.Namespace) -> None:
    images, ahead = faces_ahead(args.testset)
    if beyond := [place for place in args.leave_out if place >= len(ahead)]:
        raise SystemExit(f"--leave-out names {beyond}; `list` shows {len(ahead)} faces of {args.testset}, from 0")
    kept = torch.tensor([face for place, face in enumerate(ahead.tolist()) if place not in args.leave_out])
    if len(kept) < 2:
        raise SystemExit(f"{len(kept)} faces of {args.testset} are left: name fewer in --leave-out")
    generator = torch.Generator().manual_seed(args.seed)
    order = kept[torch.randperm(len(kept), generator=generator)]
    places = torch.arange(args.pairs)
    a, b = (images[order[(places + shift) % len(order)]] for shift in (0, len(order) // 2))
    shown, whose = [], []
    for name, _, folder in (text.partition("=") for text in args.models):
        swapper = load_swapper(Path(folder), "ours")
        with torch.inference_mode():
            parts = zip(a.split(16), b.split(16), strict=True)
            shown += [swapper.model.swap(*part).image_ab for part in parts]
        whose += [name] * args.pairs
    photographs = order[torch.randperm(len(order), generator=generator)[: args.pairs // 2]]
    shown, whose = torch.cat([*shown, images[photographs]]), whose + ["photographs"] * len(photographs)
    shuffled = torch.randperm(len(shown), generator=generator)
    write_sheets(args.out, shown[shuffled])
    (args.out / KEY).write_text(json.dumps([whose[place] for place in shuffled.tolist()]))
    print(f"{len(shown)} pictures on the sheets of {args.out}; do not look at {KEY} before you have judged them")


def count(args: argparse.Namespace) -> None:
    whose = json.loads((args.out / KEY).read_text())
    if beyond := [number for number in args.flagged if number >= len(whose)]:
        raise SystemExit(f"--flagged names {beyond}; {args.out} shows {len(whose)} pictures, numbered from 0")
    for name in sorted(set(whose)):
        mine = [number for number, other in enumerate(whose) if other == name]
        print(f"{name}: {len(args.flagged & set(mine))} of {len(mine)} flagged")


def main() -> None:
    def numbers(text: str) -> set[int]:
        return {int(part) for part in text.split(",") if part}

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["list", "draw", "count"])
    parser.add_argument("out", type=Path, help="folder of the sheets")
    parser.add_argument("--testset", default="portraits_test")
    parser.add_argument("--models", nargs="+", default=["released=models/release/photographs"], help="NAME=FOLDER")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-out", type=numbers, default=set(), help="numbers on the sheets of `list`")
    parser.add_argument("--flagged", type=numbers, default=set(), help="numbers on the sheets of `draw`")
    args = parser.parse_args()
    if args.action == "count":
        return count(args)
    if any("=" not in text for text in args.models):
        parser.error("--models: expected NAME=FOLDER")
    if args.action == "draw":
        return draw(args)
    images, ahead = faces_ahead(args.testset)
    return write_sheets(args.out, images[ahead])


if __name__ == "__main__":
    main()
