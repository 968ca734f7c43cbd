"""Near-duplicate pairs and clusters of clips, from their embeddings. NumPy alone.

Up to `EXACT` clips every pair is compared; above, an inverted file (Jégou, Douze & Schmid 2011,
without its codes) compares clips of the same few cells. A million clips need their vectors, one
block of products (64 MB) and the pairs found.
"""

from collections.abc import Iterator, Sequence

import numpy as np

VERSION = "1"  # changes whenever the pairs or the clusters do
EXACT = 50_000  # clips
PROBES = 16  # cells that each clip is looked for in
MOST = 64  # pairs kept of one clip, its most similar
BLOCK = 2**24  # products at a time
ROUNDS = 20  # of k-means, at most
SEED = 0


def pairs(
    vectors: np.ndarray, ids: Sequence[str], similarity: float = 0.9, exact: int = EXACT
) -> list[tuple[str, str, float]]:
    """Clips that are near-duplicates of one that is preferred to them.

    Of a clip with more than 64 such, the 64 most similar ones are listed, so that ten thousand
    black clips do not make fifty million pairs.

    Args:
        vectors: float32 [n, d], each of unit length.
        ids: n clip ids, the preferred first.
        similarity: least cosine of a pair, above 0.
        exact: largest n for which every pair is compared; above it a pair may be missed, though
            none was of 9,000 planted at 0.905 to 0.96.

    Returns:
        (clip_id, duplicate_of, cosine), in the order of ids, the most similar first.

    Raises:
        ValueError: the vectors are not what is said above.
    """
    n = _checked(vectors, ids)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    waiting = 0
    for rows, members in _groups(vectors) if n > exact else _triangle(n):
        for hit in _close(vectors, rows, members, similarity):
            found.append(hit)
            waiting += len(hit[0])
        if waiting > BLOCK // 4:
            found = [_best(found)]
            waiting = 0
    if not found:
        return []
    return [(ids[i], ids[j], min(1.0, float(s))) for i, j, s in zip(*_best(found), strict=True)]


