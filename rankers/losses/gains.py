"""Gains and discounts of nDCG inside losses; the measure itself is in rankers/metrics.py."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rankers.losses.inputs import check_choice

Gain = Literal["exp2", "linear"]


def discounts(ranks: Tensor) -> Tensor:
    """Return 1 / log2(1 + rank) for ranks from 1 on, fractions included."""
    return 1 / torch.log2(1 + ranks)


def normalised_gains(grades: Tensor, gain: Gain, k: int | None = None) -> Tensor:
    """Return (queries, docs) gains over the row's ideal DCG@k; zeros in a row without a grade > 0.

    The gain of a grade y, >= 0 and 0 where masked, is y ("linear") or 2^y - 1 ("exp2"). It is computed over
    2^(the row's best grade), which cancels: 2^y of any grade then stays finite.
    """
    check_choice("gain", gain, "exp2", "linear")
    if not grades.shape[1]:  # the maximum of no columns is not known
        return grades
    best = grades.amax(-1, keepdim=True)
    if gain == "linear":
        gains = grades / best.masked_fill(best == 0, 1)
    else:
        gains = torch.exp2(grades - best) * -torch.expm1(-grades * math.log(2))
    ideal = gains.topk(min(k or grades.shape[1], grades.shape[1]), dim=-1).values
    ranks = torch.arange(1, ideal.shape[1] + 1, device=grades.device, dtype=grades.dtype)
    most = (ideal * discounts(ranks)).sum(-1, keepdim=True)
    return gains / most.masked_fill(most == 0, 1)
