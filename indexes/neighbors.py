"""What every index takes and gives: the Protocol, the result type, and the one top-k of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Names = Sequence[str] | Callable[[int], str]

LARGEST_COMPONENT = 1e15  # squares of larger ones overflow fp32 sums, on which faiss ends the process


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


def check_vectors(
    vectors: Vectors,
    dim: int,
    names: Names | None = None,
    *,
    what: str = "vector",
    allow_zero: bool = True,
) -> Vectors:
    """Return `vectors` in C order if an index may see them.

    An index accepts NaN silently and never returns that vector again; one component of 1e30 takes part in
    nearly half of all results, or ends the process in training.

    Args:
        vectors: (n, dim) float32, finite, every |component| < 1e15.
        dim: what the index was made for.
        names: what to call row i in errors, such as its document id; a sequence or a function of i.
        what: "vector" or "query", for errors.
        allow_zero: False refuses vectors of zeros, which an encoder gives only by mistake.

    Raises:
        ValueError: naming the first bad row, its bad component and its value; or both dimensions or dtypes.
    """
    several = "queries" if what == "query" else f"{what}s"
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        got = vectors.dtype if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise ValueError(f"{several} must be a float32 array, got {got}; convert with np.asarray(x, np.float32)")
    if vectors.ndim != 2:
        raise ValueError(f"{several} must have shape (n, {dim}), got {vectors.shape}; one {what} is x[None]")
    if vectors.shape[1] != dim:
        raise ValueError(f"{several} have {vectors.shape[1]} dimensions, the index {dim}; are they of another model?")
    # max and min carry NaN along and need no copy of the matrix.
    if len(vectors) and not (vectors.max() < LARGEST_COMPONENT and vectors.min() > -LARGEST_COMPONENT):
        row, column = np.argwhere(~(np.abs(vectors) < LARGEST_COMPONENT))[0]
        raise ValueError(
            f"{_called(what, int(row), names)}: component {column} is {vectors[row, column]:g}; "
            f"wanted finite numbers below {LARGEST_COMPONENT:g}"
        )
    if not allow_zero and len(zero := np.flatnonzero(~vectors.any(axis=1))):
        raise ValueError(f"{_called(what, int(zero[0]), names)}: all {dim} components are 0; is its text empty?")
    return np.ascontiguousarray(vectors)


def _called(what: str, row: int, names: Names | None) -> str:
    if names is None:
        return f"{what} {row}"
    return f"{what} {row} ({names(row) if callable(names) else names[row]})"
