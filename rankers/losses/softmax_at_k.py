"""SL@K: a softmax loss whose positives are weighted by how near they are to the top K."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.entry import LossEntry, count_positive_rows
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_matrix,
    check_number,
    check_switch,
    fill_masked,
    positives,
    reduced,
    scale_of,
)

TEMPERATURE = 0.1  # cosines: the published optima are 0.05, 0.1, 0.2 and 0.2
RATIO = 10.0  # weight_temperature / temperature of every published optimum, about
STABLE_RATIO = 6.0


def sl_at_k(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    beta: Tensor | None = None,
    k: int = 10,
    temperature: Number | None = None,
    scale: Number | None = None,
    weight_temperature: float | None = None,
    detach_weight: bool = False,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax loss that bounds -log DCG@K from above (SoftmaxLoss@K).

        w_ip = sigmoid((s_ip - beta_i) / weight_temperature)
        row(i) = sum over p in P_i of w_ip * -log softmax(s_i / temperature)_p
        loss = mean of row(i) over the rows with a relevant document

    s are the scores, P_i the relevant columns, beta_i the K-th largest valid score of the row, without
    gradient.
    With H > 1 relevant documents in the top K, -log DCG@K <= row(i); with H = 1, half of it is. A relevant
    document far below the top K counts little. The weight carries a gradient that pushes badly placed
    positives *down*; the loss is stable while weight_temperature / temperature is above about 6 (5 collapsed
    in a try, and most of the gain comes from that gradient), so a lower ratio warns, once.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        beta: (queries,) thresholds on the scale of `scores`, for rows that are only a sample of the
            documents; no gradient flows into them. None means the K-th largest valid score of the row.
        k: rank at which the measure is cut, >= 1; beyond the row it means all of it.
        temperature: divides the scores; > 0; default 0.1.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        weight_temperature: divides s - beta; > 0; default 10 × temperature.
        detach_weight: let no gradient through the weight.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Yang et al. 2025, "Breaking the Top-K Barrier" (arXiv:2508.05673) eq. 3.5.

    """
    scores, where = check_matrix(scores, labels, where)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number >= 1, got {k!r}")
    check_switch("detach_weight", detach_weight)
    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    if weight_temperature is None:
        weight_factor: Number = factor / RATIO
    else:
        weight_factor = 1 / check_number("weight_temperature", weight_temperature, positive=True)
        if not isinstance(factor, Tensor):  # a learned one moves with every step
            _warn_if_unstable(factor * weight_temperature)
    positive = positives(labels, where, positive_from)
    if not scores.shape[1]:  # an empty row has no K-th largest score
        return scores.sum()

    threshold = _kth_largest(scores, where, k) if beta is None else _check_beta(beta, scores)
    above = (scores - threshold[:, None]).masked_fill(~positive, 0)
    weight = torch.sigmoid(above * weight_factor)
    if detach_weight:
        weight = weight.detach()
    log_p = F.log_softmax(fill_masked(scores * factor, where), dim=-1).masked_fill(~positive, 0)
    per_row = -(weight * log_p).sum(-1)
    return reduced(per_row.sum(), positive.any(-1).sum(), reduction)


def _kth_largest(scores: Tensor, where: Tensor, k: int) -> Tensor:
    """Return (queries,) the k-th largest valid score, the smallest one where fewer are valid; no gradient."""
    best = fill_masked(scores.detach(), where).topk(min(k, scores.shape[1]), dim=-1).values
    last = where.sum(-1, keepdim=True).clamp(1, best.shape[1]) - 1
    threshold = best.gather(-1, last).squeeze(-1)
    return threshold.masked_fill(~where.any(-1), 0)


def _check_beta(beta: Tensor, scores: Tensor) -> Tensor:
    if beta.shape != scores.shape[:1]:
        raise ValueError(f"beta must hold one threshold per query {tuple(scores.shape[:1])}, got {tuple(beta.shape)}")
    return beta.detach().to(scores)


@cache  # once per setting, not once per step
def _warn_if_unstable(ratio: float) -> None:
    if ratio < STABLE_RATIO * (1 - 1e-9):
        warnings.warn(
            f"sl_at_k: weight_temperature / temperature is {ratio:.3g}, below {STABLE_RATIO:g} training "
            f"may collapse (badly placed positives are pushed down); the default ratio is {RATIO:g}",
            stacklevel=3,
        )


ENTRIES = (
    LossEntry(
        name="sl_at_k",
        fn=sl_at_k,
        labels="binary",
        use="many relevant documents per query, some of them false; the top K counts (nDCG@K)",
        needs="rows",
        cost="linear",
        paper="Yang et al. 2025, arXiv:2508.05673",
        defaults={
            "k": 10,
            "temperature": TEMPERATURE,
            "weight_temperature": None,
            "detach_weight": False,
            "positive_from": 1.0,
        },
        count=count_positive_rows,
    ),
)
