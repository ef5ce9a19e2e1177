"""A blind study: nothing tells methods apart, no answer is lost, one can go on later, the table is what was rated."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image as PILImage
from playwright.sync_api import Browser
from typer.testing import CliRunner, Result

from codeswap.cli import app
from codeswap.data.faces import Faces
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of
from codeswap.use.study import ANSWERS, CATCH, QUESTIONS, Study, agreement, report
from codeswap.use.study_service import create_app
from tests.evaluation_world import ROOT, shards

pytestmark = pytest.mark.usefixtures("own_certificate")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A test set of 12 pairs and the results of two methods, which are plain colours."""
    shards(tmp_path / "faces", 6, 3)
    faces = Faces([tmp_path / "faces"])
    pairs = pairs_of(faces.manifest, ProtocolConfig())
    for name, colour in (("ours", "red"), ("theirs", "blue")):
        (tmp_path / name).mkdir()
        for source, target in zip(pairs.sources, pairs.targets, strict=True):
            PILImage.new("RGB", (16, 16), colour).save(tmp_path / name / f"{source}_{target}.png")
    return tmp_path


def build(world: Path, *more: str) -> Result:
    named = [f"--result={name}={world / name}" for name in ("ours", "theirs")]
    arguments = ["study", "build", str(world / "study"), "--shards", str(world / "faces"), *named, *more]
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def study(world: Path) -> Iterator[Study]:
    done = build(world, "--trials", "4", "--catches", "2")
    assert done.exit_code == 0, done.output
    found = Study(world / "study")
    yield found
    found.close()


def test_trials_are_blind_and_drawn_by_the_seed(study: Study, world: Path) -> None:
    assert len(study.trials) == 4 * 2 + 2
    methods = [trial.method for trial in study.trials.values()]
    assert {name: methods.count(name) for name in set(methods)} == {"ours": 4, "theirs": 4, CATCH: 2}
    for trial in study.trials.values():
        pictures = [study.folder / "pictures" / f"{trial.id}-{kind}.png" for kind in ("source", "target", "result")]
        assert all(path.exists() for path in pictures)
        if trial.method == CATCH:
            same = [np.asarray(PILImage.open(path).convert("RGB")) for path in pictures[1:]]
            assert np.abs(same[0].astype(int) - same[1]).max() <= 16  # the watermark at most
    web = TestClient(create_app(study))
    shown = web.get("/api/next", params={"person": "p"}).text + "".join(study.trials)
    assert "ours" not in shown and "theirs" not in shown and CATCH not in shown
    assert "study.json" not in web.get("/").text
    assert web.get("/pictures/study.json").status_code == 404
    assert web.get("/pictures/..%2Fstudy.json").status_code == 404
    other = Study(world / "study")
    assert other.order("p") == study.order("p") != study.order("q")
    other.close()
    assert build(world).exit_code == 4  # its answers would lose their trials


def test_results_that_are_missing_are_named_and_nothing_is_written(world: Path) -> None:
    next((world / "theirs").iterdir()).unlink()
    done = build(world, "--trials", "12", "--catches", "0")
    assert done.exit_code == 4 and "1 results are not there" in done.output and "theirs: " in done.output
    assert not (world / "study").exists()
    done = build(world, "--trials", "30")
    assert done.exit_code == 4 and "need as many pairs, there are 12" in done.output


def test_a_model_s_results_can_be_rated_too(world: Path, trained: Path) -> None:
    arguments = [
        "study",
        "build",
        str(world / "own"),
        "--shards",
        str(world / "faces"),
        "--trials",
        "2",
        "--catches",
        "0",
    ]
    done = CliRunner().invoke(app, [*arguments, f"--model=codeswap={trained / 'models'}"])
    assert done.exit_code == 0 and "2 trials" in done.output, done.output
    assert CliRunner().invoke(app, [*arguments, "--model=nothing"]).exit_code == 4


def rate(study: Study, person: str, values: dict[str, tuple[int, int, int]]) -> None:
    for trial in study.left(person):
        ratings = values[study.trials[trial].method]
        study.answer(person, trial, dict(zip(QUESTIONS, ratings, strict=True)))


