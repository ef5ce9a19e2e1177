"""Tables, pictures and sentences from all metrics files.

`--show` prints the tables of the report that is there, `--paper` those in the paper's layout;
`--keep-reference` keeps the trainings' curves as healthy ones.
"""

import sys
from pathlib import Path

from PIL import Image as PILImage

from codeswap.evaluate.reference import write_references
from codeswap.evaluate.report import show, write_report
from codeswap.evaluate.results import Evaluation, read_evaluations
from codeswap.train.tracking import log_stage_run
from codeswap.types import Config
from pipeline.cli import run_stage

OUT = Path("reports")
REFERENCES = Path("docs/reference")  # curves of healthy runs


class ReportParams(Config):
    """The report reads metrics only, no parameter."""


PARAMS = ReportParams


def main() -> None:
    """Writes reports/index.html and reports/report.md from metrics/ and prints the result tables."""
    write_report(
        metrics=Path("metrics"), models=Path("models"), data=Path("data/survey"), references=REFERENCES, out=OUT
    )
    print(show(OUT))
    evaluations = read_evaluations(Path("metrics"))
    swaps = {f"{e.variant}.{e.testset}": e.methods["swap"] for e in evaluations}
    for variant, metrics in _by_variant(evaluations).items():
        if (Path("models/swap") / variant / "card.json").exists():
            from codeswap.use.mlflow_model import register  # seconds of imports

            print(f"registered: {register(Path('models'), variant, metrics)}")
    log_stage_run(
        stage="report",
        variant="-",
        params={"evaluations": sorted(swaps)},
        metrics={
            f"{name}.{metric}": estimate.value for name, swap in swaps.items() for metric, estimate in swap.items()
        },
        tags={f"parent.{e.variant}.{kind}": sha256 for e in evaluations for kind, sha256 in e.parents.items()},
        pictures=[(path.name, PILImage.open(path)) for path in sorted((OUT / "figures").glob("*.png"))],
    )


def _by_variant(evaluations: list[Evaluation]) -> dict[str, dict[str, float]]:
    """Each variant's metrics on all test sets, by dotted names."""
    found: dict[str, dict[str, float]] = {}
    for e in evaluations:
        swap = {f"{e.testset}.{name}": estimate.value for name, estimate in e.methods["swap"].items()}
        found.setdefault(e.variant, {}).update(swap)
    return found


def print_tables() -> None:
    """Prints the result tables of the report that is there."""
    print(show(OUT), end="")


def print_paper_tables() -> None:
    """Prints Tables 1 and 3 in the paper's layout, from the report that is there."""
    print(show(OUT, paper=True), end="")


def keep_references() -> None:
    """Keeps the curves of the models that are there as those of healthy runs."""
    for name in write_references(Path("models"), REFERENCES):
        print(f"{REFERENCES / name}.csv")


if __name__ == "__main__":
    if "--show" in sys.argv[1:]:
        sys.argv.remove("--show")
        run_stage(print_tables)
    elif "--paper" in sys.argv[1:]:
        sys.argv.remove("--paper")
        run_stage(print_paper_tables)
    elif "--keep-reference" in sys.argv[1:]:
        sys.argv.remove("--keep-reference")
        run_stage(keep_references)
    else:
        run_stage(main)
