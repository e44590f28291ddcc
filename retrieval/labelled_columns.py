"""What the labels of a dataset of text columns mean, batch by batch: the matrix or the lists that a loss takes.

The rules are those of :mod:`retrieval.batches`, for rows that bring texts and no ids: equal texts are one document, and
what any row of a batch says of a query holds for all rows of that query.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import ANY_GRADE
from retrieval.cells import numbered
from retrieval.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from rankers.losses import LossEntry, RankingLoss


class Matrix(NamedTuple):
    """Queries against documents.

    Attributes:
        labels: (rows, docs) float32.
        where: (rows, docs) bool.
        documents: (docs,) int64, where each document first stands in the columns laid end to end; None: the documents
            are each row's own, one of every column.

    """

    labels: NDArray[np.float32]
    where: NDArray[np.bool_]
    documents: NDArray[np.int64] | None


class Lists(NamedTuple):
    """Each query's own documents, any number of them, and the labels of all of them end to end."""

    documents: list[list[Any]]
    labels: NDArray[np.float32]


def in_batch(
    loss: RankingLoss,
    queries: Sequence[Hashable],
    columns: Sequence[Sequence[Hashable]],
    labels: Tensor | Sequence[Tensor] | None,
) -> Matrix:
    """Return labels and mask of a batch.

    A loss of a teacher's scores sees each row's own documents, any other the distinct documents of all rows.

    Args:
        loss: decides what the labels may be, and whether a row may have several positives.
        queries: (rows,) what tells their texts apart.
        columns: the same for each column of documents, (rows,).
        labels: of each row's documents: none (1 at the first, else 0), a number (of the first) or one for each.

    Raises:
        InputError: when the labels do not fit the columns or the loss.

    """
    entry = loss.entry
    grades = _own_grades(entry, labels, len(queries), len(columns))
    own = numbered([text for column in columns for text in column]).reshape(len(columns), len(queries))
    if entry.labels == "teacher":
        _refuse_single_documents(entry, columns, labels)
        repeated = [(own[:column] == own[column]).any(axis=0) for column in range(len(own))]
        return Matrix(grades, ~np.stack(repeated, axis=1), None)
    _, first = np.unique(own, return_index=True)
    rows = np.arange(len(queries))
    told = np.full((len(rows), len(first)), -np.inf, dtype=np.float32)
    np.maximum.at(told, (rows[:, None], own.T), grades)  # where a row names a text twice, the higher grade wins
    for same in _rows_of_each(queries):
        told[same] = told[same].max(axis=0)
    known = np.where(np.isneginf(told), np.float32(0), told)
    if entry.several_positives:
        return Matrix(known, np.ones(known.shape, dtype=bool), first)
    positive_from = float(loss.settings.get("positive_from", 1.0)) if entry.labels == "binary" else ANY_GRADE
    mine = np.zeros(known.shape, dtype=bool)
    mine[rows, own[0]] = True
    return Matrix(np.where(mine, known, np.float32(0)), mine | (known < positive_from), first)


def own_lists(entry: LossEntry, columns: Sequence[Sequence[Any]], labels: Tensor | Sequence[Tensor] | None) -> Lists:
    """Return the documents of each row: the list that its one column holds, or one of every column.

    Of columns, the first is the positive, and a text that a row names twice is one document.

    Raises:
        InputError: when the labels do not fit the columns or the loss.

    """
    if any(isinstance(item, list | tuple) for column in columns for item in column):
        return _given_lists(entry, columns, labels)
    grades = _own_grades(entry, labels, len(columns[0]), len(columns))
    _refuse_single_documents(entry, columns, labels)
    documents: list[list[Any]] = []
    kept: list[float] = []
    for row, own in zip(zip(*columns, strict=True), grades.tolist(), strict=True):
        best: dict[Hashable, float] = {}
        texts: dict[Hashable, Any] = {}
        for document, grade in zip(row, own, strict=True):
            key = document if isinstance(document, str) else id(document)
            texts.setdefault(key, document)
            best[key] = max(grade, best.get(key, grade))
        documents.append(list(texts.values()))
        kept += best.values()
    return Lists(documents, np.array(kept, dtype=np.float32))


