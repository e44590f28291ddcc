"""Measures of ranked lists: grades in ranked order in, one value per query out; numpy only.

All functions share these arguments:

    labels  (queries, docs)    the grade of the document at each rank, best rank first. Grades ≤ 0 gain
                               nothing, and neither does a document that nobody judged: it stands with 0.
    where   (queries, docs)    bool, True = a document stands at this rank; False wins over any label.
                               None: everywhere.
    pool    (queries, judged)  every grade known for the query, retrieved or not, in any order, padded with 0.
                               None: the ranked list holds all of them, as in learning to rank.
    k                          the cut-off, ≥ 1: ranks behind it are not looked at. None: the whole list.
    positive_from              grades from here on are relevant, > 0. nDCG alone uses the grades themselves.

They return (queries,) float64 in [0, 1]; a query without a relevant document has 0, as in trec_eval. Sums
run from rank 1 downwards, so a query's value does not depend, to the last bit, on the lists it is computed
with, and an ideal ranking has exactly 1.

Raises (all of them): ValueError if shapes, types or settings do not fit.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Labels: TypeAlias = NDArray[Any]  # integers or floats
Mask: TypeAlias = NDArray[np.bool_]
Values: TypeAlias = NDArray[np.float64]
Gain = Literal["linear", "exp2"]

_LARGEST_EXPONENT = 500  # 2**500 summed over any list, and its product with a discount, stays finite


def ndcg(
    labels: Labels,
    *,
    k: int | None = None,
    where: Mask | None = None,
    pool: Labels | None = None,
    gain: Gain = "linear",
) -> Values:
    """Normalised discounted cumulative gain.

        nDCG@k = DCG@k / IDCG@k,   DCG@k = Σ_{i ≤ k} g(y_i) / log2(i + 1)

    IDCG is the DCG of the pool sorted by falling grade. The gain g(y) is y ("linear": trec_eval, ir-measures'
    `nDCG`) or 2^y − 1 ("exp2": ir-measures' `nDCG(dcg='exp-log2')`, most learning-to-rank papers).

    Source: Järvelin and Kekäläinen 2002 (doi:10.1145/582415.582418); exp2: Burges et al. 2005 (RankNet).
    """
    _check_cutoff(k)
    labels = _checked(labels, where)
    gains = _gains(labels[:, :k], gain)
    grades = labels if pool is None else _checked_pool(pool, labels)
    ideal = _gains(-np.sort(-grades, axis=1)[:, :k], gain)
    best = _dcg(ideal)
    # An ideal list repeats the same additions and is exactly 1; another order may round to above it.
    return np.minimum(np.divide(_dcg(gains), best, out=np.zeros_like(best), where=best > 0), 1.0)


def average_precision(
    labels: Labels,
    *,
    k: int | None = None,
    where: Mask | None = None,
    pool: Labels | None = None,
    positive_from: float = 1,
) -> Values:
    """Average precision.

        AP@k = (1/R) Σ_{i ≤ k, relevant} (relevant documents among the first i) / i

    R counts the relevant documents of the pool, also when it is larger than k (trec_eval's `map_cut`, ranx).

    Source: Buckley and Voorhees 2005, "Retrieval System Evaluation", in TREC (MIT Press), chapter 3.
    """
    relevant, total = _relevant(labels, k, where, pool, positive_from)
    ranks = np.arange(1, relevant.shape[1] + 1)
    precisions = np.cumsum(relevant, axis=1) / ranks
    return _share(_sums(precisions * relevant), total)


def reciprocal_rank(
    labels: Labels, *, k: int | None = None, where: Mask | None = None, positive_from: float = 1
) -> Values:
    """1 / rank of the first relevant document; 0 when there is none among the first k.

    Source: Kantor and Voorhees 2000 (doi:10.1023/A:1009902609570).
    """
    relevant, _ = _relevant(labels, k, where, None, positive_from)
    if not relevant.shape[1]:
        return np.zeros(len(relevant))
    first = relevant.argmax(axis=1)  # 0 where nothing is relevant
    return _share(relevant[np.arange(len(relevant)), first], first + 1)


def precision(labels: Labels, *, k: int, where: Mask | None = None, positive_from: float = 1) -> Values:
    """Share of relevant documents among the first k ranks; divided by k also when the list is shorter."""
    relevant, _ = _relevant(labels, k, where, None, positive_from)
    return _share(relevant.sum(axis=1), np.full(len(relevant), k))


def recall(
    labels: Labels,
    *,
    k: int | None = None,
    where: Mask | None = None,
    pool: Labels | None = None,
    positive_from: float = 1,
) -> Values:
    """Share of the pool's relevant documents that stand among the first k ranks."""
    relevant, total = _relevant(labels, k, where, pool, positive_from)
    return _share(relevant.sum(axis=1), total)


def success(labels: Labels, *, k: int | None = None, where: Mask | None = None, positive_from: float = 1) -> Values:
    """1 if a relevant document stands among the first k ranks, else 0 (elsewhere called hit rate)."""
    relevant, _ = _relevant(labels, k, where, None, positive_from)
    return np.where(relevant.any(axis=1), 1.0, 0.0)


def judged(is_judged: Mask, *, k: int | None = None, where: Mask | None = None) -> Values:
    """Share of judged documents among those at the first k ranks; 0 for an empty list.

    Divided by the number of documents that stand there, so a short list is not blamed for its length
    (ir-measures' `Judged@k`).

    Args:
        is_judged: (queries, docs) bool, whether anybody gave the document at this rank a grade, 0 included.
        k: the cut-off, or None.
        where: (queries, docs) bool, as above.
    """
    _check_cutoff(k)
    if is_judged.dtype != np.bool_:
        raise ValueError(f"is_judged must be bool, got {is_judged.dtype}")
    known = _checked(is_judged, where)[:, :k]
    places = np.ones_like(is_judged) if where is None else where
    return _share(known.sum(axis=1), places[:, :k].sum(axis=1))


def _checked(labels: Labels, where: Mask | None) -> Labels:
    """Return the labels with 0 where no document stands."""
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        raise ValueError(f"labels must be numbers of shape (queries, docs), got {labels.dtype} {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("labels must be finite, got nan or infinity; 0 stands where there is no grade")
    if where is None:
        return labels
    if where.shape != labels.shape or where.dtype != np.bool_:
        raise ValueError(f"where must be bool {labels.shape}, got {where.dtype} {where.shape}")
    return np.where(where, labels, np.zeros((), dtype=labels.dtype))


def _checked_pool(pool: Labels, labels: Labels) -> Labels:
    if pool.ndim != 2 or len(pool) != len(labels) or pool.dtype.kind not in "biuf":
        raise ValueError(
            f"pool must be numbers of shape ({len(labels)} queries, judged), got {pool.dtype} {pool.shape}"
        )
    return pool


def _check_cutoff(k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _relevant(
    labels: Labels, k: int | None, where: Mask | None, pool: Labels | None, positive_from: float
) -> tuple[Mask, NDArray[np.int64]]:
    """Return which of the first k ranks are relevant, and how many documents of the pool are."""
    _check_cutoff(k)
    if not positive_from > 0:  # places without a document carry a 0
        raise ValueError(f"positive_from must be > 0, got {positive_from}")
    labels = _checked(labels, where)
    grades = labels if pool is None else _checked_pool(pool, labels)
    return labels[:, :k] >= positive_from, (grades >= positive_from).sum(axis=1)


def _gains(grades: Labels, gain: Gain) -> Values:
    grades = np.maximum(grades, 0).astype(np.float64)
    if gain == "linear":
        return grades
    if gain != "exp2":
        raise ValueError(f"gain must be 'linear' or 'exp2', got {gain!r}")
    if grades.size and grades.max() > _LARGEST_EXPONENT:
        raise ValueError(
            f"the exp2 gain needs grades up to {_LARGEST_EXPONENT}, got {grades.max():g}; use the linear gain"
        )
    return np.exp2(grades) - 1


def _dcg(gains: Values) -> Values:
    return _sums(gains / np.log2(np.arange(2, gains.shape[1] + 2)))


def _sums(values: Values) -> Values:
    """Sum each row strictly from left to right, so that zeros behind a list never change its sum."""
    totals: Values = np.cumsum(values, axis=1)[:, -1] if values.shape[1] else np.zeros(len(values))
    return totals


def _share(part: NDArray[Any], whole: NDArray[np.int64]) -> Values:
    shares: Values = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return shares
