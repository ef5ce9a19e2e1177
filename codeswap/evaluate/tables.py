"""The report's tables and sentences, made from metrics files alone."""

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from codeswap.evaluate.results import Estimate, Evaluation, by_variant, measure, measured, order_of_variants

METHODS = {
    "swap": "CodeSwap",
    "swap_without_mask": "CodeSwap without mask (w/o M)",
    "swap_hard_codes": "CodeSwap, codes by argmax at evaluation",
    "paste": "paste: source pixels, target's mask, no model",
    "copy_source": "copy of the source",
    "copy_target": "copy of the target",
    "target_through_codebook": "target through the codebook",
    "true_swap": "true swap (rendered)",
    "true_swap_through_codebook": "true swap through nearest codes",
    "true_swap_through_codebook_soft": "true swap through soft codes",
}
COLUMNS = (
    "id_retrieval", "id_retrieval_top5", "id_median_rank", "id_similarity", "id_accepted", "id_distance", "id_closer",
    "expression_l2", "pose_deg", "background_l1", "colour_l1", "face_l1_true_swap", "l1_true_swap", "psnr_true_swap",
    "perceptual_true_swap", "id_similarity_true_swap", "expression_exact", "pose_exact_deg", "fd", "failures",
)  # fmt: skip
SECOND_COLUMNS = (
    "id_retrieval_seen", "id_similarity_seen", "expression_mse", "expression_l2_unit", "pose_rad", "pose_180",
    "pose_99", "face_psnr_true_swap", "face_perceptual_true_swap", "face_id_similarity_true_swap", "mask_mean",
    "mask_iou", "id_consistency", "flicker", "exchange_error", "kd",
)  # fmt: skip
TERMINAL_COLUMNS = (
    "id_retrieval", "id_retrieval_top5", "id_similarity", "id_accepted", "expression_l2", "pose_deg", "background_l1",
    "colour_l1", "face_l1_true_swap", "fd",
)  # fmt: skip
VARIANT_COLUMNS = (
    "id_retrieval", "id_similarity", "expression_l2", "expression_mse", "pose_deg", "pose_rad", "pose_180", "pose_99",
    "face_l1_true_swap", "fd",
)  # fmt: skip

VARIANTS = {
    "no_codebook": "w/o C (no codebook)",
    "no_symmetry": "w/o S (no symmetry)",
    "hard": "w/o Q1 (hard quantisation)",
    "gumbel": "w/o Q2 (Gumbel-softmax)",
    "ours": "ours",
}
PAPER_COLUMNS = ("paper ID R", "paper ID Sim", "paper Exp", "paper Pose", "paper FID")
PAPER_TABLE_3 = {  # CelebA-HQ, 512 px, other networks, units of Exp and Pose not stated
    "no_codebook": ("98.1", ".5788", ".0319", ".0229", "26.22"),
    "no_symmetry": ("98.3", ".5859", ".0327", ".0225", "20.77"),
    "hard": ("97.7", ".5606", ".0299", ".0218", "20.93"),
    "gumbel": ("86.7", ".4271", ".0313", ".0369", "20.96"),
    "ours": ("98.7", ".6118", ".0292", ".0187", "20.68"),
}


class Table(NamedTuple):
    """Cells are ready to print; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def number(value: float, style: str) -> str:
    """`value` as the measure's style prints it; shares as per cent."""
    match style:
        case "share":
            return f"{100 * value:.1f} %"
        case "angle":
            return f"{value:.2f}"
        case "small":
            return f"{value:.4f}"
        case "decibel":
            return f"{value:.1f}"
        case "count":
            return f"{value:g}"
        case _:
            return f"{value:.3g}"


def cell(name: str, estimate: Estimate | None, interval: bool = True) -> str:
    """An estimate of metric `name` with its interval; a dash where it was not measured."""
    if estimate is None:
        return "–"
    style = measure(name).style
    text = number(estimate.value, style)
    if not interval or estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{number(estimate.low, style).removesuffix(' %')}, {number(estimate.high, style)}]"


def cell_of_trainings(name: str, estimates: Sequence[Estimate | None]) -> str:
    """Mean and standard deviation over several trainings of a variant; of one, its value with its interval."""
    values = [estimate.value for estimate in estimates if estimate is not None]
    if len(values) < 2:
        return cell(name, next((estimate for estimate in estimates if estimate is not None), None))
    style = measure(name).style
    return f"{number(mean(values), style).removesuffix(' %')} ± {number(stdev(values), style)}"


def header(names: Sequence[str]) -> tuple[str, ...]:
    """Column titles; an arrow says which way is better."""
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}
    return tuple(measure(name).title + arrow[measure(name).better] for name in names)


