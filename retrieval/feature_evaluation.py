"""nDCG of ranked feature lists, by both conventions of the gain.

    nDCG@10                       gain = grade, as trec_eval has it
    nDCG(dcg='exp-log2')@10       gain = 2^grade - 1, as most learning-to-rank papers have it

A list without a grade > 0 counts 0, as everywhere in this project (LightGBM and some papers count 1 there). Equal
scores are ordered by falling document id, as trec_eval does, or, where there are no ids, in an order that only the
query id decides: never in that of the file, which may be sorted by grade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rankers.metrics import ndcg
from retrieval.errors import InputError
from retrieval.measures import parse_measures
from retrieval.statistics import mean
from retrieval.svmlight import FeatureLists
from retrieval.trec import rank_order

MEASURE = "nDCG@10"
MEASURES = ("nDCG@10", "nDCG(dcg='exp-log2')@10", "nDCG@5", "nDCG(dcg='exp-log2')@5")
LARGEST_GRADE = 500  # 2^grade of more is not summed exactly by anybody


def measure_lists(
    lists: FeatureLists, scores: Sequence[NDArray[np.float32]], measures: Iterable[str] = MEASURES
) -> dict[str, dict[str, float]]:
    """Return measure → query id → value.

    Args:
        lists: the documents with their grades.
        scores: for each list a (docs,) array of finite numbers.
        measures: names of nDCG; others are refused.

    Raises:
        InputError: another measure than nDCG, or scores that do not fit the lists.

    """
    parsed = parse_measures(measures)
    if other := next(
        (name for name, one in parsed.items() if one.name != "nDCG" or one.gains or one.judged_only), None
    ):
        raise InputError(f"feature lists are measured by nDCG@k and nDCG(dcg='exp-log2')@k, got {other!r}")
    labels = np.zeros((len(lists), int(lists.sizes.max(initial=0))), dtype=np.float64)
    where = np.arange(labels.shape[1]) < lists.sizes[:, None]
    for query, (rows, own) in enumerate(zip(lists.slices(), scores, strict=True)):
        if len(own) != rows.stop - rows.start or not np.isfinite(own).all():
            raise InputError(f"query {lists.query_ids[query]!r}: wanted a finite score for each of its documents")
        order = _order(lists, query, rows, np.asarray(own, dtype=np.float32))
        labels[query, : len(own)] = lists.labels[rows][order]
    found = {}
    for name, measure in parsed.items():
        values = ndcg(labels, k=measure.k, where=where, gain=measure.gain or "linear")
        found[name] = dict(zip(lists.query_ids, values.tolist(), strict=True))
    return found


def means(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return measure → mean over queries."""
    return {name: mean(list(per_query.values())) for name, per_query in values.items()}


def _order(lists: FeatureLists, query: int, rows: slice, scores: NDArray[np.float32]) -> NDArray[np.int64]:
    if lists.doc_ids is not None:
        return rank_order(lists.doc_ids[rows], scores)
    seed = int.from_bytes(hashlib.sha256(lists.query_ids[query].encode()).digest()[:8], "big")
    return np.lexsort((np.random.default_rng(seed).permutation(len(scores)), -scores))
