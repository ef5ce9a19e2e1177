"""Tables, pictures and sentences from all metrics files; `--show` prints the tables of the report that is there."""

import sys
from pathlib import Path

from codeswap.evaluate.report import show, write_report
from codeswap.types import Config
from pipeline.cli import run_stage

OUT = Path("reports")


class ReportParams(Config):
    """The report reads metrics only, no parameter."""


PARAMS = ReportParams


def main() -> None:
    """Writes reports/index.html and reports/report.md from metrics/ and prints the result tables."""
    write_report(metrics=Path("metrics"), models=Path("models"), out=OUT)
    print(show(OUT))


def print_tables() -> None:
    """Prints the result tables of the report that is there."""
    print(show(OUT), end="")


if __name__ == "__main__":
    if "--show" in sys.argv[1:]:
        sys.argv.remove("--show")
        run_stage(print_tables)
    else:
        run_stage(main)
