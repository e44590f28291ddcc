"""Pairs weighted by what nDCG makes of them: LambdaRank and the NDCG losses of LambdaLoss.

All share one engine, which puts each row in the order of its scores: a pair's weight is |g_i - g_j| / IDCG times
a function of the two ranks, without gradient. The ranks are those among the valid documents. Where scores are tied,
the weight is its mean over all orders of the tied documents: the order of the columns does not matter, and a
model whose scores are all equal still learns. All are unchanged when a constant is added to a query's scores,
so each row of the gradient sums to 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rankers.losses.entry import LossEntry
from rankers.losses.gains import Gain, discounts, normalised_gains
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_choice,
    check_list,
    check_mask,
    check_matrix,
    check_number,
    check_whole,
    fill_masked,
    grades,
    reduced,
    scale_of,
)
from rankers.losses.pairs import (
    count_rows_of_two_grades,
    logistic,
    own_grades,
    pair_sums,
    preferred_pairs,
    rows_that_differ,
    valid_pairs,
)
from rankers.losses.rank_weights import RankWeights, expected_weights, of_distance, of_first, of_swap
from rankers.losses.softmax import TEMPERATURE

BIT = math.log(2)  # in nats


def lambdarank(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    gain: Gain = "exp2",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Logistic loss of every pair, weighted by what swapping the two would change in nDCG (LambdaRank).

        row(i) = sum over j, k with y_j > y_k of |G_j - G_k| |D(r_j) - D(r_k)| log(1 + exp(-(s_j - s_k) / temperature))
        loss = mean of row(i) over the rows with such a pair

    G = g(y) / IDCG, D(r) = 1 / log2(1 + r), r the rank by the scores s; see the module for ties.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1.
        labels: (queries, docs) finite grades >= 0.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        gain: g: "exp2" for 2^y - 1, "linear" for y.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with a pair.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has two different grades.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Burges et al. 2006, "Learning to Rank with Nonsmooth Cost Functions"; as a loss: Wang et al. 2018
    (doi:10.1145/3269206.3271784).

    """
    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    return _weighted_pairs("lambdarank", scores, labels, where, factor, gain, max_list, reduction, of_swap)


def ndcg_loss1(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    gain: Gain = "exp2",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Upper bound of 1 - nDCG: each relevant document against all others (NDCG-Loss1).

        row(i) = sum over j and all k != j of G_j D(r_j) log2(1 + exp(-(s_j - s_k) / temperature))
        loss = mean of row(i) over the rows with a grade > 0 and another document

    G = g(y) / IDCG, D(r) = 1 / log2(1 + r), r the rank by the scores s; see the module for ties. Relevant documents
    are pushed above each other too, so that the least loss is not the best order's. row(i) >= 1 - nDCG(i).

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) finite grades >= 0.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        gain: g: "exp2" for 2^y - 1, "linear" for y.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss in bits; 0, with zero gradient, when no row has a grade > 0 and another document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Wang et al. 2018, "The LambdaLoss Framework" (doi:10.1145/3269206.3271784).

    """
    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    return _weighted_pairs(
        "ndcg_loss1", scores, labels, where, factor, gain, max_list, reduction, of_first, every_pair=True, unit=BIT
    )


def ndcg_loss2(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    gain: Gain = "exp2",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Tighter upper bound of 1 - nDCG, of pairs weighted by their distance in rank (NDCG-Loss2).

        delta(d) = D(d) - D(d + 1),   D(r) = 1 / log2(1 + r)
        row(i) = sum over j, k with y_j > y_k of
                 |G_j - G_k| delta(|r_j - r_k|) log2(1 + exp(-(s_j - s_k) / temperature))
        loss = mean of row(i) over the rows with such a pair

    G = g(y) / IDCG, r the rank by the scores s; see the module for ties. row(i) >= 1 - nDCG(i).

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) finite grades >= 0.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        gain: g: "exp2" for 2^y - 1, "linear" for y.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with a pair.

    Returns:
        () float loss in bits; 0, with zero gradient, when no row has two different grades.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Wang et al. 2018, "The LambdaLoss Framework" (doi:10.1145/3269206.3271784).

    """
    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    return _weighted_pairs(
        "ndcg_loss2", scores, labels, where, factor, gain, max_list, reduction, of_distance, unit=BIT
    )


