"""Losses that bring the differences of the scores near to a teacher's, or into its order."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rankers.losses.distillation import count_compared_rows
from rankers.losses.entry import LossEntry
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_choice,
    check_list,
    check_mask,
    check_matrix,
    check_whole,
    scale_of,
)
from rankers.losses.pairs import (
    ListWeight,
    hinge_above,
    logistic,
    own_teacher_scores,
    pair_sums,
    preferred_pairs,
    reduced_rows,
    rows_that_differ,
    valid_pairs,
)
from rankers.losses.softmax import TEMPERATURE


def margin_mse(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    pairs: Literal["best", "all"] = "best",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared difference between the student's margins and a teacher's (MarginMSE).

        row(i) = mean over pairs (p, n) of (scale (s_ip - s_in) - (T_ip - T_in))²
        loss = mean of row(i) over the rows with two scored documents

    p is the document that the teacher scores highest and n is every other one; where several share the highest score,
    the row is the mean over p being each of them. pairs="all" takes every pair: twice the variance of
    scale × s - T, times n / (n - 1). Constants that are added to the teacher's or the student's scores of a query
    change nothing, their scale does: cosines cannot have a cross-encoder's margins, so give a scale (or a learned
    one) to a student of cosines.

    Args:
        scores: (queries, docs) float, the student's; larger is better.
        labels: (queries, docs) the teacher's scores, finite; larger is better.
        where: (queries, docs) bool, False at padding and where the teacher gave no score. None: all valid.
        temperature: divides the student's scores; give this or `scale`.
        scale: multiplies the student's scores; > 0; default 1: the teacher's margins are meant in its own unit.
            A () tensor may be learned.
        pairs: "best" or "all".
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with two scored documents.

    Returns:
        () float loss in squared units of the teacher; 0, with zero gradient, when no row has two scored documents.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Hofstätter et al. 2020 (arXiv:2010.02666) eq. 8, of one positive and one negative per query.

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("margin_mse", scores, max_list)
    check_choice("pairs", pairs, "best", "all")
    values = own_teacher_scores(labels, where)
    residuals = scores * scale_of(temperature, scale, 1) - values.to(scores.dtype)
    compared = valid_pairs(where)
    if pairs == "best":
        compared = compared & ~preferred_pairs(values, where).any(-2)[:, :, None]
    return reduced_rows(pair_sums(residuals, compared, torch.square), compared.sum((-2, -1)), "equal", reduction)


def rank_distil(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    k: int = 10,
    margin_function: Literal["logistic", "hinge"] = "logistic",
    margin: float = 1.0,
    list_weight: ListWeight = "equal",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Keep the teacher's order in its top k, and everything else below its k-th document (RankDistil).

        row(i) = mean of psi(s_a - s_b) over the pairs a < b <= k and the pairs (k, b) with b > k
        loss = mean of row(i) over the rows in which the teacher's scores differ

    a, b, k are ranks by the teacher's scores, s the student's scores / temperature, and psi(d) = log(1 + exp(-d))
    or max(0, margin - d). k beyond the row: `ranknet` or `hinge` with the teacher's scores as grades.
    Documents that the teacher ties are not compared; where ties cross rank k, the tied ones all belong to the
    top and each b > k has the mean of their terms as its one pair.

    The paper's exact form is not certain, nor which psi its variants -B and -M take.

    Args:
        scores: (queries, docs) float, the student's; larger is better. The default is meant for cosines.
        labels: (queries, docs) the teacher's scores, finite; only their order counts.
        where: (queries, docs) bool, False at padding and where the teacher gave no score. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        k: size of the teacher's top, >= 1; beyond the row it means all of it.
        margin_function: psi: "logistic" or "hinge".
        margin: of the hinge, after the temperature; > 0. The default is 0.05 of a cosine at the default temperature.
        list_weight: "equal", or "sum": the row is the sum over its pairs; the divisor stays the number of rows.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss; 0, with zero gradient, when the teacher's scores differ in no row.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Reddi et al. 2021, "RankDistil: Knowledge Distillation for Ranking" (AISTATS), from memory.

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("rank_distil", scores, max_list)
    check_whole("k", k, least=1)
    check_choice("margin_function", margin_function, "logistic", "hinge")
    term = {"logistic": logistic, "hinge": hinge_above(margin)}[margin_function]
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    preferred = preferred_pairs(own_teacher_scores(labels, where), where)
    top = where & (preferred.sum(-2) < k)
    inside = preferred & top[:, None, :]
    last = top & ~inside.any(-1)
    below = last[:, :, None] & (where & ~top)[:, None, :]
    weights = inside.to(logits.dtype) + below / last.sum(-1).clamp_min(1)[:, None, None]
    pairs = inside.sum((-2, -1)) + (where & ~top).sum(-1)
    return reduced_rows(pair_sums(logits, inside | below, term, weights), pairs, list_weight, reduction)


def _count_rows_of_two_teacher_scores(labels: Tensor, where: Tensor | None = None, **_: object) -> Tensor:
    where = check_mask("where", where, labels)
    return rows_that_differ(own_teacher_scores(labels, where), where).sum()


ENTRIES = (
    LossEntry(
        name="margin_mse",
        fn=margin_mse,
        labels="teacher",
        use="distil a cross-encoder: differences of its scores",
        needs="rows",
        cost="n²",
        paper="Hofstätter et al. 2020, arXiv:2010.02666",
        defaults={"temperature": 1.0, "pairs": "best", "max_list": 1000},
        count=count_compared_rows,
    ),
    LossEntry(
        name="rank_distil",
        fn=rank_distil,
        labels="teacher",
        use="distil the order of a teacher's top k alone, whatever its scale",
        needs="rows",
        cost="n²",
        paper="Reddi et al. 2021, RankDistil, AISTATS",
        defaults={
            "temperature": TEMPERATURE,
            "k": 10,
            "margin_function": "logistic",
            "margin": 1.0,
            "list_weight": "equal",
            "max_list": 1000,
        },
        count=_count_rows_of_two_teacher_scores,
    ),
)
