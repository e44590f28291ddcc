"""What is known of a loss besides its formula: one row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from rankers.losses.inputs import check_mask, grades, positive_cells

LabelKind = Literal["binary", "probability", "grade", "teacher"]
Needs = Literal["rows", "rows + statistic", "whole matrix"]
Numbers = Mapping[str, Tensor]  # () numbers by name

# Tensors of one batch and how to reduce it: arguments of a call, not settings that a run folder can hold.
AT_CALL = frozenset({"where", "where_columns", "weights", "beta", "seen", "state", "reduction"})


def count_positive_rows(
    labels: Tensor, where: Tensor | None = None, *, positive_from: float = 1.0, **_: object
) -> Tensor:
    """Return the () number of rows with a valid label >= positive_from."""
    rows, _columns = positive_cells(labels, check_mask("where", where, labels), positive_from)
    return rows.bincount(minlength=len(labels)).count_nonzero()


def count_graded_rows(labels: Tensor, where: Tensor | None = None, **_: object) -> Tensor:
    """Return the () number of rows with a valid label > 0."""
    return (grades(labels, check_mask("where", where, labels), torch.float32) > 0).any(-1).sum()


def _as_they_are(tally: Numbers, **_: object) -> Numbers:
    return tally


@dataclass(frozen=True, slots=True, kw_only=True)
class LossEntry:
    """One row of the table.

    For every loss, settings and input: fn(…, reduction="sum") / count(labels, where, …) = fn(…), where a
    count of 0 counts as 1. Unless it needs the whole matrix, the sums of row blocks add up to that of all rows,
    given what the blocks cannot know: `totals` of the whole batch's tally and, for a loss that observes, what all
    blocks together have shown of the scores.

    Attributes:
        name: the key in users' YAML.
        fn: (scores, labels, *, where=None, reduction="mean", …settings) -> () tensor.
        labels: the kind of the labels; any other valid value is refused.
        use: what it is for, in a line.
        needs: what must be known at once, with the default settings.
        needs_if: the same under given settings, where they decide.
        cost: time per row of n documents, except the last.
        paper: author, year, and where to find it.
        defaults: of every setting that has one; `temperature` or `scale`, never both.
        unchanged_by: the constant that may be added to scores and changes nothing: another one for each query,
            the same for all of them, or none.
        count: (labels, where=None, …settings) -> () what "mean" divides by.
        tally: (labels, where=None, …settings) -> numbers of a block that add up to those of the batch.
        totals: (tally of the batch, …settings) -> {"count": …} and settings that a block cannot know.
        observe: (scores, labels, where=None, …settings) -> what a first pass over the scores must find out;
            given as `seen` to `fn`. None: no first pass.
        merge: joins what two blocks have shown.
        several_positives: a row may have several; else a trainer gives each its own row.
        state: of each query, name → its first value; given as `state` to `fn`, which then returns (loss, state).
        state_if: whether given settings keep a state; None: they do where there is one.

    """

    name: str
    fn: Callable[..., Any]
    labels: LabelKind
    use: str
    needs: Needs
    cost: Literal["linear", "n log n", "n²", "all pairs of the batch"]
    paper: str
    defaults: Mapping[str, Any]
    unchanged_by: Literal["one per query", "one for all", "none"] = "one per query"
    count: Callable[..., Tensor] = count_positive_rows
    tally: Callable[..., Numbers] | None = None
    totals: Callable[..., Numbers] = _as_they_are
    observe: Callable[..., Any] | None = None
    merge: Callable[[Any, Any], Any] | None = None
    several_positives: bool = True
    needs_if: Callable[[Mapping[str, Any]], Needs] | None = None
    state: Mapping[str, float] = field(default_factory=dict)
    state_if: Callable[[Mapping[str, Any]], bool] | None = None

    def needs_with(self, settings: Mapping[str, Any]) -> Needs:
        """Return what must be known at once under other settings than the defaults."""
        return self.needs if self.needs_if is None else self.needs_if(settings)

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of all settings, sorted."""
        parameters = signature(self.fn).parameters.values()
        keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        return tuple(sorted((keywords - AT_CALL) | self.defaults.keys()))