def ndcg_loss2pp(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    mu: float = 10.0,
    gain: Gain = "exp2",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """NDCG-Loss2 and LambdaRank together: the weights of a pair are added (NDCG-Loss2++).

        row(i) = sum over j, k with y_j > y_k of |G_j - G_k| (mu delta(|r_j - r_k|) + |D(r_j) - D(r_k)|)
                 log(1 + exp(-(s_j - s_k) / temperature))
        loss = mean of row(i) over the rows with such a pair

    G, D, delta and r are those of `ndcg_loss2`. In nats as `lambdarank`, which it is for mu=0.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) finite grades >= 0.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        mu: weight of NDCG-Loss2, >= 0.
        gain: g: "exp2" for 2^y - 1, "linear" for y.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with a pair.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has two different grades.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Wang et al. 2018, "The LambdaLoss Framework" (doi:10.1145/3269206.3271784).

    """
    if isinstance(mu, Tensor) or check_number("mu", mu) < 0:
        raise ValueError(f"mu must be a number >= 0, got {mu}")

    def both(a: Tensor, b: Tensor) -> Tensor:
        return mu * of_distance(a, b) + of_swap(a, b)

    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    return _weighted_pairs("ndcg_loss2pp", scores, labels, where, factor, gain, max_list, reduction, both)


def lambdaloss(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    k: int = 10,
    truncation: Literal["metric", "block"] = "metric",
    gain: Gain = "exp2",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """NDCG-Loss2 for nDCG@k (LambdaLoss@k).

        row(i) = that of `ndcg_loss2`, each pair's weight times c(max(r_j, r_k))
        "metric":  c(r) = 1 / (1 - D(r)) for r > k, else 1
        "block":   c(r) = 0 for r > k, else 1
        loss = mean of row(i) over the rows with two different grades

    D(r) = 1 / log2(1 + r). "metric" gives more weight to pairs that reach below rank k, most to those just below it:
    they are what changes the top k. Its form is from memory; rax's top-n weights, from the same paper, agree.
    "block", allRank's, looks at pairs within the top k alone: relevant documents below it have no gradient. k beyond
    the row: `ndcg_loss2`. IDCG is that of the whole row, whatever k.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) finite grades >= 0.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        k: rank at which the measure is cut, >= 1; beyond the row it means all of it.
        truncation: "metric" or "block".
        gain: g: "exp2" for 2^y - 1, "linear" for y.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with two different grades.

    Returns:
        () float loss in bits; 0, with zero gradient, when no row has two different grades.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Jagerman et al. 2022, "On Optimizing Top-K Metrics for Neural Ranking Models"
    (doi:10.1145/3477495.3531849), from memory; "block": allRank (arXiv:2005.10084).

    """
    check_whole("k", k, least=1)
    check_choice("truncation", truncation, "metric", "block")

    def truncated(a: Tensor, b: Tensor) -> Tensor:
        lower = torch.maximum(a, b)
        beyond = 1 / (1 - discounts(lower)) if truncation == "metric" else torch.zeros_like(lower)
        return of_distance(a, b) * beyond.where(lower > k, torch.ones_like(lower))

    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    return _weighted_pairs("lambdaloss", scores, labels, where, factor, gain, max_list, reduction, truncated, unit=BIT)


def _weighted_pairs(
    name: str,
    scores: Tensor,
    labels: Tensor,
    where: Tensor | None,
    factor: Number,
    gain: Gain,
    max_list: int,
    reduction: str,
    rank_weights: RankWeights,
    *,
    every_pair: bool = False,
    unit: float = 1.0,
) -> Tensor:
    """Sum the weighted logistic losses of the pairs of each row; `unit`: nats per unit of the loss."""
    scores, where = check_matrix(scores, labels, where)
    check_list(name, scores, max_list)
    logits = scores * factor
    values = own_grades(labels, where)
    gains = normalised_gains(grades(labels, where, scores.dtype), gain)
    rows = _rows_of_gain(values, where) if every_pair else rows_that_differ(values, where)

    ordered, order = fill_masked(scores.detach(), where).sort(dim=-1, descending=True)
    logits, values, gains, where = (matrix.gather(1, order) for matrix in (logits, values, gains, where))
    ranks = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    weights = expected_weights(rank_weights(ranks[:, None], ranks[None, :]), ordered, where)
    if every_pair:
        pairs, stakes = valid_pairs(where), gains[:, :, None]
    else:
        pairs, stakes = preferred_pairs(values, where), (gains[:, :, None] - gains[:, None, :]).abs()
    return reduced(pair_sums(logits, pairs, logistic, weights * stakes).sum() / unit, rows.sum(), reduction)


def _rows_of_gain(values: Tensor, where: Tensor) -> Tensor:
    return (values > 0).any(-1) & (where.sum(-1) >= 2)


def _count_rows_of_gain(labels: Tensor, where: Tensor | None = None, **_: object) -> Tensor:
    where = check_mask("where", where, labels)
    return _rows_of_gain(own_grades(labels, where), where).sum()


_NDCG = {"temperature": TEMPERATURE, "gain": "exp2", "max_list": 1000}
_PAPER = "Wang et al. 2018, doi:10.1145/3269206.3271784"

ENTRIES = (
    LossEntry(
        name="lambdarank",
        fn=lambdarank,
        labels="grade",
        use="lists of documents with grades, measured by nDCG: the usual choice",
        needs="rows",
        cost="n²",
        paper="Burges et al. 2006, LambdaRank, NIPS",
        defaults=_NDCG,
        count=count_rows_of_two_grades,
    ),
    LossEntry(
        name="ndcg_loss1",
        fn=ndcg_loss1,
        labels="grade",
        use="an upper bound of 1 - nDCG, looser than ndcg_loss2",
        needs="rows",
        cost="n²",
        paper=_PAPER,
        defaults=_NDCG,
        count=_count_rows_of_gain,
    ),
    LossEntry(
        name="ndcg_loss2",
        fn=ndcg_loss2,
        labels="grade",
        use="an upper bound of 1 - nDCG that weighs neighbours in rank most",
        needs="rows",
        cost="n²",
        paper=_PAPER,
        defaults=_NDCG,
        count=count_rows_of_two_grades,
    ),
    LossEntry(
        name="ndcg_loss2pp",
        fn=ndcg_loss2pp,
        labels="grade",
        use="ndcg_loss2 and lambdarank together: the best of its paper",
        needs="rows",
        cost="n²",
        paper=_PAPER,
        defaults={**_NDCG, "mu": 10.0},
        count=count_rows_of_two_grades,
    ),
    LossEntry(
        name="lambdaloss",
        fn=lambdaloss,
        labels="grade",
        use="lists of documents with grades of which the top K counts (nDCG@K)",
        needs="rows",
        cost="n²",
        paper="Jagerman et al. 2022, doi:10.1145/3477495.3531849",
        defaults={**_NDCG, "k": 10, "truncation": "metric"},
        count=count_rows_of_two_grades,
    ),
)
