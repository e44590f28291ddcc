"""What share of mined negatives is relevant after all: an estimate from the scores of known positives. numpy only.

Of the negatives between two ranks an unknown share π is relevant. Whatever scores documents, the negatives that score
t or more are then those relevant ones that do, and some of the others:

    P(score ≥ t | negative) = π · P(score ≥ t | relevant) + (1 − π) · P(score ≥ t | not relevant)
                            ≥ π · P(score ≥ t | relevant)

so that each threshold t bounds π from above, and the best bound is the estimate:

    π̂ = min over t of  P̂(score ≥ t | negative) / P̂(score ≥ t | known positive)

taken at the threshold where this ratio plus two standard errors is lowest, since the least of several noisy ratios is
too low; simulated, the estimate of a good scorer still is so by a tenth to a fifth of the share.

It is right where, above the best threshold, hardly anything irrelevant scores, and too high otherwise: with scores that
tell nothing it is 1. So it is called a mere bound unless positives score higher than irrelevant negatives with a
probability of `SEPARATED`. Simulated with normal scores of 50 queries, 250 positives, a true share of 2 % is estimated
as 11 % at a probability of 0.78, 5 % at 0.86, 2.5 % at 0.92 and 2 % at 0.96. Whether the ratio is flat near the best
threshold tells less: irrelevant documents that score as relevant ones do make it flat and too high, and nothing in the
scores shows them.

Two things make the estimate usable. Scores of different queries compare after the median score of the query's negatives
is taken off (as they are, where queries have fewer than five). And the known positives are those that would stand
between the same ranks themselves: a relevant document at rank 50 scores lower than one at rank 2, and without this the
deep bands look too clean and the first too dirty. What is assumed: between two ranks, relevant
documents that nobody judged score as the judged ones do. A scorer that was trained on these very positives breaks that
(they score too high, the estimate is too low); so do annotators who found the easy ones.

Source: the mixture proportion as the infimum of a ratio, Blanchard, Lee and Scott 2010, "Semi-supervised novelty
detection", JMLR 11, theorem 4. Thresholds at quantiles of the positives and standard errors in place of that paper's
bound keep off the tails that a few documents make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.statistics import Interval, bootstrap_counts

Values = NDArray[np.float64]

LEAST_POSITIVES = 20  # with fewer known positives there is no estimate
LEAST_QUERIES = 5  # with fewer queries, nor is there
_LEAST_NEGATIVES = 5  # of a query in the median; the median score of fewer is too much that of each of them
SEPARATED = 0.93  # ROC-AUC of positives against irrelevant negatives below which the estimate is a mere bound
_MOST = 0.5  # a larger share is a mere bound: what is left to be irrelevant is too little to compare with
_LEAST_ABOVE = 5  # known positives above the threshold
_TAILS = np.linspace(0.1, 0.8, 8)  # shares of the known positives above the thresholds


@dataclass(frozen=True, slots=True)
class Band:
    """Ranks from `first` to `last`, both in it."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def holds(self, ranks: Values) -> NDArray[np.bool_]:
        """Return which ranks are in the band."""
        return (ranks >= self.first) & (ranks <= self.last)


@dataclass(frozen=True, slots=True)
class ScoredQuery:
    """The scores of a query's documents, larger is better, and where they stand in the miner's list, from 1.

    Attributes:
        positive_scores: (positives,) of the documents known to be relevant.
        positive_ranks: (positives, 2) the first and the last rank that each could have among the negatives; nan where
            nothing is known, an infinite last one below the last negative.
        negative_scores, negative_ranks: (negatives,) of the mined negatives.

    """

    positive_scores: Values
    positive_ranks: Values
    negative_scores: Values
    negative_ranks: Values


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the negatives, with its 95 % interval: bootstrap over queries.

    The interval is about which queries were drawn; what an estimate assumes, and its bias, are not in it. Where nothing
    was found in n documents the bootstrap says 0, and the upper end is 3/n (the rule of three).
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MixtureShare(Share):
    """The estimate of this module.

    Attributes:
        positives: how many known positives it was compared with.
        matched: whether they are those that would stand in the band; else all are, and the module says what follows.
        separation: the probability that such a positive scores higher than a negative of the band (ROC-AUC); relevant
            negatives lower it, too.
        is_bound: the scores separate too little (the module says when), so that the share may be anything below the
            value.

    """

    positives: int
    matched: bool
    separation: float
    is_bound: bool


