"""The MW loss: every relevant pair of the batch against every irrelevant one, across queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rankers.losses.entry import LossEntry
from rankers.losses.inputs import (
    Cells,
    Number,
    check_choice,
    check_mask,
    check_matrix,
    positive_cells,
    scale_of,
    softplus,
)
from rankers.losses.pair_tables import PairTables

TEMPERATURE = 0.05  # cosines: infonce's, so that the two compare; the paper runs both at 0.01
EXACT_UP_TO = 10**8  # pairs: half a second on a CPU; "auto" takes the tables beyond
REFUSED_ABOVE = 10**10  # pairs: a minute on a CPU, and more with each step
_PAIRS_AT_ONCE = 1 << 18  # 1 MiB of float32: fastest of 2^16 to 2^22 on a CPU, and it bounds the memory


def mw(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    seen: PairTables | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    positive_from: float = 1.0,
    method: Literal["auto", "exact", "tabulated"] = "auto",
    reduction: Literal["mean", "paper_sum", "sum"] = "mean",
) -> Tensor:
    """Logistic loss of all (relevant, irrelevant) pairs of scores in the batch (Mann-Whitney, 1 - AUC).

        loss = mean over p in P, n in N of log(1 + exp((s_n - s_p) / temperature))

    P are the valid relevant entries of the *whole* matrix and N its other valid entries, whichever query they
    belong to (rows without a relevant document give their entries to N), so scores become comparable across
    queries and a threshold works. loss / log 2 bounds the area over the ROC curve. Only one constant added to
    all scores leaves it unchanged, not one per query. One row: the mean pairwise logistic loss (BPR,
    RankNet).

    method="exact" computes every pair: time |P| × |N|, with one relevant document per query B²(B - 1), and memory of
    a few matrices of the scores' size. It needs the whole matrix. "tabulated" computes F(x) = sum over P of
    log(1 + exp(x - s_p)) and its slope on a grid of temperature / 8 and interpolates them by cubics, within 1e-5 of
    exact in loss and gradient: time |P| + |N|, and rows may come in blocks, given what `mw_observe` has `seen` of
    all of them. "auto" is exact up to 10⁸ pairs. Neither can be differentiated again.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        seen: what `mw_observe` found in all rows, joined by `mw_merge`, when these are only some of them.
        temperature: divides the differences; > 0; default 0.05 (the paper: 0.01).
        scale: multiplies the differences, 1 / temperature; give one of the two.
        positive_from: smallest relevant grade, > 0.
        method: "auto", "exact" or "tabulated".
        reduction: "mean" over the pairs; "paper_sum", the source's eq. 3, divides by |P| only (|N| times
            larger); "sum" is the numerator of both.

    Returns:
        () float loss in nats; 0, with zero gradient, when there is no pair.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at more than 10¹⁰ pairs with method="exact"; when
            the scores spread over more of the grid than can be tabulated.

    Source: arXiv:2510.00137 eq. 3; mean instead of its sum, and the temperature of its lemma. The tables are ours.

    """
    scores, where = check_matrix(scores, labels, where)
    check_choice("reduction", reduction, "mean", "paper_sum", "sum")
    check_choice("method", method, "auto", "exact", "tabulated")
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    positive = positive_cells(labels, where, positive_from)
    irrelevant = _others(where, positive)
    relevant_count = len(positive[0])
    irrelevant_count = 0 if seen is not None and reduction == "sum" else int(irrelevant.sum())
    pairs = relevant_count * irrelevant_count
    if seen is None and (method == "exact" or (method == "auto" and pairs <= EXACT_UP_TO)):
        if pairs > REFUSED_ABOVE:
            raise ValueError(
                f"mw: {relevant_count:,} relevant × {irrelevant_count:,} irrelevant entries are {pairs:,} pairs, above "
                f'the {REFUSED_ABOVE:,} that method="exact" computes; take method="tabulated", equal within 1e-5'
            )
        total: Tensor = _PairLoss.apply(logits[positive], logits[irrelevant])  # type: ignore[no-untyped-call]
    else:
        tables = PairTables.of(logits[positive].detach(), logits.detach(), irrelevant) if seen is None else seen
        total = _TabulatedPairLoss.apply(logits, positive, irrelevant, tables)  # type: ignore[no-untyped-call]
    if reduction == "sum":
        return total
    return total / max(pairs if reduction == "mean" else relevant_count, 1)


def mw_observe(
    scores: Tensor,
    labels: Tensor,
    where: Tensor | None = None,
    *,
    temperature: Number | None = None,
    scale: Number | None = None,
    positive_from: float = 1.0,
    **_: object,
) -> PairTables:
    """Return what a block of rows shows of its scores: the relevant ones, and the others on a grid."""
    scores, where = check_matrix(scores, labels, where)
    logits = (scores * scale_of(temperature, scale, 1 / TEMPERATURE)).detach()
    positive = positive_cells(labels, where, positive_from)
    return PairTables.of(logits[positive], logits, _others(where, positive))


def mw_count(
    labels: Tensor,
    where: Tensor | None = None,
    *,
    positive_from: float = 1.0,
    reduction: Literal["mean", "paper_sum"] = "mean",
    **_: object,
) -> Tensor:
    """Return the () number that `mw` divides by: pairs for "mean", relevant entries for "paper_sum"."""
    return mw_totals(mw_tally(labels, where, positive_from=positive_from), reduction=reduction)["count"]


def mw_tally(
    labels: Tensor, where: Tensor | None = None, *, positive_from: float = 1.0, **_: object
) -> dict[str, Tensor]:
    """Return the numbers of relevant and of irrelevant entries."""
    where = check_mask("where", where, labels)
    valid = where.sum()
    relevant = torch.full_like(valid, len(positive_cells(labels, where, positive_from)[0]))
    return {"relevant": relevant, "irrelevant": valid - relevant}


def mw_totals(tally: Mapping[str, Tensor], *, reduction: str = "mean", **_: object) -> dict[str, Tensor]:
    """Return the divisor: the pairs of the whole batch, or its relevant entries."""
    relevant = tally["relevant"]
    return {"count": relevant * tally["irrelevant"] if reduction == "mean" else relevant}


def _others(where: Tensor, positive: Cells) -> Tensor:
    """Return the mask of the valid entries that are not relevant."""
    return where.index_put(positive, where.new_zeros(()))


class _TabulatedPairLoss(torch.autograd.Function):
    """sum over a block's p and all n of softplus(n - p); the gradient of its n is that of all p against them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positive: Cells, irrelevant: Tensor, tables: PairTables) -> Tensor:
        slope = tables.pushes(logits).masked_fill_(~irrelevant, 0)
        total, pulls = tables.pulls(logits[positive])
        ctx.save_for_backward(slope.index_put_(positive, -pulls))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None


