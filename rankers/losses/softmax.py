"""Losses of a softmax over a query's documents: InfoNCE, decoupled softmax, cross-entropy with grades.

All are unchanged when a constant is added to a query's scores, so each row of the gradient sums to 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.column_softmax import ColumnTables
from rankers.losses.entry import LossEntry, count_graded_rows, count_positive_rows
from rankers.losses.inputs import (
    Cells,
    Number,
    Reduction,
    check_choice,
    check_mask,
    check_matrix,
    check_number,
    check_switch,
    fill_masked,
    grades,
    positive_cells,
    reduced,
    scale_of,
    softplus,
)

TEMPERATURE = 0.05  # cosines: SimCSE, PromCSE and DEXML train at it; published range 0.01-0.1


def infonce(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    where_columns: Tensor | None = None,
    weights: Tensor | None = None,
    seen: ColumnTables | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    symmetric: bool = False,
    hardness: float = 0.0,
    grade_weight: bool = False,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of a query's relevant documents against all its columns (InfoNCE, in-batch softmax).

        s = scores / temperature;   row(i) = -mean over p in P_i of log softmax(s_i)_p
        loss = mean of row(i) over the rows with a relevant document

    P_i are the relevant columns. With one per row, the case of the paper, this is the usual cross-entropy.
    With several, each is scored against all columns, the other relevant ones included, so the infimum is
    log |P_i| and easy positives are pushed down; `decoupled_softmax` takes them out of the denominator.

    symmetric=True also asks each document for its query, loss = (mean over rows + mean over columns) / 2. A
    column's positives are the rows that call it relevant; a column that no row calls relevant (a mined
    negative) enters the rows' softmax only. This couples the rows: of blocks of rows, `infonce_observe` must have
    `seen` all.

    hardness=a adds a × (the negative's own raw score, without gradient) to each negative's logit (LLaVE): hard
    negatives weigh more. A row's gradient is (softmax of the shifted logits - target) / temperature.
    `weights` adds log w to each negative's logit (MEOW), in both directions: 1 leaves it, 0 takes it out of the
    denominator, and between them lies what may be a false negative. An irrelevant column is a negative here,
    in the columns' direction an irrelevant row; positives keep their logits.

    grade_weight=True weighs each row by its grade, the mean one of its positives, and divides by the sum of the
    grades (importance-weighted InfoNCE; in the columns' direction, by the columns' grades). 0/1 labels: no change.
    A temperature of its own for each query is `isogclr`: it needs a state and has another objective.

    Args:
        scores: (queries, docs) float, larger is better. The defaults are meant for cosines; a cross-encoder's
            or a feature scorer's unbounded scores take temperature=1.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant.
        where: (queries, docs) bool, False at padding and at masked false negatives; False wins over any
            label. None means that every entry is valid.
        where_columns: (queries, docs) bool, the mask of the columns' direction when it differs from `where`
            (a document that occurs twice, a query that two documents answer). None means `where`.
        weights: (queries, docs) float in [0, 1], read at negatives only; no gradient flows into them. None
            means 1.
        seen: what `infonce_observe` found in all rows, joined, when these are only some of them.
        temperature: divides the scores; > 0, unitless; default 0.05. A () tensor may be learned.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        symmetric: add the columns' direction.
        hardness: >= 0, added to a negative's logit per unit of its score; LLaVE's runs use 0.5 to 9. 0: off.
        grade_weight: weigh rows by grade; needs labels that are grades.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document; with grade_weight,
            loss × sum of their grades, in units of positive_from where that is below 1.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels, weights or settings.

    Source: van den Oord et al. 2018 (arXiv:1807.03748) eq. 4; symmetric: Radford et al. 2021
    (arXiv:2103.00020); hardness: LLaVE (arXiv:2503.04812); weights: MEOW, from memory.

    """
    check_switch("symmetric", symmetric)
    where = check_mask("where", where, labels)
    columns = where if where_columns is None else check_mask("where_columns", where_columns, labels)
    scores, _ = check_matrix(scores, labels, where if columns is where else where | columns)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    positive = positive_cells(labels, where, positive_from)
    gains = _gains(labels, grade_weight, positive_from, logits.dtype)
    lift = _lift(scores, hardness, weights, where, positive)
    total, count = _one_direction(logits, positive, where, lift, gains)
    if not symmetric:
        if where_columns is not None:
            raise ValueError("where_columns is the mask of the columns' direction; it needs symmetric=True")
        return reduced(total, count, reduction)
    if columns is not where:
        positive = positive_cells(labels, columns, positive_from)
        lift = _lift(scores, hardness, weights, columns, positive)
    if seen is not None:
        column_total, column_count = seen.share(*_lifted(logits, positive, columns, lift)), seen.weights.sum()
        both = (total / seen.rows.clamp_min(1) + column_total / column_count.clamp_min(1)) / 2
        return reduced(both * seen.rows, seen.rows, reduction)
    turned = [matrix if matrix is None else matrix.T for matrix in (lift, gains)]
    column_total, column_count = _one_direction(logits.T, positive[::-1], columns.T, *turned)
    both = (reduced(total, count, "mean") + reduced(column_total, column_count, "mean")) / 2
    return reduced(both * count, count, reduction)


