"""Terms over embeddings instead of scores: alignment and uniformity, to watch a run by or to add to its loss.

They cannot stand in the table of losses, whose functions see scores and labels; their own table is REGULARISERS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rankers.losses.inputs import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Regulariser:
    """One row of the table.

    Attributes:
        name: the key in users' YAML.
        fn: embeddings, (n, dim) each, and settings -> () tensor, to be minimised.
        use: what it is for, in a line.
        paper: author, year, and where to find it.
        defaults: of every setting.

    """

    name: str
    fn: Callable[..., Tensor]
    use: str
    paper: str
    defaults: Mapping[str, Any]


def alignment(x: Tensor, y: Tensor, *, where: Tensor | None = None, alpha: float = 2.0) -> Tensor:
    """Mean distance of embeddings that belong together.

        loss = mean over valid i of ||x_i - y_i|| ** alpha

    Of unit vectors and alpha=2: 2 - 2 cos(x_i, y_i). It is 0 when all embeddings are one point: watch it beside
    `uniformity`. Time and memory are those of the embeddings.

    Args:
        x: (n, dim) float, say query embeddings, L2-normalised; they are taken as they are.
        y: (n, dim) float, row i belonging to row i of x: its relevant document.
        where: (n,) bool, False at pairs to leave out. None: all valid.
        alpha: power of the distance, > 0.

    Returns:
        () float >= 0; 0, with zero gradient, when no pair is valid.

    Raises:
        ValueError: at wrong shapes, dtypes or settings.

    Source: Wang and Isola 2020 (arXiv:2005.10242).

    """
    check_number("alpha", alpha, positive=True)
    x, y = _check_rows("x", x, where), _check_rows("y", y, where)
    if x.shape != y.shape:
        raise ValueError(f"x and y must be pairs, row by row, got {tuple(x.shape)} and {tuple(y.shape)} valid rows")
    squares = (x - y).square().sum(-1)
    same = squares == 0  # the slope of a root is infinite there
    powers = squares.masked_fill(same, 1).pow(alpha / 2).masked_fill(same, 0)
    return powers.sum() / max(len(powers), 1)


def uniformity(x: Tensor, *, where: Tensor | None = None, t: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs of embeddings.

        loss = log mean over i < j of exp(-t ||x_i - x_j||²)

    Unit vectors: between -4t and 0; 0 when all are one point, near -2t + 2t²/dim when they are spread evenly. It
    couples all rows, so blocks of them do not add up; memory is n (n - 1) / 2 numbers of 4 bytes, 200 MB for
    n = 10,000, and time n² × dim: as a diagnostic, take a sample of a few thousand rows.

    Args:
        x: (n, dim) float, L2-normalised; they are taken as they are.
        where: (n,) bool, False at rows to leave out. None: all valid.
        t: inverse width of the Gaussian, > 0.

    Returns:
        () float <= 0; 0, with zero gradient, when fewer than two rows are valid.

    Raises:
        ValueError: at wrong shapes, dtypes or settings.

    Source: Wang and Isola 2020 (arXiv:2005.10242).

    """
    check_number("t", t, positive=True)
    x = _check_rows("x", x, where)
    if len(x) < 2:
        return x[:0].sum()
    # Differences and not a product of the matrices: near a collapse, where it matters, that cancels.
    squares = torch.pdist(x).square()
    return torch.logsumexp(-t * squares, dim=0) - math.log(len(squares))


def _check_rows(name: str, rows: Tensor, where: Tensor | None) -> Tensor:
    """Return the valid rows in float32 or float64."""
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be float (n, dim), got {rows.dtype} {tuple(rows.shape)}")
    if where is not None:
        if where.shape != rows.shape[:1] or where.dtype != torch.bool:
            raise ValueError(f"where must be bool ({len(rows)},), got {where.dtype} {tuple(where.shape)}")
        rows = rows[where]
    return rows if rows.dtype == torch.float64 else rows.to(torch.float32)


REGULARISERS: Mapping[str, Regulariser] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Regulariser(
                name="alignment",
                fn=alignment,
                use="how near queries are to their relevant documents",
                paper="Wang and Isola 2020, arXiv:2005.10242",
                defaults={"alpha": 2.0},
            ),
            Regulariser(
                name="uniformity",
                fn=uniformity,
                use="how evenly embeddings spread over the sphere; 0 means collapse",
                paper="Wang and Isola 2020, arXiv:2005.10242",
                defaults={"t": 2.0},
            ),
        )
    }
)
