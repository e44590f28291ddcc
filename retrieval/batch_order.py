"""Which rows share a batch: at random, from one cluster, or near one another by their proxies.

Every order uses each row once in an epoch and makes as many batches of the same sizes as the random one, so that runs
which differ in nothing else take equal steps. With a hardness below 1 only that share of a batch is drawn by likeness,
the rest at random. An order depends on (seed, epoch) and on what it is drawn by, and on nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexes import FaissIndex

logger = logging.getLogger(__name__)

Numbers = NDArray[np.int64]

# Streams of random numbers; (seed, 1) is that of the documents that a row draws, in retrieval.batches.
_RANDOM, _ALIKE = 0, 2

EXACT = 100_000  # groups up to which neighbours are exact; above, FAISS's IVF finds nearly all
_WAVE = 256  # anchors that are looked up together
_PROBES = 8  # lists of an IVF that are searched
_SAMPLE, _ALL_ALIKE = 1_024, 0.999  # proxies that are looked at, and their mean inner product from which they are one


class EpochOrder(Protocol):
    """Says which rows each batch of an epoch holds."""

    def batches(self, epoch: int) -> list[Numbers]:
        """Return the row numbers of each batch."""
        ...


class RandomOrder:
    """A random permutation, cut into batches, the last one short."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    def batches(self, epoch: int) -> list[Numbers]:
        """Return the row numbers of each batch."""
        order = np.random.default_rng([self.seed, _RANDOM, epoch]).permutation(self.rows)
        return [order[start : start + self.batch_size] for start in range(0, self.rows, self.batch_size)]


class ClusterOrder:
    """Batches of rows of one cluster; what is left of the clusters shares batches with what is left of others.

    Args:
        clusters: (rows,) the cluster of each row.
        batch_size: rows of a batch.
        hardness: epoch → share of a batch that is drawn from one cluster, in [0, 1].
        seed: of the draws.

    """

    def __init__(self, clusters: Numbers, batch_size: int, hardness: Callable[[int], float], seed: int) -> None:
        self.clusters, self.batch_size, self.hardness, self.seed = clusters, batch_size, hardness, seed

    def batches(self, epoch: int) -> list[Numbers]:
        """Return the row numbers of each batch, batches in random order but for a short last one."""
        random = np.random.default_rng([self.seed, _ALIKE, epoch])
        order = random.permutation(len(self.clusters))
        sizes = batch_sizes(len(order), self.batch_size)
        alike = [near_rows(size, self.hardness(epoch)) for size in sizes]
        pieces = _pieces(order[: sum(alike)], self.clusters, alike, random)
        rest = np.split(order[sum(alike) :], np.cumsum([s - a for s, a in zip(sizes, alike, strict=True)])[:-1])
        return shuffled([np.concatenate(both) for both in zip(pieces, rest, strict=True)], random)


