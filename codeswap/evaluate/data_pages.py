"""The report's pages on the data: what each set holds, under which licence, and what training and test sets share.

Made from `survey.json` of the `survey` stage alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from codeswap.evaluate.tables import Table

SURVEY = "survey.json"
_HISTOGRAMS = {
    "faces_per_person": "faces of a person",
    "source_side": "shorter side of the source, px",
    "yaw": "yaw, degrees",
    "pitch": "pitch, degrees",
}
_KINDS = {
    "persons": "persons by name",
    "same_files": "identical files",
    "near_pictures": "nearly identical pictures",
    "near_faces": "faces like a training face",
}


def read_survey(folder: Path) -> dict[str, Any]:
    """What the survey found. Raises ValueError when there is none or it cannot be read."""
    path = folder / SURVEY
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run `dvc repro survey` first") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run `dvc repro -f survey`") from None


def sets_table(sets: Mapping[str, Any]) -> Table:
    """One row per data set."""
    rows = [
        (
            name,
            found["split"],
            f"{found['faces']:,}",
            f"{found['persons']:,}",
            f"{found['faces_of_unknown_persons']:,}",
            f"{sum(found['quarantined'].values()):,}",
        )
        for name, found in sets.items()
    ]
    header = ("data set", "split", "faces", "persons", "faces of unknown persons", "quarantined inputs")
    return Table("Data sets", header, rows)


def licences_table(sets: Mapping[str, Any]) -> Table:
    """The ledger: how many faces of each set came under which licence."""
    rows = [
        (name, licence, f"{count:,}") for name, found in sets.items() for licence, count in found["licences"].items()
    ]
    note = "Every model's card lists the licences of all faces it was trained on."
    return Table("Licences", ("data set", "licence", "faces"), rows, note)


def leaks_table(leaks: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Table:
    """What each test set shares with each training set, counted."""
    rows = [
        (f"{leak['test']} in {leak['train']}", *(_count(leak[kind]) for kind in _KINDS), _cosines(leak))
        for leak in leaks
    ]
    header = ("test set in training set", *_KINDS.values(), "nearest cosine: median, highest")
    note = (
        f"Nearly identical: at most {config['near_bits']} of 64 bits of a perceptual hash differ and the pixels "
        f"correlate by at least {config['near_correlation']:g}. Like: cosine of the "
        f"training identity network of at least {config['near_cosine']:g}, which may be a relative, a chance, or the "
        "person. A dash: names of the two sets do not mean the same persons."
    )
    return Table("What test sets share with training sets", header, rows, note)


def leak_sentences(leaks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning with names for each pair of sets that shares persons, files or pictures; else one that says so."""
    lines = []
    for leak in leaks:
        for kind in ("persons", "same_files", "near_pictures"):
            found = leak[kind]
            if found is not None and found["count"]:
                first = ", ".join(map(str, found["first"][:5]))
                lines.append(
                    f"LEAK: {found['count']:,} {_KINDS[kind]} of test set {leak['test']} are in training set "
                    f"{leak['train']} (first: {first}). Results on {leak['test']} are too good."
                )
    return lines or ["No person, file or picture of a test set was found in a training set."]


def histograms_figure(name: str, found: Mapping[str, Any]) -> Figure:
    """Faces per person, size of the sources, yaw and pitch of one set."""
    figure = Figure(figsize=(10, 1.9), layout="constrained")
    figure.suptitle(f"{name}: {found['faces']:,} faces", fontsize=9)
    for number, (kind, title) in enumerate(_HISTOGRAMS.items()):
        panel = figure.add_subplot(1, len(_HISTOGRAMS), number + 1)
        edges, counts = found[kind]["edges"], found[kind]["counts"]
        labels = [f"{edge:,.0f}" if edge < 10**9 else "" for edge in edges[:-1]]
        panel.bar(range(len(counts)), counts, color="#1f5fa8", width=0.9)
        panel.set_xticks(range(len(counts)), [f"{label}-" for label in labels], rotation=60, fontsize=6)
        panel.set_title(title, fontsize=8)
        panel.tick_params(labelsize=6)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _count(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['count']:,}"


def _cosines(leak: Mapping[str, Any]) -> str:
    return f"{leak['nearest_cosine']['median']:.2f}, {leak['nearest_cosine']['highest']:.2f}"
