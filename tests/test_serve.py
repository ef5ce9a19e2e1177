"""The page and its API: swaps come out marked, visitors are limited, mistakes are sentences, a browser can use it."""

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image as PILImage
from playwright.sync_api import Browser, Page

from codeswap.use import credentials, watermark
from codeswap.use.examples import examples
from codeswap.use.loading import Swapper, load_swapper
from codeswap.use.service import Limits, create_app, data_url

pytestmark = pytest.mark.usefixtures("own_certificate")


@pytest.fixture(scope="module")
def swapper(trained: Path) -> Swapper:
    return load_swapper(trained / "models", "ours")


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pixels(url: str) -> np.ndarray:
    return np.asarray(PILImage.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


@pytest.fixture
def pair() -> dict:
    """Two aligned faces, large enough for a watermark."""
    a, b = (data_url(png(face)) for face in examples(256, 2))
    return {"a": a, "b": b, "aligned": True}


def client(swapper: Swapper, **limits: object) -> TestClient:
    return TestClient(create_app(swapper, None, Limits(**limits)))


def test_both_swaps_come_back_as_the_model_makes_them_and_marked(swapper: Swapper, pair: dict, tmp_path: Path) -> None:
    found = client(swapper).post("/api/swap", json=pair)
    assert found.status_code == 200, found.text
    answer = found.json()
    for name, target in (("ab", pair["b"]), ("ba", pair["a"])):
        result = pixels(answer[name])
        assert result.shape == (256, 256, 3) and np.abs(result.astype(int) - pixels(target)).mean() > 1
        assert watermark.score(result) > watermark.THRESHOLD
        (tmp_path / f"{name}.png").write_bytes(base64.b64decode(answer[name].split(",")[1]))
        assert credentials.read_file(tmp_path / f"{name}.png", "image/png").intact
    assert pixels(answer["mask_b"]).shape[0] == swapper.size
    naive = swapper.swap(*(pixels(answer[f"face_{side}"]) for side in "ab"))
    assert np.array_equal(pixels(answer["mask_b"])[..., 0], np.rint(naive.mask_b * 255))


def test_a_region_changes_only_there_and_attention_is_a_picture(swapper: Swapper, pair: dict) -> None:
    web, n = client(swapper), swapper.grid
    done = web.post("/api/region", json={**pair, "cells": [0, 1, n]})
    assert done.status_code == 200, done.text
    changed = np.abs(pixels(done.json()["picture"]).astype(int) - watermark.embed(pixels(pair["b"]))).mean(axis=2)
    assert changed[128:, 128:].max() <= 4 < changed[:48, :48].max()  # elsewhere only the watermark
    assert web.post("/api/region", json={**pair, "cells": [n * n]}).json()["detail"].startswith("there is no cell")
    looked = web.post("/api/attention", json={**pair, "x": 0.4, "y": 0.5})
    assert looked.status_code == 200 and pixels(looked.json()["picture"]).ndim == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"a": "hello"}, "picture A is no picture: expected a data URL"),
        ({"b": "data:image/png;base64,aGVsbG8="}, "picture B cannot be read as a picture"),
        ({"b": "data:image/png;base64,%%%"}, "picture B cannot be read as a picture"),
        ({"aligned": False}, "there is no face detector here"),
        ({"a": data_url(png(np.zeros((4, 6, 3), dtype=np.uint8)))}, "picture A is 6x4: --aligned takes square crops"),
    ],
)
def test_mistakes_are_sentences(swapper: Swapper, pair: dict, change: dict, sentence: str) -> None:
    answer = client(swapper).post("/api/swap", json=pair | change)
    assert answer.status_code == 422 and answer.json()["detail"].startswith(sentence)


