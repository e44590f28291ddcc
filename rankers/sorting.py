"""Sorting by a comparator: a merge sort whose merges go on side by side, and one pass of bubble sort.

A tie leaves the one that stood first in front.
"""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from rankers.comparisons import Comparisons, Floats, Indices
from rankers.knockout import positions


def merge_sort(comparisons: Comparisons, start: Indices, top: int) -> tuple[Indices, Floats]:
    """Sort and return (order, scores n … 1); fewer than n ⌈log2 n⌉ duels for all ranks.

    All merges of a level are asked side by side, one duel of each at once. With `top`, a merge ends when it has so
    many; what is left over stands behind, by how many it has beaten. When the budget ends there are several sorted
    runs: candidates then stand by their place in their run, equal ones as given.
    """
    runs = [[int(candidate)] for candidate in start]
    while len(runs) > 1:
        merges = [_Merge(runs[k], runs[k + 1]) for k in range(0, len(runs) - 1, 2)]
        alone = runs[2 * len(merges) :]
        while todo := [merge for merge in merges if merge.first and merge.second and len(merge.done) < top]:
            answers = comparisons.ask([merge.first[0] for merge in todo], [merge.second[0] for merge in todo])
            for merge, answer in zip(todo, answers, strict=True):
                if not np.isnan(answer):
                    merge.done.append((merge.first if answer >= 0.5 else merge.second).pop(0))
            if np.isnan(answers).any():
                return positions(comparisons, _by_place([*(merge.all() for merge in merges), *alone]))
        runs = [*(merge.all()[:top] for merge in merges), *alone]
    return positions(comparisons, runs[0] if runs else [])


class _Merge:
    """Two sorted runs on their way into one."""

    def __init__(self, first: list[int], second: list[int]) -> None:
        self.first, self.second, self.done = first[:], second[:], list[int]()

    def all(self) -> list[int]:
        """Return what is merged, then the rest of both, in turns."""
        rest = [c for pair in zip_longest(self.first, self.second) for c in pair if c is not None]
        return self.done + rest


def _by_place(runs: list[list[int]]) -> list[int]:
    places = [(place, candidate) for run in runs for place, candidate in enumerate(run)]
    return [candidate for _, candidate in sorted(places)]


def bubble(comparisons: Comparisons, start: Indices) -> tuple[Indices, Floats]:
    """Carry the winner from the back to the front, n - 1 duels one after another; return (order, scores n … 1).

    It finds the best one. Who is carried and then beaten stays behind the victor; otherwise the order is that of the
    start.

    Source: PairRanker's cheap aggregation, arXiv:2306.02561; from back to front as in arXiv:2306.17563.
    """
    order = start.copy()
    for place in range(len(order) - 2, -1, -1):
        answer = comparisons.ask(order[place], order[place + 1])[0]
        if np.isnan(answer):
            break
        if answer < 0.5:
            order[[place, place + 1]] = order[[place + 1, place]]
    return positions(comparisons, order.tolist())
