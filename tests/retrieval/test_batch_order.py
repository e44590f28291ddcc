"""Which rows share a batch: what every order promises, and the proxies' order against a loop that anyone can read."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.batch_order import (
    ClusterOrder,
    ProxyOrder,
    RandomOrder,
    batch_likeness,
    by_decile,
    draw_near,
    group_numbers,
)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(rows, dim=16, size=20, noise=0.5, seed=0):
    """Unit vectors around centres, and which centre each has."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(2, rows // size), dim))
    own = random.integers(0, len(centres), rows)
    return unit(centres[own] + noise * random.standard_normal((rows, dim))), own


def order(kind, rows, *, size=8, hardness=1.0, seed=0, groups=None):
    vectors, own = clustered(rows)
    if kind == "random":
        return RandomOrder(rows, size, seed)
    if kind == "cluster":
        return ClusterOrder(own, size, lambda epoch: hardness, seed)
    groups = np.arange(rows) if groups is None else groups
    return ProxyOrder(groups, lambda: vectors, size, lambda epoch: hardness, seed)


# --- what every order promises ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(["random", "cluster", "proxy"]),
    st.integers(1, 70),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.integers(0, 3),
    st.integers(0, 2),
)
def test_every_row_once_in_batches_of_the_random_sizes(kind, rows, size, hardness, seed, epoch):
    batches = order(kind, rows, size=size, hardness=hardness, seed=seed).batches(epoch)
    assert [len(batch) for batch in batches] == [len(batch) for batch in RandomOrder(rows, size, seed).batches(epoch)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))


@pytest.mark.parametrize("kind", ["random", "cluster", "proxy"])
def test_an_order_depends_on_seed_and_epoch_alone(kind):
    def drawn(seed, epoch):
        return [batch.tolist() for batch in order(kind, 60, seed=seed).batches(epoch)]

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3)
    assert drawn(1, 2) != drawn(2, 2)


def test_the_first_epoch_by_proxies_is_the_random_one():
    one, other = (order(kind, 50).batches(0) for kind in ("proxy", "random"))
    assert [batch.tolist() for batch in one] == [batch.tolist() for batch in other]


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_batches_of_clusters_hold_one_cluster_until_only_rests_are_left():
    own = np.repeat([0, 1, 2], [17, 16, 7])
    batches = ClusterOrder(own, 8, lambda epoch: 1.0, 0).batches(1)
    pure = [len(set(own[batch].tolist())) == 1 for batch in batches]
    assert sum(pure) == 4  # 2 of cluster 0, 2 of cluster 1; the rests of 1 + 7 share the fifth
    assert len(batches) == 5


def test_a_share_of_a_batch_is_drawn_from_anywhere():
    own = np.repeat(np.arange(8), 64)
    batches = ClusterOrder(own, 16, lambda epoch: 0.5, 0).batches(0)
    most = [np.bincount(own[batch]).max() for batch in batches]
    assert sum(count < 8 for count in most) <= 4  # the rests of 8 clusters, of which each has fewer than 8 rows
    assert np.mean(most) < 12  # 8 of the cluster, and of the other 8 one or two by chance


# --- proxies ----------------------------------------------------------------------------------------------------------


