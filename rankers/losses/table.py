"""The one table of losses: name → what is known of it. Each family's entries stand beside its formulas."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rankers.losses import (
    distillation,
    individual_temperature,
    lambdas,
    listwise,
    mann_whitney,
    metric_learning,
    ordinal_regression,
    pairwise,
    pointwise,
    smooth_ranks,
    soft_top_k,
    softmax,
    softmax_at_k,
    teacher_pairs,
)
from rankers.losses.entry import LossEntry
from rankers.losses.inputs import did_you_mean
from rankers.losses.module import RankingLoss

FAMILIES = (
    softmax,
    pointwise,
    mann_whitney,
    softmax_at_k,
    soft_top_k,
    listwise,
    smooth_ranks,
    distillation,
    individual_temperature,
    metric_learning,
    ordinal_regression,
    pairwise,
    lambdas,
    teacher_pairs,
)

LOSSES: Mapping[str, LossEntry] = MappingProxyType(
    {entry.name: entry for family in FAMILIES for entry in family.ENTRIES}
)


def build(name: str, **settings: Any) -> RankingLoss:
    """Return the loss of that name as a module.

    `build("mw", temperature=0.05)(scores, labels, where)` is a () tensor. Every name builds without settings;
    all settings are checked here.

    Raises:
        ValueError: at an unknown name or setting (naming the nearest) or a value that the loss refuses.

    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}{did_you_mean(name, LOSSES)}")
    return RankingLoss(LOSSES[name], **settings)
