"""Measures over the pairs of all queries together, which ask whether a score means the same in every query.

nDCG and its like look at one query at a time, so a score that is off by another amount in each query changes none
of them. One threshold for all queries, or a score read as a probability, needs more: `pooled_auc` and
`expected_calibration_error` pool the pairs of all queries. Their intervals resample queries and never pairs, since
pairs of one query depend on each other. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.statistics import bootstrap_counts

Floats: TypeAlias = NDArray[np.float64]
PerQuery: TypeAlias = Sequence[Sequence[float] | NDArray[Any]]


class PooledAUC(float):
    """A pooled ROC-AUC: a float that also knows how sure it is and what it stands on.

    low, high: percentile bootstrap interval over queries (95 % unless asked otherwise).
    n: how many queries it is over.
    positives, negatives: how many pairs were pooled.
    """

    low: float
    high: float
    n: int
    positives: int
    negatives: int

    def __new__(cls, value: float, **attributes: Any) -> PooledAUC:
        """Make one from its value and the attributes above."""
        result = super().__new__(cls, value)
        result.__dict__.update(attributes)
        return result

    def __repr__(self) -> str:
        """Return for example "0.9120 [0.8987, 0.9241]"; `float(auc)` has all digits."""
        return f"{float(self):.4f} [{self.low:.4f}, {self.high:.4f}]"


class CalibrationError(float):
    """An expected calibration error: a float that also knows its bins and how sure it is.

    low, high: percentile bootstrap interval over queries; None where the pairs' queries were not given.
    bins: how many bins hold pairs: fewer than asked for where there are few pairs or many equal probabilities.
    pairs: how many pairs were pooled.
    """

    low: float | None
    high: float | None
    bins: int
    pairs: int

    def __new__(cls, value: float, **attributes: Any) -> CalibrationError:
        """Make one from its value and the attributes above."""
        result = super().__new__(cls, value)
        result.__dict__.update(attributes)
        return result

    def __repr__(self) -> str:
        """Return for example "0.0312 [0.0270, 0.0391] in 15 bins"; `float(error)` has all digits."""
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{float(self):.4f}{interval} in {self.bins} bins"


def pooled_auc(
    positives: PerQuery,
    negatives: PerQuery,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PooledAUC:
    """Return the chance that a relevant pair of any query has a better score than a non-relevant pair of any query.

    With S⁺ the scores of all relevant pairs and S⁻ of all non-relevant ones, of all queries together:

        AUC = mean over s⁺ in S⁺ and s⁻ in S⁻ of [s⁺ > s⁻] + ½ [s⁺ = s⁻]

    By the protocol of the MW paper `negatives` are, for each query, the scores of its 500 best non-relevant
    documents. An interval draws the queries with replacement, each with all of its pairs; a draw that holds no
    relevant or no other pair has no AUC and is left out. A query that is drawn twice also meets itself, so the interval
    lies nearer to the AUC within queries than it should, by about 1/n of the way. Memory: 8 bytes for each two queries.

    Args:
        positives: per query, the scores of its relevant documents; larger is better. May be empty.
        negatives: per query and in the same order, the scores of non-relevant documents. May be empty.
        resamples: how many samples of queries are drawn.
        confidence: between 0 and 1.
        seed: same seed, same interval.

    Raises:
        InputError: the numbers of queries differ, nothing is relevant, nothing is not, or a score is not finite.

    Source: Mann–Whitney loss, arXiv:2510.00137, section on evaluation; Mann and Whitney 1947.
    """
    n = len(positives)
    if n != len(negatives):
        raise InputError(f"positives are of {n} queries and negatives of {len(negatives)}; give both for each query")
    good, bad = _arrays(positives, "positives"), _arrays(negatives, "negatives")
    sizes = np.array([[len(a), len(b)] for a, b in zip(good, bad, strict=True)], dtype=np.float64).reshape(n, 2)
    total = sizes.sum(axis=0)
    if not total.all():
        raise InputError(
            f"wanted pairs of both kinds, got {int(total[0])} relevant and {int(total[1])} non-relevant ones"
        )
    scores, owners = np.concatenate(good), np.repeat(np.arange(n), sizes[:, 0].astype(int))
    wins = np.empty((n, n))  # of the row's relevant pairs over the column's non-relevant ones
    for query, theirs in enumerate(map(np.sort, bad)):
        # Twice the wins are whole numbers, so that their sums are exact in any order.
        twice = np.searchsorted(theirs, scores, "left") + np.searchsorted(theirs, scores, "right")
        wins[:, query] = np.bincount(owners, weights=twice, minlength=n) / 2

    def auc(counts: Floats) -> Floats:
        pairs = (counts @ sizes).prod(axis=1)
        return np.where(pairs > 0, ((counts @ wins) * counts).sum(axis=1) / np.maximum(pairs, 1), np.nan)

    interval = bootstrap_counts(auc, n, resamples=resamples, confidence=confidence, seed=seed)
    value = float(wins.sum() / total.prod())
    return PooledAUC(value, **interval._asdict(), n=n, positives=int(total[0]), negatives=int(total[1]))


def expected_calibration_error(
    probabilities: Sequence[float] | NDArray[Any],
    labels: Sequence[float] | NDArray[Any],
    bins: int = 15,
    *,
    queries: Sequence[int] | NDArray[Any] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> CalibrationError:
    """Return how far predicted probabilities lie from what came true, on average over bins of equally many pairs.

    The pairs of all queries, in order of their probability p, are cut into bins B of equal mass:

        ECE = Σ_B (|B| / pairs) · |mean of p in B − mean of y in B|

    Equal probabilities share a bin, the one in which the middle of them falls, so that the order in which pairs are
    given changes nothing. 0 is best. It grows as bins get smaller, so compare errors of one number of bins only.
    The interval draws queries with replacement and keeps the bins.

    Args:
        probabilities: (pairs,) from 0 to 1.
        labels: (pairs,) 0 or 1, or a probability.
        bins: how many bins are asked for.
        queries: (pairs,) the number of each pair's query, any whole numbers; None gives no interval.
        resamples: how many samples of queries are drawn.
        confidence: between 0 and 1.
        seed: same seed, same interval.

    Raises:
        InputError: no pairs, lengths that differ, a probability or label outside [0, 1], or bins < 1.

    Source: Naeini, Cooper and Hauskrecht 2015 (AAAI); equal mass: Nguyen and O'Connor 2015 (arXiv:1508.05154).
    """
    p, y = (_array(v, name) for v, name in ((probabilities, "probabilities"), (labels, "labels")))
    if len(p) != len(y) or not len(p):
        raise InputError(f"wanted one label for each probability, got {len(p)} probabilities and {len(y)} labels")
    for values, name in ((p, "probabilities"), (y, "labels")):
        if values.min() < 0 or values.max() > 1:
            raise InputError(
                f"{name} must lie in [0, 1], got {values.min():g} to {values.max():g}; pass scores through a sigmoid"
            )
    if bins < 1:
        raise InputError(f"wanted bins ≥ 1, got {bins}")
    places = _equal_mass(p, bins)
    owners = np.zeros(len(p), dtype=np.int64) if queries is None else np.unique(queries, return_inverse=True)[1]
    if len(owners) != len(p):
        raise InputError(f"wanted the query of each of {len(p)} pairs, got {len(owners)}")
    n = int(owners.max()) + 1
    gaps = np.bincount(owners * bins + places, weights=p - y, minlength=n * bins).reshape(n, bins)
    sizes = np.bincount(owners, minlength=n).astype(np.float64)

    def error(counts: Floats) -> Floats:
        errors: Floats = np.abs(counts @ gaps).sum(axis=1) / (counts @ sizes)
        return errors

    ends: dict[str, float | None] = {"low": None, "high": None}
    if queries is not None:
        ends |= bootstrap_counts(error, n, resamples=resamples, confidence=confidence, seed=seed)._asdict()
    value = float(error(np.ones((1, n)))[0])
    return CalibrationError(value, **ends, bins=len(np.unique(places)), pairs=len(p))


def _equal_mass(values: Floats, bins: int) -> NDArray[np.int64]:
    """Return the bin of each value: that of the middle rank of all values equal to it."""
    ordered = np.sort(values)
    middle: Floats = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    places: NDArray[np.int64] = np.floor(middle * bins / len(values)).astype(np.int64)
    return places


def _array(values: Sequence[float] | NDArray[Any], name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name} must be a list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite")
    return array


def _arrays(groups: PerQuery, name: str) -> list[Floats]:
    return [_array(group, f"{name}[{query}]") for query, group in enumerate(groups)]
