"""Ragged lists → padded `(scores, labels, where)`: the only padding routine of the project.

Padding is 0 in `scores` and `labels` and False in `where`; every loss and model looks at `where` alone, so no
value is a sentinel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PaddedLists(NamedTuple):
    """One row per query, in the order in which every loss takes them: `loss(*pad_lists(scores, labels))`."""

    scores: Tensor  # (queries, docs) float, 0 at padding
    labels: Tensor  # (queries, docs) float, 0 at padding
    where: Tensor  # (queries, docs) bool, False at padding


def pad_lists(scores: Sequence[Any], labels: Sequence[Any]) -> PaddedLists:
    """Pad one list of scores and one of labels per query to the longest list.

    Args:
        scores: for each query a sequence or tensor of one float per document; gradients flow through.
        labels: for each query as many labels. Whole numbers and bools become float32.

    Returns:
        (queries, docs) tensors; a query without documents is a row that is False everywhere, no queries at
        all give shape (0, 0). Dtype and device are those of the first list that is a tensor (else float32,
        CPU).

    Raises:
        ValueError: if the numbers of queries differ, or a query has more scores than labels or the reverse.

    """
    if len(scores) != len(labels):
        raise ValueError(f"got scores of {len(scores)} queries and labels of {len(labels)}; they must be as many")
    score_rows, label_rows = _rows("scores", scores), _rows("labels", labels)
    for query, (ours, theirs) in enumerate(zip(score_rows, label_rows, strict=True)):
        if len(ours) != len(theirs):
            raise ValueError(f"query {query} has {len(ours)} scores but {len(theirs)} labels; they must be as many")
    return pad_groups(_joined(score_rows), _joined(label_rows), [len(row) for row in score_rows])


def pad_groups(scores: Tensor, labels: Tensor, sizes: Sequence[int] | Tensor) -> PaddedLists:
    """Pad scores and labels that lie behind one another, `sizes[i]` of them for query i.

    Args:
        scores: (documents of all queries,) float, query by query; gradients flow through.
        labels: (documents of all queries,) any dtype; whole numbers and bools become float32.
        sizes: (queries,) number of documents of each query; 0 is allowed.

    Raises:
        ValueError: if a size is negative, or the sizes do not add up to the number of scores or labels.

    """
    where = valid_entries(sizes, device=scores.device)
    if not labels.is_floating_point():
        labels = labels.to(torch.float32)
    return PaddedLists(pad(scores, where), pad(labels.to(scores.device), where), where)


def valid_entries(sizes: Sequence[int] | Tensor, *, device: torch.device | str | None = None) -> Tensor:
    """Return the (queries, longest) bool mask that is True at the first `sizes[i]` entries of row i."""
    lengths = torch.as_tensor(sizes, dtype=torch.long, device=device)
    if lengths.ndim != 1:
        raise ValueError(f"sizes must be one number per query, got shape {tuple(lengths.shape)}")
    if len(lengths) and int(lengths.min()) < 0:
        raise ValueError(f"sizes must be >= 0, got {int(lengths.min())}")
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def pad(values: Tensor, where: Tensor) -> Tensor:
    """Spread `values`, one per True of `where` in reading order, over a tensor that is 0 elsewhere.

    Args:
        values: (documents, ...) any trailing shape, so features are padded as scores are; differentiable.
        where: (queries, docs) bool with as many True entries as there are values.

    Returns:
        (queries, docs, ...) of the same dtype and device.

    Raises:
        ValueError: if the numbers differ.

    """
    wanted = int(where.sum())
    if len(values) != wanted:
        raise ValueError(f"got {len(values)} values for lists that hold {wanted}; do the sizes fit these documents?")
    return values.new_zeros(where.shape + values.shape[1:]).index_put((where,), values)


def _rows(name: str, lists: Sequence[Any]) -> list[Tensor]:
    """Make each list a 1-dimensional float tensor of one dtype and device."""
    like = next((row for row in lists if isinstance(row, Tensor)), torch.empty(0))
    dtype = like.dtype if like.is_floating_point() else torch.float32
    rows = [torch.as_tensor(row, dtype=dtype, device=like.device) for row in lists]
    for query, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"{name} of query {query} must be one number per document, got shape {tuple(row.shape)}")
    return rows


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows) if rows else torch.empty(0)
