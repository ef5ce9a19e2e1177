"""Tables 1 and 3 in the paper's layout. Its columns without stated units (Exp., Pose) are named by what is printed."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from codeswap.evaluate.results import Estimate, Evaluation, by_variant, comparable, measure, measured
from codeswap.evaluate.tables import METHODS, PAPER_TABLE_3, VARIANTS, Table, cell, cell_of_trainings

RIVALS = ("FSGAN", "MegaFS", "SimSwap", "InfoSwap", "BlendFace", "DiffSwap", "E4S")
CALIBRATION = ("true_swap", "copy_target", "copy_source", "paste")
COLUMNS = {
    "ID R (%) ↑": "id_retrieval",
    "ID Sim ↑": "id_similarity",
    "Exp (MSE) ↓": "expression_mse",
    "Pose (deg) ↓": "pose_deg",
}
NOTE = (
    "A row of dashes has no results: name a folder under `evaluate.results` or a network under `evaluate.onnx`. Copies "
    "and the paste calibrate: a paste wins on identity alone, so nothing is ranked by it. The paper does not state the "
    "units of Exp. and Pose and judged by other networks: compare orders, not values."
)


def paper_tables(evaluations: Sequence[Evaluation]) -> tuple[list[Table], list[str], list[str]]:
    """Table 1 over all test sets, Table 3 for each; which of its orders agree with the paper's; and a sentence for each
    comparison that was refused."""
    groups: dict[str, list[Evaluation]] = {}
    refused: list[str] = []
    for testset in dict.fromkeys(e.testset for e in evaluations):
        (first, *_), problems = comparable([e for e in evaluations if e.testset == testset])
        groups[testset] = first
        refused += problems
    tables = [table_1({name: group[0] for name, group in groups.items()})]
    tables += [table_3(name, group) for name, group in groups.items()]
    return tables, [sentence for name, group in groups.items() for sentence in orders(name, group)], refused


def table_1(evaluations: Mapping[str, Evaluation]) -> Table:
    """Methods against both test sets; the paper's rivals always have their rows."""
    header = ["method"]
    for testset, evaluation in evaluations.items():
        header += [f"{testset}: {title}" for title in (*COLUMNS, f"{frechet(evaluation)[0]} ↓")]
    known = {name for e in evaluations.values() for name in e.methods}
    others = sorted(name for name in known - METHODS.keys() if rival_of(name) is None)
    rows = [_row(rival, evaluations, lambda name, rival=rival: rival_of(name) == rival) for rival in RIVALS]
    rows += [_row(name, evaluations, lambda found, name=name: found == name) for name in others]
    rows.append(_row("CodeSwap", evaluations, lambda name: name == "swap"))
    calibration = [name for name in CALIBRATION if name in known]
    rows += [_row(METHODS[n], evaluations, lambda found, name=n: found == name) for n in calibration]
    facts = "; ".join(f"{t}: {e.pairs} pairs, list {e.pair_list_sha256[:12]}" for t, e in evaluations.items())
    return Table("Table 1: comparison of face swapping methods", tuple(header), rows, f"{facts}. {NOTE}")


def _row(title: str, evaluations: Mapping[str, Evaluation], matches: Callable[[str], bool]) -> tuple[str, ...]:
    cells = [title]
    for evaluation in evaluations.values():
        found = next((estimates for name, estimates in evaluation.methods.items() if matches(name)), {})
        cells += _cells(found, frechet(evaluation)[1])
    return tuple(cells)


def table_3(testset: str, evaluations: Sequence[Evaluation]) -> Table:
    """The variants of Table 3 on one test set; what the paper prints stands beside it."""
    found = by_variant(evaluations)
    title, name = frechet(evaluations[0])

    def cells(variant: str, method: str = "swap") -> list[str]:
        known = [e.methods.get(method, {}) for e in found.get(variant, [])]
        return [cell_of_trainings(n, [estimates.get(n) for estimates in known]) for n in (*COLUMNS.values(), name)]

    rows = [(text, *cells(variant), *PAPER_TABLE_3[variant]) for variant, text in VARIANTS.items()]
    if any("swap_without_mask" in e.methods for e in found.get("ours", [])):
        rows.insert(-1, ("w/o M (no mask generator)", *cells("ours", "swap_without_mask"), *("–",) * 5))
    header = ("variant", *COLUMNS, f"{title} ↓", "paper ID R", "paper ID Sim", "paper Exp", "paper Pose", "paper FID")
    counts = ", ".join(f"{len(found[v])} of {v}" for v in VARIANTS if len(found.get(v, [])) > 1)
    note = f"Mean ± standard deviation over trainings with other seeds ({counts}). {NOTE}" if counts else NOTE
    return Table(f"Table 3: ablation on {testset}", header, rows, note)


def orders(testset: str, evaluations: Sequence[Evaluation]) -> list[str]:
    """For each variant in which measures ours is better or worse, and whether the paper finds the same.

    A difference counts from the standard deviation of a difference of two trainings on, pooled over both; of single
    trainings every one does, and the sentence says that they are single.
    """
    found, (title, name) = by_variant(evaluations), frechet(evaluations[0])
    columns = {re.sub(r" \(.*| [↑↓]", "", text): metric for text, metric in COLUMNS.items()} | {title: name}
    sentences = []
    for variant in (v for v in VARIANTS if v != "ours" and v in found and "ours" in found):
        verdicts: dict[str, list[str]] = {}
        for place, (column, metric) in enumerate(columns.items()):
            ours, other = ([e.methods["swap"][metric].value for e in found[v] if metric in e.methods["swap"]]
                           for v in ("ours", variant))  # fmt: skip
            if not ours or not other:
                continue
            sign = 1 if measure(metric).better == "higher" else -1
            gain = sign * (mean(ours) - mean(other))
            spread = sum(stdev(values) ** 2 for values in (ours, other) if len(values) > 1) ** 0.5
            theirs = sign * (float(PAPER_TABLE_3["ours"][place]) - float(PAPER_TABLE_3[variant][place]))
            if abs(gain) <= spread:
                verdict = "no difference beyond the seeds' in"
            else:
                word = "better" if gain > 0 else "worse"
                verdict = f"ours is {word}{', as in the paper,' if gain * theirs > 0 else ', unlike the paper,'} in"
            verdicts.setdefault(verdict, []).append(column)
        single = "" if min(len(found["ours"]), len(found[variant])) > 1 else " (single trainings)"
        told = "; ".join(f"{verdict} {', '.join(names)}" for verdict, names in verdicts.items())
        sentences.append(f"{testset}, {VARIANTS[variant]}{single}: {told}.")
    return sentences


def _cells(estimates: Mapping[str, Estimate], frechet_name: str) -> list[str]:
    return [cell(name, estimates.get(name)) for name in (*COLUMNS.values(), frechet_name)]


def frechet(evaluation: Evaluation) -> tuple[str, str]:
    """Title and name of the evaluation's distance between distributions: FID only where it is one."""
    name = next(iter(measured([evaluation], ["fd"])), "fid")
    return measure(name).title, name


def rival_of(name: str) -> str | None:
    """The paper's rival that a method's name means: `simswap`, `SimSwap-512` and `sim_swap` are SimSwap."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    aliases = {"blendswap": "BlendFace"}
    for start, rival in {**{rival.lower(): rival for rival in RIVALS}, **aliases}.items():
        if plain.startswith(start):
            return rival
    return None