class ProxyOrder:
    """Batches of a group and those nearest to it by global proxies; the first epoch is that of `RandomOrder`.

    An anchor is drawn at random among the rows that no batch has yet; its batch is filled with the next row of each of
    the groups nearest to the anchor's that have rows left, one row of a group. Where too few are found, the next rows
    of the random order fill the batch, as far as these hold other groups. A group with as many rows as there are
    batches has its share in every one, as in random batches. Towards the end of the drawing what is left lies far
    apart, and batches are like random ones; they are therefore spread over the epoch by shuffling the batches. Where
    all proxies are alike, batches are random.

    Args:
        groups: (rows,) the group of each row.
        proxies: returns the (groups, dim) unit vectors of the epoch before; a zero vector is near to nothing.
        batch_size, hardness, seed: as for `ClusterOrder`; the anchor is not counted.

    Source: Ali-bey et al. 2023, "Global Proxy-based Hard Mining for Visual Place Recognition" (arXiv:2302.14217).

    """

    def __init__(
        self,
        groups: Numbers,
        proxies: Callable[[], NDArray[np.floating]],
        batch_size: int,
        hardness: Callable[[int], float],
        seed: int,
    ) -> None:
        self.groups, self.proxies = groups, proxies
        self.batch_size, self.hardness, self.seed = batch_size, hardness, seed
        self._known: tuple[int, list[Numbers]] | None = None

    def batches(self, epoch: int) -> list[Numbers]:
        """Return the row numbers of each batch, batches in random order but for a short last one."""
        if epoch == 0:
            return self.drawn(0)
        return shuffled(self.drawn(epoch), np.random.default_rng([self.seed, _ALIKE, epoch, 1]))

    def drawn(self, epoch: int) -> list[Numbers]:
        """Return the batches in the order in which they are drawn; those of the last epoch asked for are kept."""
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self._draw(epoch)
        return self._known[1]

    def _draw(self, epoch: int) -> list[Numbers]:
        at_random = RandomOrder(len(self.groups), self.batch_size, self.seed)
        if epoch == 0:
            return at_random.batches(0)
        proxies = self.proxies()
        if all_alike(proxies):
            logger.warning("epoch %d: the proxies of all groups are alike, so its batches are random", epoch)
            return at_random.batches(epoch)
        random = np.random.default_rng([self.seed, _ALIKE, epoch])
        sizes = batch_sizes(len(self.groups), self.batch_size)
        near = [near_rows(size - 1, self.hardness(epoch)) for size in sizes]
        return draw_near(proxies, self.groups, sizes, near, random)


