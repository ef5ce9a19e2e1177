"""Judges one variant on one test set."""

from pathlib import Path

from PIL import Image as PILImage

from codeswap.config import fingerprint, load_params
from codeswap.evaluate.parts import Team
from codeswap.evaluate.results import Evaluation, measured, read_evaluations
from codeswap.evaluate.runner import EvaluateParams, Places, evaluate
from codeswap.evaluate.tables import TERMINAL_COLUMNS, as_text, methods_table
from codeswap.train.tracking import log_stage_run
from pipeline.cli import PARAMS_FILE, run_stage

PARAMS = EvaluateParams
OUT = Path("metrics")


def main(variant: str, testset: str) -> None:
    """Writes metrics/<variant>/<testset>: .json, .summary.json, .pairs.parquet, .protocol.json and .grid.png."""
    params = load_params(Path(PARAMS_FILE), PARAMS)
    places = Places(
        codebook=Path("models/codebook"),
        swap=Path("models/swap") / variant,
        mask=Path("models/mask") / variant,
        perception=Path("models/perception"),
        shards=Path("data/shards/test") / testset,
    )
    name = fingerprint(params, [folder / "card.json" for folder in places if (folder / "card.json").exists()])
    run = Path("runs/evaluate") / variant / f"{testset}-{name}"
    evaluation = evaluate(variant, testset, params.evaluate, places, OUT, run, Team.of_environment())
    if evaluation is None:  # another process of this launch writes
        return
    print(as_text(methods_table(evaluation, measured([evaluation], TERMINAL_COLUMNS), interval=False)))
    # MLflow's compare view of evaluation runs is Table 3, so a run carries all test sets of the same model (DESIGN §9).
    same_model = [e for e in read_evaluations(OUT) if e.variant == variant and e.models == evaluation.models]
    log_stage_run(
        stage="evaluate",
        variant=variant,
        params={**evaluation.configs, "evaluate": params.evaluate.model_dump(mode="json")},
        metrics={name: value for e in same_model for name, value in _flat(e)},
        tags={
            "fingerprint": name,
            "testset": testset,
            "pair_list_sha256": evaluation.pair_list_sha256,
            **{f"parent.{kind}": sha256 for kind, sha256 in evaluation.parents.items()},
        },
        pictures=[(f"{testset}.png", PILImage.open(OUT / variant / f"{testset}.grid.png"))],
        card=evaluation.model_dump(mode="json"),
    )


def _flat(evaluation: Evaluation) -> list[tuple[str, float]]:
    return [
        (f"{evaluation.testset}.{method}.{name}", estimate.value)
        for method, estimates in evaluation.methods.items()
        for name, estimate in estimates.items()
    ]


if __name__ == "__main__":
    run_stage(main, variant="a name under models/swap", testset="a name under data/shards/test")
