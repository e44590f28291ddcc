"""Labels and masks of a batch's matrix, of which only the unusual cells are kept: a batch of 65,536 fits in memory.

A matrix of queries against documents is nearly all "an ordinary negative". What is kept are the cells that have a
label, those that are masked (or, for a teacher's scores, those that are not), and which rows are one query.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Cells(NamedTuple):
    """Some cells of a matrix, by ascending row."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def between(self, start: int, stop: int) -> slice:
        """Return which of them lie in rows `start` … `stop` - 1."""
        first, last = np.searchsorted(self.rows, [start, stop])
        return slice(int(first), int(last))


@dataclass(frozen=True)
class CellTargets:
    """What every cell of a matrix means.

    Attributes:
        shape: (rows, columns).
        labelled, labels: cells whose label is not 0, and their labels (float32).
        is_valid: whether a cell is comparable when nothing else is said.
        excepted: the cells that are otherwise.
        queries: (rows,) int64; rows with the same number ask the same query.

    """

    shape: tuple[int, int]
    labelled: Cells
    labels: NDArray[np.float32]
    excepted: Cells
    queries: NDArray[np.int64]
    is_valid: bool = True

    @classmethod
    def of(cls, labels: NDArray[np.float32], where: NDArray[np.bool_], queries: Sequence[Hashable]) -> Self:
        """Read whole matrices."""
        labelled = Cells(*np.nonzero(labels))
        excepted = Cells(*np.nonzero(~where))
        return cls((len(labels), labels.shape[1]), labelled, labels[labelled], excepted, numbered(queries))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return labels and `where` of rows `start` … `stop` - 1."""
        labels = np.zeros((stop - start, self.shape[1]), dtype=np.float32)
        where = np.full(labels.shape, self.is_valid)
        ours = self.labelled.between(start, stop)
        labels[self.labelled.rows[ours] - start, self.labelled.columns[ours]] = self.labels[ours]
        ours = self.excepted.between(start, stop)
        where[self.excepted.rows[ours] - start, self.excepted.columns[ours]] = not self.is_valid
        return labels, where

    def where_columns(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return `where` of the columns' direction, in which each document is asked for its query.

        A query of several rows is one there: a column keeps the row that has a label in it, or the query's first.
        """
        _, where = self.rows(start, stop)
        first, row, column = self._kept_rows
        kept: NDArray[np.bool_] = where & (first == np.arange(len(self)))[start:stop, None]
        for place, value in ((first[row], False), (row, True)):
            here = (place >= start) & (place < stop)
            at = place[here] - start, column[here]
            kept[at] = where[at] & value
        return kept

    @cached_property
    def repeats_queries(self) -> bool:
        """Whether several rows ask one query; where none do, `where_columns` is `where`."""
        return len(np.unique(self.queries)) < len(self)

    @cached_property
    def _kept_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the first row of each row's query, and the cells in which a later row of a query is kept instead."""
        _, first, of = np.unique(self.queries, return_index=True, return_inverse=True)
        first_row = first[of].astype(np.int64)
        cells = np.stack([self.queries[self.labelled.rows], self.labelled.columns])
        # the first labelled row of each (query, column): cells come by ascending row
        _, chosen = np.unique(cells, axis=1, return_index=True)
        row, column = self.labelled.rows[chosen], self.labelled.columns[chosen]
        moved = first_row[row] != row
        return first_row, row[moved], column[moved]


def numbered(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return a number for each name, equal for equal ones."""
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(name, len(number_of)) for name in names], dtype=np.int64)
