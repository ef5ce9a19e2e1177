"""The committed models: small, whole, their licences stated, and they swap (photographs: test_same_person.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.use.examples import examples
from codeswap.use.loading import load_swapper

RELEASE = Path(__file__).parent.parent / "models" / "release"

pytestmark = pytest.mark.usefixtures("own_certificate")


@pytest.mark.parametrize(
    ("place", "licence"), [(".", "rendered by CodeSwap, depicts nobody"), ("photographs", "MIT (")]
)
def test_they_are_small_and_their_cards_say_what_they_are(place: str, licence: str) -> None:
    assert sum(path.stat().st_size for path in RELEASE.rglob("*")) < 30 * 2**20
    for kind in ("codebook", "swap", "mask"):
        card = json.loads((RELEASE / place / kind / "card.json").read_text())
        assert card["kind"] == kind and card["intended_use"]
        assert card["licences"] and all(text.startswith(licence) for text in card["licences"].values())


def test_the_person_changes_and_the_rest_stays() -> None:
    swapper = load_swapper(RELEASE, "ours")
    a, b = examples(swapper.size, 2)
    found = swapper.swap(a, b)
    inside = found.mask_b > 0.5
    assert 0.15 < inside.mean() < 0.6
    change = np.abs(found.naive_ab.astype(int) - b).mean(axis=2)
    skin = [picture[24:44, 24:40].reshape(-1, 3).mean(axis=0) for picture in (a, b, found.naive_ab)]
    assert np.abs(skin[2] - skin[0]).mean() < np.abs(skin[2] - skin[1]).mean(), "the source's skin"
    assert change[inside].mean() > 2 * change[~inside].mean()


def test_a_newcomer_swaps_two_faces_in_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RELEASE.parents[1])
    done = CliRunner().invoke(
        app, ["swap", "docs/ann.png", "docs/bob.png", "--aligned", "--models", str(RELEASE), "-o", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["ann_on_bob.png", "bob_on_ann.png"]
    verified = CliRunner().invoke(app, ["verify", str(tmp_path / "ann_on_bob.png")])
    assert verified.exit_code == 0 and "watermark: found" in verified.output
