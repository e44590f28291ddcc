"""Runs joined with qrels: arrays in ranked order, from which measures and their tie bounds are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankers import metrics
from retrieval.measures import Measure
from retrieval.trec import Ties, rank_order, score_array

_BLOCK = 2_000_000  # places held at once, about 30 MB
_UNJUDGED = np.iinfo(np.int64).min


class Bounds(NamedTuple):
    """What tied scores leave open, per query.

    optimistic: (queries,) the value if equal scores were ordered in the best way.
    pessimistic: (queries,) the value if they were ordered in the worst way.
    at_cutoff: (queries,) bool, whether the documents on both sides of the cut-off have the same score; without
        a cut-off, whether the order of equal scores changes the value.
    """

    optimistic: NDArray[np.float64]
    pessimistic: NDArray[np.float64]
    at_cutoff: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RankedLists:
    """Some queries' documents, best first, with what the qrels say of them.

    labels: (queries, docs) int64 grades, 0 without a judgement and behind the end of a list.
    judged: (queries, docs) bool, whether the document has a judgement.
    where: (queries, docs) bool, True where a document stands.
    scores: (queries, docs) float32, falling along a row, -inf behind its end.
    pool: (queries, judged) int64, every grade of the query in any order, 0 behind the end.
    in_pool: (queries, judged) bool, False behind the end.
    """

    labels: NDArray[np.int64]
    judged: NDArray[np.bool_]
    where: NDArray[np.bool_]
    scores: NDArray[np.float32]
    pool: NDArray[np.int64]
    in_pool: NDArray[np.bool_]

    @classmethod
    def build(
        cls,
        query_ids: Sequence[str],
        qrels: Mapping[str, Mapping[str, int]],
        run: Mapping[str, Mapping[str, float]],
        ties: Ties = "trec",
    ) -> RankedLists:
        """Rank each query's documents and look up their grades; a query missing from `run` has an empty list.

        Raises:
            InputError: a score is no finite float32 number, or an id no string.
        """
        grades, scores = [], []
        for query_id in query_ids:
            retrieved, judgements = run.get(query_id, {}), qrels[query_id]
            given = score_array(retrieved, query_id)
            order = rank_order(list(retrieved), given, ties)
            found = map(judgements.get, retrieved, repeat(_UNJUDGED))
            grades.append(np.fromiter(found, dtype=np.int64, count=len(retrieved))[order])
            scores.append(given[order])
        labels, where = _padded(grades, _UNJUDGED, np.int64)
        judged = labels != _UNJUDGED
        pools = [np.fromiter(qrels[query_id].values(), dtype=np.int64) for query_id in query_ids]
        pool, in_pool = _padded(pools, 0, np.int64)
        ranked_scores, _ = _padded(scores, -np.inf, np.float32)
        return cls(np.where(judged, labels, 0), judged, where, ranked_scores, pool, in_pool)

    def __len__(self) -> int:
        return len(self.labels)

    def values(self, measure: Measure) -> NDArray[np.float64]:
        """Return (queries,) the value of a measure that `rankers.metrics` computes."""
        return self._prepared(measure)._computed(measure)

    def judged_share(self, k: int | None) -> NDArray[np.float64]:
        """Return (queries,) the share of judged documents among the first k."""
        return metrics.judged(self.judged, k=k, where=self.where)

    def bounds(self, measure: Measure, values: NDArray[np.float64]) -> Bounds:
        """Return how far the order of equal scores could move `values`, which `self.values(measure)` gave."""
        lists = self._prepared(measure)
        equal = (lists.scores[:, 1:] == lists.scores[:, :-1]) & lists.where[:, 1:]
        better = lists.judged.astype(np.int64) if measure.name == "Judged" else lists.labels
        # Order matters only in a group of equal scores that reaches into the cut-off and is not of one grade; such
        # a group has neighbours of different grades.
        mixed = equal & (better[:, 1:] != better[:, :-1])
        matters = equal[:, : measure.k].any(axis=1) & mixed.any(axis=1)
        optimistic, pessimistic = values.copy(), values.copy()
        if matters.any():
            tied = lists._rows(matters)
            optimistic[matters] = tied._reordered(-better[matters])._computed(measure)
            pessimistic[matters] = tied._reordered(better[matters])._computed(measure)
        if measure.k is None:
            return Bounds(optimistic, pessimistic, optimistic > pessimistic)
        last = equal[:, measure.k - 1 : measure.k]
        return Bounds(optimistic, pessimistic, last.any(axis=1))

    def _prepared(self, measure: Measure) -> RankedLists:
        lists = self
        if measure.gains:
            labels = _mapped(lists.labels, lists.judged, measure.gains)
            lists = replace(lists, labels=labels, pool=_mapped(lists.pool, lists.in_pool, measure.gains))
        if measure.judged_only:
            order = np.argsort(~lists.judged, axis=1, kind="stable")
            kept = lists._permuted(order)
            lists = replace(kept, where=kept.judged, scores=np.where(kept.judged, kept.scores, np.float32(-np.inf)))
        return lists

    def _computed(self, measure: Measure) -> NDArray[np.float64]:
        name, k, rel = measure.name, measure.k, measure.rel
        labels, where, pool = self.labels, self.where, self.pool
        if name == "nDCG":
            return metrics.ndcg(labels, k=k, where=where, pool=pool, gain=measure.gain or "linear")
        if name == "AP":
            return metrics.average_precision(labels, k=k, where=where, pool=pool, positive_from=rel)
        if name == "R":
            return metrics.recall(labels, k=k, where=where, pool=pool, positive_from=rel)
        if name == "RR":
            return metrics.reciprocal_rank(labels, k=k, where=where, positive_from=rel)
        if name == "Success":
            return metrics.success(labels, k=k, where=where, positive_from=rel)
        if name == "P" and k is not None:
            return metrics.precision(labels, k=k, where=where, positive_from=rel)
        if name == "Judged":
            return self.judged_share(k)
        raise ValueError(f"{measure} is not computed here")

    def _rows(self, chosen: NDArray[np.bool_]) -> RankedLists:
        return RankedLists(
            self.labels[chosen],
            self.judged[chosen],
            self.where[chosen],
            self.scores[chosen],
            self.pool[chosen],
            self.in_pool[chosen],
        )

    def _reordered(self, key: NDArray[np.int64]) -> RankedLists:
        """Sort equal scores by rising `key`."""
        changes = self.scores[:, 1:] != self.scores[:, :-1]
        groups = np.zeros(self.scores.shape, dtype=np.int64)
        np.cumsum(changes, axis=1, out=groups[:, 1:])
        return self._permuted(np.lexsort((key, groups), axis=-1))

    def _permuted(self, order: NDArray[np.int64]) -> RankedLists:
        return replace(
            self,
            labels=np.take_along_axis(self.labels, order, axis=1),
            judged=np.take_along_axis(self.judged, order, axis=1),
            where=np.take_along_axis(self.where, order, axis=1),
            scores=np.take_along_axis(self.scores, order, axis=1),
        )


def ranked_lists(
    query_ids: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
    ties: Ties = "trec",
) -> Iterator[RankedLists]:
    """Yield `RankedLists` of consecutive queries, in blocks that fit into little memory."""
    longest = max((len(run.get(query_id, ())) for query_id in query_ids), default=0)
    size = max(1, _BLOCK // max(1, longest))
    for start in range(0, len(query_ids), size):
        yield RankedLists.build(query_ids[start : start + size], qrels, run, ties)


def _padded(
    rows: Sequence[NDArray[Any]], fill: float, dtype: type[np.generic]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the rows as one array, filled up on the right, and where it is not filled."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    where = np.arange(lengths.max(initial=0)) < lengths[:, None]
    padded = np.full(where.shape, fill, dtype=dtype)
    padded[where] = np.concatenate(rows) if rows else ()
    return padded, where


def _mapped(grades: NDArray[np.int64], known: NDArray[np.bool_], gains: Mapping[int, int]) -> NDArray[np.int64]:
    """Replace grades by gains; a grade that `gains` does not name stays, as in ir-measures."""
    mapped = grades.copy()
    for grade, gain in gains.items():
        mapped[known & (grades == grade)] = gain
    return mapped