def by_hand(proxies, groups, sizes, near, random):
    """The same drawing, one comparison after the other."""
    queue = random.permutation(len(groups)).tolist()
    largest = sorted(set(groups.tolist()), key=lambda g: (-int((groups == g).sum()), g))
    batches = []

    def take(group):
        row = next(row for row in queue if groups[row] == group)
        queue.remove(row)
        batch.append(row)
        met.add(group)

    for number, (size, wanted) in enumerate(zip(sizes, near, strict=True)):
        batch, met, to_come = [], set(), len(sizes) - number
        if to_come > 1:
            due = {g: sum(groups[row] == g for row in queue) // to_come for g in largest}
            for turn in range(max(due.values())):
                for group in largest:
                    if due[group] > turn:
                        take(group)
        if len(batch) < size:
            anchor = groups[next((row for row in queue if groups[row] not in met), queue[0])]
            take(anchor)
            left = sorted({groups[row] for row in queue} - met, key=lambda g: (-float(proxies[g] @ proxies[anchor]), g))
            for group in left[: min(wanted, size - len(batch))]:
                take(group)
        for row in list(queue):  # then by chance, of groups that are not in the batch
            if len(batch) < size and groups[row] not in met:
                queue.remove(row)
                batch.append(row)
                met.add(groups[row])
        while len(batch) < size:
            batch.append(queue.pop(0))
        batches.append(batch)
    return batches


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5))
def test_the_drawing_is_that_of_the_plain_loop(rows, groups, size, hardness, seed):
    random = np.random.default_rng(seed)
    own = group_numbers(random.integers(0, groups, rows).tolist())
    # whole numbers: both ways of multiplying are exact, so that ties are ties in both
    proxies = random.integers(-3, 4, (int(own.max()) + 1, 4)).astype(np.float32)
    sizes = [size] * (rows // size) + [rows % size] * (rows % size > 0)
    near = [round((one - 1) * hardness) for one in sizes]
    found = draw_near(proxies, own, sizes, near, np.random.default_rng(seed))
    assert [batch.tolist() for batch in found] == by_hand(proxies, own, sizes, near, np.random.default_rng(seed))


def test_batches_by_proxies_are_alike_first_and_no_more_than_chance_at_the_end():
    vectors, _ = clustered(600)
    made = ProxyOrder(np.arange(600), lambda: vectors, 16, lambda epoch: 1.0, 0)
    likeness = batch_likeness(made.drawn(1), np.arange(600), vectors)
    chance = batch_likeness(RandomOrder(600, 16, 0).batches(1), np.arange(600), vectors)
    tenths = by_decile(likeness)
    assert len(tenths) == 10
    assert tenths[0] > 0.4 > 0.1 > chance.mean()
    assert tenths[-1] < tenths[0] / 2
    # shuffled, every part of the epoch has the same
    epoch = batch_likeness(made.batches(1)[:-1], np.arange(600), vectors)
    assert abs(epoch[: len(epoch) // 2].mean() - epoch[len(epoch) // 2 :].mean()) < 0.15


def test_proxies_that_say_nothing_make_random_batches():
    """Labels that the proxies do not know meet in a batch as often as chance has it."""
    random = np.random.default_rng(0)
    rows, labels = 4_000, 20
    own = random.integers(0, labels, rows)
    proxies = unit(random.standard_normal((rows, 8)))
    batches = ProxyOrder(np.arange(rows), lambda: proxies, 20, lambda epoch: 1.0, 0).batches(1)
    met = [sum(math.comb(int(n), 2) for n in np.bincount(own[batch])) for batch in batches]
    pairs = len(batches) * math.comb(20, 2)
    share = sum(math.comb(int(n), 2) for n in np.bincount(own)) / math.comb(rows, 2)
    assert abs(sum(met) - share * pairs) < 4 * math.sqrt(share * pairs)


def test_hardness_is_the_share_of_a_batch_that_is_near():
    vectors, _ = clustered(800, size=40)

    def mean(hardness):
        made = ProxyOrder(np.arange(800), lambda: vectors, 16, lambda epoch: hardness, 0)
        return np.nanmean(batch_likeness(made.drawn(1)[:20], np.arange(800), vectors))

    means = [mean(hardness) for hardness in (0.0, 0.5, 1.0)]
    assert means[0] < 0.1 < means[1] < means[2]


def test_a_group_has_one_row_in_a_batch_where_it_has_fewer_than_there_are_batches():
    groups = np.array([0] * 9 + list(range(1, 72)))
    vectors, _ = clustered(72)
    batches = ProxyOrder(groups, lambda: vectors, 8, lambda epoch: 1.0, 0).drawn(1)
    assert all(len(set(groups[batch].tolist())) == 8 for batch in batches)


@given(st.integers(1, 80), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5))
def test_a_large_group_has_its_share_in_every_batch(rows, others, size, hardness, seed):
    """None is left for the end, where its rows would be each other's batch."""
    groups = np.array([0] * rows + list(range(1, others + 1)))
    vectors, _ = clustered(others + 1)
    batches = ProxyOrder(groups, lambda: vectors, size, lambda epoch: hardness, seed).drawn(1)
    counts = [int((groups[batch] == 0).sum()) for batch in batches]
    full = counts[:-1] if len(batches[-1]) < size else counts
    assert sum(counts) == rows
    if rows >= len(batches) and full:
        assert min(full) >= rows // len(batches)


def test_above_the_limit_an_ivf_finds_nearly_the_same_neighbours():
    vectors, _ = clustered(3_000, dim=32)
    sizes = [30] * 100

    def drawn(exact):
        return draw_near(vectors, np.arange(3_000), sizes, [29] * 100, np.random.default_rng(0), exact=exact)

    exact, fast = drawn(10_000), drawn(100)
    assert sorted(np.concatenate(fast).tolist()) == list(range(3_000))
    likeness = [batch_likeness(batches, np.arange(3_000), vectors).mean() for batches in (exact, fast)]
    assert likeness[1] > 0.9 * likeness[0]


def test_a_zero_proxy_is_near_to_nothing():
    """Groups that the last epoch did not meet are drawn last, or by chance; none is lost."""
    vectors, _ = clustered(100)
    vectors[:30] = 0
    batches = ProxyOrder(np.arange(100), lambda: vectors, 10, lambda epoch: 1.0, 0).batches(1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(100))


def test_likeness_by_hand():
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    found = batch_likeness([np.array([0, 1, 2]), np.array([0])], np.arange(3), vectors)
    assert found[0] == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert math.isnan(found[1])
    assert by_decile(np.array([1.0, 2.0])) == [1.0, 2.0]


def test_proxies_that_are_all_alike_make_random_batches(caplog):
    """Neighbours of all that is equal would be searched ever deeper, for nothing."""
    for proxies in (np.tile(unit(np.ones((1, 8))), (500, 1)), np.zeros((500, 8), dtype=np.float32)):
        caplog.clear()
        made = ProxyOrder(np.arange(500), lambda proxies=proxies: proxies, 16, lambda epoch: 1.0, 0)
        drawn = [batch.tolist() for batch in made.drawn(1)]
        assert drawn == [batch.tolist() for batch in RandomOrder(500, 16, 0).batches(1)]
        assert "the proxies of all groups are alike" in caplog.text


def test_a_very_large_group_is_spread_over_the_epoch():
    """5,000 rows of one label beside 400 single ones, which all find a place beside it."""
    groups = np.array([0] * 5_000 + list(range(1, 401)))
    vectors, _ = clustered(401)
    batches = ProxyOrder(groups, lambda: vectors, 8, lambda epoch: 0.0, 0).drawn(1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(5_400))
    assert {int((groups[batch] > 0).sum()) for batch in batches} == {0, 1}
