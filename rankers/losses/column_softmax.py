"""The columns' direction of a softmax loss when the rows come in blocks: each document asked for its query.

A column's normaliser runs over all rows, so a first pass collects it; then a block of rows knows its own part of every
column's loss. With l_ij the logits and L_j = log sum over i of exp l_ij, column j's loss is L_j - mean over its
positives of l_ij, and a row's part of L_j is p_ij L_j, with p_ij = exp(l_ij - L_j) whose gradient is p_ij too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rankers.losses.inputs import fill_masked


@dataclass(frozen=True, slots=True)
class ColumnTables:
    """What is known of all rows; blocks are joined before they are asked.

    Attributes:
        log_mass: (docs,) L_j, very low where no row is valid.
        positives: (docs,) how many rows call the document relevant.
        gains: (docs,) the sum of their grades; their number where grades do not weigh.
        rows: () the sum of the rows' weights in the rows' direction.

    """

    log_mass: Tensor
    positives: Tensor
    gains: Tensor
    rows: Tensor

    @classmethod
    def of(cls, logits: Tensor, positive: Tensor, where: Tensor, gains: Tensor | None, rows: Tensor) -> Self:
        """Read one block: logits as the softmax takes them, masks of the columns' direction."""
        found = positive.sum(0)
        lowest = torch.finfo(logits.dtype).min
        mass = fill_masked(logits, where).logsumexp(0) if len(logits) else logits.new_full(logits.shape[1:], lowest)
        grades = found.to(logits.dtype) if gains is None else gains.masked_fill(~positive, 0).sum(0)
        return cls(mass, found, grades, rows)

    @classmethod
    def joined(cls, one: Self, other: Self) -> Self:
        """Join what two blocks have shown."""
        mass = torch.logaddexp(one.log_mass, other.log_mass.to(one.log_mass.device))
        sums = [a + b.to(a.device) for a, b in zip(one._sums(), other._sums(), strict=True)]
        return cls(mass, *sums)

    @property
    def weights(self) -> Tensor:
        """(docs,) the weight of each column's loss: the mean grade of its positives, 0 without any."""
        return self.gains / self.positives.clamp_min(1)

    def share(self, logits: Tensor, positive: Tensor, where: Tensor) -> Tensor:
        """Return the () part of a block of rows in the weighted sum of the columns' losses."""
        asked = self.weights > 0
        own = fill_masked(logits, where) - self.log_mass
        part = own.detach().exp() * (self.log_mass + own - own.detach())
        part = part.masked_fill(~(where & asked), 0).sum(0)
        hit = logits.masked_fill(~positive, 0).sum(0) / self.positives.clamp_min(1)
        return ((part - hit) * self.weights).sum()

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.positives, self.gains, self.rows
