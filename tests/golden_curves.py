"""The curves that every launcher has to reproduce, to tolerance: tests/golden/<stage>.csv, of the tiny training.

python tests/golden_curves.py     # trains it in one process and writes them anew; look at the difference in git
"""

import csv
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")
STAGES = {"codebook": "codebook", "swap": "swap/ours", "mask": "mask/ours"}
# Some terms are relative to the mean of a process' own share of the batch (features, regions), and Adam makes
# more of any rounding with every step.
FIRST_LINE, LATER = {"rel": 0.02, "abs": 1e-4}, {"rel": 0.08, "abs": 1e-3}
COUNTS = {"codes_used", "val/codes_used", "restarted"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def differences(root: Path, stages: Sequence[str]) -> list[str]:
    """What in the curves below `root` is not as it should be, one line each."""
    found = []
    for stage in stages:
        golden, lines = read(GOLDEN / f"{stage}.csv"), read(root / "models" / STAGES[stage] / "curve.csv")
        if [line["position"] for line in golden] != [line["position"] for line in lines]:
            return [f"{stage}: positions {[line['position'] for line in lines]}"]
        for number, (expected, line) in enumerate(zip(golden, lines, strict=True)):
            near = LATER if number else FIRST_LINE
            for name in expected.keys() | line.keys():
                value, wanted = line.get(name, ""), expected.get(name, "")
                if value != wanted and name not in COUNTS and not _near(value, wanted, near):
                    found.append(f"{stage} at {line['position']}: {name} is {value or 'missing'}, golden {wanted}")
    return found


def _near(value: str, wanted: str, near: dict[str, float]) -> bool:
    return "" not in (value, wanted) and float(value) == pytest.approx(float(wanted), **near)


def main() -> None:
    os.environ["CODESWAP_MLFLOW"] = "off"
    import tiny_training

    with tempfile.TemporaryDirectory() as folder:
        root = tiny_training.make_world(Path(folder) / "world")
        tiny_training.train(root, list(STAGES))
        GOLDEN.mkdir(exist_ok=True)
        for stage, place in STAGES.items():
            (GOLDEN / f"{stage}.csv").write_text((root / "models" / place / "curve.csv").read_text())


if __name__ == "__main__":
    main()
