"""Rank candidates by asking who of two is better: one interface, seven strategies, any comparator.

    ranking = rank(len(candidates), comparator, strategy="heap", top=10, budget=200, both_orders=True)
    [candidates[i] for i in ranking.order]

| strategy        | duels without a budget      | batches             | finds                                        |
|-----------------|-----------------------------|---------------------|----------------------------------------------|
| `max_logits`    | N(N - 1)/2                  | 1                   | order by mean logit against the others       |
| `max_wins`      | N(N - 1)/2                  | 1                   | order by share of the others beaten          |
| `bradley_terry` | N(N - 1)/2                  | 1                   | order by fitted strength, with errors        |
| `knockout`      | N - 1                       | ⌈log2 N⌉            | the best                                     |
| `bubble`        | N - 1                       | N - 1               | the best                                     |
| `heap`          | < N + top ⌈log2 N⌉          | ≤ top ⌈log2 N⌉      | the best `top`, in order                     |
| `sort`          | < N ⌈log2 N⌉                | < 3N                | the whole order, or the best `top`           |

Without `top`, `heap` asks the duels that `sort` asks, most of them one by one: with `top`, it needs fewer calls, and
`sort` fewer batches.

A budget limits the calls of the comparator. The first three then ask as many pairs as it covers, drawn so that every
candidate is in as many as every other, give or take one; the others stop where it ends and return the order that is
known by then. With a budget of 0 that is the given order. Where a budget covers very few duels of each candidate
(two, in `benchmarks/tournaments.py`), shares of wins order better: Bradley-Terry's errors add up along chains of duels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TypeAlias

import numpy as np

from rankers.bradley_terry import BradleyTerry, fit_bradley_terry
from rankers.comparisons import Comparator, Comparisons, Floats, Indices, count_cycles
from rankers.knockout import heap, knockout
from rankers.sorting import bubble, merge_sort

_TIE = 9  # decimals: scores closer than that differ by rounding, and the given order decides


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a strategy found, and what it cost.

    Attributes:
        order: (n,) int64 candidates, the best first; equal ones as they were given.
        scores: (n,) float64 by candidate, never against the order. Their meaning is the strategy's: mean logit, share
            of opponents beaten, strength, rounds survived; for `bubble`, `heap` and `sort` n for the first down to 1.
        calls: ordered pairs that the comparator judged.
        duels: pairs that were put to it: fewer than calls when each is asked in both orders, or repeatedly.
        cycles: triples of candidates among the compared ones of which a beat b, b beat c and c beat a.
        triples: triples of which all three pairs were compared: what `cycles` is to be held against.
        complete: False when the budget ended before the strategy did.
        wins: (n, n) float64 answers in favour of i against j; goes into `bradley_terry.misfit`.

    """

    order: Indices
    scores: Floats
    calls: int
    duels: int
    cycles: int
    triples: int
    complete: bool
    wins: Floats = field(repr=False)

    @cached_property
    def fit(self) -> BradleyTerry:
        """Bradley-Terry's model of all answers, whichever strategy asked for them; `fit.certainty` compares two."""
        return fit_bradley_terry(self.wins)

    @cached_property
    def confidence(self) -> Floats:
        """(n,) by rank: how far the answers support that the candidate there stands above those behind it.

            (a + 1) / (m + 2)   m answers about it and a candidate behind it, a of them in its favour

        That is the expected share of further such answers in its favour, after a uniform prior (Laplace's rule of
        succession): 1/2 where nothing was asked, such as at the last rank, below it where the answers speak against the
        order. The order was made from the same answers, so a confidence leans to the high side: the more, the noisier
        the comparator and the fewer the answers about a pair; `repeats` bring it down to the truth.
        """
        ranked = self.wins[np.ix_(self.order, self.order)]
        in_favour, against = np.triu(ranked).sum(axis=1), np.tril(ranked).sum(axis=0)
        confidence: Floats = (in_favour + 1) / (in_favour + against + 2)
        return confidence


Strategy: TypeAlias = Callable[[Comparisons, Indices, int, np.random.Generator], tuple[Indices, Floats]]


