"""Pair lists: reproducible, complete, nobody is swapped onto themselves (METHOD §J.13)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from codeswap.evaluate.protocol import ProtocolConfig, derangement, draw_pairs, pairs_of, read_pairs, write_pairs


def manifest(rows: list[tuple[str, str | None, str | None, int | None]]) -> pa.Table:
    keys, identities, videos, frames = zip(*rows, strict=True)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "identity": pa.array(identities, pa.string()),
            "video": pa.array(videos, pa.string()),
            "frame": pa.array(frames, pa.int64()),
        }
    )


def celebahq() -> pa.Table:
    """The shape of CelebA-HQ: 30,000 images of 6,217 identities."""
    return manifest([(f"celebahq-{i:05d}", f"person{i % 6217}", None, None) for i in range(30_000)])


def ffpp(videos: int = 1000, frames: int = 10) -> pa.Table:
    return manifest([(f"ffpp-{v:03d}-{k}", None, f"{v:03d}", k * 7) for v in range(videos) for k in range(frames)])


def people(count: int, each: int) -> pa.Table:
    return manifest([(f"p{i:02d}-{j}", f"p{i:02d}", None, None) for i in range(count) for j in range(each)])


def test_celebahq_has_1000_people_each_once_source_and_once_target() -> None:
    pairs = draw_pairs(celebahq(), ProtocolConfig(shape="images", groups=1000))
    person = {f"celebahq-{i:05d}": i % 6217 for i in range(30_000)}
    assert len(pairs.targets) == len(set(pairs.targets)) == 1000
    assert len({person[key] for key in pairs.targets}) == 1000
    assert sorted(pairs.sources) == sorted(pairs.targets) == sorted(pairs.gallery)
    assert all(source != target for source, target in zip(pairs.sources, pairs.targets, strict=True))
    assert pairs.answers == pairs.sources


def test_ffpp_has_10000_pairs_none_within_a_video() -> None:
    pairs = draw_pairs(ffpp(), ProtocolConfig(per_group=10))
    assert pairs.shape == "videos"
    assert len(set(pairs.targets)) == len(set(pairs.sources)) == 10_000
    video = [(s.split("-")[1], t.split("-")[1]) for s, t in zip(pairs.sources, pairs.targets, strict=True)]
    assert all(source != target for source, target in video)
    assert len(pairs.gallery) == 1000
    assert all(key.endswith("-0") for key in pairs.gallery)
    assert all(a.split("-")[1] == s for a, (s, _) in zip(pairs.answers, video, strict=True))


def test_frames_are_drawn_without_replacement_and_kept_in_time() -> None:
    pairs = draw_pairs(ffpp(videos=4, frames=12), ProtocolConfig(per_group=10))
    assert len(set(pairs.targets)) == 40
    for key in pairs.gallery:
        mine = [int(t.split("-")[2]) for t in pairs.targets if t.split("-")[1] == key.split("-")[1]]
        assert int(key.split("-")[2]) == min(mine)


def test_gallery_images_of_identities_are_never_swapped() -> None:
    pairs = draw_pairs(people(7, 4), ProtocolConfig())
    assert pairs.shape == "identities"
    assert len(pairs.gallery) == 7
    assert len(pairs.targets) == 21
    assert not set(pairs.gallery) & ({*pairs.sources, *pairs.targets})
    for source, target, answer in zip(pairs.sources, pairs.targets, pairs.answers, strict=True):
        assert source[:3] != target[:3]
        assert answer[:3] == source[:3]


def test_list_depends_on_seed_and_content_not_on_row_order() -> None:
    table = people(9, 3)
    first = draw_pairs(table, ProtocolConfig())
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    assert draw_pairs(shuffled, ProtocolConfig()).sha256 == first.sha256
    assert draw_pairs(table, ProtocolConfig(seed=2025)).sha256 != first.sha256


def test_list_is_the_published_one() -> None:
    """A change of this hash makes every result that anybody has computed for our lists worthless."""
    pairs = draw_pairs(people(9, 3), ProtocolConfig())
    assert pairs.sha256[:16] == "7822efc319af31ec"


def test_shortened_list_is_a_beginning_of_the_whole_one() -> None:
    whole, short = (draw_pairs(people(9, 3), ProtocolConfig(pairs=n)) for n in (None, 5))
    assert short.targets == whole.targets[:5]
    assert short.gallery == whole.gallery


def test_rounds_give_every_target_other_sources() -> None:
    table = people(20, 3)
    once, thrice = (draw_pairs(table, ProtocolConfig(rounds=rounds)) for rounds in (1, 3))
    assert thrice.targets == once.targets * 3 and thrice.sources[:40] == once.sources
    assert all(source[:3] != target[:3] for source, target in zip(thrice.sources, thrice.targets, strict=True))
    pairs = set(zip(thrice.sources, thrice.targets, strict=True))
    assert len(pairs) > 110  # of 120: a trade may meet an old partner again
    for start in (0, 40, 80):
        assert sorted(thrice.sources[start : start + 40]) == sorted(once.targets)


def test_written_list_is_read_back_and_used(tmp_path: Path) -> None:
    table = people(5, 3)
    pairs = draw_pairs(table, ProtocolConfig())
    write_pairs(tmp_path / "pairs.json", pairs)
    assert pairs_of(table, ProtocolConfig(file=tmp_path / "pairs.json", seed=1)) == pairs
    with pytest.raises(ValueError, match="names 15 keys that the test set lacks"):
        read_pairs(tmp_path / "pairs.json", ["other"])
    (tmp_path / "bad.json").write_text('{"pairs": []}')
    with pytest.raises(ValueError, match="not a pair list"):
        read_pairs(tmp_path / "bad.json", ["other"])


def test_two_images_swap_with_each_other_and_one_cannot() -> None:
    two = manifest([("a", None, None, None), ("b", None, None, None)])
    assert set(draw_pairs(two, ProtocolConfig()).sources) == {"a", "b"}
    with pytest.raises(ValueError, match="nobody to swap with"):
        draw_pairs(two.slice(0, 1), ProtocolConfig())
    with pytest.raises(ValueError, match="asks for 3"):
        draw_pairs(two, ProtocolConfig(groups=3))
    with pytest.raises(ValueError, match="names no video"):
        draw_pairs(two, ProtocolConfig(shape="videos"))


@pytest.mark.parametrize("sizes", [(1, 1), (5, 5), (5, 3, 2), (1,) * 9, (4, 1, 1, 1, 1), (10, 9, 1)])
def test_derangement_keeps_groups_apart_even_when_it_is_tight(sizes: tuple[int, ...]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(50):
        permutation = derangement(groups, np.random.default_rng(seed).permutation(len(groups)), seed)
        assert sorted(permutation) == list(range(len(groups)))
        assert (groups[permutation] != groups).all()


def test_derangement_leaves_alone_what_is_right_and_says_when_there_is_none() -> None:
    groups = np.array([0, 0, 1, 1])
    assert derangement(groups, np.array([2, 3, 0, 1]), 0).tolist() == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="3 of 5 images belong to one person"):
        derangement(np.array([0, 0, 0, 1, 2]), np.arange(5), 0)


def test_pairs_are_not_arranged_by_anything() -> None:
    """Neither neighbours in the manifest nor in the list are paired more often than chance would have it."""
    pairs = draw_pairs(celebahq(), ProtocolConfig(shape="images", groups=1000))
    number = np.array([[int(key.split("-")[1]) for key in keys] for keys in (pairs.sources, pairs.targets)])
    assert abs(np.corrcoef(number)[0, 1]) < 0.1
    assert abs(np.corrcoef(number[1], np.arange(1000))[0, 1]) < 0.1