def infonce_observe(
    scores: Tensor,
    labels: Tensor,
    where: Tensor | None = None,
    *,
    where_columns: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    hardness: float = 0.0,
    grade_weight: bool = False,
    positive_from: float = 1.0,
    **_: object,
) -> ColumnTables:
    """Return what a block of rows shows of the columns' direction."""
    where = check_mask("where", where, labels)
    columns = where if where_columns is None else check_mask("where_columns", where_columns, labels)
    scores, _mask = check_matrix(scores, labels, where if columns is where else where | columns)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    gains = _gains(labels, grade_weight, positive_from, logits.dtype)
    positive = positive_cells(labels, where, positive_from)
    rows = _row_weights(positive, len(logits), gains).sum()
    if columns is not where:
        positive = positive_cells(labels, columns, positive_from)
    lift = _lift(scores, hardness, weights, columns, positive)
    return ColumnTables.of(*_lifted(logits, positive, columns, lift), gains, rows)


def infonce_count(
    labels: Tensor,
    where: Tensor | None = None,
    *,
    grade_weight: bool = False,
    positive_from: float = 1.0,
    **_: object,
) -> Tensor:
    """Return the () number of rows with a relevant document, or the sum of their grades."""
    where = check_mask("where", where, labels)
    positive = positive_cells(labels, where, positive_from)
    dtype = torch.float64 if labels.dtype == torch.float64 else torch.float32
    return _row_weights(positive, len(labels), _gains(labels, grade_weight, positive_from, dtype)).sum()


def _one_direction(
    logits: Tensor, positive: Cells, where: Tensor, lift: Tensor | None, gains: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the rows' weighted losses and the sum of their weights; a row without a positive has none."""
    logits, positive, where = _lifted(logits, positive, where, lift)
    row_weights = _row_weights(positive, len(logits), gains)
    each = (row_weights.to(logits.dtype) / positive[0].bincount(minlength=len(logits)).clamp_min(1))[positive[0]]
    return -(each * log_softmax_at(positive, logits, where)).sum(), row_weights.sum()


def log_softmax_at(cells: Cells, logits: Tensor, where: Tensor) -> Tensor:
    """Return (cells,) the log softmax of their rows at some valid cells."""
    return F.log_softmax(fill_masked(logits, where), dim=-1)[cells]


def _lifted(logits: Tensor, positive: Cells, where: Tensor, lift: Tensor | None) -> tuple[Tensor, Cells, Tensor]:
    """Return logits with what is added to negatives, and the masks; a negative of weight 0 (-inf) counts as masked."""
    if lift is None:
        return logits, positive, where
    lift = lift.index_put(positive, lift.new_zeros(()))
    where = where & (lift != -math.inf)  # nan stays: a broken score must show in the loss
    return logits + lift.masked_fill(~where, 0), positive, where


def _row_weights(positive: Cells, rows: int, gains: Tensor | None) -> Tensor:
    """Return (queries,) the mean grade of a row's positives, 0 without any; without `gains`, whether it has one."""
    found = positive[0].bincount(minlength=rows)
    if gains is None:
        return found > 0
    return gains.new_zeros(rows).index_add(0, positive[0], gains[positive]) / found.clamp_min(1)


def _gains(labels: Tensor, grade_weight: bool, positive_from: float, dtype: torch.dtype) -> Tensor | None:
    """Return the grades as weights, never below 1 at a positive, so that a sum below 1 means that there is none."""
    check_switch("grade_weight", grade_weight)
    return labels.to(dtype) / min(positive_from, 1) if grade_weight else None


def _lift(scores: Tensor, hardness: float, weights: Tensor | None, where: Tensor, positive: Cells) -> Tensor | None:
    """Return what is added to the negatives' logits, without gradient; None when it is nothing."""
    if not (check_number("hardness", hardness) >= 0):
        raise ValueError(f"hardness must be >= 0, got {hardness}: below, easy negatives would count most")
    lift = hardness * scores.detach() if hardness else None
    if weights is None:
        return lift
    if weights.shape != scores.shape or not weights.is_floating_point():
        raise ValueError(f"weights must be float {tuple(scores.shape)}, got {weights.dtype} {tuple(weights.shape)}")
    bad = where & ~((weights >= 0) & (weights <= 1))
    bad[positive] = False
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"weights[{row}, {column}] is {weights[row, column].item():g}: weights must be in [0, 1]")
    logs = weights.detach().to(scores.dtype).log()
    return logs if lift is None else lift + logs