def batch_sizes(rows: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches."""
    full, last = divmod(rows, batch_size)
    return [batch_size] * full + [last] * (last > 0)


def near_rows(size: int, hardness: float) -> int:
    """Return how many of `size` rows are drawn by likeness."""
    return round(size * hardness)


def all_alike(proxies: NDArray[np.floating]) -> bool:
    """Whether groups cannot be told apart: nearly all of a sample have one direction, or none."""
    some = np.asarray(proxies[:: max(1, len(proxies) // _SAMPLE)], dtype=np.float64)
    total = some.sum(axis=0)
    return bool(len(some) > 1 and (not some.any() or float(total @ total) / len(some) ** 2 > _ALL_ALIKE))


def shuffled(batches: list[Numbers], random: np.random.Generator) -> list[Numbers]:
    """Return the batches in random order; a last one that is shorter stays the last."""
    full = sum(len(batch) == len(batches[0]) for batch in batches)
    return [batches[i] for i in random.permutation(full)] + batches[full:]


def group_numbers(keys: Sequence[object]) -> Numbers:
    """Return a number for each key, equal ones for equal keys, from 0 in the order of their first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _pieces(rows: Numbers, clusters: Numbers, sizes: Sequence[int], random: np.random.Generator) -> list[Numbers]:
    """Cut rows into pieces of these sizes (all equal but the last), each as far as possible within one cluster."""
    size = sizes[0]
    if size == 0:
        return [rows[:0] for _ in sizes]
    by_cluster = rows[np.argsort(clusters[rows], kind="stable")]
    edges = np.flatnonzero(np.diff(clusters[by_cluster])) + 1
    whole: list[Numbers] = []
    rest: list[Numbers] = []
    members = np.split(by_cluster, edges)
    for cluster in random.permutation(len(members)):
        own = members[cluster]
        cut = len(own) - len(own) % size
        whole += np.split(own[:cut], range(size, cut, size)) if cut else []
        rest.append(own[cut:])
    left = np.concatenate(rest) if rest else rows[:0]
    starts = np.cumsum([0, *sizes[len(whole) :]])
    return whole + [left[start:stop] for start, stop in pairwise(starts)]


def draw_near(
    proxies: NDArray[np.floating],
    groups: Numbers,
    sizes: Sequence[int],
    near: Sequence[int],
    random: np.random.Generator,
    *,
    exact: int = EXACT,
) -> list[Numbers]:
    """Draw batches: of each the rows of large groups that are due, an anchor, rows of groups near to it, and at random.

    Args:
        proxies: (groups, dim), compared by inner product.
        groups: (rows,) the group of each row.
        sizes: rows of each batch, together all rows; equal ones, but for a shorter last one.
        near: how many of them, beside the anchor, are drawn by nearness, as far as there is room for them.
        random: of the draws.
        exact: groups up to which the neighbours are exact.

    """
    rows = _UnusedRows(groups, len(proxies), random)
    neighbours = _Neighbours(proxies, rows, exact)
    batches: list[Numbers] = []
    for number, (size, wanted) in enumerate(zip(sizes, near, strict=True)):
        rows.begin()
        due = rows.take_due(len(sizes) - number)
        anchor = rows.take_next(min(1, size - len(due)))
        parts = [due, np.array(anchor, dtype=np.int64)]
        if wanted := min(wanted, size - len(due) - len(anchor)):
            ahead = _WAVE // (size - wanted)  # of the next rows most are not anchors but drawn at random
            parts.append(rows.take_of(neighbours.nearest(int(groups[anchor[0]]), wanted, ahead)))
        parts.append(np.array(rows.take_next(size - sum(map(len, parts))), dtype=np.int64))
        batches.append(np.concatenate(parts))
    return batches


class _UnusedRows:
    """The rows that no batch has yet, in one random order and, of each group, in the same."""

    def __init__(self, groups: Numbers, count: int, random: np.random.Generator) -> None:
        self._groups = groups
        self.order = random.permutation(len(groups))
        self._by_group = self.order[np.argsort(groups[self.order], kind="stable")]
        sizes = np.bincount(groups, minlength=count)
        self._next = np.cumsum(sizes) - sizes  # place in _by_group of a group's next row
        self.left = sizes
        self._largest = np.argsort(-sizes, kind="stable")
        self._sizes = -sizes[self._largest]  # negative, so that they ascend
        self._is_used = np.zeros(len(groups), dtype=np.bool_)
        self._cursor = 0  # all before it, in the order, are used
        self._in_batch = np.full(count, -1, dtype=np.int64)
        self._batch = -1

    def begin(self) -> None:
        """Begin a batch."""
        self._batch += 1

    def free(self, groups: Numbers) -> Numbers:
        """Return those groups that have a row left and none in the batch."""
        kept: Numbers = groups[(self.left[groups] > 0) & (self._in_batch[groups] != self._batch)]
        return kept

    def take_of(self, groups: Numbers) -> Numbers:
        """Use the next row of each of these groups."""
        rows: Numbers = self._by_group[self._next[groups]]
        self._next[groups] += 1
        self.left[groups] -= 1
        self._in_batch[groups] = self._batch
        self._is_used[rows] = True
        return rows

    def take_due(self, batches: int) -> Numbers:
        """Use rows of the groups that have as many left as there are batches, or more: each batch gets its share.

        Otherwise they would be left for the end, and meet only themselves. The last batch takes what is left anyway.
        """
        count = np.searchsorted(self._sizes, -batches, side="right") if batches > 1 else 0
        large = self._largest[:count]
        each = self.left[large] // batches
        rounds = (self.take_of(large[each > number]) for number in range(each.max(initial=0)))
        return np.concatenate([self.order[:0], *rounds])

    def take_next(self, count: int) -> list[int]:
        """Use the next rows in the random order, of groups that are not in the batch as far as the next ones are."""
        taken: list[int] = []
        for place in range(self._cursor, min(len(self.order), self._cursor + 8 * count + 64)):
            if len(taken) == count:
                break
            if not self._is_used[self.order[place]]:
                group = self._groups[self.order[place] : self.order[place] + 1]
                taken += self.take_of(self.free(group)).tolist()
        self._pass_used()
        while len(taken) < count:  # what comes next is of groups that are in the batch already
            taken += self.take_of(self._groups[self.order[self._cursor] : self.order[self._cursor] + 1]).tolist()
            self._pass_used()
        return taken

    def upcoming(self, count: int) -> Numbers:
        """Return the groups of the next unused rows in the random order."""
        window = self.order[self._cursor : self._cursor + 8 * count]
        return self._groups[window[~self._is_used[window]][:count]]

    def _pass_used(self) -> None:
        while self._cursor < len(self.order) and self._is_used[self.order[self._cursor]]:
            self._cursor += 1


class _Neighbours:
    """Finds the nearest groups that have rows left, by an index over those that had when it was last built."""

    def __init__(self, proxies: NDArray[np.floating], rows: _UnusedRows, exact: int) -> None:
        self._proxies, self._rows, self._exact = proxies, rows, exact
        self._found: dict[int, Numbers] = {}
        self._fetched = 0
        self._index: FaissIndex | None = None
        self._active: Numbers = np.empty(0, dtype=np.int64)

    def nearest(self, anchor: int, count: int, ahead: int = _WAVE) -> Numbers:
        """Return up to `count` free groups nearest to the anchor's, nearest first; look up the `ahead` next rows' too.

        What is looked up ahead saves time where these rows become anchors, and changes nothing else.
        """
        fetch = 4 * count + 32
        if anchor not in self._found or fetch > self._fetched:
            self._renew()
            self._look_up([anchor, *self._rows.upcoming(ahead).tolist()], fetch)
        free = self._rows.free(self._found[anchor])
        fetch = max(fetch, len(self._found[anchor]))  # another row of the group may have fetched more
        while len(free) < count and fetch < len(self._active):
            fetch = min(8 * fetch, len(self._active))
            found = self._search([anchor], fetch)[0]
            free = self._rows.free(found)
            self._found[anchor] = found
            if len(found) < fetch:  # an IVF has no more in the lists that it searches
                break
        return free[:count]

    def _renew(self) -> None:
        """Build the index when there is none, or when half of what it holds is used up."""
        active = np.flatnonzero(self._rows.left > 0)
        if self._index is not None and len(active) > len(self._active) // 2:
            return
        self._index = None  # its memory first
        self._active = active
        factory = "Flat"
        if len(active) > self._exact:
            lists = 1 << int(np.log2(np.sqrt(len(active))))
            factory = f"IVF{lists},SQfp16"
        index = FaissIndex(self._proxies.shape[1], factory)
        step = max(1, len(active) // max(1, 64 * 1_024))
        if not index.is_trained:
            index.train(self._vectors(active[::step]))
            index.set_search_parameters({"nprobe": _PROBES})
        for start in range(0, len(active), 1 << 16):
            index.add(self._vectors(active[start : start + (1 << 16)]))
        self._index = index

    def _look_up(self, anchors: Sequence[int], fetch: int) -> None:
        distinct = list(dict.fromkeys(anchors))
        self._fetched = fetch
        self._found = dict(zip(distinct, self._search(distinct, fetch), strict=True))

    def _search(self, anchors: Sequence[int], fetch: int) -> list[Numbers]:
        assert self._index is not None
        found = self._index.search(self._vectors(np.array(anchors)), min(fetch, len(self._active)))
        return [self._active[rows[rows >= 0]] for rows in found.rows]

    def _vectors(self, groups: Numbers) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._proxies[groups], dtype=np.float32)


def batch_likeness(batches: Sequence[Numbers], groups: Numbers, proxies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean inner product of the proxies of different rows of each batch; nan for a batch of one row."""
    found = np.full(len(batches), np.nan)
    for i, batch in enumerate(batches):
        vectors = np.asarray(proxies[groups[batch]], dtype=np.float64)
        if (n := len(vectors)) > 1:
            total = vectors.sum(axis=0)
            found[i] = (total @ total - (vectors * vectors).sum()) / (n * (n - 1))
    return found


def by_decile(values: NDArray[np.float64]) -> list[float]:
    """Return the mean of each tenth of the values that are numbers, in their order; fewer where there are fewer."""
    return [float(part.mean()) for part in np.array_split(values[np.isfinite(values)], 10) if len(part)]