class _PairLoss(torch.autograd.Function):
    """sum over (p, n) of softplus(n - p), by blocks of positives; keeps sums of sigmoids, no pair."""

    @staticmethod
    def forward(ctx: Any, relevant: Tensor, irrelevant: Tensor) -> Tensor:
        total = relevant.new_zeros(())
        pulls, pushes = torch.zeros_like(relevant), torch.zeros_like(irrelevant)
        block = max(1, _PAIRS_AT_ONCE // max(len(irrelevant), 1))
        for start in range(0, len(relevant), block):
            margin = irrelevant - relevant[start : start + block, None]
            total += softplus(margin).sum()
            if any(ctx.needs_input_grad):
                slope = margin.sigmoid_()
                pulls[start : start + block] = slope.sum(1)
                pushes += slope.sum(0)
        ctx.save_for_backward(pulls, pushes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        pulls, pushes = ctx.saved_tensors
        return -gradient * pulls, gradient * pushes


ENTRIES = (
    LossEntry(
        name="mw",
        fn=mw,
        labels="binary",
        use="one threshold for all queries: optimises the pooled ROC-AUC",
        needs="rows + statistic",
        needs_if=lambda settings: "whole matrix" if settings["method"] == "exact" else "rows + statistic",
        cost="linear",
        paper="MW loss 2025, arXiv:2510.00137",
        defaults={"temperature": TEMPERATURE, "positive_from": 1.0, "method": "auto", "reduction": "mean"},
        unchanged_by="one for all",
        count=mw_count,
        tally=mw_tally,
        totals=mw_totals,
        observe=mw_observe,
        merge=PairTables.joined,
    ),
)
