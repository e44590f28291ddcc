"""Losses that read each score as the log-odds of relevance; no shift leaves them unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.entry import LossEntry
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_mask,
    check_matrix,
    check_number,
    check_switch,
    cleared,
    positives,
    probabilities,
    reduced,
    scale_of,
)

SCALE = 10.0  # cosines: SigLIP's initial scale; tries at small batches preferred 10 or less
BIAS = -10.0  # SigLIP's initial bias, the prior of one relevant document among 22,000
LOG_ODDS = 1.0  # scale of scores that are log-odds already: those of a cross-encoder or a feature scorer
_CERTAIN = 1e-6  # keeps the prior finite when every label is 1


def bixse(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    bias: Number | Literal["auto"] = "auto",
    keep_empty_rows: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy of every entry, with graded relevance as the probability (BiXSE).

        z = scale * scores + bias;   row(i) = sum over valid j of log(1 + exp(z_ij)) - y_ij z_ij
        loss = mean of row(i) over the rows with a label > 0

    0/1 labels: SigLIP's sigmoid loss. At the optimum sigmoid(z) is the expected label, so scores compare
    across queries. Its floor is the labels' own entropy, not 0. The entries of a row are summed, as SigLIP
    does; the paper's own divisor is not certain (B or B²), which only rescales the learning rate.

    bias="auto" is logit(mean valid label of the rows counted), without gradient: the bias at which a model
    that knows nothing has no gradient on it, -log(B - 1) for one relevant document among B. It is a statistic
    of the whole batch: when the rows come in blocks, `bixse_totals` finds it from the sum of their `bixse_tally`.
    SigLIP's -10 is this value near B = 22,000 and drowns a small batch.

    Args:
        scores: (queries, docs) float, larger is better; the default scale is meant for cosines.
        labels: (queries, docs) probabilities in [0, 1]; divide grades by the highest grade.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; give this or `scale`.
        scale: multiplies the scores; > 0; default 10. A () tensor may be learned.
        bias: added to the scaled scores, in nats; "auto", a number, or a () tensor that may be learned.
        keep_empty_rows: also count rows whose labels are all 0. The calibration above needs them; the default
            leaves them out, as in every other loss here.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row counts.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: BiXSE (arXiv:2508.06781); Zhai et al. 2023, SigLIP (arXiv:2303.15343), for scale and bias.

    """
    scores, where = check_matrix(scores, labels, where)
    targets = probabilities(labels, where, scores.dtype)
    logits = scores * scale_of(temperature, scale, SCALE)
    return _sigmoid_loss(logits, targets, where, bias, keep_empty_rows, reduction)


