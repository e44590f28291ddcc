"""Sums over all pairs of two sets of numbers, through tables: what makes the MW loss of a large batch affordable.

    push(n) = sum over p of sigmoid(n - p)
    loss(p) = sum over n of log(1 + exp(n - p)),   pull(p) = sum over n of sigmoid(n - p)

The functions are smooth on the scale of 1, so that their values on a grid of spacing 1/8, interpolated by cubics, are
exact to 6e-6 of themselves. `push` is tabulated from the p. For the sums over n, the n are spread over the grid by the
transposed interpolation: each adds its four weights to the nodes around it, and the sum runs over nodes. The weights
are cubics in an n's place t between two nodes, so that the sums of 1, t, t² and t³ by node are all that is collected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from rankers.losses.inputs import softplus

SPACING = 1 / 8
_AT_ONCE = 1 << 18  # numbers interpolated, or cells of (nodes × p) computed, together
_FARTHEST = 1e15  # nodes from 0: beyond, neighbouring doubles are not neighbouring nodes
_MOST_NODES = 10**7  # of some 90 bytes each while the tables are made: 0.9 GB
# of the node before, the two around and the one after: the cubic's weight as coefficients of 1, t, t², t³
_CUBIC = ((0, -1 / 3, 1 / 2, -1 / 6), (1, -1 / 2, -1, 1 / 2), (0, 1, 1 / 2, -1 / 2), (0, -1 / 6, 0, 1 / 6))
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
    _cubics: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, relevant: Tensor, scores: Tensor, is_irrelevant: Tensor) -> Self:
        """Read one block: its p, all its scores, and which of them are n."""
        lowest, highest = math.inf, -math.inf
        if scores.numel():
            lowest = float(torch.where(is_irrelevant, scores, math.inf).amin()) / SPACING
            highest = float(torch.where(is_irrelevant, scores, -math.inf).amax()) / SPACING
        if lowest == math.inf and highest == -math.inf:
            return cls(relevant, 0, relevant.new_zeros(0, dtype=torch.float64), relevant.new_zeros(0).bool())
        if not (-_FARTHEST < lowest <= highest < _FARTHEST):  # a model that has stopped making numbers
            return cls(
                relevant, 0, relevant.new_full((1,), torch.nan, dtype=torch.float64), relevant.new_ones(1).bool()
            )
        first, last = math.floor(lowest) - 1, math.floor(highest) + 2
        nodes = last - first + 1
        _check_span(nodes)
        powers = scores.new_zeros(4, nodes + 1, dtype=torch.float64)  # the last for what is no n
        for part, mask in zip(_parts(scores), _parts(is_irrelevant), strict=True):
            node, t = _place(part, first)
            node.masked_fill_(~mask, nodes)
            t, power = t.double(), torch.ones_like(t, dtype=torch.float64)
            for row in powers:
                row.scatter_add_(0, node, power)
                power = power * t
        weights = powers.new_tensor(_CUBIC) @ powers[:, :nodes]
        mass, touched = torch.zeros_like(weights[0]), torch.zeros_like(weights[0], dtype=torch.bool)
        for offset, weight in enumerate(weights, start=-1):
            place = slice(max(0, offset), nodes + min(0, offset))
            taken = slice(max(0, -offset), nodes + min(0, -offset))
            mass[place] += weight[taken]
            touched[place] |= powers[0, :nodes][taken] > 0
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

    def pushes(self, scores: Tensor) -> Tensor:
        """Return `push` at each of these scores, of any shape; only those at an n are right."""
        if self.is_broken or not len(self.mass):
            return torch.full_like(scores, torch.nan if self.is_broken else 0)
        cubics = self._tabulated().to(scores.dtype)
        found = torch.empty_like(scores, memory_format=torch.contiguous_format)
        for part, into in zip(_parts(scores), _parts(found), strict=True):
            node, t = _place(part, self.first)
            node.clamp_(0, len(self.mass) - 1)  # a score computed again may differ by its last bit
            into.copy_(cubics[3].index_select(0, node))
            for power in (2, 1, 0):
                into.mul_(t).add_(cubics[power].index_select(0, node))
        return found

    def pulls(self, relevant: Tensor) -> tuple[Tensor, Tensor]:
        """Return the () sum of `loss` over these p, and (p,) `pull` at each."""
        total, found = relevant.new_zeros((), dtype=torch.float64), torch.zeros_like(relevant)
        if not len(self.mass):
            return total.to(relevant.dtype), found
        grid, mass = self._grid(), self.mass[self.touched]
        for part, into in zip(_parts(relevant, len(grid)), _parts(found, len(grid)), strict=True):
            cells = grid - part[:, None].double()
            total += (softplus(cells) @ mass).sum()
            into.copy_(cells.sigmoid_() @ mass)
        return total.to(relevant.dtype), found

    def _tabulated(self) -> Tensor:
        """Return (4, nodes) the coefficients of `push` between each node and the next; computed once."""
        if self._cubics is None:
            grid = self._grid()
            if len(grid) * len(self.relevant) > _MOST_CELLS:
                raise ValueError(
                    f"mw: the scores need {len(grid):,} nodes for each of {len(self.relevant):,} relevant ones; raise "
                    "the temperature, or normalise the embeddings"
                )
            slopes = torch.zeros_like(grid)
            for part in _parts(self.relevant, len(grid)):
                slopes += (grid - part[:, None].double()).sigmoid_().sum(0)
            values = self.mass.new_zeros(len(self.mass) + 3)
            values[1:-2][self.touched] = slopes
            self._cubics = self.mass.new_tensor(_CUBIC).T @ values.unfold(0, len(self.mass), 1)
        return self._cubics

    def _grid(self) -> Tensor:
        """Return where the nodes that are looked at stand."""
        return (self.touched.nonzero().squeeze(1).double() + self.first) * SPACING


def _place(scores: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return (n,) the node below each score, and (n,) how far it is on the way to the next, in [0, 1].

    Exact but just below 0, where a distance next to 1 is rounded and may become 1.
    """
    place = scores / SPACING
    node = place.floor()
    return node.long() - first, place - node


def _parts(values: Tensor, each: int = 1) -> Sequence[Tensor]:
    """Return all numbers in pieces, for which `each` numbers of memory are needed."""
    return torch.split(values.reshape(-1), max(1, _AT_ONCE // max(1, each)))


def _check_span(nodes: int) -> None:
    if nodes > _MOST_NODES:
        raise ValueError(
            f"mw: the scores spread over {nodes * SPACING:,.0f} temperatures, more than the "
            f"{_MOST_NODES * SPACING:,.0f} that tables hold; raise the temperature, or normalise the embeddings"
        )
