"""The one table of losses, and the module that holds a loss and its settings for a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankers.losses.inputs import check_mask, grades, positives
from rankers.losses.mann_whitney import mw, mw_count
from rankers.losses.pointwise import bixse, bixse_count, bixse_statistics
from rankers.losses.softmax import decoupled_softmax, infonce, softmax_ce
from rankers.losses.softmax_at_k import sl_at_k

# Tensors of one batch and how to reduce it: arguments of a call, not settings that a run folder can hold.
_AT_CALL = frozenset({"where", "where_columns", "beta", "reduction"})


def _no_statistics(labels: Tensor, where: Tensor | None = None, **_: object) -> Mapping[str, Tensor]:
    return {}


def count_positive_rows(
    labels: Tensor, where: Tensor | None = None, *, positive_from: float = 1.0, **_: object
) -> Tensor:
    """Return the () number of rows with a valid label >= positive_from."""
    return positives(labels, check_mask("where", where, labels), positive_from).any(-1).sum()


def count_graded_rows(labels: Tensor, where: Tensor | None = None, **_: object) -> Tensor:
    """Return the () number of rows with a valid label > 0."""
    return (grades(labels, check_mask("where", where, labels), torch.float32) > 0).any(-1).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEntry:
    """What is known of a loss besides its formula.

    For every loss, settings and input: fn(…, reduction="sum") / count(labels, where, …) = fn(…), where a
    count of 0 counts as 1. Unless it needs the whole matrix, sums and counts of row blocks add up to those of
    all rows, given the whole batch's `statistics` as settings.
    """

    name: str  # the key in users' YAML
    fn: Callable[..., Tensor]  # (scores, labels, *, where=None, reduction="mean", …settings) -> ()
    labels: Literal["binary", "probability", "grade"]  # any other valid value is refused
    use: str
    needs: Literal["rows", "rows + statistic", "whole matrix"]  # with the default settings
    cost: Literal["linear", "n log n", "n²", "all pairs of the batch"]  # time per row, except the last
    paper: str
    defaults: Mapping[str, Any]  # of every setting that has one; `temperature` or `scale`, never both
    count: Callable[..., Tensor]  # (labels, where=None, …settings) -> () what "mean" divides by
    statistics: Callable[..., Mapping[str, Tensor]] = _no_statistics  # (labels, where=None, …settings) -> settings
    several_positives: bool = True  # a row may have several; else a trainer gives each its own row
    whole_matrix_if: str = ""  # the setting that, when true, couples the rows

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of all settings, sorted."""
        parameters = signature(self.fn).parameters.values()
        keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        return tuple(sorted((keywords - _AT_CALL) | self.defaults.keys()))


class RankingLoss(nn.Module):
    """Holds a loss and its settings, so that a trainer can call, print, save and split it.

    `loss(scores, labels, where)` is the loss. A batch whose rows come in blocks has the same loss and
    gradient:

        totals = loss.totals(labels, where)                            # of the whole batch
        for each block of rows:  loss.share(scores, labels, where, totals=totals).backward()

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
                raise ValueError(f"unknown setting {name!r} of {entry.name}{_did_you_mean(name, entry.settings)}")
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
    def needs(self) -> str:
        """What must be known at once, under these settings: rows · rows + statistic · whole matrix."""
        coupled = bool(self.settings.get(self.entry.whole_matrix_if, False))
        return "whole matrix" if coupled else self.entry.needs

    def forward(self, scores: Tensor, labels: Tensor, where: Tensor | None = None, **at_call: Any) -> Tensor:
        """Return the () loss; `at_call` are arguments of the loss that win over the settings."""
        settings = {**self.settings, **self.learned, **at_call}
        loss: Tensor = self.entry.fn(scores, labels, where=where, **settings)
        return loss

    def count(self, labels: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the () number that the loss divides its sum by."""
        return self.entry.count(labels, where, **self.settings)

    def totals(self, labels: Tensor, where: Tensor | None = None) -> dict[str, Tensor]:
        """Return what the blocks of a batch must know of all its rows, for `share`."""
        settings = {**self.settings, **self.learned}
        return {"count": self.count(labels, where), **self.entry.statistics(labels, where, **settings)}

    def share(
        self,
        scores: Tensor,
        labels: Tensor,
        where: Tensor | None = None,
        *,
        totals: Mapping[str, Tensor],
        **at_call: Any,
    ) -> Tensor:
        """Return a block's share of the whole batch's loss; the shares of all blocks of rows add up to it.

        Raises:
            ValueError: if the loss couples the rows and these are not all of them.

        """
        count = totals["count"]
        if self.needs == "whole matrix" and (ours := int(self.count(labels, where))) != int(count):
            raise ValueError(
                f"{self.entry.name} with these settings needs the whole matrix, but this block holds {ours} "
                f"of {int(count)} terms; pass all rows at once"
            )
        statistics = {name: value for name, value in totals.items() if name != "count"}
        total: Tensor = self(scores, labels, where, reduction="sum", **statistics, **at_call)
        return total / count.clamp_min(1)

    def extra_repr(self) -> str:
        """Show the name and the settings."""
        return ", ".join([self.entry.name, *(f"{name}={value}" for name, value in self.settings.items())])


