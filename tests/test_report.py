"""The report says what the metrics files say: readable tables, and sentences that are not kinder than the numbers."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from codeswap.evaluate.figures import read_curve
from codeswap.evaluate.findings import findings
from codeswap.evaluate.reference import read_reference, write_references
from codeswap.evaluate.report import show, write_report
from codeswap.evaluate.results import (
    Estimate,
    Evaluation,
    NetworkName,
    PairListFacts,
    read_evaluations,
    write_evaluation,
)
from codeswap.evaluate.tables import METHODS, Table, as_latex, cell, methods_table

ROOT = Path(__file__).parent.parent
_NAMES = ("id_retrieval", "id_similarity", "pose_deg", "expression_l2", "face_l1_true_swap")
GOOD = dict(zip(_NAMES, (0.6, 0.7, 3.0, 0.2, 0.05), strict=True))
ROWS = {
    "swap": GOOD,
    "swap_without_mask": {**GOOD, "pose_deg": 2.5},
    "copy_target": dict(zip(_NAMES, (0.0, 0.1, 0.0, 0.0, 0.2), strict=True)),
    "copy_source": dict(zip(_NAMES, (0.9, 1.0, 20.0, 0.8, 0.3), strict=True)),
    "paste": dict(zip(_NAMES, (0.8, 0.9, 12.0, 0.6, 0.2), strict=True)),
    "true_swap": dict(zip(_NAMES, (0.9, 0.9, 1.0, 0.1, 0.0), strict=True)),
    "true_swap_through_codebook": {**GOOD, "face_l1_true_swap": 0.03},
    "rival": {**GOOD, "id_retrieval": 0.5},
}


def evaluation(variant: str = "ours", testset: str = "faces", **swap: float) -> Evaluation:
    """An evaluation with every interval one twentieth to each side of its value."""
    rows = {**ROWS, "swap": {**GOOD, **swap}}
    methods = {
        method: {
            "id_median_rank": Estimate(value=2, low=1, high=3, n=200),
            "failures": Estimate(value=0, n=200),
            "fd_ours": Estimate(value=4.2, n=200),
            **{name: Estimate(value=v, low=v * 0.95, high=v * 1.05, n=200) for name, v in values.items()},
        }
        for method, values in rows.items()
    }
    return Evaluation(
        variant=variant,
        testset=testset,
        pairs=200,
        pair_list_sha256="ab" * 32,
        protocol=PairListFacts(shape="identities", seed=2024, gallery=50),
        networks={"pose": NetworkName(name="small-pose", sha256="cd" * 32)},
        methods=methods,
        models={
            "swap": {
                "config": {},
                "weights_sha256": "ef" * 32,
                "lineage": {"codebook": "12" * 32},
                "run_id": "run-7",
                "git_commit": "0123abcd",
                "data": {"train": "7c" * 32},
            }
        },
        data={"licences": {"faces": "CC0 <b>"}, "manifests": {"faces": "9a" * 32}},
    )


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    folder = tmp_path / "metrics"
    for one in (evaluation(), evaluation("hard", id_retrieval=0.3), evaluation(testset="other")):
        write_evaluation(folder, one)
    Image.new("RGB", (8, 8)).save(folder / "ours" / "faces.grid.png")
    curve = tmp_path / "models" / "swap" / "ours" / "curve.csv"
    curve.parent.mkdir(parents=True)
    curve.write_text("position,identity,cycle\n32,0.9,\n64,0.8,0.1\n96,0.7,0.05\n")
    bars = {"edges": [0, 5, 10], "counts": [1, 2]}
    facts = {
        "split": "test", "faces": 3, "persons": 2, "faces_of_unknown_persons": 0, "licences": {"CC0 <b>": 3},
        "quarantined": {"no_face": 1}, "faces_per_person": bars, "source_side": bars, "yaw": bars, "pitch": bars,
    }  # fmt: skip
    nothing = {"count": 0, "first": []}
    leak = {
        "train": "t", "test": "faces", "persons": None, "same_files": {"count": 2, "first": ["f1", "f2"]},
        "near_pictures": nothing, "near_faces": nothing, "nearest_cosine": {"median": 0.1, "highest": 0.6},
    }  # fmt: skip
    survey = tmp_path / "data" / "survey"
    survey.mkdir(parents=True)
    found = {
        "sets": {"faces": facts},
        "leaks": [leak],
        "config": {"near_bits": 4, "near_correlation": 0.99, "near_cosine": 0.5},
    }
    (survey / "survey.json").write_text(json.dumps(found))
    Image.new("RGB", (8, 8)).save(survey / "faces.png")
    return folder


def test_metrics_file_has_the_agreed_shape_and_comes_back(metrics: Path) -> None:
    tree = json.loads((metrics / "ours" / "faces.json").read_text())
    assert {"variant", "testset", "pairs", "pair_list_sha256", "networks", "methods"} <= tree.keys()
    assert tree["networks"] == {"pose": {"name": "small-pose", "sha256": "cd" * 32, "preprocessing": ""}}
    assert tree["methods"]["swap"]["id_retrieval"].keys() == {"value", "low", "high", "n"}
    summary = json.loads((metrics / "ours" / "faces.summary.json").read_text())
    assert summary["swap.id_retrieval"] == 0.6
    assert [(e.testset, e.variant) for e in read_evaluations(metrics)] == [
        ("faces", "ours"), ("faces", "hard"), ("other", "ours"),
    ]  # fmt: skip
    assert read_evaluations(metrics)[0] == evaluation()


def test_methods_table_has_the_paste_and_the_rival_and_the_ground_truth() -> None:
    table = methods_table(evaluation())
    names = [row[0] for row in table.rows]
    assert names[:3] == [METHODS["swap"], METHODS["swap_without_mask"], "rival"]
    assert {METHODS["paste"], METHODS["true_swap"], METHODS["copy_target"]} <= set(names)
    assert table.rows[0][table.header.index("ID retrieval ↑")] == "60.0 % [57.0, 63.0 %]"
    assert table.rows[0][table.header.index("FD (ours) ↓")] == "4.2"
    assert all(len(row) == len(table.header) for row in table.rows)


def test_cells_are_printed_in_their_units() -> None:
    assert cell("pose_deg", Estimate(value=3.456, low=3, high=4, n=5)) == "3.46 [3.00, 4.00]"
    assert cell("id_median_rank", Estimate(value=2.5, n=5)) == "2.5"
    assert cell("id_similarity", None) == "–"


def test_sentences_praise_a_swap_that_works() -> None:
    identity, pose, expression, against, *_ = findings(evaluation())
    assert identity.startswith("Identity moved to the source: the source is ranked first for 60.0 %")
    assert pose.startswith("Pose stayed the target's, 85 % of the way")
    assert expression.startswith("Expression stayed the target's")
    assert re.search(r"better in .*pose.*; worse in ID retrieval", against)


def test_sentences_do_not_praise_a_copy_of_the_target_or_of_the_source() -> None:
    copy = findings(evaluation(**ROWS["copy_target"]))
    assert copy[0].startswith("Identity did NOT move measurably")
    other = findings(evaluation(**ROWS["copy_source"]))
    assert other[1].startswith("Pose did NOT stay the target's")
    assert other[2].startswith("Expression did NOT stay the target's")
    towards = findings(evaluation(id_retrieval=0.0))
    assert towards[0].startswith("Identity moved towards the source, but not far enough")


def write(metrics: Path, root: Path) -> None:
    write_report(metrics, root / "models", root / "data/survey", root / "reference", root / "reports")


def test_curves_of_a_healthy_run_stand_behind_a_training_of_the_same_parameters(metrics: Path, tmp_path: Path) -> None:
    model, reference = tmp_path / "models/swap/ours", tmp_path / "reference"
    (model / "card.json").write_text('{"config": {"lr": 1}}')
    assert write_references(tmp_path / "models", reference) == ["swap-ours"]
    assert read_reference(reference / "swap-ours", model) == read_curve(model / "curve.csv")
    write(metrics, tmp_path)
    assert "a healthy run of the same parameters" in (tmp_path / "reports/report.md").read_text()
    (model / "card.json").write_text('{"config": {"lr": 2}}')
    assert read_reference(reference / "swap-ours", model) is None
    write(metrics, tmp_path)
    assert "healthy" not in (tmp_path / "reports/report.md").read_text()
    with pytest.raises(ValueError, match="holds no training's curve"):
        write_references(tmp_path / "nothing", reference)


def test_report_is_one_page_that_needs_nothing_else(metrics: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports"
    write(metrics, tmp_path)
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # a grid, two trade-offs, one set of curves, two of the data
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "CC0 &lt;b&gt;" in page
    for expected in (
        "7c7c7c7c7c7c",
        "0123abcd",
        "run-7",
        "small-pose",
        "cdcdcdcdcdcd",
        "abababababab",
        "121212121212",
        "Test set other",
        "w/o Q1",
    ):
        assert expected in page
    assert "LEAK: 2 identical files of test set faces are in training set t (first: f1, f2)" in page
    markdown = (out / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert len(pictures) == 6
    assert all((out / path).exists() for path in pictures)
    assert "| CodeSwap | 60.0 % [57.0, 63.0 %] |" in markdown
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(ROWS) * 8
    assert {row["variant"] for row in rows} == {"ours", "hard"}


def test_what_was_judged_by_others_or_on_other_pairs_is_not_compared(metrics: Path, tmp_path: Path) -> None:
    other = evaluation("hard", id_retrieval=0.3)
    networks = {"pose": NetworkName(name="small-pose", sha256="00" * 32)}
    write_evaluation(metrics, other.model_copy(update={"networks": networks, "pair_list_sha256": "99" * 32}))
    write(metrics, tmp_path)
    sentence = "NOT COMPARED: hard with ours on faces: they differ in pair list, pose. Evaluate all of them again"
    page, text = (tmp_path / "reports/report.md").read_text(), show(tmp_path / "reports")
    assert sentence in page and sentence in text and "variant hard" not in text
    assert page.count("Test set faces") == 2  # in a section of its own


def test_terminal_table_lines_up(metrics: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `dvc repro report` first"):
        show(tmp_path / "reports")
    write(metrics, tmp_path)
    text = show(tmp_path / "reports")
    table = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in table[1:-1]}) == 1
    assert any(line.startswith("variant hard") for line in table)
    assert "Identity moved to the source" in text


def test_report_without_metrics_or_with_a_damaged_file_says_so(metrics: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics under"):
        write(tmp_path / "nowhere", tmp_path)
    (metrics / "ours" / "faces.json").write_text("{}")
    with pytest.raises(ValueError, match=r"faces\.json is no metrics file of this version"):
        write(metrics, tmp_path)


def test_stage_writes_the_report_and_shows_it(metrics: Path, tmp_path: Path) -> None:
    assert metrics.exists()
    printed = []
    for option in ([], ["--show"]):
        command = [sys.executable, "-m", "pipeline.report", *option]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.strip())
    assert (tmp_path / "reports" / "index.html").exists()
    assert printed[0] == printed[1] == show(tmp_path / "reports").strip()


def test_latex_is_a_tabular_with_everything_escaped(metrics: Path, tmp_path: Path) -> None:
    table = Table("50 % & more_", ("a↑", "b"), [("x_1 & y", "5 %")])
    text = as_latex(table)
    assert r"x\_1 \& y & 5 \% \\" in text and r"\caption{50 \% \& more\_}" in text and "{lr}" in text
    write(metrics, tmp_path)
    files = sorted(path.name for path in (tmp_path / "reports/tables").iterdir())
    assert "table-1-comparison-of-face-swapping-methods.tex" in files and "table-3-ablation-on-faces.tex" in files
    for path in (tmp_path / "reports/tables").iterdir():
        body = path.read_text()
        assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 1
        (columns,) = re.findall(r"\{(lr*)\}", body)
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)


def test_stage_prints_the_papers_layout(metrics: Path, tmp_path: Path) -> None:
    write(metrics, tmp_path)
    command = [sys.executable, "-m", "pipeline.report", "--paper"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Table 1" in done.stdout and "Table 3: ablation on faces" in done.stdout


def test_the_page_works_in_a_browser(metrics: Path, tmp_path: Path, browser: Browser) -> None:
    for panel in ("robustness", "regions", "attention"):
        Image.new("RGB", (8, 8), "red").save(metrics / "ours" / f"faces.{panel}.png")
    write(metrics, tmp_path)
    page = browser.new_page(viewport={"width": 900, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "reports/index.html").as_uri())
    pictures = page.eval_on_selector_all("img", "images => images.map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(pictures) == 9 and all(done and width > 0 and alt for done, width, alt in pictures)

    table = page.locator("table.sortable", has_text="copy of the target").nth(1)
    title = table.locator("thead th", has_text="pose (deg)")
    place = page.evaluate("e => e.cellIndex", title.element_handle())

    def column() -> list[float]:
        cells = [row.locator("th,td").nth(place).inner_text() for row in table.locator("tbody tr").all()]
        return [float(cell.split()[0]) for cell in cells]

    before = column()
    title.click()
    assert column() == sorted(before) != before and title.get_attribute("aria-sort") == "ascending"
    title.press("Enter")
    assert column() == sorted(before, reverse=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wide tables scroll in their own box"
    assert said == []
    page.close()