def rank(
    n: int,
    comparator: Comparator,
    *,
    strategy: str,
    top: int | None = None,
    budget: int | None = None,
    both_orders: bool = False,
    repeats: int = 1,
    seed: int | None = 0,
) -> Ranking:
    """Rank n candidates by a comparator.

    Args:
        n: number of candidates; 0 and 1 ask nothing.
        comparator: callable (first, second) → P(first is better), arrays of (pairs,); see `rankers.comparisons`.
        strategy: a key of `STRATEGIES`.
        top: ranks that are wanted, from `heap` and `sort`; the others always rank all. None: all.
        budget: calls of the comparator that may be made. None: as many as the strategy takes.
        both_orders: ask (i, j) and (j, i), for a comparator that favours a place; a duel then costs 2 calls.
        repeats: ask each duel so many times, for a comparator whose answers vary.
        seed: shuffles the start (bracket, heap, runs), chooses the pairs that a budget covers, and which of the two is
            asked about first. None: the start is the given order, which is worth something when it is a first
            stage's; pairs are chosen as with 0.

    Raises:
        ValueError: at an unknown strategy, a bad number, or an answer outside of [0, 1], its pair named.

    Sources: PairRanker, arXiv:2306.02561 (max_logits, max_wins, bubble); Pairwise RM, arXiv:2501.13007 (knockout);
    arXiv:2306.17563 (sorting by pairwise prompts).

    """
    if strategy not in STRATEGIES:
        near = get_close_matches(str(strategy), STRATEGIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(STRATEGIES)}"
        raise ValueError(f"unknown strategy {strategy!r}{hint}")
    if top is not None and (not isinstance(top, int | np.integer) or top < 1):
        raise ValueError(f"top must be a whole number ≥ 1, got {top!r}")
    comparisons = Comparisons(n, comparator, both_orders=both_orders, repeats=repeats, budget=budget)
    generator = np.random.default_rng(0 if seed is None else seed)
    start = np.arange(n) if seed is None else generator.permutation(n)
    order, scores = STRATEGIES[strategy](comparisons, start, n if top is None else int(top), generator)
    if comparisons.calls == 0:  # nothing is known but the order that was given
        order = np.arange(n)
        scores = np.zeros(n)
    cycles, triples = count_cycles(comparisons.wins)
    return Ranking(
        order=order,
        scores=scores,
        calls=comparisons.calls,
        duels=comparisons.duels,
        cycles=cycles,
        triples=triples,
        complete=not comparisons.exhausted,
        wins=comparisons.wins,
    )


def all_pairs(n: int, generator: np.random.Generator) -> tuple[Indices, Indices]:
    """Return every pair once, in an order of which each beginning is fair: (first, second), each (n(n - 1)/2,).

    The rounds of a round robin (the circle method) over shuffled candidates, in random order: in each round everybody
    plays once, one pauses when n is odd. Who is asked about first is drawn for each pair.
    """
    if n < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    seats = n + n % 2
    rounds, tables = generator.permutation(seats - 1)[:, None], np.arange(1, seats // 2)
    first = np.concatenate([rounds, (rounds + tables) % (seats - 1)], axis=1).ravel()
    second = np.concatenate([np.full_like(rounds, seats - 1), (rounds - tables) % (seats - 1)], axis=1).ravel()
    real = second < n  # with an odd n, the last seat is empty
    names, turned = generator.permutation(n), generator.random(len(first)) < 0.5
    pairs = np.where(turned, [second, first], [first, second])[:, real]
    return names[pairs[0]], names[pairs[1]]


def _max_logits(
    comparisons: Comparisons, _: Indices, __: int, generator: np.random.Generator
) -> tuple[Indices, Floats]:
    comparisons.ask(*all_pairs(comparisons.n, generator))
    games = comparisons.games
    margins = np.divide(comparisons.margins, games, out=np.zeros_like(games), where=games > 0)
    return _by_mean(margins, comparisons, otherwise=0.0)


def _max_wins(comparisons: Comparisons, _: Indices, __: int, generator: np.random.Generator) -> tuple[Indices, Floats]:
    comparisons.ask(*all_pairs(comparisons.n, generator))
    wins = comparisons.wins
    return _by_mean(np.where(comparisons.games > 0, (1 + np.sign(wins - wins.T)) / 2, 0), comparisons, otherwise=0.5)


def _bradley_terry(
    comparisons: Comparisons, _: Indices, __: int, generator: np.random.Generator
) -> tuple[Indices, Floats]:
    comparisons.ask(*all_pairs(comparisons.n, generator))
    scores = fit_bradley_terry(comparisons.wins).strengths
    return _by_score(scores), scores


def _by_mean(values: Floats, comparisons: Comparisons, *, otherwise: float) -> tuple[Indices, Floats]:
    """Order by the mean over the opponents met; who met nobody gets `otherwise`."""
    met = (comparisons.games > 0).sum(axis=1)
    scores = np.divide(values.sum(axis=1), met, out=np.full(comparisons.n, otherwise), where=met > 0)
    return _by_score(scores), scores


def _by_score(scores: Floats) -> Indices:
    return np.argsort(-np.round(scores, _TIE), kind="stable")


STRATEGIES: Mapping[str, Strategy] = {
    "max_logits": _max_logits,
    "max_wins": _max_wins,
    "bradley_terry": _bradley_terry,
    "knockout": lambda comparisons, start, top, generator: knockout(comparisons, start),
    "bubble": lambda comparisons, start, top, generator: bubble(comparisons, start),
    "heap": lambda comparisons, start, top, generator: heap(comparisons, start, top),
    "sort": lambda comparisons, start, top, generator: merge_sort(comparisons, start, top),
}
