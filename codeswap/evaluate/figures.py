"""The report's figures: training curves, and identity against everything else."""

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from codeswap.evaluate.results import Estimate, Evaluation, measure
from codeswap.evaluate.tables import METHODS

_PANELS_ACROSS = 4
_LEFT_OUT = ("swap_hard_codes", "target_through_codebook", "true_swap_through_codebook_soft")  # they lie on others
_INK, _BLUE, _GREY, _GREEN, _ORANGE = "#222222", "#1f5fa8", "#9a9a9a", "#2e8b57", "#d9822b"


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG whose bytes do not depend on when it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def read_curve(path: Path) -> dict[str, list[tuple[float, float]]]:
    """`curve.csv` -> metric -> (samples seen, value), leaving out empty cells. The first column is the position."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2:
        return {}
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in rows[0][1:]}
    for row in rows[1:]:
        for name, value in zip(rows[0][1:], row[1:], strict=True):
            if value:
                curves[name].append((float(row[0]), float(value)))
    return {name: points for name, points in curves.items() if points}


def curves_figure(
    curves: Mapping[str, list[tuple[float, float]]],
    title: str,
    reference: Mapping[str, list[tuple[float, float]]] | None = None,
) -> Figure:
    """One small panel per metric over samples seen, a healthy run's `reference` in grey behind it."""
    across = min(_PANELS_ACROSS, len(curves))
    down = -(-len(curves) // across)
    figure = Figure(figsize=(2.7 * across, 1.8 * down + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=9, color=_INK)
    for number, (name, points) in enumerate(curves.items()):
        panel = figure.add_subplot(down, across, number + 1)
        if reference and name in reference:
            panel.plot(*zip(*reference[name], strict=True), color=_GREY, linewidth=2.5)
        panel.plot(*zip(*points, strict=True), color=_BLUE, linewidth=1)
        panel.set_title(name, fontsize=8, color=_INK)
        panel.tick_params(labelsize=6)
        panel.xaxis.get_major_formatter().set_powerlimits((-3, 4))
        panel.xaxis.get_offset_text().set_fontsize(6)
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def trade_off_figure(evaluation: Evaluation) -> Figure:
    """Each method as a point with its intervals: identity (right is better) against pose and expression (down)."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(f"{evaluation.testset}, variant {evaluation.variant}", fontsize=9, color=_INK)
    for number, name in enumerate(("pose_deg", "expression_l2")):
        panel = figure.add_subplot(1, 2, number + 1)
        for method, estimates in evaluation.methods.items():
            if method in _LEFT_OUT or "id_similarity" not in estimates or name not in estimates:
                continue
            x, y = estimates["id_similarity"], estimates[name]
            panel.errorbar(
                x.value,
                y.value,
                xerr=_reach(x),
                yerr=_reach(y),
                fmt="o",
                markersize=5,
                color=_colour(method),
                elinewidth=1,
            )
            panel.annotate(
                method.replace("_", " "), (x.value, y.value), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
        panel.set_xlabel("ID similarity to the source (right is better)", fontsize=8)
        panel.set_ylabel(f"{measure(name).title}, error to the target (down is better)", fontsize=8)
        panel.margins(x=0.18, y=0.12)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _reach(estimate: Estimate) -> list[list[float]]:
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return [[max(estimate.value - low, 0)], [max(high - estimate.value, 0)]]


def _colour(method: str) -> str:
    if method not in METHODS:
        return _ORANGE
    if method.startswith("swap"):
        return _BLUE
    return _GREEN if method.startswith("true_swap") else _GREY