def clusters(
    vectors: np.ndarray, ids: Sequence[str], k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means (Dhillon & Modha 2001) from k-means++ seeds (Arthur & Vassilvitskii 2007).

    The same clips give the same clusters, in whatever order they come.

    Args:
        vectors: float32 [n, d], each of unit length.
        ids: n clip ids.
        k: how many; None: one for ten clips, from 1 to 100 as in the Wan report.

    Returns:
        each clip's cluster, int64 [n] of 0 … k − 1, and 1 − cosine to its centre, float64 [n].

    Raises:
        ValueError: the vectors are not what is said above.
    """
    n = _checked(vectors, ids)
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    k = min(n, max(1, min(100, n // 10)) if k is None else k)
    order = np.argsort(np.asarray(ids), kind="stable")
    if not np.array_equal(order, np.arange(n)):
        vectors = vectors[order]
    centres = _kmeans(_some(vectors, 1024 * k), k, spread=True)
    cluster, cosine = np.empty(n, np.int64), np.empty(n)
    cluster[order], cosine[order] = _nearest(vectors, centres)
    return cluster, np.clip(1 - cosine, 0, 2)


def _checked(vectors: np.ndarray, ids: Sequence[str]) -> int:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise ValueError(f"vectors {vectors.shape} for {len(ids)} ids: one row each is needed")
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))
    if wrong.size:
        raise ValueError(f"{wrong.size} vectors are not of unit length, e.g. {norms[wrong[0]]:.3g}")
    return len(vectors)


def _triangle(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every clip against those before it."""
    step = max(1, BLOCK // max(n, 1))
    for start in range(0, n, step):
        end = min(n, start + step)
        yield np.arange(start, end), np.arange(end)


def _groups(vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each cell, the clips near it, and the clips in it."""
    n = len(vectors)
    cells = round(4 * np.sqrt(n))
    centres = _kmeans(_some(vectors, 32 * cells), cells, spread=False, rounds=6)
    probes = np.empty((n, PROBES), np.int32)
    home = np.empty(n, np.int32)
    for part in _slices(n, cells):
        products = vectors[part] @ centres.T
        probes[part] = np.argpartition(-products, PROBES - 1, axis=1)[:, :PROBES]
        home[part] = products.argmax(1)
    by_probe, by_home = np.argsort(probes.ravel(), kind="stable"), np.argsort(home, kind="stable")
    probe_ends = np.cumsum(np.bincount(probes.ravel(), minlength=cells))
    home_ends = np.cumsum(np.bincount(home, minlength=cells))
    for cell in range(cells):
        rows = by_probe[probe_ends[cell - 1] if cell else 0 : probe_ends[cell]] // PROBES
        members = by_home[home_ends[cell - 1] if cell else 0 : home_ends[cell]]
        yield rows, members


def _close(
    vectors: np.ndarray, rows: np.ndarray, members: np.ndarray, similarity: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs (row, earlier member, cosine) of at least `similarity`, the best of each row."""
    if not rows.size or not members.size:
        return
    theirs = vectors[members]
    for part in _slices(len(rows), len(members)):
        mine = rows[part]
        cosines = vectors[mine] @ theirs.T
        cosines[members[None] >= mine[:, None]] = -1
        many = np.flatnonzero((cosines >= similarity).sum(1) > MOST)
        if many.size:
            worse = np.argpartition(-cosines[many], MOST - 1, axis=1)[:, MOST:]
            cosines[many[:, None], worse] = -1
        i, j = np.nonzero(cosines >= similarity)
        yield mine[i], members[j], cosines[i, j]


def _best(found: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs in order, at most `MOST` of each clip."""
    i, j, s = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((j, -s, i))
    i, j, s = i[order], j[order], s[order]
    _, first, inverse = np.unique(i, return_index=True, return_inverse=True)
    kept = np.arange(len(i)) - first[inverse] < MOST
    return i[kept], j[kept], s[kept]


def _kmeans(vectors: np.ndarray, k: int, spread: bool, rounds: int = ROUNDS) -> np.ndarray:
    """Centres of unit length, float32 [k, d]; fewer if there are not k different vectors."""
    rng = np.random.default_rng(SEED)
    if spread:
        centres = vectors[_seeds(vectors, k, rng)]
    else:
        centres = vectors[np.sort(rng.choice(len(vectors), k, replace=False))]
    before = None
    for _ in range(rounds):
        cluster, cosine = _nearest(vectors, centres)
        if before is not None and np.array_equal(cluster, before):
            break
        before = cluster
        order = np.argsort(cluster, kind="stable")
        sizes = np.bincount(cluster, minlength=len(centres))
        full = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[full]
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        centres = np.empty_like(centres)
        centres[full] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        # A centre that lost its clips takes one of those that fit worst.
        empty = np.flatnonzero(sizes == 0)
        centres[empty] = vectors[np.argsort(cosine, kind="stable")[: empty.size]]
    return centres


def _seeds(vectors: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """At most k different rows: k-means++ in its greedy form, which of a few rows drawn by their
    squared distance to the seeds takes the one that leaves the least of it."""
    chosen = [int(rng.integers(len(vectors)))]
    left = _squared(vectors, vectors[chosen])[:, 0]
    for _ in range(k - 1):
        total = np.cumsum(left)
        if total[-1] == 0:
            break
        drawn = np.searchsorted(total, rng.random(2 + int(np.log(k))) * total[-1], side="right")
        after = np.minimum(left[:, None], _squared(vectors, vectors[drawn]))
        best = int(after.sum(0).argmin())
        chosen.append(int(drawn[best]))
        left = after[:, best]
    return np.array(chosen)


def _squared(vectors: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Squared distances of unit vectors; what stands within rounding of a seed counts as it."""
    distance = 2 - 2 * (vectors @ seeds.T).astype(np.float64)
    distance[distance < 1e-5] = 0
    return distance


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre of largest cosine, and that cosine, for each vector."""
    cluster, cosine = np.empty(len(vectors), np.int64), np.empty(len(vectors))
    for part in _slices(len(vectors), len(centres)):
        products = vectors[part] @ centres.T
        cluster[part], cosine[part] = products.argmax(1), products.max(1)
    return cluster, cosine


def _some(vectors: np.ndarray, count: int) -> np.ndarray:
    """At most so many rows, drawn once for all."""
    if len(vectors) <= count:
        return vectors
    rng = np.random.default_rng(SEED)
    return vectors[np.sort(rng.choice(len(vectors), count, replace=False))]


def _slices(rows: int, columns: int) -> Iterator[slice]:
    """Cuts `rows` so that a block of products stays within BLOCK."""
    step = max(1, BLOCK // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
