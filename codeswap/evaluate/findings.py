"""Plain sentences: did the identity move, did the rest stay, and what did the model do that a paste does not."""

from codeswap.evaluate.results import Estimate, Evaluation, measure
from codeswap.evaluate.tables import cell

_COMPARED = ("id_retrieval", "id_similarity", "expression_l2", "pose_deg", "face_l1_true_swap", "background_l1")


def surely_less(x: Estimate, y: Estimate) -> bool:
    """True when the intervals are apart and x lies below y; without intervals the values decide."""
    return (x.value if x.high is None else x.high) < (y.value if y.low is None else y.low)


def findings(evaluation: Evaluation) -> list[str]:
    """Sentences about the `swap` row of one evaluation, each with its numbers."""
    return [
        _identity(evaluation),
        *(_attribute(evaluation, name) for name in ("pose_deg", "expression_l2")),
        *_against_paste(evaluation),
        *_ceiling(evaluation),
        *_model(evaluation),
    ]


def _identity(evaluation: Evaluation) -> str:
    swap, target = evaluation.methods["swap"], evaluation.methods["copy_target"]
    found, similar = swap["id_retrieval"], swap["id_similarity"]
    moved = surely_less(target["id_similarity"], similar)
    named = surely_less(target["id_retrieval"], found) and found.value > 1 / evaluation.protocol.gallery
    verdict = (
        "Identity moved to the source"
        if moved and named
        else "Identity moved towards the source, but not far enough to be recognised"
        if moved
        else "Identity did NOT move measurably"
    )
    return (
        f"{verdict}: the source is ranked first for {cell('id_retrieval', found)} of {found.n} pairs among "
        f"{evaluation.protocol.gallery} faces (the untouched target: {cell('id_retrieval', target['id_retrieval'])}; "
        f"chance: {100 / evaluation.protocol.gallery:.1f} %), median rank "
        f"{cell('id_median_rank', swap['id_median_rank'])}; cosine to the source {cell('id_similarity', similar)} "
        f"against {cell('id_similarity', target['id_similarity'])}."
    )


def _attribute(evaluation: Evaluation, name: str) -> str:
    what = {"pose_deg": "Pose", "expression_l2": "Expression"}[name]
    swap, source = evaluation.methods["swap"][name], evaluation.methods["copy_source"][name]
    if surely_less(swap, source):
        share = 100 * (1 - swap.value / source.value)
        verdict = f"{what} stayed the target's, {share:.0f} % of the way from the source's"
    else:
        verdict = f"{what} did NOT stay the target's"
    return f"{verdict}: error {cell(name, swap)}, where a copy of the source has {cell(name, source)}."


def _against_paste(evaluation: Evaluation) -> list[str]:
    swap, paste = evaluation.methods["swap"], evaluation.methods["paste"]
    better, worse, open_ = [], [], []
    for name in _COMPARED:
        if name not in swap or name not in paste:
            continue
        lower, higher = surely_less(swap[name], paste[name]), surely_less(paste[name], swap[name])
        wins = lower if measure(name).better == "lower" else higher
        text = f"{measure(name).title} ({cell(name, swap[name], False)} against {cell(name, paste[name], False)})"
        (better if wins else worse if lower or higher else open_).append(text)
    parts = [
        f"{verdict} {', '.join(names)}"
        for verdict, names in (("better in", better), ("worse in", worse), ("undecided in", open_))
        if names
    ]
    return [f"Against a paste without any model the swap is {'; '.join(parts)}."]


def _ceiling(evaluation: Evaluation) -> list[str]:
    true, coded = (evaluation.methods.get(name) for name in ("true_swap", "true_swap_through_codebook"))
    if true is None or coded is None:
        return []
    swap = evaluation.methods["swap"]
    return [
        f"Ceiling: the true swap is ranked first for {cell('id_retrieval', true['id_retrieval'])}, and for "
        f"{cell('id_retrieval', coded['id_retrieval'])} once it has gone through the codebook; the swap's face is "
        f"{cell('face_l1_true_swap', swap['face_l1_true_swap'])} from the true one, the codebook's "
        f"{cell('face_l1_true_swap', coded['face_l1_true_swap'])}, the target's "
        f"{cell('face_l1_true_swap', evaluation.methods['copy_target']['face_l1_true_swap'])}."
    ]


def _model(evaluation: Evaluation) -> list[str]:
    swap, sentences = evaluation.methods["swap"], []
    if "exchange_error" in swap:
        sentences.append(
            f"Exchanging the inputs exchanges the outputs to within {swap['exchange_error'].value:.2g} of full scale."
        )
    if "mask_mean" in swap:
        sentences.append(
            f"The mask covers {100 * swap['mask_mean'].value:.0f} % of the picture and agrees with the target's face "
            f"to an IoU of {cell('mask_iou', swap['mask_iou'])}."
        )
    if swap["failures"].value:
        sentences.append(
            f"{swap['failures'].value:g} of {swap['failures'].n} swaps were not finite and count as misses."
        )
    return sentences
