"""Metrics files -> reports/: tables, pictures, curves and plain sentences, as one web page and as Markdown."""

import base64
import csv
import html
import re
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from codeswap.evaluate import tables
from codeswap.evaluate.data_pages import (
    histograms_figure,
    leak_sentences,
    leaks_table,
    licences_table,
    read_survey,
    sets_table,
)
from codeswap.evaluate.figures import curves_figure, read_curve, save, trade_off_figure
from codeswap.evaluate.findings import findings
from codeswap.evaluate.paper import paper_tables
from codeswap.evaluate.reference import read_reference
from codeswap.evaluate.results import Evaluation, by_variant, comparable, measured, read_evaluations
from codeswap.evaluate.tables import Table, as_html, as_latex, as_markdown, as_text

TERMINAL, PAPER = "table.txt", "paper.txt"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}h3{margin-bottom:.4rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.8rem;white-space:nowrap}
th[aria-sort=ascending]:after{content:" ▴"}th[aria-sort=descending]:after{content:" ▾"}thead th{cursor:pointer}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5}th{text-align:left;font-weight:600}
thead th{text-align:right}thead th:first-child{text-align:left}
img{max-width:100%;image-rendering:auto}img.pixels{image-rendering:pixelated}
figcaption,.note{color:#666;font-size:.85rem}figure{margin:1rem 0}
"""
# A click (or Enter) on a title sorts by the first number of each cell, else by its text; again: the other way.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("thead th").forEach((title, column) => {
    title.tabIndex = 0
    const sort = () => {
      const up = title.getAttribute("aria-sort") !== "ascending"
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"))
      title.setAttribute("aria-sort", up ? "ascending" : "descending")
      const value = row => row.children[column].textContent, number = row => parseFloat(value(row).replace(/,/g, ""))
      const compare = (a, b) => isNaN(number(a)) || isNaN(number(b))
        ? isNaN(number(a)) - isNaN(number(b)) || value(a).localeCompare(value(b)) : number(a) - number(b)
      const rows = [...table.tBodies[0].rows].sort((a, b) => up ? compare(a, b) : compare(b, a))
      table.tBodies[0].append(...rows)
    }
    title.addEventListener("click", sort)
    title.addEventListener("keydown", event => { if (event.key === "Enter") sort() })
  })
"""
_OPENING = (
    "Every number comes from `metrics/`; every row has been judged by the same networks on the same pairs. "
    "A paste of the source's pixels needs no model and wins on identity alone, so it stands in every table: a swap has "
    "to beat it on expression, pose and distance to the true swap."
)
_PANELS = {
    "grid": "Left to right: a third of the columns are the best pairs, a third lie around the median, a third are the "
    "worst, by the mean of a pair's places in identity gained, pose error and expression error. Naive images and masks "
    "as in the paper's Fig. 7.",
    "robustness": "The same targets through the codebook, and bad pictures of them (as the paper's Fig. 3).",
    "regions": "Only one part's codes are the source's (as Fig. 8).",
    "attention": "Where the codes of an eye, the nose and the mouth of the middle pair look (as Fig. 9).",
}


class Picture(NamedTuple):
    """A figure of the report; `pixels` asks a browser not to smooth it."""

    path: Path
    caption: str
    pixels: bool = False


class Section(NamedTuple):
    """A heading and what stands below it, in order."""

    title: str
    parts: list[str | list[str] | Table | Picture]


def write_report(metrics: Path, models: Path, data: Path, references: Path, out: Path) -> None:
    """Writes index.html (self-contained), report.md, figures/, scores.csv and the terminal's table below `out`.

    `models` is searched for the training stages' `curve.csv`; none is fine. `data` is the survey's folder, `references`
    that of healthy runs' curves.
    Raises ValueError without metrics or survey.
    """
    evaluations = read_evaluations(metrics)
    shutil.rmtree(out / "figures", ignore_errors=True)
    (out / "figures").mkdir(parents=True)
    sections = []
    for same in _by_testset(evaluations):
        groups, refused = comparable(same)
        for number, group in enumerate(groups):
            section = _test_set(group, metrics, out)
            sections.append(section._replace(parts=[refused, *section.parts]) if refused and not number else section)
    if curves := _curves(models, references, out):
        sections.append(Section("Training", curves))
    sections.append(_data(data, out))
    licences = sorted({f"{name}: {text}" for e in evaluations for name, text in _licences(e)})
    sections.append(
        Section(
            "Lineage",
            [
                tables.networks_table(evaluations),
                tables.lineage_table(evaluations),
                "Licences of the test faces",
                licences,
            ],
        )
    )
    in_papers_layout, orders, refused = paper_tables(evaluations)
    told = [sentences for sentences in (orders, refused) if sentences]
    sections.insert(0, Section("In the paper's layout", [*told, *in_papers_layout]))
    _write_latex(out / "tables", sections)
    (out / PAPER).write_text("\n\n".join([*map(as_text, in_papers_layout), *orders, *refused]) + "\n")
    (out / "index.html").write_text(_page(sections))
    (out / "report.md").write_text(_markdown(sections, out))
    (out / TERMINAL).write_text(_terminal(evaluations))
    _write_scores(out / "scores.csv", evaluations)


def show(out: Path, paper: bool = False) -> str:
    """The result tables for a terminal, or those in the paper's layout. Raises ValueError without a report."""
    path = out / (PAPER if paper else TERMINAL)
    if not path.exists():
        raise ValueError(f"{path} does not exist: run `dvc repro report` first")
    return path.read_text()


def _test_set(evaluations: list[Evaluation], metrics: Path, out: Path) -> Section:
    first = evaluations[0]
    parts: list[str | list[str] | Table | Picture] = [findings(first), tables.methods_table(first)]
    shown = [trainings[0] for trainings in by_variant(evaluations).values()]  # of repetitions, numbers are enough
    for evaluation in shown:
        for panel, caption in _PANELS.items():
            picture = metrics / evaluation.variant / f"{evaluation.testset}.{panel}.png"
            if picture.exists():
                copy = out / "figures" / f"{evaluation.testset}-{evaluation.variant}-{panel}.png"
                shutil.copyfile(picture, copy)
                parts.append(Picture(copy, f"Variant {evaluation.variant}. {caption}", pixels=True))
    trade_off = out / "figures" / f"{first.testset}-trade-off.png"
    save(trade_off_figure(first), trade_off)
    parts.append(Picture(trade_off, "Identity against pose and expression; bars are 95 % intervals."))
    parts.append(tables.variants_table(evaluations))
    second = tables.methods_table(first, measured([first], tables.SECOND_COLUMNS))
    parts.append(second._replace(title=f"{first.testset}: further measures (variant `{first.variant}`)"))
    for evaluation in shown[1:]:
        parts += [tables.methods_table(evaluation), findings(evaluation)]
    return Section(f"Test set {first.testset}", parts)


def _data(folder: Path, out: Path) -> Section:
    found = read_survey(folder)
    sets = found["sets"]
    parts: list[str | list[str] | Table | Picture] = [
        leak_sentences(found["leaks"]),
        leaks_table(found["leaks"], found["config"]),
        sets_table(sets),
        licences_table(sets),
    ]
    for name, facts in sets.items():
        histograms, sheet = out / "figures" / f"data-{name}.png", out / "figures" / f"faces-{name}.png"
        save(histograms_figure(name, facts), histograms)
        shutil.copyfile(folder / f"{name}.png", sheet)
        parts += [
            Picture(sheet, f"Faces of {name}, evenly spaced through the set.", pixels=True),
            Picture(histograms, f"{name} in numbers; each bar begins at the number below it."),
        ]
    return Section("Data", parts)


def _curves(models: Path, references: Path, out: Path) -> list[str | list[str] | Table | Picture]:
    pictures: list[str | list[str] | Table | Picture] = []
    for path in sorted(models.glob("**/curve.csv")):
        name = "-".join(path.parent.relative_to(models).parts)
        if curves := read_curve(path):
            picture, reference = out / "figures" / f"curve-{name}.png", read_reference(references / name, path.parent)
            save(curves_figure(curves, f"{name}, over samples seen", reference), picture)
            text = f"Training curves of {name}."
            if reference:
                text += " Grey: a healthy run of the same parameters (docs/reference)."
            pictures.append(Picture(picture, text))
    return pictures


def _licences(evaluation: Evaluation) -> list[tuple[str, str]]:
    licences = evaluation.data.get("licences")
    return [(name, str(text)) for name, text in licences.items()] if isinstance(licences, dict) else []


def _page(sections: Sequence[Section]) -> str:
    body = []
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        for part in section.parts:
            match part:
                case Table():
                    body.append(as_html(part) if part.rows else "")
                case Picture():
                    data = base64.b64encode(part.path.read_bytes()).decode()
                    kind = " class=pixels" if part.pixels else ""
                    caption = html.escape(part.caption)
                    body.append(
                        f'<figure><img{kind} alt="{caption}" src="data:image/png;base64,{data}">'
                        f"<figcaption>{caption}</figcaption></figure>"
                    )
                case list():
                    body.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in part) + "</ul>")
                case str():
                    body.append(f"<p>{html.escape(part)}</p>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>CodeSwap: report</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body><h1>CodeSwap: report</h1><p>{html.escape(_OPENING)}</p>"
        + "\n".join(body)
        + f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _markdown(sections: Sequence[Section], out: Path) -> str:
    lines = ["# CodeSwap: report", _OPENING]
    for section in sections:
        lines.append(f"## {section.title}")
        for part in section.parts:
            match part:
                case Table():
                    lines += [as_markdown(part)] if part.rows else []
                case Picture():
                    lines.append(f"![{part.caption}]({part.path.relative_to(out).as_posix()})\n\n{part.caption}")
                case list():
                    lines.append("\n".join(f"- {line}" for line in part))
                case str():
                    lines.append(part)
    return "\n\n".join(lines) + "\n"


def _write_latex(folder: Path, sections: Sequence[Section]) -> None:
    """Every table of the report as a file of its own, named by its title."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for table in (part for section in sections for part in section.parts if isinstance(part, Table) and part.rows):
        name = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
        (folder / f"{name}.tex").write_text(as_latex(table))


def _terminal(evaluations: Sequence[Evaluation]) -> str:
    """Per test set: the methods of its first variant, one row per further variant, and what it comes to."""
    blocks = []
    for first, *others in (group for same in _by_testset(evaluations) for group in comparable(same)[0]):
        names = measured([first, *others], tables.TERMINAL_COLUMNS)
        table = tables.methods_table(first, names, interval=False)
        for other in others:
            row = tables.methods_table(other, names, interval=False).rows[0]
            table.rows.append((f"variant {other.variant}", *row[1:]))
        note = f"{first.pairs} pairs, gallery of {first.protocol.gallery}, pair list {first.pair_list_sha256[:12]}."
        blocks.append("\n".join([as_text(table._replace(note=note)), "", *findings(first)]))
    refused = [sentence for same in _by_testset(evaluations) for sentence in comparable(same)[1]]
    return "\n\n".join([*blocks, *refused]) + "\n"


def _by_testset(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    return [list(same) for _, same in groupby(evaluations, key=lambda e: e.testset)]


def _write_scores(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """All estimates as one long table, for `dvc plots` and spreadsheets."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["testset", "variant", "method", "metric", "value", "low", "high", "n"])
        for e in evaluations:
            for method, estimates in e.methods.items():
                for name, x in estimates.items():
                    writer.writerow([e.testset, e.variant, method, name, x.value, x.low, x.high, x.n])
