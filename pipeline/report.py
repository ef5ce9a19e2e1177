"""Tables, pictures and sentences from all metrics files; `--show` prints the tables of the report that is there."""

import sys
from pathlib import Path

from PIL import Image as PILImage

from codeswap.evaluate.report import show, write_report
from codeswap.evaluate.results import read_evaluations
from codeswap.train.tracking import log_stage_run
from codeswap.types import Config
from pipeline.cli import run_stage

OUT = Path("reports")


class ReportParams(Config):
    """The report reads metrics only, no parameter."""


PARAMS = ReportParams


def main() -> None:
    """Writes reports/index.html and reports/report.md from metrics/ and prints the result tables."""
    write_report(metrics=Path("metrics"), models=Path("models"), data=Path("data/survey"), out=OUT)
    print(show(OUT))
    evaluations = read_evaluations(Path("metrics"))
    swaps = {f"{e.variant}.{e.testset}": e.methods["swap"] for e in evaluations}
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


def print_tables() -> None:
    """Prints the result tables of the report that is there."""
    print(show(OUT), end="")


if __name__ == "__main__":
    if "--show" in sys.argv[1:]:
        sys.argv.remove("--show")
        run_stage(print_tables)
    else:
        run_stage(main)
