"""Ordinal regression: one score against the thresholds between grades."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rankers.losses.entry import LossEntry
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_mask,
    check_matrix,
    check_number,
    grades,
    reduced,
    scale_of,
)
from rankers.losses.pointwise import LOG_ODDS, counted_rows, row_entropies

LEVELS = 5  # grades 0 to 4, as in MSLR and Istella


def ordinal(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    levels: int = LEVELS,
    thresholds: Sequence[float] | None = None,
    keep_empty_rows: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy of "the grade is at least k" for every k (ordinal regression, proportional odds).

        P(y_ij >= k) = sigmoid(scale * scores_ij - b_k),   k = 1 … levels - 1
        row(i) = sum over valid j and over k of the binary cross-entropy of [y_ij >= k]
        loss = mean of row(i) over the rows with a grade > 0

    One score serves all thresholds b_1 < b_2 < …, so the probabilities fall with k, and the order by score is the order
    by expected grade. allRank's ordinal loss, from which the targets are, instead has levels - 1 outputs per document,
    each a logit of its own, ranks by the sum of their probabilities, and may hold P(y >= 2) > P(y >= 1). Two levels:
    `point_ce` of 0/1 labels.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for unbounded scores; cosines take
            scale=10, say.
        labels: (queries, docs) finite grades, 0 to levels - 1.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; give this or `scale`.
        scale: multiplies the scores; > 0; default 1. A () tensor may be learned.
        levels: number of grades, 0 included; >= 2; default 5.
        thresholds: the levels - 1 numbers b_k in nats, each larger than the last. None: 1 apart and around 0.
        keep_empty_rows: also count rows whose grades are all 0; needed where the probabilities must be right.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row counts.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: McCullagh 1980, "Regression Models for Ordinal Data", for the model; Pobrotyn et al. 2020, allRank
    (arXiv:2005.10084), for the targets.

    """
    scores, where = check_matrix(scores, labels, where)
    borders = _thresholds(levels, thresholds)
    targets = grades(labels, where, scores.dtype)
    if bool((targets > levels - 1).any()):
        raise ValueError(
            f"labels hold grade {targets.max().item():g}, but levels={levels} end at {levels - 1}; raise levels"
        )
    rows = counted_rows(targets, where, keep_empty_rows)
    logits = scores * scale_of(temperature, scale, LOG_ODDS)
    per_row = sum(
        (row_entropies(logits - border, (targets >= k).to(logits.dtype), where) for k, border in enumerate(borders, 1)),
        start=logits.new_zeros(len(logits)),
    )
    return reduced(per_row.masked_fill(~rows, 0).sum(), rows.sum(), reduction)


def ordinal_count(labels: Tensor, where: Tensor | None = None, *, keep_empty_rows: bool = False, **_: object) -> Tensor:
    """Return the () number of rows that `ordinal` averages over."""
    where = check_mask("where", where, labels)
    return counted_rows(grades(labels, where, torch.float32), where, keep_empty_rows).sum()


def _thresholds(levels: int, thresholds: Sequence[float] | None) -> list[float]:
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be a whole number >= 2, got {levels!r}")
    if thresholds is None:
        return [k - levels / 2 for k in range(1, levels)]
    if not isinstance(thresholds, list | tuple) or len(thresholds) != levels - 1:
        raise ValueError(f"thresholds must be {levels - 1} numbers, one fewer than levels={levels}, got {thresholds!r}")
    borders = [float(check_number("thresholds", border)) for border in thresholds]
    if any(lower >= upper for lower, upper in pairwise(borders)):
        raise ValueError(f"thresholds must rise: a higher grade is never likelier than a lower one; got {thresholds!r}")
    return borders


ENTRIES = (
    LossEntry(
        name="ordinal",
        fn=ordinal,
        labels="grade",
        use="graded documents, each judged on its own, grades that are ordered but not spaced",
        needs="rows",
        cost="linear",
        paper="McCullagh 1980, doi:10.1111/j.2517-6161.1980.tb01109.x",
        defaults={"scale": LOG_ODDS, "levels": LEVELS, "thresholds": None, "keep_empty_rows": False},
        unchanged_by="none",
        count=ordinal_count,
    ),
)
