"""Sums of losses: "bixse + 0.5*ranknet", built, called and divided as one loss is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankers.losses.entry import LabelKind, Needs, Numbers
from rankers.losses.inputs import check_number, did_you_mean
from rankers.losses.module import RankingLoss
from rankers.losses.table import build

_TERM = re.compile(r"(?:(?P<weight>[0-9.eE+-]+)\s*\*\s*)?(?P<name>[A-Za-z_]\w*)")
_ORDER: tuple[Needs, ...] = ("rows", "rows + statistic", "whole matrix")


def build_expression(expression: str, settings: Mapping[str, Any] | None = None) -> RankingLoss | LossSum:
    """Return the loss or the sum of losses that a text names.

        build_expression("mw", {"temperature": 0.05})
        build_expression("bixse + 0.5*ranknet", {"bixse.scale": 20, "ranknet.temperature": 0.1})

    A single name takes settings with or without its name before them; in a sum each setting stands under its loss.

    Raises:
        ValueError: at a text that is no sum, a loss named twice, labels that do not go together, or what `build`
            refuses.

    """
    weights = _parse(expression)
    own: dict[str, dict[str, Any]] = {name: {} for name in weights}
    for key, value in (settings or {}).items():
        name, dot, setting = key.partition(".")
        if not dot and len(weights) == 1:
            name, setting = next(iter(weights)), key
        elif not dot:
            example = f"loss.{next(iter(weights))}.{key}"
            raise ValueError(f"setting {key!r} belongs to which loss of {expression!r}? write {example}")
        if name not in own:
            raise ValueError(f"setting {key!r} is of a loss that {expression!r} does not name{did_you_mean(name, own)}")
        own[name][setting] = value
    losses = [build(name, **own[name]) for name in weights]
    if len(losses) == 1 and next(iter(weights.values())) == 1:
        return losses[0]
    return LossSum(losses, list(weights.values()))


def _parse(expression: str) -> dict[str, float]:
    """Return name → weight, in the order written."""
    found: dict[str, float] = {}
    for part in re.split(r"\s\+\s|\+(?=[A-Za-z_])|(?<=\w)\+(?=[0-9.])", expression):
        match = _TERM.fullmatch(part.strip())
        if match is None:
            raise ValueError(f'{part.strip()!r} in {expression!r} is no loss; wanted a sum like "bixse + 0.5*ranknet"')
        name = match["name"]
        if name in found:
            raise ValueError(f"{expression!r} names {name} twice; add up its weights")
        try:
            found[name] = float(match["weight"] or 1)
        except ValueError:
            raise ValueError(f"{match['weight']!r} before {name} is no number") from None
        check_number(f"the weight of {name}", found[name], positive=True)
    return found


class LossSum(nn.Module):
    """Σ weight · loss over the same (scores, labels, where); what :class:`RankingLoss` offers a trainer, term by term.

    Labels are one kind for all terms, or grades where some terms take grades and others 0/1 or probabilities, which
    get grade / `max_grade`. A teacher's scores go with no other kind. Where one term wants one relevant document in a
    row, all have such rows.

    Attributes:
        terms: the losses.
        weights: their factors.
        max_grade: what makes a probability of a grade; a trainer sets it.

    """

    def __init__(self, losses: list[RankingLoss], weights: list[float]) -> None:
        super().__init__()
        self.losses, self.weights, self.max_grade = nn.ModuleList(losses), weights, 1.0
        kinds = {loss.entry.labels for loss in losses}
        if "teacher" in kinds and len(kinds) > 1:
            by_kind = ", ".join(f"{loss.name}: {loss.entry.labels}" for loss in losses)
            raise ValueError(f"a teacher's scores are no relevance: these losses cannot share labels ({by_kind})")

    @property
    def terms(self) -> tuple[RankingLoss, ...]:
        """The losses that are added."""
        return tuple(self.losses)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The sum as text."""
        return " + ".join(
            loss.name if weight == 1 else f"{weight:g}*{loss.name}"
            for loss, weight in zip(self.terms, self.weights, strict=True)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting in force that is not learned, under its term's name."""
        return {f"{loss.name}.{name}": value for loss in self.terms for name, value in loss.settings.items()}

    @property
    def needs(self) -> Needs:
        """The most that any term needs to know at once."""
        return max((loss.needs for loss in self.terms), key=_ORDER.index)

    @property
    def observes(self) -> bool:
        """Whether any term must look at all blocks first."""
        return any(loss.observes for loss in self.terms)

    @property
    def keeps_state(self) -> bool:
        """Whether any term keeps a state of each query."""
        return any(loss.keeps_state for loss in self.terms)

    @property
    def is_symmetric(self) -> bool:
        """Whether any term asks documents for their queries too."""
        return any(loss.is_symmetric for loss in self.terms)

    def forward(self, scores: Tensor, labels: Tensor, where: Tensor | None = None, **at_call: Any) -> Tensor:
        """Return the () weighted sum."""
        values = [
            weight * loss(scores, self._labels(loss, labels), where, **_own(loss, at_call))
            for loss, weight in zip(self.terms, self.weights, strict=True)
        ]
        return torch.stack(values).sum()

    def count(self, labels: Tensor, where: Tensor | None = None) -> Tensor:
        """Return (terms,) what each term divides by."""
        return torch.stack([loss.count(self._labels(loss, labels), where) for loss in self.terms])

    def divisor(self, tally: Numbers) -> Tensor:
        """Return (terms,) what each term divides by."""
        return torch.stack([loss.divisor(_under(loss, tally)) for loss in self.terms])

    def tally(self, labels: Tensor, where: Tensor | None = None) -> Numbers:
        """Return each term's numbers, under its name."""
        return {
            f"{loss.name}.{name}": number
            for loss in self.terms
            for name, number in loss.tally(self._labels(loss, labels), where).items()
        }

    def totals(self, tally: Numbers) -> Numbers:
        """Return each term's totals, under its name."""
        return {
            f"{loss.name}.{name}": value
            for loss in self.terms
            for name, value in loss.totals(_under(loss, tally)).items()
        }

    def observe(self, scores: Tensor, labels: Tensor, where: Tensor | None = None, **at_call: Any) -> dict[str, Any]:
        """Return what a block shows, for each term that looks."""
        return {
            loss.name: loss.observe(scores, self._labels(loss, labels), where, **_own(loss, at_call))
            for loss in self.terms
            if loss.observes
        }

    def merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        """Join what two blocks have shown."""
        return {loss.name: loss.merge(one[loss.name], other[loss.name]) for loss in self.terms if loss.observes}

    def share(
        self,
        scores: Tensor,
        labels: Tensor,
        where: Tensor | None = None,
        *,
        totals: Numbers,
        weight: float | Tensor = 1.0,
        seen: Mapping[str, Any] | None = None,
        state: Mapping[str, Tensor] | None = None,
        **at_call: Any,
    ) -> Any:
        """Return a block's share, as :meth:`RankingLoss.share`; `weight` is one number or one for each term."""
        shares: list[Tensor] = []
        new: dict[str, Tensor] = {}
        for number, (loss, factor) in enumerate(zip(self.terms, self.weights, strict=True)):
            own = _own(loss, at_call)
            if seen is not None and loss.name in seen:
                own["seen"] = seen[loss.name]
            if state is not None and loss.keeps_state:
                own["state"] = _under(loss, state)
            outer = weight[number] if isinstance(weight, Tensor) and weight.ndim else weight
            result = loss.share(
                scores, self._labels(loss, labels), where, totals=_under(loss, totals), weight=outer * factor, **own
            )
            if "state" in own:
                result, found = result
                new |= {f"{loss.name}.{name}": values for name, values in found.items()}
            shares.append(result)
        total = torch.stack(shares).sum()
        return total if state is None else (total, new)

    def remember(self, queries: int) -> None:
        """Let each term hold the first state of so many queries."""
        for loss in self.terms:
            loss.remember(queries)

    def recall(self, queries: Tensor) -> dict[str, Tensor] | None:
        """Return the state of these queries, under the terms' names."""
        held = [(loss.name, loss.recall(queries)) for loss in self.terms]
        found = {f"{name}.{key}": values for name, state in held if state for key, values in state.items()}
        return found or None

    def keep(self, queries: Tensor, state: Mapping[str, Tensor]) -> None:
        """Let each term hold the new state of these queries."""
        for loss in self.terms:
            loss.keep(queries, _under(loss, state))

    @property
    def kind(self) -> LabelKind:
        """The labels that the sum takes: its terms' kind, or grades where they differ."""
        kinds = {loss.entry.labels for loss in self.terms}
        return kinds.pop() if len(kinds) == 1 else "grade"

    def _labels(self, loss: RankingLoss, labels: Tensor) -> Tensor:
        mixed = self.kind == "grade" and loss.entry.labels == "probability"
        return labels / self.max_grade if mixed else labels


def _own(loss: RankingLoss, at_call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments at a call that a term takes."""
    return {name: value for name, value in at_call.items() if name != "where_columns" or loss.is_symmetric}


def _under(loss: RankingLoss, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands under a term's name."""
    prefix = f"{loss.name}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
