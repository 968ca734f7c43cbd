"""Near-duplicate pairs and clusters, against comparing everything and against planted groups."""

import numpy as np
import pytest

from curation import neighbours
from curation.neighbours import clusters, pairs


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def topics(n: int, count: int = 30, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around `count` centres, and each one's centre."""
    rng = np.random.default_rng(seed)
    centre = rng.integers(count, size=n)
    return unit(rng.normal(size=(count, size))[centre] + 0.6 * rng.normal(size=(n, size))), centre


def turned(vectors: np.ndarray, cosine: float, seed: int = 1) -> np.ndarray:
    """Vectors at exactly this cosine to the given ones."""
    side = np.random.default_rng(seed).normal(size=vectors.shape)
    side -= (side * vectors).sum(1, keepdims=True) * vectors
    return unit(cosine * vectors + np.sqrt(1 - cosine**2) * unit(side))


def names(n: int) -> list[str]:
    return [f"clip-{i:06d}" for i in range(n)]


def brute(vectors: np.ndarray, ids: list[str], similarity: float) -> dict:
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return {
        (ids[i], ids[j]): cosines[i, j]
        for i in range(len(ids))
        for j in range(i)
        if cosines[i, j] >= similarity
    }


def test_pairs_are_those_of_comparing_everything():
    vectors, _ = topics(300)
    vectors = np.concatenate([vectors, turned(vectors[:40], 0.97)])
    ids = names(len(vectors))
    found = {(a, b): s for a, b, s in pairs(vectors, ids, 0.85)}
    expected = brute(vectors, ids, 0.85)
    assert len(expected) > 40
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[pair] for pair in found], abs=1e-5)


def test_the_preferred_clip_is_the_one_that_stays():
    vectors, _ = topics(2)
    copy = turned(vectors[:1], 0.98)
    assert [p[:2] for p in pairs(np.concatenate([vectors, copy]), ["a", "b", "c"])] == [("c", "a")]
    assert [p[:2] for p in pairs(np.concatenate([copy, vectors]), ["c", "a", "b"])] == [("a", "c")]


def test_blocks_do_not_change_the_pairs(monkeypatch):
    vectors, _ = topics(200)
    whole = pairs(vectors, names(200), 0.6)
    monkeypatch.setattr(neighbours, "BLOCK", 1000)
    blocked = pairs(vectors, names(200), 0.6)
    assert [p[:2] for p in blocked] == [p[:2] for p in whole]
    assert len(whole) > 500


@pytest.mark.parametrize("cosine", [0.91, 0.96])
def test_the_inverted_file_finds_what_comparing_everything_finds(cosine):
    vectors, _ = topics(4000)
    copies = turned(vectors[:400], cosine)
    both = np.concatenate([vectors, copies])
    ids = names(len(both))
    exact = {p[:2] for p in pairs(both, ids, 0.9)}
    indexed = {p[:2] for p in pairs(both, ids, 0.9, exact=100)}
    assert len(exact) >= 400
    assert indexed <= exact
    assert len(indexed) >= 0.99 * len(exact)


def test_the_inverted_file_finds_pairs_without_any_topics():
    vectors = unit(np.random.default_rng(2).normal(size=(3000, 48)))
    both = np.concatenate([vectors, turned(vectors[:300], 0.92)])
    found = {p[:2] for p in pairs(both, names(len(both)), 0.9, exact=100)}
    planted = {(f"clip-{3000 + i:06d}", f"clip-{i:06d}") for i in range(300)}
    assert len(found & planted) >= 0.99 * 300


def test_a_thousand_equal_clips_do_not_make_half_a_million_pairs():
    vectors = np.repeat(topics(1)[0], 1000, 0)
    found = pairs(vectors, names(1000))
    assert len(found) <= 1000 * neighbours.MOST
    assert {clip for clip, _, _ in found} == set(names(1000)[1:])
    assert {p[:2] for p in found} == {p[:2] for p in pairs(vectors, names(1000))}


def test_none_or_one_clip_has_no_pairs_and_one_cluster():
    vectors, _ = topics(1)
    assert pairs(vectors[:0], []) == pairs(vectors, ["a"]) == []
    cluster, distance = clusters(vectors, ["a"])
    assert cluster.tolist() == [0]
    assert distance == pytest.approx([0], abs=1e-6)
    assert clusters(vectors[:0], [])[0].size == 0


def test_clusters_are_the_planted_groups():
    vectors, centre = topics(900, count=9)
    cluster, distance = clusters(vectors, names(900), 9)
    assert len(set(zip(cluster, centre, strict=True))) == 9
    assert 0 < distance.mean() < 0.5


def test_a_distance_is_one_minus_the_cosine_to_the_mean_of_the_cluster():
    vectors, _ = topics(500)
    cluster, distance = clusters(vectors, names(500), 12)
    for c in range(12):
        members = vectors[cluster == c].astype(np.float64)
        mean = members.sum(0) / np.linalg.norm(members.sum(0))
        assert distance[cluster == c] == pytest.approx(1 - members @ mean, abs=1e-4)


def test_a_small_far_group_gets_its_own_cluster():
    """The long tail: ten clips of a thousand, unlike the rest."""
    vectors, _ = topics(990, count=3)
    rare = turned(unit(np.random.default_rng(5).normal(size=(1, 64))).repeat(10, 0), 0.9)
    cluster, _ = clusters(np.concatenate([vectors, rare]), names(1000), 8)
    assert len(set(cluster[-10:])) == 1
    assert not set(cluster[-10:]) & set(cluster[:-10])


def test_clusters_do_not_depend_on_the_order_of_the_clips():
    vectors, _ = topics(400)
    ids = np.array(names(400))
    mixed = np.random.default_rng(3).permutation(400)
    straight, shuffled = clusters(vectors, ids), clusters(vectors[mixed], ids[mixed])
    assert np.array_equal(straight[0][mixed], shuffled[0])
    assert straight[1][mixed] == pytest.approx(shuffled[1], abs=1e-6)
    assert straight[0].max() == 39


def test_fewer_different_clips_than_clusters_leave_clusters_empty():
    vectors = np.repeat(topics(3)[0], 20, 0)
    cluster, distance = clusters(vectors, names(60), 10)
    assert len(set(cluster)) == 3
    assert distance == pytest.approx(np.zeros(60), abs=1e-5)


def test_vectors_that_are_not_of_unit_length_are_refused_with_the_number():
    vectors, _ = topics(5)
    vectors[3] *= 2
    with pytest.raises(ValueError, match=r"1 vectors .* 2"):
        pairs(vectors, names(5))
    vectors[3] = np.nan
    with pytest.raises(ValueError, match="nan"):
        clusters(vectors, names(5))
    with pytest.raises(ValueError, match="4 ids"):
        pairs(vectors, names(4))
