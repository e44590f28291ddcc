"""Comparators, which say who of two candidates is better, and the book that is kept of their answers.

A comparator is any callable over index pairs of one query's candidates, many pairs at once:

    comparator(first, second) → P(first is better), each (pairs,); in [0, 1], 1/2 for a tie

A model, a person, a formula: nothing else is asked of it. `from_scores` makes one of a pointwise scorer, and
`from_judgements` of a model that judges both candidates at once. `Comparisons` asks it: an answer is kept, so that no
pair is paid for twice, and each ordered pair that the comparator judges is one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

Indices: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Comparator: TypeAlias = Callable[[Indices, Indices], ArrayLike]
Judge: TypeAlias = Callable[[Indices, Indices], tuple[ArrayLike, ArrayLike]]
Scorer: TypeAlias = Callable[[Indices], ArrayLike]

CERTAIN = 20.0  # the logit that an answer of 0 or 1 counts as: float64 tells 1 - 2e-9 from 1


def from_scores(scores: ArrayLike | Scorer, *, temperature: float = 1.0) -> Comparator:
    """Make a comparator of a pointwise scorer.

        P(i better than j) = sigmoid((s_i - s_j) / temperature)

    Args:
        scores: (candidates,) finite, larger is better; or a callable of candidates' indices that returns their
            scores. A callable is asked for each candidate once, and its scores are kept.
        temperature: ≥ 0; 0 is the limit: 1, 0, and 1/2 for equal scores.

    Raises:
        ValueError: from the call or from the comparator, at a score that is not finite or missing.

    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be ≥ 0, got {temperature}")
    known: dict[int, float] = {}
    if not callable(scores):
        known.update(enumerate(_finite(scores, None)))

    def compare(first: Indices, second: Indices) -> Floats:
        if callable(scores):
            new = np.array([c for c in np.unique([first, second]) if c not in known], dtype=np.int64)
            if len(new):
                known.update(zip(new.tolist(), _finite(scores(new), new), strict=True))
        elif (last := int(max(first.max(initial=0), second.max(initial=0)))) >= len(known):
            raise ValueError(f"there are scores of {len(known)} candidates, but number {last} was asked about")
        differences = np.array([known[i] - known[j] for i, j in zip(first.tolist(), second.tolist(), strict=True)])
        answers: Floats = (1 + np.sign(differences)) / 2 if temperature == 0 else expit(differences / temperature)
        return answers

    return compare


def from_judgements(judge: Judge, *, rule: Literal["odds", "half"] = "odds") -> Comparator:
    """Make a comparator of a model that says of both candidates whether they are good.

        "odds"   a(1 - b) / (a(1 - b) + b(1 - a)), a and b = P(first is good), P(second is good):
                 that it is the first, given that exactly one of the two is good; sigmoid(logit a - logit b)
        "half"   (1 + a - b) / 2: that only the first is good, and half of the cases in which both or neither are

    Two candidates that are both certainly good, or both certainly bad, are a tie by either rule.

    Args:
        judge: callable of index pairs that returns two arrays (pairs,) in [0, 1].
        rule: how two judgements become one preference. With "odds", two heads of logits give their difference.

    Raises:
        ValueError: from the comparator, at judgements outside of [0, 1], the pair named.

    Sources: Pairwise RM, arXiv:2501.13007 (two judgements at once); PairRanker, arXiv:2306.02561 (two heads). Both
    rules are ours.

    """
    if rule not in ("odds", "half"):
        raise ValueError(f'rule must be "odds" or "half", got {rule!r}')

    def compare(first: Indices, second: Indices) -> Floats:
        good, other = (
            _probabilities(answer, first, second, f"P({which} is good)")
            for answer, which in zip(judge(first, second), ("first", "second"), strict=True)
        )
        if rule == "half":
            return (1 + good - other) / 2
        mine, theirs = good * (1 - other), other * (1 - good)
        answers: Floats = np.divide(mine, mine + theirs, out=np.full(len(first), 0.5), where=mine + theirs > 0)
        return answers

    return compare


