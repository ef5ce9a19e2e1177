"""Stage `survey`: all shards in, what they hold and what test sets share with training sets out (`data/survey/`)."""

from pathlib import Path

from codeswap.config import load_params
from codeswap.prepare.survey import SurveyParams, survey
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS = SurveyParams


def main() -> None:
    """Describe every data set and look for training faces in the test sets."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    found = survey(Path("data"), Path("models/perception"), params.survey, Path("data/survey"))
    for leak in found["leaks"]:
        same, near = leak["same_files"]["count"], leak["near_pictures"]["count"]
        persons = "-" if leak["persons"] is None else leak["persons"]["count"]
        faces = leak["near_faces"]["count"]
        print(
            f"{leak['test']} in {leak['train']}: persons {persons}, same files {same}, near pictures {near}, "
            f"like faces {faces}"
        )


if __name__ == "__main__":
    run_stage(main)