def build(name: str, **settings: Any) -> RankingLoss:
    """Return the loss of that name as a module.

    `build("mw", temperature=0.05)(scores, labels, where)` is a () tensor. Every name builds without settings;
    all settings are checked here.

    Raises:
        ValueError: at an unknown name or setting (naming the nearest) or a value that the loss refuses.

    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}{_did_you_mean(name, LOSSES)}")
    return RankingLoss(LOSSES[name], **settings)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


_BINARY = {"temperature": 0.05, "positive_from": 1.0}

LOSSES: Mapping[str, LossEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            LossEntry(
                name="infonce",
                fn=infonce,
                labels="binary",
                use="one relevant document per query, in-batch and mined negatives: the place to start",
                needs="rows",
                cost="linear",
                paper="van den Oord et al. 2018, arXiv:1807.03748",
                defaults={**_BINARY, "symmetric": False},
                count=count_positive_rows,
                several_positives=False,
                whole_matrix_if="symmetric",
            ),
            LossEntry(
                name="bixse",
                fn=bixse,
                labels="probability",
                use="graded or soft labels, scores wanted as calibrated probabilities",
                needs="rows + statistic",
                cost="linear",
                paper="BiXSE 2025, arXiv:2508.06781",
                defaults={"scale": 10.0, "bias": "auto", "keep_empty_rows": False},
                count=bixse_count,
                statistics=bixse_statistics,
            ),
            LossEntry(
                name="mw",
                fn=mw,
                labels="binary",
                use="one threshold for all queries: optimises the pooled ROC-AUC",
                needs="whole matrix",
                cost="all pairs of the batch",
                paper="MW loss 2025, arXiv:2510.00137",
                defaults={**_BINARY, "reduction": "mean"},
                count=mw_count,
            ),
            LossEntry(
                name="sl_at_k",
                fn=sl_at_k,
                labels="binary",
                use="many relevant documents per query, some of them false; the top K counts (nDCG@K)",
                needs="rows",
                cost="linear",
                paper="Yang et al. 2025, arXiv:2508.05673",
                defaults={
                    "k": 10,
                    "temperature": 0.1,
                    "weight_temperature": None,
                    "detach_weight": False,
                    "positive_from": 1.0,
                },
                count=count_positive_rows,
            ),
            LossEntry(
                name="decoupled_softmax",
                fn=decoupled_softmax,
                labels="binary",
                use="many relevant documents per query, easy and hard ones together",
                needs="rows",
                cost="linear",
                paper="Gupta et al. 2024, arXiv:2310.10636",
                defaults=_BINARY,
                count=count_positive_rows,
            ),
            LossEntry(
                name="softmax_ce",
                fn=softmax_ce,
                labels="grade",
                use="lists of documents with grades",
                needs="rows",
                cost="linear",
                paper="Bruch et al. 2019, doi:10.1145/3341981.3344221",
                defaults={"temperature": 0.05, "list_weight": "equal"},
                count=count_graded_rows,
            ),
        )
    }
)
