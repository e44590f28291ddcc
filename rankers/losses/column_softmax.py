"""The columns' direction of a softmax loss when the rows come in blocks: each document asked for its query.

A column's normaliser runs over all rows, so a first pass collects it; then a block of rows knows its own part of every
column's loss. With l_ij the logits and L_j = log sum over i of exp l_ij, column j's loss is L_j - mean over its
positives of l_ij, and a row's part of L_j is p_ij L_j, with p_ij = exp(l_ij - L_j) whose gradient is p_ij too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rankers.losses.inputs import Cells, fill_masked


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
    def of(cls, logits: Tensor, positive: Cells, where: Tensor, gains: Tensor | None, rows: Tensor) -> Self:
        """Read one block: logits as the softmax takes them, positives and mask of the columns' direction."""
        width, lowest = logits.shape[1], torch.finfo(logits.dtype).min
        found = positive[1].bincount(minlength=width)
        mass = fill_masked(logits, where).logsumexp(0) if len(logits) else logits.new_full((width,), lowest)
        grades = found.to(logits.dtype)
        if gains is not None:
            grades = gains.new_zeros(width).index_add(0, positive[1], gains[positive])
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

    def share(self, logits: Tensor, positive: Cells, where: Tensor) -> Tensor:
        """Return the () part of a block of rows in the weighted sum of the columns' losses."""
        weights = self.weights
        part: Tensor = _MassPart.apply(fill_masked(logits, where), self.log_mass, weights)  # type: ignore[no-untyped-call]
        return part - (logits[positive] * (weights / self.positives.clamp_min(1))[positive[1]]).sum()

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.positives, self.gains, self.rows


class _MassPart(torch.autograd.Function):
    """sum over a block of w_j p_ij L_j, whose gradient is w_j p_ij; the other rows' parts are in L."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_mass: Tensor, weights: Tensor) -> Tensor:
        slope = (logits - log_mass).exp_().mul_(weights)  # a column without a valid row has no weight
        ctx.save_for_backward(slope)
        return slope.sum(0) @ log_mass.masked_fill(weights == 0, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None