def text_keys(features: Mapping[str, Any]) -> list[Hashable] | None:
    """Return what tells the texts of a tokenised column apart, equal for equal tokens; None for anything but text."""
    ids = features.get("input_ids")
    if ids is None or any(name.startswith(("pixel_values", "input_features", "input_values")) for name in features):
        return None
    tokens = ids.cpu().numpy()
    if "offsets" in features:  # static embeddings: all texts end to end
        return [part.tobytes() for part in np.split(tokens, features["offsets"].cpu().numpy()[1:])]
    if "cu_seq_lens_q" in features:  # the same for an attention without padding
        return [part.tobytes() for part in np.split(tokens.ravel(), features["cu_seq_lens_q"].cpu().numpy()[1:-1])]
    mask = features.get("attention_mask")
    valid = np.ones(tokens.shape, dtype=bool) if mask is None else mask.cpu().numpy().astype(bool)
    return [row[own].tobytes() for row, own in zip(tokens, valid, strict=True)]


def _given_lists(entry: LossEntry, columns: Sequence[Sequence[Any]], labels: Tensor | Sequence[Tensor] | None) -> Lists:
    if len(columns) != 1:
        raise InputError(f"lists of documents come as one column beside the query, got {len(columns)} columns")
    if labels is None:
        raise InputError(f"{entry.name} needs a column label: for each query a list, one label per document")
    documents, grades = list(map(list, columns[0])), _arrays(labels)
    for row, (texts, own) in enumerate(zip(documents, grades, strict=True)):
        if len(texts) != len(own):
            raise InputError(f"row {row} of the batch has {len(texts)} documents but {len(own)} labels")
    return Lists(documents, np.concatenate(grades))


def _own_grades(
    entry: LossEntry, labels: Tensor | Sequence[Tensor] | None, rows: int, width: int
) -> NDArray[np.float32]:
    """Return the (rows, width) labels of each row's own documents."""
    grades = np.zeros((rows, width), dtype=np.float32)
    if labels is None:
        if entry.labels == "teacher":
            raise InputError(f"{entry.name} needs a column label: a teacher's scores, a list of {width} per row")
        grades[:, 0] = 1
        return grades
    given = _arrays(labels)
    lengths = {len(own) for own in given}
    if lengths != {width} and (lengths != {1} or entry.labels == "teacher"):
        wanted = (
            f"a list of {width} per row" if entry.labels == "teacher" else f"a number, or a list of {width}, per row"
        )
        raise InputError(
            f"{entry.name} with {width} columns of documents takes {wanted} as labels, "
            f"got {' or '.join(map(str, sorted(lengths)))} per row"
        )
    grades[:, : lengths.pop()] = given
    return grades


def _arrays(labels: Tensor | Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Return each row's labels, which must be finite: nothing marks a missing one."""
    import torch

    given = labels.cpu() if isinstance(labels, torch.Tensor) else labels
    rows = [np.asarray(own.detach().float().cpu()).reshape(-1) for own in given]
    for row, own in enumerate(rows):
        if not np.isfinite(own).all():
            raise InputError(f"the labels of row {row} of the batch are {own.tolist()}; each must be a finite number")
    return rows


def _refuse_single_documents(
    entry: LossEntry, columns: Sequence[Any], labels: Tensor | Sequence[Tensor] | None
) -> None:
    """Refuse what could never have a gradient."""
    if len(columns) == 1 and (labels is None or entry.unchanged_by == "one per query"):
        raise InputError(f"{entry.name} compares a row's own documents, and each row has one; add columns of negatives")


def _rows_of_each(queries: Sequence[Hashable]) -> list[list[int]]:
    """Return the rows of every query that has several."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, query in enumerate(queries):
        rows_of.setdefault(query, []).append(row)
    return [rows for rows in rows_of.values() if len(rows) > 1]
