"""What every index takes and gives: the Protocol, the result type, and the one top-k of the project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Top-k of a batch of queries, best first; ties go to the lower row.

    rows: (queries, k) int64 row numbers, -1 where fewer than k vectors were found.
    scores: (queries, k) float32, larger is better, -inf where rows is -1.
    """

    rows: NDArray[np.int64]
    scores: Vectors


class VectorIndex(Protocol):
    """A set of vectors, numbered from 0 in the order of adding, that answers nearest-neighbour queries.

    metric: "ip" (scores are inner products) or "l2" (scores are minus the squared Euclidean distance).
    """

    @property
    def dim(self) -> int:
        """Components per vector."""
        ...

    @property
    def metric(self) -> str:
        """Return "ip" or "l2"."""
        ...

    def __len__(self) -> int: ...

    def add(self, vectors: Vectors) -> None:
        """Append (n, dim) vectors; their rows are len(self), len(self) + 1, …."""
        ...

    def search(self, queries: Vectors, k: int, *, ties: bool = False) -> Neighbors:
        """Return the best k rows per query, (queries, k).

        With `ties` the result may be wider: it then holds every vector whose score equals the k-th, so that
        the caller can break ties by a rule of its own. Any k >= 1 works, on an empty index too.
        """
        ...

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Publish the index as a folder."""
        ...

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` published, every byte of it checked."""
        ...


def topk(scores: Vectors, k: int) -> Neighbors:
    """Return the k best columns of every row of `scores`, larger first, ties to the lower column.

    Args:
        scores: (queries, columns) float, without NaN; -inf marks an entry that must not be returned.
        k: columns to return, >= 1; what a row does not have is padded with row -1, score -inf.

    Raises:
        ValueError: at k < 1, NaN, or scores that are no matrix.
    """
    check_k(k)
    if scores.ndim != 2:
        raise ValueError(f"scores must have shape (queries, columns), got {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no place in an order")
    scores = np.asarray(scores, dtype=np.float32)
    kept = min(k, scores.shape[1])
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
    rows = np.full((len(scores), k), -1, dtype=np.int64)
    best = np.full((len(scores), k), -np.inf, dtype=np.float32)
    best[:, :kept] = np.take_along_axis(scores, columns, axis=1)
    rows[:, :kept] = np.where(best[:, :kept] > -np.inf, columns, -1)
    return Neighbors(rows, best)


def check_k(k: int) -> None:
    """Raise ValueError unless k is a whole number >= 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a whole number >= 1, got {k!r}")
