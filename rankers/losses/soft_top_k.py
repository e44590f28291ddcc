"""The soft top-k operator, and the loss that wants the relevant documents in the top k."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rankers.losses.entry import LossEntry, count_positive_rows
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_mask,
    check_matrix,
    check_number,
    check_whole,
    fill_masked,
    positives,
    reduced,
    scale_of,
)
from rankers.losses.softmax import TEMPERATURE


def soft_topk(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    k: int | Literal["num_positives"] = 5,
    alpha: float = 2.0,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean negative log of the relevant documents' soft membership in the top k (DEXML's SoftTop-k loss).

        x = scores / temperature;   p_ij = sigmoid(alpha (x_ij + t_i)), t_i such that sum_j p_ij = k
        row(i) = -mean over p in P_i of log p_ip
        loss = mean of row(i) over the rows with a relevant document

    P_i are the relevant columns. A relevant document well inside the top k is left alone, one outside is pulled
    in, and those nearest to the k-th place make room for it. A row of at most k valid documents is in the top k
    as a whole and gives 0. k=1 is not the softmax: p is a sigmoid with a threshold. With more than k relevant
    documents the loss cannot reach 0; k="num_positives" takes each row's own number of them.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05, the source's for normalised embeddings.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        k: how many documents the top holds, >= 1, or "num_positives"; take the k of your measure.
        alpha: steepness of the membership; > 0. → ∞: 1 in the top k, 0 outside.
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
    positive = positives(labels, where, positive_from)
    found = positive.sum(-1)
    if isinstance(k, str) and k != "num_positives":
        raise ValueError(f'k must be a whole number >= 1 or "num_positives", got {k!r}')
    size = found.clamp_min(1) if isinstance(k, str) else k
    log_p = log_soft_top_k(logits, size, where=where, alpha=alpha).masked_fill(~positive, 0)
    return reduced(-(log_p.sum(-1) / found.clamp_min(1)).sum(), (found > 0).sum(), reduction)


def log_soft_top_k(x: Tensor, k: int | Tensor, *, where: Tensor | None = None, alpha: float = 2.0) -> Tensor:
    """Return log p, the soft membership of each entry in its row's top k: sum of p over the row = k.

        p_j = sigmoid(alpha (x_j + t)), t such that sum_j p_j = k

    exp() of it is the operator itself. Everything is done on log p and log(1 - p), so that a document far outside
    the top k has its exact log p and gradient where p itself is 0. It cannot be differentiated again.

    Args:
        x: (queries, docs) float32 or float64, scores already divided by their temperature.
        k: how many entries the top holds, >= 1: a number, or (queries,) whole numbers of each row.
        where: (queries, docs) bool, False at entries that do not take part. None: all valid.
        alpha: steepness; > 0.

    Returns:
        (queries, docs) log p <= 0; 0 in rows of at most k valid entries (p = 1), and 0, with zero gradient,
        where masked.

    Raises:
        ValueError: at wrong shapes, dtypes or settings.

    Source: Gupta et al. 2024 (arXiv:2310.10636), with the gradient by the implicit function theorem.

    """
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64 (queries, docs), got {x.dtype} {tuple(x.shape)}")
    check_number("alpha", alpha, positive=True)
    if isinstance(k, Tensor):
        if k.shape != x.shape[:1] or k.is_floating_point() or not bool((k >= 1).all()):
            raise ValueError(f"k must be whole numbers >= 1, one per query {tuple(x.shape[:1])}, got {k}")
    else:
        check_whole("k", k, least=1)
        k = torch.full(x.shape[:1], min(k, max(x.shape[1], 1)), device=x.device)
    where = check_mask("where", where, x)
    log_p: Tensor = _LogSoftTopK.apply(x, k, where, alpha)  # type: ignore[no-untyped-call]
    return log_p


class _LogSoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, where: Tensor, alpha: float) -> Tensor:
        where = where & (where.sum(-1) > k)[:, None]  # in other rows all that is valid has p = 1, whatever x
        margin = _margins(x, k, where, alpha)
        ctx.save_for_backward(margin, where)
        ctx.alpha = alpha
        return F.logsigmoid(margin).masked_fill(~where, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        margin, where = ctx.saved_tensors
        own = (ctx.alpha * gradient * torch.sigmoid(-margin)).masked_fill(~where, 0)
        # p (1 - p) over its sum is the part of each entry in moving t; as a softmax it survives saturation.
        slopes = F.logsigmoid(margin) + F.logsigmoid(-margin)
        parts = F.softmax(fill_masked(slopes, where), dim=-1).masked_fill(~where, 0)
        return own - parts * own.sum(-1, keepdim=True), None, None, None


def _margins(x: Tensor, k: Tensor, where: Tensor, alpha: float) -> Tensor:
    """Return (queries, docs) alpha (x + t) with t by bisection; 0 where masked.

    The sum of p is k where what the k largest entries lack equals what the others have. Both sides are compared
    as logarithms: a sum of p near k loses its digits, and says nothing of t once all p are 0 or 1.
    """
    if not x.shape[1]:
        return x
    found = where.sum(-1, keepdim=True)
    k = torch.where(found > 0, k[:, None], 1)
    ordered = fill_masked(x, where).sort(dim=-1, descending=True).values
    last = ordered.gather(-1, k.clamp_max(x.shape[1]) - 1)  # the k-th largest, from which all are measured
    place = torch.arange(x.shape[1], device=x.device)
    not_top, not_others = place >= k, (place < k) | (place >= found)
    slope = alpha * (2 * not_top.to(x.dtype) - 1)  # negative in the top: its terms are 1 - p, the others' are p
    margin = (ordered - last).masked_fill(place >= found, 0)
    gap = -margin.gather(-1, k.clamp_max(x.shape[1] - 1))
    lowest = torch.finfo(x.dtype).min
    # Below `low` even n - k + 1 entries at the k-th place lack, above `high` k + 1 entries at the next one exceed k.
    low = -((found - k).clamp_min(1).to(x.dtype).log() / alpha)
    high = gap + k.to(x.dtype).log() / alpha
    for _ in range(40 if x.dtype == torch.float32 else 72):  # halves the bracket down to a rounding error
        middle = (low + high) / 2
        terms = F.logsigmoid(slope * (margin + middle))
        lacking = torch.logsumexp(terms.masked_fill(not_top, lowest), dim=-1, keepdim=True)
        having = torch.logsumexp(terms.masked_fill(not_others, lowest), dim=-1, keepdim=True)
        too_low = lacking > having
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (alpha * (x - last + (low + high) / 2)).masked_fill(~where, 0)


ENTRIES = (
    LossEntry(
        name="soft_topk",
        fn=soft_topk,
        labels="binary",
        use="many relevant documents per query, to be found among the first k",
        needs="rows",
        cost="n log n",
        paper="Gupta et al. 2024, arXiv:2310.10636",
        defaults={"temperature": TEMPERATURE, "k": 5, "alpha": 2.0, "positive_from": 1.0},
        count=count_positive_rows,
    ),
)