def test_visitors_are_limited(swapper: Swapper, pair: dict) -> None:
    small = client(swapper, megabytes=0.01).post("/api/swap", json=pair)
    assert small.status_code == 413 and "0.01 MB" in small.json()["detail"]
    few = client(swapper, pixels=1000).post("/api/swap", json=pair)
    assert few.status_code == 422 and "at most 1,000 pixels" in few.json()["detail"]
    web = client(swapper, per_minute=2)
    codes = [web.post("/api/swap", json={**pair, "a": "no"}).status_code for _ in range(3)]
    assert codes == [422, 422, 429]
    locked = client(swapper, password="secret")
    assert locked.get("/").status_code == 401 and locked.post("/api/swap", json=pair).status_code == 401
    assert locked.get("/api/model", auth=("me", "wrong")).status_code == 401
    assert locked.get("/", auth=("me", "secret")).status_code == 200


def test_the_api_is_documented(swapper: Swapper) -> None:
    schema = client(swapper).get("/openapi.json").json()
    assert {"/api/swap", "/api/region", "/api/attention", "/api/model", "/api/examples"} <= schema["paths"].keys()
    fields = schema["components"]["schemas"]["Pair"]["properties"]
    assert {"a", "b", "aligned", "match_colour"} == fields.keys()


@pytest.fixture
def address(swapper: Swapper) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(create_app(swapper, None, Limits()), port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#examples img")
    page.wait_for_selector("#grid button", state="attached")
    yield page
    assert [line for line in said if "422" not in line] == []  # browsers tell of refused requests themselves
    page.close()


def loaded(page: Page, selector: str) -> bool:
    return page.eval_on_selector(selector, "image => image.complete && image.naturalWidth > 0")


def test_upload_swap_brush_and_click_in_a_browser(page: Page, tmp_path: Path, swapper: Swapper) -> None:
    for name, face in zip("ab", examples(256, 2), strict=True):
        (tmp_path / f"{name}.png").write_bytes(png(face))
        page.set_input_files(f"#file-{name}", tmp_path / f"{name}.png")
    page.click("#swap")
    page.wait_for_selector("#results:not([hidden])")
    for selector in ("#ab .under", "#ab .over", "#ba .over", "#mask-b", "#mask-a"):
        assert loaded(page, selector), selector
    slider = page.locator("#ab input")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    assert page.eval_on_selector("#ab .over", "image => image.style.clipPath") == "inset(0px 0px 0px 55%)"

    cells = page.locator("#grid button")
    assert cells.count() == swapper.grid**2
    first, last = cells.nth(0).bounding_box(), cells.nth(2).bounding_box()
    page.mouse.move(first["x"] + 3, first["y"] + 3)
    page.mouse.down()
    page.mouse.move(last["x"] + 3, last["y"] + 3, steps=8)
    page.mouse.up()
    assert page.locator("#grid button[aria-pressed=true]").count() == 3
    page.click("#region")
    page.wait_for_selector("#region-result:not([hidden])")
    assert loaded(page, "#region-result")
    page.check("input[value=look]")
    cells.nth(swapper.grid + 1).click()
    page.wait_for_selector("#attention-result:not([hidden])")
    assert loaded(page, "#attention-result")


def test_examples_work_by_keyboard_alone(page: Page) -> None:
    buttons = page.locator("#examples button")
    for number in (0, 1):
        buttons.nth(number).focus()
        page.keyboard.press("Enter")
    page.locator("#swap").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#results:not([hidden])")
    page.locator("#grid button").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.locator("#grid button[aria-pressed=true]").count() == 2


def test_a_file_that_is_no_picture_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.set_input_files("#file-a", tmp_path / "notes.txt")
    page.wait_for_function("document.getElementById('said').textContent === 'notes.txt is no picture'")
    (tmp_path / "fake.png").write_text("no picture either")
    page.set_input_files("#file-a", tmp_path / "fake.png")
    page.set_input_files("#file-b", tmp_path / "fake.png")
    page.click("#swap")
    page.wait_for_function("document.getElementById('said').textContent.startsWith('picture A cannot be read')")


def test_the_page_fits_a_phone(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    page.wait_for_selector("#examples img")
    buttons = page.locator("#examples button")
    buttons.nth(0).click()
    buttons.nth(1).click()
    page.click("#swap")
    page.wait_for_selector("#results:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
