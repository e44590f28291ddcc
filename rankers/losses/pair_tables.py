"""Sums over all pairs of two sets of numbers, through tables: what makes the MW loss of a large batch affordable.

    above(n) = sum over p of log(1 + exp(n - p)),   its slope the sum of sigmoid(n - p)
    below(p) = sum over n of sigmoid(n - p)

The functions are smooth on the scale of 1, so that their values on a grid of spacing 1/8, interpolated by cubics, are
exact to 6e-6 of themselves. `above` is tabulated from the p. For `below` the n are spread over the grid by the
transposed interpolation: each adds its four weights to the nodes around it, and the sum runs over nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from rankers.losses.inputs import softplus

SPACING = 1 / 8
_AT_ONCE = 1 << 18  # numbers interpolated, or cells of (nodes × p) computed, together
_FARTHEST = 1e15  # nodes from 0: beyond, neighbouring doubles are not neighbouring nodes
_MOST_NODES = 10**8  # 0.8 GB a table
_MOST_CELLS = 10**11  # nodes × relevant scores: a few minutes; beyond, the scores are no cosines


@dataclass(slots=True)
class PairTables:
    """What is known of all p and all n of a batch; blocks are joined before they are asked.

    Attributes:
        relevant: (relevant,) the p.
        first: the grid's lowest node; node k stands at (first + k) × SPACING.
        mass: (nodes,) float64, the n spread over the grid; empty when there are none.
        touched: (nodes,) bool, where an n looks; the others are never computed.

    """

    relevant: Tensor
    first: int
    mass: Tensor
    touched: Tensor
    _values: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, relevant: Tensor, irrelevant: Tensor) -> Self:
        """Read one block."""
        if not len(irrelevant):
            return cls(relevant, 0, relevant.new_zeros(0, dtype=torch.float64), relevant.new_zeros(0).bool())
        lowest, highest = (float(edge) / SPACING for edge in irrelevant.aminmax())
        if not (-_FARTHEST < lowest <= highest < _FARTHEST):  # a model that has stopped making numbers
            return cls(
                relevant, 0, relevant.new_full((1,), torch.nan, dtype=torch.float64), relevant.new_ones(1).bool()
            )
        first, last = math.floor(lowest) - 1, math.floor(highest) + 2
        _check_span(last - first + 1)
        mass = torch.zeros(last - first + 1, dtype=torch.float64, device=irrelevant.device)
        touched = torch.zeros_like(mass, dtype=torch.bool)
        for part in torch.split(irrelevant, _AT_ONCE):
            nodes, weights = _interpolation(part, first)
            mass.index_add_(0, nodes.flatten(), weights.flatten())
            touched[nodes.flatten()] = True
        return cls(relevant, first, mass, touched)

    @classmethod
    def joined(cls, one: Self, other: Self) -> Self:
        """Join what two blocks have shown."""
        relevant = torch.cat([one.relevant, other.relevant.to(one.relevant.device)])
        if not len(one.mass) or not len(other.mass) or one.is_broken or other.is_broken:
            known = one if one.is_broken or not len(other.mass) else other
            return cls(relevant, known.first, known.mass, known.touched)
        first = min(one.first, other.first)
        last = max(one.first + len(one.mass), other.first + len(other.mass))
        _check_span(last - first)
        mass, touched = one.mass.new_zeros(last - first), one.touched.new_zeros(last - first)
        for block in (one, other):
            place = slice(block.first - first, block.first - first + len(block.mass))
            mass[place] += block.mass.to(mass.device)
            touched[place] |= block.touched.to(mass.device)
        return cls(relevant, first, mass, touched)

    @property
    def is_broken(self) -> bool:
        """Whether a score was not finite; every sum is then nan."""
        return bool(self.mass.isnan().any())

    def above(self, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
        """Return the () sum of `above` over these n, and (n,) its slope at each."""
        if self.is_broken:
            return irrelevant.new_full((), torch.nan), torch.full_like(irrelevant, torch.nan)
        total, slopes = irrelevant.new_zeros((), dtype=torch.float64), torch.zeros_like(irrelevant)
        values, slope_values = self._tabulated()
        start = 0
        for part in torch.split(irrelevant, _AT_ONCE):
            nodes, weights = _interpolation(part, self.first)
            nodes = nodes.clamp(0, len(self.mass) - 1)  # a score computed again may differ by its last bit
            total += (values[nodes] * weights).sum()
            slopes[start : start + len(part)] = (slope_values[nodes] * weights).sum(0).to(slopes.dtype)
            start += len(part)
        return total.to(irrelevant.dtype), slopes

    def below(self, relevant: Tensor) -> Tensor:
        """Return (p,) the sum over all n of sigmoid(n - p)."""
        found = torch.zeros_like(relevant)
        if not len(self.mass):
            return found
        grid, mass = self._grid(), self.mass[self.touched]
        step = max(1, _AT_ONCE // len(grid))
        for start in range(0, len(relevant), step):
            cells = torch.sigmoid(grid - relevant[start : start + step, None].double())
            found[start : start + step] = (cells @ mass).to(found.dtype)
        return found

    def _tabulated(self) -> tuple[Tensor, Tensor]:
        """Return (nodes,) `above` at every node that is looked at, and its slope; computed once."""
        if self._values is None:
            grid = self._grid()
            if len(grid) * len(self.relevant) > _MOST_CELLS:
                raise ValueError(
                    f"mw: the scores need {len(grid):,} nodes for each of {len(self.relevant):,} relevant ones; raise "
                    "the temperature, or normalise the embeddings"
                )
            values, slopes = torch.zeros_like(grid), torch.zeros_like(grid)
            for part in torch.split(self.relevant, max(1, _AT_ONCE // max(1, len(grid)))):
                cells = grid - part[:, None].double()
                values += softplus(cells).sum(0)
                slopes += cells.sigmoid_().sum(0)
            everywhere = torch.zeros_like(self.mass), torch.zeros_like(self.mass)
            everywhere[0][self.touched], everywhere[1][self.touched] = values, slopes
            self._values = everywhere
        return self._values

    def _grid(self) -> Tensor:
        """Return where the nodes that are looked at stand."""
        return (self.touched.nonzero().squeeze(1).double() + self.first) * SPACING


def _interpolation(points: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return (4, n) the nodes around each point, and (4, n) the weights of the cubic through them."""
    place = points.double() / SPACING
    node = place.floor()
    t = place - node
    weights = torch.stack(
        [
            -t * (t - 1) * (t - 2) / 6,
            (t + 1) * (t - 1) * (t - 2) / 2,
            -(t + 1) * t * (t - 2) / 2,
            (t + 1) * t * (t - 1) / 6,
        ]
    )
    around = torch.arange(-1, 3, device=points.device)[:, None]
    return node.long() - first + around, weights


def _check_span(nodes: int) -> None:
    if nodes > _MOST_NODES:
        raise ValueError(
            f"mw: the scores spread over {nodes * SPACING:,.0f} temperatures, more than the "
            f"{_MOST_NODES * SPACING:,.0f} that tables hold; raise the temperature, or normalise the embeddings"
        )
