"""The module that holds a loss and its settings for a trainer: callable, printable, divisible into row blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankers.losses.entry import LossEntry, Needs, Numbers
from rankers.losses.inputs import did_you_mean


class RankingLoss(nn.Module):
    """Holds a loss and its settings, so that a trainer can call, print, save and split it.

    `loss(scores, labels, where)` is the loss. A batch whose rows come in blocks has the same loss and
    gradient:

        tally = sum of loss.tally(labels, where) over the blocks, name by name
        seen = loss.observe(scores, labels, where) of the blocks, joined by loss.merge     # where loss.observes
        for each block of rows:
            loss.share(scores, labels, where, totals=loss.totals(tally), seen=seen).backward()

    A setting given as an `nn.Parameter` (shape ()) is learned: it stands in `parameters()` and
    `state_dict()`.

    Attributes:
        entry: the row of the table.
        settings: every setting in force that is not learned, defaults included.

    """

    def __init__(self, entry: LossEntry, **settings: Any) -> None:
        super().__init__()
        for name in settings:
            if name not in entry.settings:
                raise ValueError(f"unknown setting {name!r} of {entry.name}{did_you_mean(name, entry.settings)}")
        if settings.get("reduction") == "sum":
            raise ValueError("reduction='sum' belongs to a call of the loss; build it with what divides the sum")
        instead = {"scale", "temperature"} if {"scale", "temperature"} & settings.keys() else set()
        defaults = {name: value for name, value in entry.defaults.items() if name not in instead}
        self.entry = entry
        self.settings = {k: v for k, v in {**defaults, **settings}.items() if not isinstance(v, nn.Parameter)}
        self.learned = nn.ParameterDict({k: v for k, v in settings.items() if isinstance(v, nn.Parameter)})
        # One relevant document: impossible settings fail here, before any data is read.
        with torch.no_grad():
            self(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))

    @property
    def needs(self) -> Needs:
        """What must be known at once, under these settings: rows · rows + statistic · whole matrix."""
        return self.entry.needs_with(self.settings)

    @property
    def observes(self) -> bool:
        """Whether blocks of rows must be looked at before the first of them has a loss."""
        return self.needs == "rows + statistic" and self.entry.observe is not None

    def forward(self, scores: Tensor, labels: Tensor, where: Tensor | None = None, **at_call: Any) -> Any:
        """Return the () loss, or (loss, state) with `state=`; arguments at the call win over the settings."""
        return self.entry.fn(scores, labels, where=where, **{**self._all(), **at_call})

    def count(self, labels: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the () number that the loss divides its sum by."""
        return self.entry.count(labels, where, **self.settings)

    def tally(self, labels: Tensor, where: Tensor | None = None) -> Numbers:
        """Return numbers of a block of rows; those of a batch are the sums over its blocks."""
        if self.entry.tally is None:
            return {"count": self.count(labels, where)}
        return self.entry.tally(labels, where, **self.settings)

    def totals(self, tally: Numbers) -> Numbers:
        """Return what each block must know of the labels of all rows: the divisor and the batch's own settings."""
        return self.entry.totals(tally, **self._all())

    def observe(self, scores: Tensor, labels: Tensor, where: Tensor | None = None) -> Any:
        """Return what a block of rows shows to the others; no gradient flows through it."""
        assert self.entry.observe is not None
        with torch.no_grad():
            return self.entry.observe(scores, labels, where, **self._all())

    def merge(self, one: Any, other: Any) -> Any:
        """Join what two blocks, or two processes, have shown."""
        assert self.entry.merge is not None
        return self.entry.merge(one, other)

    def share(
        self,
        scores: Tensor,
        labels: Tensor,
        where: Tensor | None = None,
        *,
        totals: Numbers,
        **at_call: Any,
    ) -> Any:
        """Return a block's share of the whole batch's loss; the shares of all blocks of rows add up to it.

        With `state=` (the block's rows) it returns (share, state).

        Raises:
            ValueError: if the loss couples the rows and these are not all of them.

        """
        known = dict(totals)
        count = known.pop("count")
        needs = "rows" if at_call.get("seen") is not None else self.needs
        couples = needs == "whole matrix" or (needs == "rows + statistic" and self.entry.observe is not None)
        if couples and (ours := int(self.totals(self.tally(labels, where))["count"])) != int(count):
            raise ValueError(
                f"{self.entry.name} with these settings needs the whole matrix, but this block holds {ours} "
                f"of {int(count)} terms; pass all rows at once"
            )
        result = self(scores, labels, where, reduction="sum", **known, **at_call)
        if "state" in at_call:
            total, state = result
            return total / count.clamp_min(1), state
        return result / count.clamp_min(1)

    def extra_repr(self) -> str:
        """Show the name and the settings."""
        return ", ".join([self.entry.name, *(f"{name}={value}" for name, value in self.settings.items())])

    def _all(self) -> Mapping[str, Any]:
        return {**self.settings, **self.learned}
