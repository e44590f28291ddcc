"""Losses that put smooth ranks into a measure: ApproxNDCG, ApproxRR, NeuralNDCG.

Each is minus the measure, in [-1, 0], and nears its true value as the temperature goes to 0. All are unchanged
when a constant is added to a query's scores, so each row of the gradient sums to 0. Time and memory are n² for
a list of n documents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.entry import LossEntry, count_graded_rows, count_positive_rows
from rankers.losses.gains import Gain, discounts, normalised_gains
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_list,
    check_matrix,
    check_number,
    check_whole,
    fill_masked,
    grades,
    positives,
    reduced,
    scale_of,
)
from rankers.losses.softmax import TEMPERATURE

RANK_TEMPERATURE = (
    0.1  # TF-Ranking's for ApproxNDCG; a document counts 0.73 towards the rank of one that is this far below it
)
_EMPTY = 1e-10  # a column of NeuralSort's matrix below this sum is left alone: scaled up, its gradient overflows


def approx_ndcg(
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
    """Minus nDCG with each rank replaced by a sum of sigmoids (ApproxNDCG).

        r_i = 1 + sum over valid j != i of sigmoid((s_j - s_i) / temperature)
        row = -sum_i g(y_i) / log2(1 + r_i) / IDCG;   g(y) = 2^y - 1 ("exp2") or y ("linear")
        loss = mean of row over the rows with a grade > 0

    temperature → 0: minus nDCG of the whole list, where no two scores are equal; equal scores share the mean
    of their ranks. A large gap between two documents leaves no gradient, so the temperature is larger than
    infonce's.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) finite grades >= 0; rows without a grade > 0 are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences of scores; > 0; default 0.1. Here it says how smooth the ranks are.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        gain: "exp2" or "linear", as `rankers.metrics.ndcg`.
        max_list: longest list to take; all pairs of a list are held in memory.
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss in [-1, 0], without a unit; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings, or too long a list.

    Source: Qin, Liu and Li 2010, "A General Approximation Framework for Direct Optimization of Information
    Retrieval Measures" (doi:10.1007/s10791-009-9124-x).

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("approx_ndcg", scores, max_list)
    logits = scores * scale_of(temperature, scale, 1 / RANK_TEMPERATURE)
    marks = grades(labels, where, logits.dtype)
    total = -(normalised_gains(marks, gain) * discounts(_smooth_ranks(logits, where))).sum()
    return reduced(total, (marks > 0).any(-1).sum(), reduction)


