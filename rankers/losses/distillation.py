"""Losses that bring the softmax of the scores near to that of a teacher's scores.

All are unchanged when a constant is added to a query's scores, and when one is added to the teacher's; each row
of the gradient sums to 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.entry import LossEntry
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_choice,
    check_mask,
    check_matrix,
    check_number,
    fill_masked,
    reduced,
    scale_of,
    teacher_scores,
)
from rankers.losses.softmax import TEMPERATURE


def kl_div(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    teacher_temperature: float = 1.0,
    debias: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Kullback-Leibler divergence of the softmax of the scores from a teacher's (knowledge distillation).

        T = teacher_temperature;   q_i = softmax(teacher_i / T);   p_i = softmax(s_i / temperature / T)
        row(i) = T² sum_j q_ij (log q_ij - log p_ij)
        loss = mean of row(i) over the rows with at least 2 valid documents

    T softens both sides, and T² keeps the size of the gradient, T (p - q) with respect to s / temperature. A
    teacher that puts all its weight on one document: `infonce` with that document relevant (T=1). T → ∞: half
    the mean square of the differences (s / temperature - teacher), each minus their mean over the row.

    debias=a puts (1 - a) q_ij + a / n in the place of q_ij, n being the row's valid documents, for a teacher
    that is too sure. That is I-Con's debiasing, built from memory: the paper's exact form is not certain.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder take temperature=1.
        labels: (queries, docs) a teacher's finite scores, on the scale of logits; of any sign.
        where: (queries, docs) bool, False at padding and where the teacher gave no score. None: all valid.
        temperature: divides the scores; > 0; default 0.05.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        teacher_temperature: divides the teacher's scores, and the student's once more; > 0.
        debias: share of the target that is spread evenly; in [0, 1].
        reduction: "sum" is the numerator: loss × number of rows with at least 2 valid documents.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has 2 valid documents.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Hinton et al. 2015 (arXiv:1503.02531); debias: Alshammari et al. 2025, I-Con (arXiv:2504.16929).

    """
    scores, where = check_matrix(scores, labels, where)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    q, log_q = _target(labels, where, teacher_temperature, debias, logits.dtype)
    _, log_p = _softmax(logits / teacher_temperature, where)
    per_row = (q * (log_q - log_p)).sum(-1) * teacher_temperature**2
    return reduced(per_row.sum(), _compared(where), reduction)


def soft_alignment(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    teacher_temperature: float = TEMPERATURE,
    divergence: Literal["half_jeffreys", "jensen_shannon"] = "half_jeffreys",
    debias: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Symmetric divergence between the softmax of the scores and that of a judge's (UniME-V2's alignment).

        p_i = softmax(s_i / temperature);   q_i = softmax(judge_i / teacher_temperature)
        half_jeffreys:   row(i) = (KL(p||q) + KL(q||p)) / 2 = 1/2 sum_j (p_ij - q_ij)(log p_ij - log q_ij)
        jensen_shannon:  row(i) = (KL(p||m) + KL(q||m)) / 2,   m = (p + q) / 2
        loss = mean of row(i) over the rows with at least 2 valid documents

    UniME-V2 writes the first and calls it the Jensen-Shannon divergence: it is half the Jeffreys divergence and
    has no upper bound. The second is never larger, and at most log 2. Both are 0 where p = q alone. The first
    grows without end as q nears one document; debias keeps it finite.

    Args:
        scores: (queries, docs) float, larger is better; the default is meant for cosines.
        labels: (queries, docs) a judge's finite scores; the default is meant for probabilities of "yes".
        where: (queries, docs) bool, False at padding and where the judge gave no score. None: all valid.
        temperature: divides the scores; > 0; default 0.05.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        teacher_temperature: divides the judge's scores alone; > 0; default 0.05, as `temperature`.
        divergence: "half_jeffreys" or "jensen_shannon".
        debias: share of q that is spread evenly over the row's valid documents, as in `kl_div`; in [0, 1].
        reduction: "sum" is the numerator: loss × number of rows with at least 2 valid documents.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has 2 valid documents.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: UniME-V2 2025 (arXiv:2510.13515), its soft label alignment.

    """
    scores, where = check_matrix(scores, labels, where)
    check_choice("divergence", divergence, "half_jeffreys", "jensen_shannon")
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    q, log_q = _target(labels, where, teacher_temperature, debias, logits.dtype)
    p, log_p = _softmax(logits, where)
    if divergence == "half_jeffreys":
        terms = (p - q) * (log_p - log_q)
    else:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        terms = p * (log_p - log_m) + q * (log_q - log_m)
    return reduced(terms.sum() / 2, _compared(where), reduction)


def count_compared_rows(labels: Tensor, where: Tensor | None = None, **_: object) -> Tensor:
    """Return the () number of rows with at least 2 valid documents."""
    where = check_mask("where", where, labels)
    teacher_scores(labels, where, torch.float32)
    return _compared(where)


def _compared(where: Tensor) -> Tensor:
    return (where.sum(-1) >= 2).sum()


def _target(
    labels: Tensor, where: Tensor, temperature: float, debias: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the teacher's softmax, mixed with the uniform one, and its logarithm; both 0 where masked."""
    check_number("teacher_temperature", temperature, positive=True)
    if not 0 <= check_number("debias", debias) <= 1:
        raise ValueError(f"debias must be in [0, 1], got {debias}")
    q, log_q = _softmax(teacher_scores(labels, where, dtype) / temperature, where)
    if debias == 0:
        return q, log_q
    found = where.sum(-1, keepdim=True).clamp_min(1)
    mixed = ((1 - debias) * q + debias / found).masked_fill(~where, 0)
    return mixed, mixed.clamp_min(torch.finfo(dtype).tiny).log().masked_fill(~where, 0)


def _softmax(logits: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax over valid entries and its logarithm; both 0 where masked."""
    log_p = F.log_softmax(fill_masked(logits, where), dim=-1).masked_fill(~where, 0)
    return log_p.exp().masked_fill(~where, 0), log_p


ENTRIES = (
    LossEntry(
        name="kl_div",
        fn=kl_div,
        labels="teacher",
        use="distillation: a teacher's scores for the documents of each list",
        needs="rows",
        cost="linear",
        paper="Hinton et al. 2015, arXiv:1503.02531",
        defaults={"temperature": TEMPERATURE, "teacher_temperature": 1.0, "debias": 0.0},
        count=count_compared_rows,
    ),
    LossEntry(
        name="soft_alignment",
        fn=soft_alignment,
        labels="teacher",
        use="distillation of a judge's probabilities, errors in both directions punished",
        needs="rows",
        cost="linear",
        paper="UniME-V2 2025, arXiv:2510.13515",
        defaults={
            "temperature": TEMPERATURE,
            "teacher_temperature": TEMPERATURE,
            "divergence": "half_jeffreys",
            "debias": 0.0,
        },
        count=count_compared_rows,
    ),
)
