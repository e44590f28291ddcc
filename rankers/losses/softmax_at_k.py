"""SL and SL@K: a softmax loss summed over a row's positives, weighted in SL@K by how near they are to the top K."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from rankers.losses.entry import LossEntry, count_positive_rows
from rankers.losses.inputs import (
    Cells,
    Number,
    Reduction,
    check_choice,
    check_matrix,
    check_number,
    check_state,
    check_switch,
    check_whole,
    fill_masked,
    positive_cells,
    reduced,
    scale_of,
)
from rankers.losses.softmax import log_softmax_at

TEMPERATURE = 0.1  # cosines: the published optima are 0.05, 0.1, 0.2 and 0.2
RATIO = 10.0  # weight_temperature / temperature of every published optimum, about
STABLE_RATIO = 6.0
BETA_RATE = 0.1  # our choice, for cosines: the source fits no regression but sorts samples every few epochs
STATE: Mapping[str, float] = {"beta": 0.0}  # as in the source


def sl(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax loss, summed over a query's relevant documents (SL).

        row(i) = sum over p in P_i of -log softmax(s_i / temperature)_p
        loss = mean of row(i) over the rows with a relevant document

    This is `sl_at_k` with every weight 1. `infonce` takes the mean over P_i instead of the sum: there a query with
    many relevant documents counts like any other, here each relevant document does. One per row: the same loss.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.1, as `sl_at_k`.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a relevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Wu et al. 2024, "On the Effectiveness of Sampled Softmax Loss for Item Recommendation" (arXiv:2201.02327);
    as the base of SL@K, Yang et al. 2025 (arXiv:2508.05673).

    """
    scores, where = check_matrix(scores, labels, where)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    return _summed(logits, positive_cells(labels, where, positive_from), where, None, reduction)