def test_the_report_is_table_2_without_those_who_did_not_look(study: Study) -> None:
    with pytest.raises(ValueError, match="no answers to report yet"):
        report(study)
    looked = {"ours": (5, 4, 4), "theirs": (2, 3, 1), CATCH: (1, 5, 5)}
    rate(study, "ann", looked)
    rate(study, "bob", {**looked, "ours": (4, 4, 4)})
    rate(study, "eve", {name: (5, 5, 5) for name in looked})
    found = report(study)
    rows = {row[0]: row[1:] for row in found.table.rows}
    assert rows["ours"][0].startswith("4.50 [") and rows["ours"][1] == "4.00 [4.00, 4.00]"
    assert rows["theirs"][2] == "1.00 [1.00, 1.00]" and rows["theirs"][3] == "8"
    assert CATCH not in rows
    text = " ".join(found.sentences)
    assert "16 answers of 2 raters" in text and "Left out" in text and "eve" in text
    printed = CliRunner().invoke(app, ["study", "report", str(study.folder)])
    assert printed.exit_code == 0 and "Table 2" in printed.output and "ours" in printed.output


def test_agreement_by_hand() -> None:
    same = [(p, t, v) for p in "ab" for t, v in (("x", 1), ("y", 5))]
    assert agreement(same) == pytest.approx(1.0)
    # alpha = 1 - D_o / D_e: disagreements of 1 in both trials against all pairs of the four values 1, 2, 4, 5
    near = [("a", "x", 1), ("b", "x", 2), ("a", "y", 4), ("b", "y", 5)]
    expected = np.mean([(i - j) ** 2 for n, i in enumerate((1, 2, 4, 5)) for m, j in enumerate((1, 2, 4, 5)) if n != m])
    assert agreement(near) == pytest.approx(1 - 1 / expected)
    assert agreement([("a", "x", 1), ("b", "y", 2)]) is None


def test_an_answer_that_was_confirmed_survives_kill_9(study: Study, world: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "codeswap", "study", "serve", str(study.folder), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    try:
        import httpx

        address, trial = f"http://127.0.0.1:{port}", None
        for _ in range(600):
            try:
                trial = httpx.get(f"{address}/api/next", params={"person": "ann"}).json()["trial"]
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        answer = {"person": "ann", "trial": trial, "identity": 4, "attributes": 3, "realism": 2}
        assert httpx.post(f"{address}/api/answer", json=answer).json()["done"] == 1
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    with sqlite3.connect(study.folder / ANSWERS) as store:
        rows = store.execute("select person, trial, identity, attributes, realism from answers").fetchall()
    assert rows == [("ann", trial, 4, 3, 2)]
    again = Study(study.folder)
    assert trial not in again.left("ann") and len(again.left("ann")) == len(again.trials) - 1
    again.close()


@pytest.mark.parametrize(
    "change", [{"identity": 6}, {"realism": 0}, {"trial": "nothing"}, {"person": ""}, {"attributes": None}]
)
def test_what_is_no_answer_is_refused(study: Study, change: dict) -> None:
    answer = {"person": "p", "trial": study.order("p")[0], "identity": 1, "attributes": 1, "realism": 1}
    assert TestClient(create_app(study)).post("/api/answer", json=answer | change).status_code == 422
    assert study.ratings() == []


def test_a_whole_study_in_a_browser(study: Study, browser: Browser) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(study), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    said: list[str] = []

    def visit(trials: int) -> str:
        """Rates some trials as one person does, and leaves; what the page then says."""
        page = browser.new_page(viewport={"width": 420, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}")
        page.fill("#person", "ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#trial:not([hidden])")
        for number in range(trials):
            page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            before = page.inner_text("#count")
            for question, value in zip(QUESTIONS, (number % 5 + 1, 3, 4), strict=True):
                page.check(f"input[name={question}][value='{value}']")
            page.click("#trial button")
            page.wait_for_function("before => document.getElementById('count').textContent !== before", arg=before)
        text = page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()
        return text

    assert "3 of 10" in visit(3)
    assert "All trials are rated" in visit(7)
    server.should_exit = True
    thread.join(timeout=10)
    assert said == []
    rated = {trial.id: values for _, trial, values in study.ratings()}
    assert [rated[trial][0] for trial in study.order("ann")[:3]] == [1, 2, 3]
    assert len(rated) == 10 and json.loads((study.folder / "study.json").read_text())["seed"] == 0
