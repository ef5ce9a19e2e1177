"""Stage `survey`: all shards in, what they hold and what test sets share with training sets out (`data/survey/`)."""

from pathlib import Path

from PIL import Image as PILImage

from codeswap.config import load_params
from codeswap.prepare.survey import KINDS, SurveyParams, survey
from codeswap.train.tracking import git_commit, log_stage_run
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS, OUT = SurveyParams, Path("data/survey")


def main() -> None:
    """Describe every data set and look for training faces in the test sets."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    found = survey(Path("data"), Path("models/perception"), params.survey, OUT)
    counts = {}
    for leak in found["leaks"]:
        shared = {kind: leak[kind]["count"] for kind in KINDS if leak[kind] is not None}
        counts |= {f"{leak['test']}.in.{leak['train']}.{kind}": count for kind, count in shared.items()}
        print(f"{leak['test']} in {leak['train']}: " + ", ".join(f"{kind} {count:,}" for kind, count in shared.items()))
    pictures = [(path.name, PILImage.open(path)) for path in sorted(OUT.glob("*.png"))]
    log_stage_run(
        "survey", "-", params.model_dump(mode="json"), counts, {"git_commit": git_commit()}, pictures=pictures
    )


if __name__ == "__main__":
    run_stage(main)