def estimated_share(queries: Sequence[ScoredQuery], band: Band, *, seed: int = 0) -> MixtureShare | None:
    """Estimate which share of the band's negatives is relevant.

    Args:
        queries: those without a positive or without a negative count for nothing.
        band: whose negatives are meant.
        seed: of the bootstrap.

    Returns:
        None where there are too few known positives or queries to say anything.
    """
    queries = [q for q in queries if len(q.positive_scores) and len(q.negative_scores)]
    if len(queries) < LEAST_QUERIES:
        return None
    compares = np.median([len(q.negative_scores) for q in queries]) >= _LEAST_NEGATIVES
    lists = [(q, float(np.median(q.negative_scores)) if compares else 0.0) for q in queries]
    negatives = [q.negative_scores[band.holds(q.negative_ranks)] - reference for q, reference in lists]
    if sum(len(part) > 0 for part in negatives) < LEAST_QUERIES:
        return None
    near = [q.positive_scores[band.holds(q.positive_ranks).all(axis=1)] - reference for q, reference in lists]
    matched = sum(map(len, near)) >= LEAST_POSITIVES
    positives = near if matched else [q.positive_scores - reference for q, reference in lists]
    n_positives = sum(map(len, positives))
    if n_positives < LEAST_POSITIVES:
        return None
    thresholds = np.quantile(np.concatenate(positives), 1 - _TAILS)
    # (queries, thresholds): how many of each query's documents score so much
    above, of = (np.array([(x[:, None] >= thresholds).sum(axis=0) for x in part]) for part in (negatives, positives))
    n_negatives, n_of = (np.array([len(x) for x in part]) for part in (negatives, positives))

    def tails(counts: Values) -> tuple[Values, NDArray[np.intp]]:
        """Return each sample's ratios, (samples, thresholds), and the best of them; counts: (samples, queries)."""
        return _ratios(counts @ above, counts @ n_negatives, counts @ of, counts @ n_of)

    (ratios,), (best,) = tails(np.ones((1, len(queries))))
    value = min(float(ratios[best]), 1.0)
    if value == 0:
        interval = _nothing_in(n_negatives.sum() * of[:, best].sum() / n_of.sum())
    else:
        # With the threshold chosen anew the samples' shares vary as the estimate does, but each is as much too low
        # again; at a fixed one they are not, but vary too little. The interval reaches as far as either.
        anew, fixed = (
            bootstrap_counts(shares, len(queries), resamples=2_000, seed=seed)
            for shares in (
                lambda counts: np.minimum(_chosen(*tails(counts)), 1.0),
                lambda counts: np.minimum(tails(counts)[0][:, best], 1.0),
            )
        )
        interval = Interval(min(anew.low, fixed.low), max(anew.high, fixed.high))
    separation = _separation(np.concatenate(positives), np.concatenate(negatives))
    # In a share `value` of the pairs of a positive and a negative both are relevant, and either wins half of these.
    separates = separation - value / 2 >= SEPARATED * (1 - value) and value <= _MOST
    return MixtureShare(value, *interval, n_positives, matched, separation, not separates)


def counted_share(hits: Sequence[int], totals: Sequence[int], *, seed: int = 0) -> Share | None:
    """Return the share Σ hits / Σ totals with its interval; hits and totals by query. None without any total."""
    if len(hits) != len(totals):
        raise InputError(f"hits and totals must be about the same queries, got {len(hits)} and {len(totals)}")
    n_hits, n_all = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if not n_all.sum():
        return None

    def shares(counts: Values) -> Values:
        with np.errstate(invalid="ignore"):
            found: Values = counts @ n_hits / (counts @ n_all)  # 0/0 in a sample without any: nan
        return found

    value = float(n_hits.sum() / n_all.sum())
    interval = bootstrap_counts(shares, len(n_all), resamples=2_000, seed=seed) if value else _nothing_in(n_all.sum())
    return Share(value, *interval)


def ranks_among(scores: Values, negative_scores: Values, negative_ranks: Values) -> Values:
    """Return the ranks that a document with each score could have.

    The first one follows the last negative which scores as much or more, and the last one is that of the first negative
    which scores lower. They differ where the miner left out what stood between the two: ranks before its window, what a
    margin removed, what it did not draw.

    Args:
        scores: (n,) the miner's scores.
        negative_scores, negative_ranks: (negatives,) the miner's, best first.

    Returns:
        (n, 2), infinite where no negative scores lower.
    """
    places = np.searchsorted(-negative_scores, -scores, side="right")
    first, last = np.insert(negative_ranks, 0, 0.0) + 1, np.append(negative_ranks, np.inf)
    return np.stack([first[places], last[places]], axis=1)


def _nothing_in(n: float) -> Interval:
    """Return the interval of a share of n documents of which none was found."""
    return Interval(0.0, min(1.0, 3 / n))


def _ratios(above: Values, n_negatives: Values, of: Values, n_of: Values) -> tuple[Values, NDArray[np.intp]]:
    """Return the ratios of the tails, and the place of that which is lowest with two standard errors added.

    The lowest ratio itself is often one that chance made low. Counts are taken as Poisson, one more for the negatives
    so that none above a threshold is no certainty; a threshold that few positives reach is not taken.

    Args:
        above, of: (samples, thresholds) how many negatives, and known positives, score so much.
        n_negatives, n_of: (samples,) of how many.

    Returns:
        (samples, thresholds), nan where a tail is of nothing, and (samples,).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = n_of[:, None] / n_negatives[:, None] / of
        ratios = above * scale
        errors = np.hypot(np.sqrt(above + 1) * scale, ratios / np.sqrt(of))
    return ratios, np.argmin(np.where(of < _LEAST_ABOVE, np.inf, ratios + 2 * errors), axis=1)


def _chosen(ratios: Values, places: NDArray[np.intp]) -> Values:
    """Return the ratio of each sample at its own place."""
    return np.take_along_axis(ratios, places[:, None], axis=1)[:, 0]


def _separation(positives: Values, negatives: Values) -> float:
    """Return the ROC-AUC; equal scores count half."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return float(below.mean() / (2 * len(ordered)))
