"""Weights of a pair of documents that depend on their two ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.gains import discounts
from rankers.losses.pairs import DocumentPairs

RankWeights = Callable[[Tensor, Tensor], Tensor]  # ranks (n, 1) and (1, n), from 1 on -> (n, n)


def of_swap(a: Tensor, b: Tensor) -> Tensor:
    """Return |D(a) - D(b)|: what swapping two documents changes in DCG, per unit of gain."""
    return (discounts(a) - discounts(b)).abs()


def of_first(a: Tensor, b: Tensor) -> Tensor:
    """Return D(a)."""
    return discounts(a).expand(len(a), b.shape[1])


def of_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return D(|a - b|) - D(|a - b| + 1)."""
    distance = (a - b).abs().clamp_min(1)  # 0 is a document and itself, which is no pair
    return discounts(distance) - discounts(distance + 1)


def expected_weights(weights: Tensor, ordered: Tensor, where: Tensor) -> DocumentPairs:
    """Return the mean of (n, n) weights of two ranks over all orders of tied documents, for each row.

    Documents j and k of two groups of ties are equally often at any two ranks of these groups, and two of the same
    group at any two different ones: their weight is the mean over that block of ranks.
    """
    starts = (ordered[:, 1:] != ordered[:, :-1]) | ~where[:, 1:]
    if starts.all():
        return weights[None]
    group = F.pad(starts.cumsum(-1), (1, 0))  # (queries, n) of each rank
    shape = (*group.shape, group.shape[1])
    along, across = group[:, :, None].expand(shape), group[:, None, :].expand(shape)
    off_diagonal = weights.clone().fill_diagonal_(0).expand(shape)
    sums = torch.zeros_like(off_diagonal).scatter_add(2, across, off_diagonal)
    sums = torch.zeros_like(sums).scatter_add(1, along, sums)
    sums = sums.gather(1, along).gather(2, across)
    size = (group[:, :, None] == group[:, None, :]).sum(-1)
    counts = size[:, :, None] * size[:, None, :] - torch.where(along == across, size[:, :, None], 0)
    return sums / counts.clamp_min(1)
