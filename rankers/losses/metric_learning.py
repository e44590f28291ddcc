"""Losses of metric learning, over a query's similarities: Multi-Similarity and Circle."""

from __future__ import annotations

import torch
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
    softplus,
)


def multi_similarity(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    mining: float | None = None,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pull relevant documents above a fixed similarity and push the others below it (Multi-Similarity).

        row(i) = log(1 + sum over p in P_i of exp(-alpha (s_ip - base))) / alpha
               + log(1 + sum over n in N_i of exp(beta (s_in - base))) / beta
        loss = mean of row(i) over the rows with a relevant document

    s are the scores, P_i the relevant and N_i the other valid columns. The worst documents count most; for large alpha
    and beta only they do: max(0, base - min s_ip) + max(0, max s_in - base). Scores are compared with `base`, so they
    mean the same for all queries.

    mining=e keeps only the pairs that may be out of order: n with s_in > min over P_i - e and p with
    s_ip < max over N_i + e. The paper trains with it, at 0.1; whether its margin is exactly this is not certain.

    Args:
        scores: (queries, docs) float, larger is better; the defaults are meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 1, for alpha and beta are the scales here.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        alpha: scale of the relevant documents, > 0.
        beta: scale of the others, > 0.
        base: the similarity that parts them; the source's code has 0.5, its text 1.
        mining: margin in units of the scaled scores. None: all pairs.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Wang et al. 2019, "Multi-Similarity Loss with General Pair Weighting" (arXiv:1904.06627).

    """
    scores, where = check_matrix(scores, labels, where)
    check_number("alpha", alpha, positive=True)
    check_number("beta", beta, positive=True)
    scaled = scores * scale_of(temperature, scale, 1.0)
    from_base = scaled - check_number("base", base)
    positive = positives(labels, where, positive_from)
    negative = where & ~positive
    rows = positive.any(-1)
    if not scores.shape[1]:
        return scores.sum()
    if mining is not None:
        check_number("mining", mining)
        lowest = -fill_masked(-scaled.detach(), positive).amax(-1, keepdim=True)
        highest = fill_masked(scaled.detach(), negative).amax(-1, keepdim=True)
        positive, negative = positive & (scaled < highest + mining), negative & (scaled > lowest - mining)
    pulls = softplus(_logsumexp(-alpha * from_base, positive)) / alpha
    pushes = softplus(_logsumexp(beta * from_base, negative)) / beta
    return reduced((pulls + pushes).masked_fill(~rows, 0).sum(), rows.sum(), reduction)


def circle(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    margin: float = 0.4,
    gamma: float = 80.0,
    self_paced: bool = True,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax of all pairs of a relevant and another document, each score at its own pace (Circle).

        row(i) = log(1 + sum over n of exp(gamma a_n (s_n - margin)) * sum over p of exp(-gamma a_p (s_p - 1 + margin)))
        a_p = max(0, 1 + margin - s_p),   a_n = max(0, s_n + margin),   without gradient
        loss = mean of row(i) over the rows with a relevant document

    A score far from where it belongs (1 for p in P_i, 0 for n in N_i) moves faster. self_paced=False is the unified
    loss,

        row(i) = log(1 + sum over n, p of exp(gamma (s_n - s_p + margin)))

    whose only measure is the difference; with one relevant document and margin=0 it is `infonce` at
    temperature 1 / gamma. A row without an irrelevant document gives 0.

    Args:
        scores: (queries, docs) float, larger is better; the defaults are meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 1, for gamma is the scale here.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        margin: how far from 0 and 1 scores may rest; the source's retrieval has 0.4, its faces 0.25.
        gamma: > 0; the source's retrieval has 80, its faces 256.
        self_paced: weigh each score by its distance; False: weights of 1.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Sun et al. 2020, "Circle Loss" (arXiv:2002.10857) eq. 2 and 6.

    """
    scores, where = check_matrix(scores, labels, where)
    check_switch("self_paced", self_paced)
    check_number("margin", margin)
    check_number("gamma", gamma, positive=True)
    scaled = scores * scale_of(temperature, scale, 1.0)
    positive = positives(labels, where, positive_from)
    if not scores.shape[1]:
        return scores.sum()
    if self_paced:
        held = scaled.detach()
        pulls = -(1 + margin - held).clamp_min(0) * (scaled - 1 + margin)
        pushes = (held + margin).clamp_min(0) * (scaled - margin)
    else:
        pulls, pushes = -scaled, scaled + margin
    pairs = _logsumexp(gamma * pulls, positive) + _logsumexp(gamma * pushes, where & ~positive)
    rows = positive.any(-1)
    return reduced(softplus(pairs).masked_fill(~rows, 0).sum(), rows.sum(), reduction)


def _logsumexp(logits: Tensor, where: Tensor) -> Tensor:
    """Return (queries,) the logsumexp of the valid entries; without any, a number so low that exp() of it is 0."""
    return torch.logsumexp(fill_masked(logits, where), dim=-1)


ENTRIES = (
    LossEntry(
        name="multi_similarity",
        fn=multi_similarity,
        labels="binary",
        use="several relevant documents per query, a fixed similarity that parts them from the rest",
        needs="rows",
        cost="linear",
        paper="Wang et al. 2019, arXiv:1904.06627",
        defaults={
            "temperature": 1.0,
            "alpha": 2.0,
            "beta": 50.0,
            "base": 0.5,
            "mining": None,
            "positive_from": 1.0,
        },
        unchanged_by="none",
        count=count_positive_rows,
    ),
    LossEntry(
        name="circle",
        fn=circle,
        labels="binary",
        use="several relevant documents per query, cosines driven to 1 and 0",
        needs="rows",
        cost="linear",
        paper="Sun et al. 2020, arXiv:2002.10857",
        defaults={"temperature": 1.0, "margin": 0.4, "gamma": 80.0, "self_paced": True, "positive_from": 1.0},
        unchanged_by="none",
        count=count_positive_rows,
    ),
)