class Comparisons:
    """The answers of one comparator about n candidates.

    Attributes:
        n: number of candidates.
        wins: (n, n) float64, [i, j] the answers in favour of i against j, summed: a fraction of a win where the
            answer is a probability, half a win each for a tie.
        margins: (n, n) float64, [i, j] the logits of those answers, summed; an answer of 0 or 1 counts ±20.
        calls: ordered pairs that the comparator has judged.
        duels: pairs that were put to it; each costs `repeats` calls, twice that with `both_orders`.
        exhausted: whether a duel was refused because the budget did not cover it.

    """

    def __init__(
        self,
        n: int,
        comparator: Comparator,
        *,
        both_orders: bool = False,
        repeats: int = 1,
        budget: int | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            n: number of candidates, ≥ 0.
            comparator: callable of index pairs, see the module.
            both_orders: ask (i, j) and (j, i) and take the mean, so that a preference for the first place cancels.
            repeats: how often each duel is asked; only of use when the same question gets different answers.
            budget: calls that may be made. None: any number.

        Raises:
            ValueError: at a number that is not whole or too small.

        """
        for name, value, least in (("n", n, 0), ("repeats", repeats, 1), ("budget", budget, 0)):
            is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and (not is_whole or value < least):
                raise ValueError(f"{name} must be a whole number ≥ {least}, got {value!r}")
        self.n = int(n)
        self.wins: Floats = np.zeros((n, n))
        self.margins: Floats = np.zeros((n, n))
        self.calls = self.duels = 0
        self.exhausted = False
        self._comparator, self._both_orders, self._repeats, self._budget = comparator, both_orders, repeats, budget

    @property
    def games(self) -> Floats:
        """(n, n) float64, how many answers there are about each pair."""
        return self.wins + self.wins.T

    @property
    def beaten(self) -> Indices:
        """(n,) how many of those that it was compared with each candidate beat."""
        beaten: Indices = (self.wins > self.wins.T).sum(axis=1)
        return beaten

    def ask(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """Return P(first is better) for pairs of candidates, the mean of all answers to a pair.

        Pairs that were asked before cost nothing. Where the budget ends, the pairs behind are not asked.

        Args:
            first, second: (pairs,) indices of candidates; no pair twice.

        Returns:
            (pairs,) float64, nan where the budget did not suffice.

        Raises:
            ValueError: when the comparator gives another number of answers, or one outside of [0, 1]: the pair named.

        """
        i, j = (np.atleast_1d(np.asarray(side, dtype=np.int64)) for side in (first, second))
        new = np.flatnonzero(self.wins[i, j] + self.wins[j, i] == 0)
        cost = self._repeats * (2 if self._both_orders else 1)
        if self._budget is not None and len(new) * cost > self._budget - self.calls:
            new = new[: (self._budget - self.calls) // cost]
            self.exhausted = True
        if len(new):
            self._play(i[new], j[new])
        won, lost = self.wins[i, j], self.wins[j, i]
        answers: Floats = np.divide(won, won + lost, out=np.full(len(i), np.nan), where=won + lost > 0)
        return answers

    def _play(self, first: Indices, second: Indices) -> None:
        """Put duels to the comparator, all of them in one call, and write its answers down."""
        if self._both_orders:
            i, j = np.concatenate([first, second]), np.concatenate([second, first])
        else:
            i, j = first, second
        i, j = np.tile(i, self._repeats), np.tile(j, self._repeats)
        answers = _probabilities(self._comparator(i, j), i, j, "P(first is better)")
        self.calls += len(i)
        self.duels += len(first)
        np.add.at(self.wins, (i, j), answers)
        np.add.at(self.wins, (j, i), 1 - answers)
        logits = np.clip(logit(answers), -CERTAIN, CERTAIN)
        np.add.at(self.margins, (i, j), logits)
        np.add.at(self.margins, (j, i), -logits)


def count_cycles(wins: Floats) -> tuple[int, int]:
    """Return how many triples of candidates go round in a circle, and how many triples there are.

    A triple counts when all three of its pairs were compared; it is a cycle when a beat b, b beat c and c beat a, each
    by more than half of the answers. With B[i, j] = 1 where i beat j and A = 1 where a pair was compared, there are
    trace(B³) / 3 cycles among trace(A³) / 6 triples, exactly. Where all pairs were compared without a tie, no cyclic
    triple means no cycle of any length; where pairs are missing, a longer cycle may hide.

    Args:
        wins: (n, n) the answers in favour of i against j.

    Source: Kendall and Babington Smith 1940 (doi:10.1093/biomet/31.3-4.324): circular triads.

    """
    beat = (wins > wins.T).astype(np.float64)
    compared = ((wins > 0) | (wins.T > 0)).astype(np.float64)
    cycles, triples = (float(np.sum((part @ part) * part.T)) for part in (beat, compared))
    return round(cycles / 3), round(triples / 6)


def _finite(scores: ArrayLike, candidates: Indices | None) -> list[float]:
    """Return scores as floats, one for each of `candidates`, or for however many there are."""
    values = np.asarray(scores, dtype=np.float64)
    wanted = "(candidates,)" if candidates is None else f"({len(candidates)},)"
    if values.ndim != 1 or (candidates is not None and len(values) != len(candidates)):
        raise ValueError(f"scores must have the shape {wanted}, got {values.shape}")
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        name = bad[0] if candidates is None else candidates[bad[0]]
        raise ValueError(f"the score of candidate {name} is {values[bad[0]]}; wanted a finite number")
    return [float(value) for value in values]


def _probabilities(answers: ArrayLike, first: Indices, second: Indices, what: str) -> Floats:
    """Return a comparator's answers as float64 or say which is none."""
    values = np.asarray(answers, dtype=np.float64)
    if values.shape != first.shape:
        raise ValueError(f"the comparator must give one {what} for each of {len(first)} pairs, got {values.shape}")
    if len(bad := np.flatnonzero(~((values >= 0) & (values <= 1)))):
        place = bad[0]
        raise ValueError(
            f"the comparator gave {values[place]} for candidates ({first[place]}, {second[place]}); wanted {what} in "
            "[0, 1]; did it return a logit?"
        )
    return values