def approx_rr(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    positive_from: float = 1.0,
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Minus the reciprocal rank with the rank replaced by a sum of sigmoids (ApproxRR).

        r_i = 1 + sum over valid j != i of sigmoid((s_j - s_i) / temperature)
        row = -1 / r_b, b the relevant document with the largest score
        loss = mean of row over the rows with a relevant document

    Where several relevant documents share the largest score they have the same r, and share the gradient evenly:
    their order never matters. Other relevant documents are treated as all others: pushed below b. temperature
    → 0: minus the reciprocal rank, where no two scores are equal.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences of scores; > 0; default 0.1, as `approx_ndcg`.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        positive_from: smallest relevant grade, > 0.
        max_list: longest list to take; all pairs of a list are held in memory.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in [-1, 0], without a unit; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings, or too long a list.

    Source: Qin, Liu and Li 2010 (doi:10.1007/s10791-009-9124-x) for the ranks; TF-Ranking's mean reciprocal rank.

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("approx_rr", scores, max_list)
    logits = scores * scale_of(temperature, scale, 1 / RANK_TEMPERATURE)
    positive = positives(labels, where, positive_from)
    if not logits.shape[1]:  # the maximum of no columns is not known
        return logits.sum()
    best = positive & (logits == fill_masked(logits, positive).amax(-1, keepdim=True))
    shares = best / best.sum(-1, keepdim=True).clamp_min(1)
    per_row = -(shares / _smooth_ranks(logits, where)).sum(-1)
    return reduced(per_row.sum(), positive.any(-1).sum(), reduction)


def neural_ndcg(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    k: int | None = None,
    gain: Gain = "exp2",
    sinkhorn_iterations: int = 50,
    tolerance: float = 1e-6,
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Minus nDCG with the sorting replaced by a matrix of soft places (NeuralNDCG).

        A_rj = (n + 1 - 2r) s_j - sum_k |s_j - s_k|;   P_r = softmax(A_r / temperature), then Sinkhorn
        row = -sum over r <= k of (P g)_r / log2(1 + r) / IDCG@k;   g(y) = 2^y - 1 ("exp2") or y ("linear")
        loss = mean of row over the rows with a grade > 0

    n is the number of valid documents of the row, r = 1..n are the places and j, k run over the valid
    documents: padding takes no place. Row r of P says which documents stand at place r. Sinkhorn divides P by
    the sums of its columns, then by those of its rows, until the columns of the query sum to 1 within the
    tolerance: each query stops for itself, so its loss does not depend on its batch. temperature → 0: minus
    nDCG@k, where no two scores are equal; equal scores share their places.

    The backward pass holds two n × n matrices per iteration and query; the loss has a kink at equal scores.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) finite grades >= 0; rows without a grade > 0 have no nDCG and are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides A; > 0; default 0.05 (the paper: 1, for unbounded scores).
        scale: multiplies A, 1 / temperature; give one of the two.
        k: rank at which the measure is cut, >= 1; None, or beyond the row: all of it.
        gain: "exp2" or "linear", as `rankers.metrics.ndcg`.
        sinkhorn_iterations: at most so many, >= 0; 0 leaves P as the softmax made it.
        tolerance: largest error of a column's sum at which Sinkhorn stops; > 0.
        max_list: longest list to take; all pairs of a list are held in memory.
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss in [-1, 0], without a unit; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings, or too long a list.

    Source: Pobrotyn and Bialobrzeski 2021, NeuralNDCG (arXiv:2102.07831); P: Grover et al. 2019, NeuralSort
    (arXiv:1903.08850) eq. 5.

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("neural_ndcg", scores, max_list)
    if k is not None:
        check_whole("k", k, least=1)
    check_whole("sinkhorn_iterations", sinkhorn_iterations, least=0)
    check_number("tolerance", tolerance, positive=True)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    marks = grades(labels, where, logits.dtype)
    gains = normalised_gains(marks, gain, k)
    if not logits.shape[1]:  # the maximum of no columns is not known
        return logits.sum()
    soft = _doubly_stochastic(_soft_places(logits, where), where, sinkhorn_iterations, tolerance)
    places = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    worth = (discounts(places[:k])[:, None] * soft[:, :k]).sum(-2)  # of each document: the discount of its places
    return reduced(-(worth * gains).sum(), (marks > 0).any(-1).sum(), reduction)


def _smooth_ranks(logits: Tensor, where: Tensor) -> Tensor:
    """Return (queries, docs) 1 + sum over valid j != i of sigmoid(s_j - s_i); not to be used where masked.

    j = i counts for sigmoid(0) = 1/2, so that equal scores have ranks that are equal to the last bit.
    """
    ahead = torch.sigmoid(logits[:, None, :] - logits[:, :, None])
    return 0.5 + ahead.masked_fill(~where[:, None, :], 0).sum(-1)


def _soft_places(logits: Tensor, where: Tensor) -> Tensor:
    """Return (queries, places, docs) NeuralSort's matrix; 0 at masked documents and at places that they leave over."""
    found = where.sum(-1, keepdim=True)
    # A shift changes nothing, and small numbers keep their digits when they are multiplied by n.
    centred = (logits - fill_masked(logits.detach(), where).amax(-1, keepdim=True)).masked_fill(~where, 0)
    distances = (centred[:, :, None] - centred[:, None, :]).abs().masked_fill(~where[:, None, :], 0).sum(-1)
    places = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    slopes = (found + 1 - 2 * places).to(logits.dtype)
    attraction = slopes[:, :, None] * centred[:, None, :] - distances[:, None, :]
    exists = (places <= found)[:, :, None] & where[:, None, :]
    return F.softmax(fill_masked(attraction, exists), dim=-1).masked_fill(~exists, 0)


def _doubly_stochastic(matrix: Tensor, where: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Return the matrices whose columns sum to 1 too, as near as `iterations` bring them."""
    for _ in range(iterations):
        columns = matrix.sum(-2, keepdim=True)
        open_ = ((columns.detach() - 1).abs() > tolerance).squeeze(-2).logical_and(where).any(-1)
        if not bool(open_.any()):
            break
        step = matrix / columns.masked_fill(columns < _EMPTY, 1)
        rows = step.sum(-1, keepdim=True)
        step = step / rows.masked_fill(rows < _EMPTY, 1)
        matrix = torch.where(open_[:, None, None], step, matrix)
    return matrix


ENTRIES = (
    LossEntry(
        name="approx_ndcg",
        fn=approx_ndcg,
        labels="grade",
        use="graded lists measured by nDCG, once another loss has brought the scores near",
        needs="rows",
        cost="n²",
        paper="Qin et al. 2010, doi:10.1007/s10791-009-9124-x",
        defaults={"temperature": RANK_TEMPERATURE, "gain": "exp2", "max_list": 1000},
        count=count_graded_rows,
    ),
    LossEntry(
        name="approx_rr",
        fn=approx_rr,
        labels="binary",
        use="lists measured by the reciprocal rank: only the first relevant document counts",
        needs="rows",
        cost="n²",
        paper="Qin et al. 2010, doi:10.1007/s10791-009-9124-x",
        defaults={"temperature": RANK_TEMPERATURE, "positive_from": 1.0, "max_list": 1000},
        count=count_positive_rows,
    ),
    LossEntry(
        name="neural_ndcg",
        fn=neural_ndcg,
        labels="grade",
        use="graded lists measured by nDCG@k, short enough for n × n matrices",
        needs="rows",
        cost="n²",
        paper="Pobrotyn and Bialobrzeski 2021, arXiv:2102.07831",
        defaults={
            "temperature": TEMPERATURE,
            "k": None,
            "gain": "exp2",
            "sinkhorn_iterations": 50,
            "tolerance": 1e-6,
            "max_list": 1000,
        },
        count=count_graded_rows,
    ),
)
