"""The module that holds a loss and its settings for a trainer: callable, printable, divisible into row blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankers.losses.entry import LabelKind, LossEntry, Needs, Numbers
from rankers.losses.inputs import did_you_mean

LEARNED = "learned"
LOG_SCALE, BIAS = "log_scale", "bias_offset"
_HIGHEST = math.log(100)  # CLIP's limit on a learned scale


class RankingLoss(nn.Module):
    """Holds a loss and its settings, so that a trainer can call, print, save and split it.

    `loss(scores, labels, where)` is the loss. A batch whose rows come in blocks has the same loss and
    gradient:

        tally = sum of loss.tally(labels, where) over the blocks, name by name
        seen = loss.observe(scores, labels, where) of the blocks, joined by loss.merge     # where loss.observes
        for each block of rows:
            loss.share(scores, labels, where, totals=loss.totals(tally), seen=seen).backward()

    A setting given as an `nn.Parameter` (shape ()) is learned: it stands in `parameters()` and `state_dict()`. The word
    "learned" makes one: scale and temperature start at their default and move in their logarithm, up to a scale
    of 100; a bias starts at "auto", the prior of each batch, and what is learned is added to it.

    A loss that keeps a state of each query holds it after `remember(n)`: in buffers, so in `state_dict()` too.

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
        settings = {**{name: value for name, value in entry.defaults.items() if name not in instead}, **settings}
        self.entry = entry
        self.learned = nn.ParameterDict()
        self.settings: dict[str, Any] = {}
        for name, value in settings.items():
            if isinstance(value, str) and value == LEARNED:
                self._learn(name)
            elif isinstance(value, nn.Parameter):
                self.learned[name] = value
            else:
                self.settings[name] = value
        # One relevant document: impossible settings fail here, before any data is read.
        with torch.no_grad():
            self(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))

    @property
    def terms(self) -> tuple[RankingLoss, ...]:
        """The losses that are added: this one; a sum has several."""
        return (self,)

    @property
    def name(self) -> str:
        """The name in the table."""
        return self.entry.name

    @property
    def kind(self) -> LabelKind:
        """The kind of labels that it takes."""
        return self.entry.labels

    @property
    def needs(self) -> Needs:
        """What must be known at once, under these settings: rows · rows + statistic · whole matrix."""
        return self.entry.needs_with(self.settings)

    @property
    def observes(self) -> bool:
        """Whether blocks of rows must be looked at before the first of them has a loss."""
        return self.needs == "rows + statistic" and self.entry.observe is not None

    @property
    def keeps_state(self) -> bool:
        """Whether these settings keep a state of each query."""
        return bool(self.entry.state) and (self.entry.state_if is None or self.entry.state_if(self.settings))

    @property
    def is_symmetric(self) -> bool:
        """Whether documents are asked for their queries too, with `where_columns` at call."""
        return bool(self.settings.get("symmetric"))

    def forward(self, scores: Tensor, labels: Tensor, where: Tensor | None = None, **at_call: Any) -> Any:
        """Return the () loss, or (loss, state) with `state=`; arguments at the call win over the settings."""
        settings = self._all()
        if BIAS in self.learned and "bias" not in at_call:
            at_call["bias"] = self.totals(self.tally(labels, where))["bias"]
        return self.entry.fn(scores, labels, where=where, **{**settings, **at_call})

    def count(self, labels: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the () number that the loss divides its sum by."""
        return self.entry.count(labels, where, **self.settings)

    def divisor(self, tally: Numbers) -> Tensor:
        """Return the () number that the loss of a batch with this tally divides its sum by."""
        return self.entry.totals(tally, **self._all())["count"]

    def tally(self, labels: Tensor, where: Tensor | None = None) -> Numbers:
        """Return numbers of a block of rows; those of a batch are the sums over its blocks."""
        if self.entry.tally is None:
            return {"count": self.count(labels, where)}
        return self.entry.tally(labels, where, **self.settings)

    def totals(self, tally: Numbers) -> Numbers:
        """Return what each block must know of the labels of all rows: the divisor and the batch's own settings."""
        totals = self.entry.totals(tally, **self._all())
        return {**totals, "bias": totals["bias"] + self.learned[BIAS]} if BIAS in self.learned else totals

    def observe(self, scores: Tensor, labels: Tensor, where: Tensor | None = None, **at_call: Any) -> Any:
        """Return what a block of rows shows to the others; no gradient flows through it."""
        assert self.entry.observe is not None
        with torch.no_grad():
            return self.entry.observe(scores, labels, where, **self._all(), **at_call)

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
        weight: float | Tensor = 1.0,
        **at_call: Any,
    ) -> Any:
        """Return `weight` × a block's share of the whole batch's loss; the shares of all blocks of rows add up to it.

        With `state=` (the block's rows) it returns (share, state).

        Raises:
            ValueError: if the loss couples the rows and these are not all of them.

        """
        known = dict(totals)
        count = known.pop("count")
        couples = at_call.get("seen") is None and (self.observes or self.needs == "whole matrix")
        if couples and (ours := int(self.divisor(self.tally(labels, where)))) != int(count):
            raise ValueError(
                f"{self.entry.name} with these settings needs the whole matrix, but this block holds {ours} "
                f"of {int(count)} terms; pass all rows at once"
            )
        result = self(scores, labels, where, reduction="sum", **known, **at_call)
        if "state" in at_call:
            return result[0] / count.clamp_min(1) * weight, result[1]
        return result / count.clamp_min(1) * weight

    def remember(self, queries: int) -> None:
        """Hold the first state of so many queries, where these settings keep one."""
        for name, value in self.entry.state.items() if self.keeps_state else ():
            self.register_buffer(f"state_{name}", torch.full((queries,), value))

    def recall(self, queries: Tensor) -> dict[str, Tensor] | None:
        """Return name → (rows,) the state of these queries; None where none is held."""
        if not self.keeps_state or not hasattr(self, f"state_{next(iter(self.entry.state))}"):
            return None
        return {name: self.get_buffer(f"state_{name}")[queries] for name in self.entry.state}

    def keep(self, queries: Tensor, state: Mapping[str, Tensor]) -> None:
        """Hold the new state of these queries; of a query that occurs twice, the last."""
        for name, values in state.items():
            self.get_buffer(f"state_{name}")[queries] = values

    def extra_repr(self) -> str:
        """Show the name and the settings."""
        return ", ".join([self.entry.name, *(f"{name}={value}" for name, value in self.settings.items())])

    def _all(self) -> Mapping[str, Any]:
        """Return settings and learned ones as the arguments of a call."""
        learned = {name: value for name, value in self.learned.items() if name not in (LOG_SCALE, BIAS)}
        if LOG_SCALE in self.learned:
            with torch.no_grad():  # as CLIP does: clamped where it lies, so that it can come down again
                self.learned[LOG_SCALE].clamp_(max=_HIGHEST)
            learned["scale"] = self.learned[LOG_SCALE].exp()
        return {**self.settings, **learned}

    def _learn(self, name: str) -> None:
        """Make a parameter of a setting that is asked for as "learned"."""
        if name in ("scale", "temperature"):
            defaults = self.entry.defaults
            start = defaults["scale"] if "scale" in defaults else 1 / defaults["temperature"]
            self.learned[LOG_SCALE] = nn.Parameter(torch.tensor(math.log(start)))
        elif name == "bias" and "bias" in self.entry.settings:
            self.settings["bias"] = "auto"
            self.learned[BIAS] = nn.Parameter(torch.tensor(0.0))
        else:
            raise ValueError(f"{name} of {self.entry.name} cannot be learned; scale, temperature and bias can")