def methods_table(evaluation: Evaluation, names: Sequence[str] | None = None, interval: bool = True) -> Table:
    """Table 1's layout: methods against metrics on one test set, rivals between the swap and the baselines.

    `names` are the metrics to print; those of COLUMNS that were measured when None.
    """
    names = measured([evaluation], COLUMNS) if names is None else names
    ours = [name for name in METHODS if name.startswith("swap")]
    rivals = [name for name in evaluation.methods if name not in METHODS]
    order = [name for name in [*ours, *rivals, *METHODS] if name in evaluation.methods]
    rows = [
        (METHODS.get(method, method), *(cell(n, evaluation.methods[method].get(n), interval) for n in names))
        for method in dict.fromkeys(order)
    ]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    note = (
        f"{evaluation.pairs} pairs, pair list {evaluation.pair_list_sha256[:12]}, gallery of "
        f"{evaluation.protocol.gallery}; 95 % bootstrap intervals over pairs in brackets."
    )
    title = f"{evaluation.testset}: methods (variant `{evaluation.variant}`)"
    return Table(title, ("method", *header(names)), rows, note)


def variants_table(evaluations: Sequence[Evaluation]) -> Table:
    """Table 3's layout: the variants of one test set, beside what the paper prints for its own."""
    names = measured(evaluations, VARIANT_COLUMNS)
    found, rows, blank = by_variant(evaluations), [], ("–",) * len(PAPER_COLUMNS)
    for variant in sorted({*VARIANTS, *found}, key=lambda v: (v == "ours", order_of_variants(v))):
        for method, suffix in (("swap", ""), ("swap_without_mask", ", w/o M")):
            known = [e.methods[method] for e in found.get(variant, []) if method in e.methods]
            if known or not suffix:
                cells = [cell_of_trainings(n, [estimates.get(n) for estimates in known]) for n in names]
                paper = blank if suffix else PAPER_TABLE_3.get(variant, blank)
                rows.append((VARIANTS.get(variant, variant) + suffix, *cells, *paper))
    note = (
        "The paper's columns are CelebA-HQ at 512 px, judged by other networks, in units it does not state: compare "
        "ranks, not values. A row of dashes was not run. Of several trainings: mean ± standard deviation."
    )
    return Table(f"{evaluations[0].testset}: variants", ("variant", *header(names), *PAPER_COLUMNS), rows, note)


def networks_table(evaluations: Sequence[Evaluation]) -> Table:
    """Who judged: one row per role, file and what it was shown."""
    rows = {
        (role, n.name, n.sha256[:12], n.preprocessing): None
        for e in evaluations
        for role, n in sorted(e.networks.items())
    }
    return Table("Networks that judged", ("role", "network", "sha256", "is shown"), list(rows))


def lineage_table(evaluations: Sequence[Evaluation]) -> Table:
    """What each evaluated model was made from, hashes shortened: MLflow run, commit, parameters, data, parents."""
    rows: dict[tuple[str, ...], None] = {}
    for evaluation in evaluations:
        rows |= {
            (f"test set {evaluation.testset}", f"data.{name}", _short(value)): None
            for name, value in _flat(evaluation.data.get("manifests", {})).items()
        }
        for kind, card in evaluation.models.items():
            if isinstance(card, Mapping):
                facts = _flat({key: card[key] for key in _LINEAGE if key in card})
                parameters = json.dumps(card.get("config"), sort_keys=True).encode()
                facts["parameters"] = hashlib.sha256(parameters).hexdigest()
                name = kind if kind == "codebook" else f"{kind} ({evaluation.variant})"
                rows |= {(name, key, _short(value)): None for key, value in facts.items()}
    return Table("Lineage", ("model", "fact", "value"), list(rows))


_LINEAGE = ("run_id", "git_commit", "fingerprint", "weights_sha256", "data", "lineage")


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return out


def _short(value: str) -> str:
    return value[:12] if len(value) in (40, 64) and not set(value) - set("0123456789abcdef") else value


def as_text(table: Table) -> str:
    """For a terminal."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    rule = "  ".join("-" * width for width in widths)
    rows = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines]  # fmt: skip
    return "\n".join([table.title, rows[0], rule, *rows[1:], *([table.note] if table.note else [])])


def as_markdown(table: Table) -> str:
    """A pipe table under its title."""
    lines = [table.header, tuple(["---"] + ["---:"] * (len(table.header) - 1)), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"### {table.title}\n\n{body}\n" + (f"\n{table.note}\n" if table.note else "")


_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
          "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--",
          "`": "", "±": r"$\pm$", "é": r"\'e"}  # fmt: skip


def as_latex(table: Table) -> str:
    """A booktabs tabular in a table environment; needs \\usepackage{booktabs}."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"

    caption = "".join(_LATEX.get(letter, letter) for letter in table.title)
    rows = "\n".join(line(row) for row in table.rows)
    return (
        f"\\begin{{table}}\n\\caption{{{caption}}}\n\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}\n\\toprule\n"
        f"{line(table.header)}\n\\midrule\n{rows}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def as_html(table: Table) -> str:
    """A <table>; every cell is escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        f"<tr><th>{html.escape(row[0])}</th>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    note = f"<p class=note>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f"<h3>{html.escape(table.title)}</h3><div class=wide><table class=sortable><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note}"
    )
