"""How well embeddings fill their space: alignment, uniformity, tolerance, effective rank, and signs of collapse.

An encoder has collapsed when all texts get nearly the same vector; nothing can be ranked then. The measures here see it
before a search does. All of them normalise the rows first, as cosines do, and leave rows of zeros as they are. For many
rows none makes an n × n matrix: sums over pairs come from sums of vectors, except for the uniformity, which beyond
`MAX_PAIRED` rows is computed on a sample of that many.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.neighbors import Vectors
from retrieval.errors import InputError

MAX_PAIRED = 4096  # rows whose pairs are all compared: 8.4 million, half a second
_BLOCK = 1024  # rows in float64 at once

# Where an encoder counts as collapsed; docs/diagnostics.md has the measurements behind them.
COSINE_LIMIT = 0.95
RANK_LIMIT = 3.0
FEWEST = 16  # rows below which nothing is said: a few texts of one subject are alike in a sound model too
_AT_MARGIN = 0.01  # share of the margin that a loss stuck at it may be off
_NO_SPREAD = 0.01  # standard deviation of cosines below which a row of scores has no order


def alignment(queries: Vectors, documents: Vectors, alpha: float = 2.0) -> float:
    """Return the mean distance of queries to their documents, E‖x - y‖^alpha; with alpha=2 it is 2 - 2 E cos.

    Args:
        queries: (n, dim) float.
        documents: (n, dim) float; row i belongs to query i.
        alpha: exponent, > 0.

    Raises:
        InputError: at different shapes, no rows, values that are not finite, or alpha <= 0.

    Source: Wang and Isola 2020 (arXiv:2005.10242), eq. 1.
    """
    if not alpha > 0:
        raise InputError(f"alpha must be above 0, got {alpha}")
    left, right = _checked(queries, 1), _checked(documents, 1)
    if left.shape != right.shape:
        raise InputError(f"queries have shape {left.shape} and documents {right.shape}; wanted one document a query")
    total = 0.0
    for start in range(0, len(left), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += float((np.linalg.norm(_unit(left[rows]) - _unit(right[rows]), axis=1) ** alpha).sum())
    return total / len(left)


def uniformity(vectors: Vectors, t: float = 2.0, *, seed: int = 0) -> float:
    """Return log E over pairs i < j of exp(-t ‖x_i - x_j‖²), from -4t to 0; 0 means that all rows are equal.

    Args:
        vectors: (n, dim) float, at least 2 rows; of more than `MAX_PAIRED`, as many are drawn.
        t: > 0; 2 in the source.
        seed: of the draw.

    Raises:
        InputError: at fewer than 2 rows, values that are not finite, or t <= 0.

    Source: Wang and Isola 2020 (arXiv:2005.10242), eq. 2.
    """
    if not t > 0:
        raise InputError(f"t must be above 0, got {t}")
    vectors = _checked(vectors, 2)
    if len(vectors) > MAX_PAIRED:
        vectors = vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), MAX_PAIRED, replace=False))]
    n, unit = len(vectors), _unit(vectors)
    lengths = np.einsum("ij,ij->i", unit, unit)
    total = 0.0
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        squares = lengths[start:stop, None] + lengths[None, start:] - 2 * (unit[start:stop] @ unit[start:].T)
        later = np.arange(start, n)[None, :] > np.arange(start, stop)[:, None]
        total += float(np.exp(-t * np.maximum(squares[later], 0)).sum())
    return math.log(max(total / (n * (n - 1) / 2), np.finfo(np.float64).tiny))


def tolerance(vectors: Vectors, groups: Sequence[Hashable]) -> float:
    """Return the mean cosine of different rows of one group: how near a model leaves texts that belong together.

    Read it beside `uniformity`: training harder against near negatives spreads the vectors and parts such texts.

    Args:
        vectors: (n, dim) float.
        groups: (n,) the group of each row, such as the document that queries share.

    Returns:
        From -1 to 1; nan when no group has two rows.

    Raises:
        InputError: at another number of groups than rows, or values that are not finite.

    Source: Wang and Liu 2021 (arXiv:2012.09740), where the groups are classes.
    """
    vectors = _checked(vectors, 1)
    if len(groups) != len(vectors):
        raise InputError(f"got {len(groups)} groups for {len(vectors)} vectors; wanted one each")
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
    sums = np.zeros((len(numbers), vectors.shape[1]))
    own = 0.0
    for start in range(0, len(vectors), _BLOCK):
        unit = _unit(vectors[start : start + _BLOCK])
        np.add.at(sums, group[start : start + _BLOCK], unit)
        own += float((unit**2).sum())
    sizes = np.bincount(group)
    pairs = int((sizes * (sizes - 1)).sum())
    return (float((sums**2).sum()) - own) / pairs if pairs else math.nan


def mean_cosine(vectors: Vectors) -> float:
    """Return the mean cosine of different rows; 0 when the directions cancel, 1 when all rows are equal.

    Args:
        vectors: (n, dim) float, at least 2 rows.

    Raises:
        InputError: at fewer than 2 rows, or values that are not finite.
    """
    return tolerance(_checked(vectors, 2), np.zeros(len(vectors), dtype=np.int64).tolist())


def effective_rank(vectors: Vectors) -> float:
    """Return in how many dimensions texts differ: exp(entropy of the normalised eigenvalues of the covariance).

    From 1, all rows on one line, to min(n - 1, dim), all directions alike. What all rows have in common is no
    difference and does not count, however large it is; `mean_cosine` shows that.

    Args:
        vectors: (n, dim) float, at least 2 rows.

    Returns:
        1 where all rows are equal.

    Raises:
        InputError: at fewer than 2 rows, or values that are not finite.

    Source: Roy and Vetterli 2007, "The effective rank", with the squares of the singular values that they normalise.
    """
    vectors = _checked(vectors, 2)
    blocks = range(0, len(vectors), _BLOCK)
    mean = np.sum([_unit(vectors[start : start + _BLOCK]).sum(axis=0) for start in blocks], axis=0) / len(vectors)
    if len(vectors) < vectors.shape[1]:  # the smaller of XXᵀ and XᵀX; they have the same eigenvalues but for zeros
        rows = _unit(vectors) - mean
        product = rows @ rows.T
    else:
        product = np.zeros((vectors.shape[1], vectors.shape[1]))
        for start in blocks:
            rows = _unit(vectors[start : start + _BLOCK]) - mean
            product += rows.T @ rows
    values = np.maximum(np.linalg.eigvalsh(product), 0)
    total = float(values.sum())
    if total <= len(vectors) * 1e-12:  # what rounding leaves of equal rows
        return 1.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True, slots=True)
class Health:
    """What can be said of embeddings without knowing what they are for.

    Attributes:
        n, dim: rows and components.
        mean_cosine: of different rows, see `mean_cosine`.
        effective_rank: see `effective_rank`.
        uniformity: see `uniformity`.
        zeros: rows of which every component is 0.

    """

    n: int
    dim: int
    mean_cosine: float
    effective_rank: float
    uniformity: float
    zeros: int


def health(vectors: Vectors, *, seed: int = 0) -> Health:
    """Measure embeddings of different texts, (n, dim) float with at least 2 rows; the seed is of `uniformity`."""
    vectors = _checked(vectors, 2)
    return Health(
        n=vectors.shape[0],
        dim=vectors.shape[1],
        mean_cosine=mean_cosine(vectors),
        effective_rank=effective_rank(vectors),
        uniformity=uniformity(vectors, seed=seed),
        zeros=int((~vectors.any(axis=1)).sum()),
    )


def collapsed(found: Health) -> str | None:
    """Say why embeddings count as collapsed, or return None; of fewer than `FEWEST` rows nothing is said."""
    if found.n < FEWEST:
        return None
    if found.zeros > found.n / 2:
        return f"{found.zeros} of {found.n} vectors are zero"
    if found.mean_cosine >= COSINE_LIMIT:
        return f"the mean cosine of different texts is {found.mean_cosine:.3f}: all vectors are nearly the same"
    if found.effective_rank <= RANK_LIMIT:
        most = min(found.n - 1, found.dim)
        return f"the effective rank is {found.effective_rank:.1f} of {most}: all texts differ in a few dimensions only"
    return None


def collapse_warning(
    loss: float,
    margin: float | None = None,
    *,
    document_cosine: float,
    effective_rank: float,
    score_std: float | None = None,
    documents: int = FEWEST,
) -> str | None:
    """Say that a model in training has collapsed, from what is logged of a batch; or return None.

    A triplet loss of a collapsed encoder is exactly its margin, since all its scores are equal. An untrained model can
    be there by chance, so the loss alone is no sign: it takes documents that are alike, or scores without spread.

    Args:
        loss: of the batch.
        margin: of a triplet or hinge loss, the value that it has when all scores are equal; None for other losses.
        document_cosine: `mean_cosine` of the batch's documents.
        effective_rank: `effective_rank` of them.
        score_std: standard deviation of a query's scores, mean over the queries, before the temperature.
        documents: how many there are; below `FEWEST` nothing is said.

    Returns:
        One sentence with its figures, and what to try next.
    """
    if documents < FEWEST:
        return None
    stuck = margin is not None and abs(loss - margin) <= _AT_MARGIN * abs(margin)
    if document_cosine >= COSINE_LIMIT:
        sign = f"the mean cosine of different documents is {document_cosine:.3f}"
    elif effective_rank <= RANK_LIMIT:
        sign = f"the effective rank of {documents} documents is {effective_rank:.1f}"
    elif stuck and score_std is not None and score_std <= _NO_SPREAD:
        sign = f"a query's scores differ by {score_std:.4f} only"
    else:
        return None
    at_margin = f" and the loss {loss:.4g} is stuck at its margin" if stuck else ""
    easier = ", smaller batches or less hardness" if stuck else ""
    advice = f"look for wrong pairs, try a lower learning rate{easier}, and go back to an earlier checkpoint"
    return f"the embeddings have collapsed: {sign}{at_margin}; {advice}"


def _checked(vectors: Vectors, least: int) -> NDArray[np.floating]:
    """Return an (n, dim) array of finite floats with at least `least` rows, or say what is wrong."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(f"vectors must be a float array of shape (n, dim), got {vectors.dtype} {vectors.shape}")
    if len(vectors) < least:
        raise InputError(f"got {len(vectors)} vectors; wanted at least {least}")
    for start in range(0, len(vectors), _BLOCK):
        if not (finite := np.isfinite(vectors[start : start + _BLOCK]).all(axis=1)).all():
            raise InputError(f"vector {start + int(np.argmin(finite))} is not finite")
    return vectors


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rows in float64 with length 1; rows of zeros stay."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: NDArray[np.float64] = wide / np.where(lengths > 0, lengths, 1)
    return unit