def _summed(logits: Tensor, positive: Cells, where: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Return the sum of the positives' -log softmax, each times its weight, per row with a positive or in all."""
    log_p = log_softmax_at(positive, logits, where)
    rows = positive[0].bincount(minlength=len(logits)).count_nonzero()
    return reduced(-(log_p if weight is None else weight * log_p).sum(), rows, reduction)


def sl_at_k(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    beta: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    k: int = 10,
    quantile: Literal["row", "estimated"] = "row",
    beta_rate: float = BETA_RATE,
    corpus_size: int | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    weight_temperature: float | None = None,
    detach_weight: bool = False,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
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

    quantile="estimated" is for rows that are samples of the corpus: beta_i is kept in `state`, starts at 0, and after
    each visit takes one step down the pinball loss of the p-quantile, p = 1 - k / corpus_size,

        beta_i -= beta_rate * ((1 - p) share of valid s_ij < beta_i  -  p share of valid s_ij > beta_i)

    whose resting point has k of corpus_size scores above it. A row in which relevant documents are more frequent than
    in the corpus rests too high.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        beta: (queries,) thresholds on the scale of `scores`, for rows that are only a sample of the
            documents; no gradient flows into them. None: as `quantile` says.
        state: {"beta": (queries,)}, the rows' estimates. Without it an estimated beta stays at 0.
        k: rank at which the measure is cut, >= 1; beyond the row it means all of it.
        quantile: "row", the K-th largest valid score of the row, which leaves a `state` as it is; or "estimated".
        beta_rate: step of the estimate, > 0, in units of the scores; default 0.1.
        corpus_size: number of documents that a row is a sample of, >= 1. None: the row's valid entries.
        temperature: divides the scores; > 0; default 0.1.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        weight_temperature: divides s - beta; > 0; default 10 × temperature.
        detach_weight: let no gradient through the weight.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a relevant document. With `state`,
        (loss, new state); a row without a valid entry keeps its own.

    Raises:
        ValueError: at wrong shapes, dtypes, labels, state or settings.

    Source: Yang et al. 2025, "Breaking the Top-K Barrier" (arXiv:2508.05673) eq. 3.5; the step of beta is ours, on the
    pinball regression that the paper names.

    """
    scores, where = check_matrix(scores, labels, where)
    _check_settings(k, quantile, beta_rate, corpus_size, detach_weight)
    factor = scale_of(temperature, scale, 1 / TEMPERATURE)
    weight_factor = _weight_factor(weight_temperature, factor)
    positive = positive_cells(labels, where, positive_from)
    estimate = None if state is None else check_state(state, STATE, scores)["beta"]
    if beta is not None:
        threshold = _check_beta(beta, scores)
    elif quantile == "estimated":
        threshold = scores.new_zeros(len(scores)) if estimate is None else estimate
    else:
        threshold = _kth_largest(scores, where, k)
    weight = torch.sigmoid((scores[positive] - threshold[positive[0]]) * weight_factor)
    loss = _summed(scores * factor, positive, where, weight.detach() if detach_weight else weight, reduction)
    if state is None or estimate is None:
        return loss
    if quantile == "row":
        return loss, state
    moved = _pinball_step(estimate, scores.detach(), where, k, beta_rate, corpus_size)
    return loss, {"beta": moved.to(state["beta"].dtype)}


def _check_settings(k: int, quantile: str, beta_rate: float, corpus_size: int | None, detach_weight: bool) -> None:
    check_whole("k", k, least=1)
    if corpus_size is not None:
        check_whole("corpus_size", corpus_size, least=1)
    check_choice("quantile", quantile, "row", "estimated")
    check_number("beta_rate", beta_rate, positive=True)
    check_switch("detach_weight", detach_weight)


def _weight_factor(weight_temperature: float | None, factor: Number) -> Number:
    if weight_temperature is None:
        return factor / RATIO
    weight_factor = 1 / check_number("weight_temperature", weight_temperature, positive=True)
    if not isinstance(factor, Tensor):  # a learned one moves with every step
        _warn_if_unstable(factor * weight_temperature)
    return weight_factor


def _pinball_step(beta: Tensor, scores: Tensor, where: Tensor, k: int, rate: float, corpus_size: int | None) -> Tensor:
    """Return beta after one step down its subgradient (0 at scores that equal it)."""
    valid = where.sum(-1).to(scores.dtype)
    size = valid.clamp_min(1) if corpus_size is None else scores.new_tensor(corpus_size)
    p = (1 - k / size).clamp_min(0)
    below = (where & (scores < beta[:, None])).sum(-1) / valid.clamp_min(1)
    above = (where & (scores > beta[:, None])).sum(-1) / valid.clamp_min(1)
    return beta - rate * ((1 - p) * below - p * above)


def _kth_largest(scores: Tensor, where: Tensor, k: int) -> Tensor:
    """Return (queries,) the k-th largest valid score, the smallest one where fewer are valid; no gradient."""
    if not scores.shape[1]:  # an empty row has no K-th largest score
        return scores.new_zeros(len(scores))
    best, places = fill_masked(scores.detach(), where).topk(min(k, scores.shape[1]), dim=-1)
    valid = where.gather(-1, places).sum(-1, keepdim=True)
    return best.gather(-1, valid.clamp_min(1) - 1).masked_fill(valid == 0, 0).squeeze(-1)


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
            stacklevel=4,
        )


ENTRIES = (
    LossEntry(
        name="sl",
        fn=sl,
        labels="binary",
        use="many relevant documents per query, each of them counts as much",
        needs="rows",
        cost="linear",
        paper="Wu et al. 2024, arXiv:2201.02327",
        defaults={"temperature": TEMPERATURE, "positive_from": 1.0},
        count=count_positive_rows,
    ),
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
            "quantile": "row",
            "beta_rate": BETA_RATE,
            "corpus_size": None,
            "temperature": TEMPERATURE,
            "weight_temperature": None,
            "detach_weight": False,
            "positive_from": 1.0,
        },
        count=count_positive_rows,
        state=STATE,
        state_if=lambda settings: settings["quantile"] == "estimated",
    ),
)
