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
    probabilities,
    reduced,
    scale_of,
)

SCALE = 10.0  # cosines: SigLIP's initial scale; tries at small batches preferred 10 or less
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
    rows = _counted_rows(targets, where, keep_empty_rows)
    offset = _prior(targets, where & rows[:, None]) if isinstance(bias, str) else bias
    if isinstance(bias, str) and bias != "auto":
        raise ValueError(f'bias must be "auto" or a number, got {bias!r}')
    logits = (scores * scale_of(temperature, scale, SCALE)).masked_fill(~where, 0) + check_number("bias", offset)
    entries = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").masked_fill(~where, 0)
    return reduced(entries.sum(-1).masked_fill(~rows, 0).sum(), rows.sum(), reduction)


def bixse_tally(
    labels: Tensor, where: Tensor | None = None, *, keep_empty_rows: bool = False, **_: object
) -> Mapping[str, Tensor]:
    """Return the rows counted, their entries and the sum of their labels: blocks add up to the batch."""
    where = check_mask("where", where, labels)
    targets = _own_probabilities(labels, where)
    rows = _counted_rows(targets, where, keep_empty_rows)
    counted = where & rows[:, None]
    return {"count": rows.sum(), "entries": counted.sum(), "mass": targets.masked_fill(~counted, 0).sum()}


def bixse_totals(
    tally: Mapping[str, Tensor], *, bias: Number | Literal["auto"] = "auto", **_: object
) -> Mapping[str, Tensor]:
    """Return the divisor and, when it is "auto", the bias: the prior of the whole batch."""
    if not isinstance(bias, str):
        return {"count": tally["count"]}
    return {"count": tally["count"], "bias": _prior_of(tally["mass"], tally["entries"])}


def bixse_count(labels: Tensor, where: Tensor | None = None, *, keep_empty_rows: bool = False, **_: object) -> Tensor:
    """Return the () number of rows that `bixse` averages over."""
    where = check_mask("where", where, labels)
    return _counted_rows(_own_probabilities(labels, where), where, keep_empty_rows).sum()


def _own_probabilities(labels: Tensor, where: Tensor) -> Tensor:
    return probabilities(labels, where, labels.dtype if labels.is_floating_point() else torch.float32)


def _counted_rows(targets: Tensor, where: Tensor, keep_empty_rows: bool) -> Tensor:
    check_switch("keep_empty_rows", keep_empty_rows)
    return where.any(-1) if keep_empty_rows else (targets > 0).any(-1)


def _prior(targets: Tensor, counted: Tensor) -> Tensor:
    return _prior_of(targets.masked_fill(~counted, 0).sum(), counted.sum())


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
)
