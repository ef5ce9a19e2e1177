"""Tables 1 and 3 in the paper's layout, and several trainings of a variant."""

import pytest

from codeswap.evaluate.paper import RIVALS, paper_tables, rival_of
from codeswap.evaluate.tables import METHODS, Table, variants_table
from codeswap.types import variant_of
from tests.test_report import evaluation


def rows_of(table: Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def test_the_papers_layout_has_a_row_for_every_rival_and_calibration() -> None:
    both = evaluation()
    both.methods["SimSwap-512"] = both.methods["rival"]
    (first, third, *_), orders, refused = paper_tables(
        [both, evaluation("hard", id_retrieval=0.3), evaluation(testset="other")]
    )
    assert not refused
    (sentence,) = orders
    assert sentence.startswith(
        "faces, w/o Q1 (hard quantisation) (single trainings): ours is better, as in the paper, in ID R;"
    )
    assert sentence.endswith("no difference beyond the seeds' in ID Sim, Pose, FD (ours).")
    rows = rows_of(first)
    assert [name for name in rows if name in RIVALS] == list(RIVALS) and "rival" in rows
    assert set(rows["FSGAN"]) == {"–"} and rows["SimSwap"][0] == "50.0 % [47.5, 52.5 %]"
    assert rows["CodeSwap"][0] == "60.0 % [57.0, 63.0 %]" and rows["CodeSwap"][5] == "60.0 % [57.0, 63.0 %]"
    assert {METHODS["true_swap"], METHODS["copy_target"], METHODS["copy_source"], METHODS["paste"]} <= rows.keys()
    assert first.header[1:6] == tuple(
        f"faces: {name}" for name in ("ID R (%) ↑", "ID Sim ↑", "Exp (MSE) ↓", "Pose (deg) ↓", "FD (ours) ↓")
    )
    ablation = rows_of(third)
    assert ablation["w/o Q1 (hard quantisation)"][0].startswith("30.0 %")
    assert ablation["ours"][-5:] == ("98.7", ".6118", ".0292", ".0187", "20.68")
    assert ablation["w/o M (no mask generator)"][3].startswith("2.50")


def test_several_trainings_of_a_variant_are_one_row_with_mean_and_deviation() -> None:
    ours = [evaluation(f"ours{n}", id_retrieval=r, pose_deg=2.0) for n, r in (("", 0.6), ("-1", 0.7), ("-2", 0.8))]
    hard = [evaluation(f"hard{n}", id_retrieval=r, pose_deg=1.0) for n, r in (("", 0.65), ("-1", 0.6), ("-2", 0.7))]
    (_, third), orders, refused = paper_tables([*ours, *hard])
    assert not refused and "3 of hard, 3 of ours" in third.note
    rows = rows_of(third)
    assert rows["ours"][0] == "70.0 ± 10.0 %" and rows["w/o Q1 (hard quantisation)"][0] == "65.0 ± 5.0 %"
    assert rows["ours"][3] == "2.00 ± 0.00" and rows["w/o M (no mask generator)"][0].endswith("%")
    assert len(third.rows) == 6
    assert rows_of(variants_table([*ours, *hard]))["ours"][0] == "70.0 ± 10.0 %"
    (sentence,) = orders  # 5 points are less than the 11 that two trainings differ by; a degree of pose is not
    assert (
        "no difference beyond the seeds' in ID R" in sentence and "ours is worse, unlike the paper, in Pose" in sentence
    )


@pytest.mark.parametrize(("name", "says"), [("hard-2", ("hard", 2)), ("ours", ("ours", 0))])
def test_a_number_behind_a_variant_is_a_repetition(name: str, says: tuple[str, int]) -> None:
    assert variant_of(name) == says
    for wrong in ("hardly", "hard-", "hard-0", "hard-x"):
        with pytest.raises(ValueError, match=rf"variant '{wrong}': expected one of ours"):
            variant_of(wrong)


@pytest.mark.parametrize(
    ("name", "rival"),
    [("simswap", "SimSwap"), ("sim_swap-256", "SimSwap"), ("BlendSwap", "BlendFace"), ("e4s", "E4S"), ("mine", None)],
)
def test_rivals_are_known_by_their_names(name: str, rival: str | None) -> None:
    assert rival_of(name) == rival


def test_variants_stand_beside_the_papers_numbers() -> None:
    table = variants_table([evaluation(), evaluation("hard", id_retrieval=0.3)])
    rows = {row[0]: row for row in table.rows}
    assert rows["w/o Q1 (hard quantisation)"][1].startswith("30.0 %")
    assert rows["w/o Q1 (hard quantisation)"][-5:] == ("97.7", ".5606", ".0299", ".0218", "20.93")
    assert rows["w/o Q2 (Gumbel-softmax)"][1:3] == ("–", "–")
    assert rows["ours"][-5:] == ("98.7", ".6118", ".0292", ".0187", "20.68")
    assert rows["ours, w/o M"][-1] == "–"