def siglip(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    bias: Number | Literal["auto"] = BIAS,
    keep_empty_rows: bool = False,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sigmoid loss of every entry: relevant or not (SigLIP).

        z = scale * scores + bias;   row(i) = sum over valid j of log(1 + exp(-l_ij z_ij)),   l = +1 or -1
        loss = mean of row(i) over the rows with a relevant document

    This is `bixse` of 0/1 labels, exactly; the two differ in the labels that they take and in the default bias. Any
    number of relevant documents per row; a square matrix may be transposed. Each entry stands alone, so blocks of
    rows or columns add up (columns: with "sum" and keep_empty_rows).

    The defaults are the source's initial values, for a learned scale and bias and batches of thousands. With B
    documents per query, one of them relevant, the bias that tells nothing is -log(B - 1), which bias="auto" finds
    (see `bixse`): take it, or learn the bias, where B is well below 22,000.

    Args:
        scores: (queries, docs) float, larger is better; the default scale is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; give this or `scale`.
        scale: multiplies the scores; > 0; default 10. A () tensor may be learned.
        bias: added to the scaled scores, in nats; a number, a () tensor that may be learned, or "auto".
        keep_empty_rows: also count rows without a relevant document; the source has none.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row counts.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343) algorithm 1.

    """
    scores, where = check_matrix(scores, labels, where)
    targets = positives(labels, where, positive_from).to(scores.dtype)
    logits = scores * scale_of(temperature, scale, SCALE)
    return _sigmoid_loss(logits, targets, where, bias, keep_empty_rows, reduction)


def point_ce(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    keep_empty_rows: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pointwise binary cross-entropy: each score is the log-odds of its label (PointCE).

        z = scale * scores;   row(i) = sum over valid j of log(1 + exp(z_ij)) - y_ij z_ij
        loss = mean of row(i) over the rows with a label > 0

    This is `bixse` without a bias, at the scale of scores that are log-odds already. Cosines have no offset, they take
    `bixse`; so does a scorer whose offset is new and begins at 0, even odds: where one document of eight is relevant,
    a reranker trained for 188 steps did little but move it (docs/rerankers.md). The entries of a row are summed, as
    the formula is written per list; what divides is the number of rows, so that a long list weighs more than a short
    one.

    Args:
        scores: (queries, docs) float log-odds, larger is better.
        labels: (queries, docs) probabilities in [0, 1]; divide grades by the highest grade.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; give this or `scale`.
        scale: multiplies the scores; > 0; default 1. A () tensor may be learned.
        keep_empty_rows: also count rows whose labels are all 0; needed where the probabilities must be right.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row counts.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: the pointwise loss of Zhuang et al. 2022, RankT5 (arXiv:2210.10634); Pasumarthi et al. 2019, TF-Ranking
    (arXiv:1812.00073).

    """
    scores, where = check_matrix(scores, labels, where)
    targets = probabilities(labels, where, scores.dtype)
    logits = scores * scale_of(temperature, scale, LOG_ODDS)
    return _sigmoid_loss(logits, targets, where, 0.0, keep_empty_rows, reduction)


def _sigmoid_loss(
    logits: Tensor,
    targets: Tensor,
    where: Tensor,
    bias: Number | str,
    keep_empty_rows: bool,
    reduction: Reduction,
) -> Tensor:
    """Return the cross-entropies of sigmoid(logits + bias) and the targets, summed over a row's columns."""
    rows = counted_rows(targets, where, keep_empty_rows)
    if isinstance(bias, str):
        if bias != "auto":
            raise ValueError(f'bias must be "auto" or a number, got {bias!r}')
        bias = _prior(targets, where & rows[:, None])
    per_row = row_entropies(logits + check_number("bias", bias), targets, where)
    return reduced(per_row.masked_fill(~rows, 0).sum(), rows.sum(), reduction)


def row_entropies(logits: Tensor, targets: Tensor, where: Tensor) -> Tensor:
    """Return (queries,) the binary cross-entropies of the valid entries, summed."""
    return cleared(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), where).sum(-1)


def bixse_tally(
    labels: Tensor, where: Tensor | None = None, *, keep_empty_rows: bool = False, **_: object
) -> Mapping[str, Tensor]:
    """Return the rows counted, their entries and the sum of their labels: blocks add up to the batch."""
    where = check_mask("where", where, labels)
    return _tally(_own_probabilities(labels, where), where, keep_empty_rows)


def siglip_tally(
    labels: Tensor,
    where: Tensor | None = None,
    *,
    keep_empty_rows: bool = False,
    positive_from: float = 1.0,
    **_: object,
) -> Mapping[str, Tensor]:
    """Return the same of binary labels."""
    where = check_mask("where", where, labels)
    return _tally(positives(labels, where, positive_from).to(_precision(labels)), where, keep_empty_rows)


def _tally(targets: Tensor, where: Tensor, keep_empty_rows: bool) -> Mapping[str, Tensor]:
    rows = counted_rows(targets, where, keep_empty_rows)
    counted = where & rows[:, None]
    return {"count": rows.sum(), "entries": counted.sum(), "mass": cleared(targets, counted).sum()}