def _cross_entropy(logits: Tensor, weights: Tensor, where: Tensor) -> Tensor:
    """Return (queries,) -sum_j w_ij log softmax(logits_i)_j over valid j; a row without weight gives 0."""
    log_p = F.log_softmax(fill_masked(logits, where), dim=-1).masked_fill(~where, 0)
    return -(weights * log_p).sum(-1)


def decoupled_softmax(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of each relevant document against the irrelevant ones alone (DEXML's decoupled softmax).

        s = scores / temperature;   row(i) = mean over p in P_i of log(1 + exp(LSE_{n in N_i} s_in - s_ip))
        loss = mean of row(i) over the rows with a relevant document

    P_i are the relevant and N_i the other valid columns. One relevant column: InfoNCE. Never more than
    `infonce`; relevant documents never push each other down. A row without an irrelevant document gives 0. It
    is not "decoupled contrastive learning", which leaves the positive itself out of its denominator.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05, the source's for normalised embeddings.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Gupta et al. 2024, "Dual-Encoders for Extreme Multi-Label Classification" (arXiv:2310.10636).

    """
    scores, where = check_matrix(scores, labels, where)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    positive = positive_cells(labels, where, positive_from)
    if not scores.shape[1]:  # the logsumexp of no columns is -inf
        return logits.sum()
    lowest = logits.new_tensor(torch.finfo(logits.dtype).min)
    against = torch.logsumexp(fill_masked(logits, where).index_put(positive, lowest), dim=-1)
    found = positive[0].bincount(minlength=len(logits))
    per_pair = softplus(against.index_select(0, positive[0]) - logits[positive])
    return reduced((per_pair / found[positive[0]]).sum(), found.count_nonzero(), reduction)


def softmax_ce(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    list_weight: Literal["equal", "sum"] = "equal",
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax cross-entropy with graded labels (ListSM, the softmax loss of learning to rank).

        p_i = y_i / sum(y_i);   row(i) = -sum_j p_ij log softmax(scores_i / temperature)_j
        loss = mean of w_i row(i) over the rows with a grade > 0,   w_i = 1 ("equal") or sum_j y_ij ("sum")

    One grade > 0 per row: InfoNCE. It is not ListNet, whose target is softmax(y). Grades enter linearly; pass
    2**y - 1 for exponential gains. list_weight="sum" is TensorFlow Ranking's: a query with more or better
    documents counts more; the divisor stays the number of rows.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1.
        labels: (queries, docs) finite grades >= 0; rows without a grade > 0 are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05, as `infonce`, which this is for one-hot labels.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        list_weight: "equal" or "sum".
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Bruch et al. 2019, "An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank with Binary
    Relevance"; Pasumarthi et al. 2019, TF-Ranking (arXiv:1812.00073) for the list weight.

    """
    scores, where = check_matrix(scores, labels, where)
    check_choice("list_weight", list_weight, "equal", "sum")
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    gains = grades(labels, where, logits.dtype)
    mass = gains.sum(-1, keepdim=True)
    weights = gains if list_weight == "sum" else gains / mass.masked_fill(mass == 0, 1)
    return reduced(_cross_entropy(logits, weights, where).sum(), (mass > 0).sum(), reduction)


_BINARY = {"temperature": TEMPERATURE, "positive_from": 1.0}

ENTRIES = (
    LossEntry(
        name="infonce",
        fn=infonce,
        labels="binary",
        use="one relevant document per query, in-batch and mined negatives: the place to start",
        needs="rows",
        needs_if=lambda settings: "rows + statistic" if settings["symmetric"] else "rows",
        observe=infonce_observe,
        merge=ColumnTables.joined,
        cost="linear",
        paper="van den Oord et al. 2018, arXiv:1807.03748",
        defaults={**_BINARY, "symmetric": False, "hardness": 0.0, "grade_weight": False},
        count=infonce_count,
        several_positives=False,
    ),
    LossEntry(
        name="decoupled_softmax",
        fn=decoupled_softmax,
        labels="binary",
        use="many relevant documents per query, easy and hard ones together",
        needs="rows",
        cost="linear",
        paper="Gupta et al. 2024, arXiv:2310.10636",
        defaults=_BINARY,
        count=count_positive_rows,
    ),
    LossEntry(
        name="softmax_ce",
        fn=softmax_ce,
        labels="grade",
        use="lists of documents with grades",
        needs="rows",
        cost="linear",
        paper="Bruch et al. 2019, doi:10.1145/3341981.3344221",
        defaults={"temperature": TEMPERATURE, "list_weight": "equal"},
        count=count_graded_rows,
    ),
)
