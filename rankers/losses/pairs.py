"""What the losses of pairs share: one engine over the pairs of a row, what a pair costs, which rows count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.inputs import check_choice, check_mask, check_number, grades, reduced, teacher_scores

DocumentPairs = Tensor  # (queries, docs, docs), bool or float: at [row, i, j] stands what belongs to the pair (i, j)
ListWeight = Literal["equal", "sum"]


def pair_sums(
    logits: Tensor, pairs: DocumentPairs, term: Callable[[Tensor], Tensor], weights: DocumentPairs | None = None
) -> Tensor:
    """Return (queries,) the sum of weight × term(s_i - s_j) over the pairs (i, j) of each row."""
    terms = term(logits[:, :, None] - logits[:, None, :])
    if weights is not None:
        terms = terms * weights
    return terms.masked_fill(~pairs, 0).sum((-2, -1))


def valid_pairs(where: Tensor) -> DocumentPairs:
    """Return every ordered pair of two valid documents."""
    other = ~torch.eye(where.shape[1], dtype=torch.bool, device=where.device)
    return where[:, :, None] & where[:, None, :] & other


def preferred_pairs(values: Tensor, where: Tensor) -> DocumentPairs:
    """Return the pairs of valid documents whose first one has the larger value; a tie gives none."""
    return valid_pairs(where) & (values[:, :, None] > values[:, None, :])


def logistic(differences: Tensor) -> Tensor:
    """Return log(1 + exp(-d))."""
    return -F.logsigmoid(differences)


def hinge_above(margin: float) -> Callable[[Tensor], Tensor]:
    """Return d -> max(0, margin - d)."""
    if isinstance(margin, Tensor):
        raise ValueError("margin must be a number, got a tensor: a learned margin would only shrink")
    check_number("margin", margin, positive=True)
    return lambda differences: F.relu(margin - differences)


def reduced_rows(sums: Tensor, pairs: Tensor, list_weight: str, reduction: str) -> Tensor:
    """Reduce (queries,) sums over (queries,) numbers of pairs; rows without a pair do not count."""
    check_choice("list_weight", list_weight, "equal", "sum")
    rows = sums if list_weight == "sum" else sums / pairs.clamp_min(1)
    return reduced(rows.sum(), (pairs > 0).sum(), reduction)


def own_grades(labels: Tensor, where: Tensor) -> Tensor:
    """Return the grades in their own precision: that of the scores might tie what differs."""
    return grades(labels, where, _own(labels))


def own_teacher_scores(labels: Tensor, where: Tensor) -> Tensor:
    """Return the teacher's scores in their own precision."""
    return teacher_scores(labels, where, _own(labels))


def _own(labels: Tensor) -> torch.dtype:
    return labels.dtype if labels.is_floating_point() else torch.float32


def rows_that_differ(values: Tensor, where: Tensor) -> Tensor:
    """Return (queries,) bool, whether two valid values of the row differ."""
    if not values.shape[1]:  # an empty row has no maximum
        return where.any(-1)
    lowest, highest = values.masked_fill(~where, torch.inf).amin(-1), values.masked_fill(~where, -torch.inf).amax(-1)
    return lowest < highest


def count_rows_of_two_grades(labels: Tensor, where: Tensor | None = None, **_: object) -> Tensor:
    """Return the () number of rows with two valid documents of different grades."""
    where = check_mask("where", where, labels)
    return rows_that_differ(own_grades(labels, where), where).sum()