def bixse_totals(
    tally: Mapping[str, Tensor], *, bias: Number | Literal["auto"] = "auto", **_: object
) -> Mapping[str, Tensor]:
    """Return the divisor and, when it is "auto", the bias: the prior of the whole batch."""
    if not isinstance(bias, str):
        return {"count": tally["count"]}
    return {"count": tally["count"], "bias": _prior_of(tally["mass"], tally["entries"])}


def siglip_totals(
    tally: Mapping[str, Tensor], *, bias: Number | Literal["auto"] = BIAS, **_: object
) -> Mapping[str, Tensor]:
    """Return the divisor and, when it is "auto", the bias."""
    return bixse_totals(tally, bias=bias)


def bixse_count(labels: Tensor, where: Tensor | None = None, *, keep_empty_rows: bool = False, **_: object) -> Tensor:
    """Return the () number of rows that `bixse` and `point_ce` average over."""
    return bixse_tally(labels, where, keep_empty_rows=keep_empty_rows)["count"]


def siglip_count(
    labels: Tensor,
    where: Tensor | None = None,
    *,
    keep_empty_rows: bool = False,
    positive_from: float = 1.0,
    **_: object,
) -> Tensor:
    """Return the () number of rows that `siglip` averages over."""
    return siglip_tally(labels, where, keep_empty_rows=keep_empty_rows, positive_from=positive_from)["count"]


def _own_probabilities(labels: Tensor, where: Tensor) -> Tensor:
    return probabilities(labels, where, _precision(labels))


def _precision(labels: Tensor) -> torch.dtype:
    return torch.float64 if labels.dtype == torch.float64 else torch.float32


def counted_rows(targets: Tensor, where: Tensor, keep_empty_rows: bool) -> Tensor:
    """Return (queries,) whether a row has a target > 0 or, if those are kept, a valid entry at all."""
    check_switch("keep_empty_rows", keep_empty_rows)
    return where.any(-1) if keep_empty_rows else targets.sum(-1) > 0


def _prior(targets: Tensor, counted: Tensor) -> Tensor:
    return _prior_of(cleared(targets, counted).sum(), counted.sum())


def _prior_of(mass: Tensor, entries: Tensor) -> Tensor:
    """Return logit(mass / entries), kept finite where every target is 0 or every target is 1."""
    mean = mass / entries.clamp_min(1)
    return torch.logit(mean.detach().clamp(_CERTAIN, 1 - _CERTAIN))


ENTRIES = (
    LossEntry(
        name="bixse",
        fn=bixse,
        labels="probability",
        use="graded or soft labels, scores wanted as calibrated probabilities",
        needs="rows + statistic",
        cost="linear",
        paper="BiXSE 2025, arXiv:2508.06781",
        defaults={"scale": SCALE, "bias": "auto", "keep_empty_rows": False},
        unchanged_by="none",
        count=bixse_count,
        tally=bixse_tally,
        totals=bixse_totals,
    ),
    LossEntry(
        name="siglip",
        fn=siglip,
        labels="binary",
        use="binary labels, any number of relevant documents, large batches in blocks",
        needs="rows",
        needs_if=lambda settings: "rows + statistic" if isinstance(settings.get("bias"), str) else "rows",
        cost="linear",
        paper="Zhai et al. 2023, arXiv:2303.15343",
        defaults={"scale": SCALE, "bias": BIAS, "keep_empty_rows": False, "positive_from": 1.0},
        unchanged_by="none",
        count=siglip_count,
        tally=siglip_tally,
        totals=siglip_totals,
    ),
    LossEntry(
        name="point_ce",
        fn=point_ce,
        labels="probability",
        use="a cross-encoder's or feature scorer's scores as log-odds of relevance",
        needs="rows",
        cost="linear",
        paper="Zhuang et al. 2022, arXiv:2210.10634",
        defaults={"scale": LOG_ODDS, "keep_empty_rows": False},
        unchanged_by="none",
        count=bixse_count,
    ),
)
