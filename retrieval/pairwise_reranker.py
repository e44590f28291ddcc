"""A reranker that compares documents two by two: a pairwise model as the comparator of a tournament.

The model reads a query and two documents at once and scores both. Each duel is read in both orders, so that a liking
for a place cancels:

    P(a is better) = sigmoid(½ ((s_first - s_second)(a, b) - (s_first - s_second)(b, a)))

`rankers.tournaments` decides who meets. A tournament of N documents asks, in sequences that the model reads:
N(N - 1) for all pairs, fewer than 2N + 2 top ⌈log2 N⌉ for "heap", which is the default with the best 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rankers.tournaments import STRATEGIES, Ranking, rank
from retrieval.cross_encoder import CrossEncoder, check_texts, list_batches
from retrieval.errors import InputError, did_you_mean
from retrieval.progress import progress

if TYPE_CHECKING:
    from rankers.comparisons import Floats, Indices

STRATEGY, TOP = "heap", 10


def check_tournament(strategy: str = STRATEGY, top: int = TOP, budget: int | None = None) -> None:
    """Refuse settings of `PairwiseReranker` that are out of range."""
    if strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}{did_you_mean(strategy, STRATEGIES)}")
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    if budget is not None and budget < 2:
        raise InputError(f"budget must be at least 2, the sequences of one duel; got {budget}")


class PairwiseReranker:
    """Ranks the documents of a query by duels.

    Attributes:
        reader: the pairwise model.
        strategy: a key of `rankers.tournaments.STRATEGIES`.
        top: ranks that are wanted, from "heap" and "sort"; the documents behind stand by the duels that they have won.
        budget: sequences that the model may read for a query, two for a duel; None: as many as the strategy takes.

    Raises:
        InputError: the model does not compare, the strategy is unknown, or a number is too small.

    """

    def __init__(
        self, reader: CrossEncoder, *, strategy: str = STRATEGY, top: int = TOP, budget: int | None = None
    ) -> None:
        if reader.model.architecture != "pairwise":
            raise InputError(f"{reader.source} scores documents one by one; a tournament needs a pairwise model")
        check_tournament(strategy, top, budget)
        self.reader, self.strategy, self.top, self.budget = reader, strategy, top, budget

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[NDArray[np.float32]]:
        """Return the scores of every query's documents, (documents,) float32; larger is better.

        They order the documents of one query and mean nothing beyond: places, mean logits, shares of duels won, or
        strengths, as the strategy has it.
        """
        check_texts(queries, documents)
        with progress(total=len(queries), unit="lists", label="tournaments") as bar:
            found = []
            for query, texts in zip(queries, documents, strict=True):
                found.append(self._scores(self.rank(query, texts)))
                bar.update(1)
        return found

    def _scores(self, ranking: Ranking) -> NDArray[np.float32]:
        scores = ranking.scores.astype(np.float32)
        if self.strategy == "knockout":  # the rounds that documents survived tie, and the order does not
            scores[ranking.order] = np.arange(len(scores), 0, -1)
        return scores

    def rank(self, query: str, documents: Sequence[str]) -> Ranking:
        """Return the whole result of a query's tournament; each of its calls is a duel, which the model reads twice."""

        def better(first: Indices, second: Indices) -> Floats:
            return self.better([query] * len(first), [documents[i] for i in first], [documents[i] for i in second])

        budget = None if self.budget is None else self.budget // 2
        return rank(len(documents), better, strategy=self.strategy, top=self.top, budget=budget, seed=None)

    def better(self, queries: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> Floats:
        """Return P(first is better) of duels, (n,); exactly 1 - what the reverse order gives, up to rounding.

        Raises:
            InputError: the model's scores are not numbers.

        """
        both = [*queries, *queries], [*firsts, *seconds], [*seconds, *firsts]
        tokens = self.reader.pairs.tokenize_duels(*both)
        margins = np.empty(len(tokens))
        for rows in list_batches([1] * len(tokens), [len(one) for one in tokens], self.reader.batch_tokens):
            scores = self.reader.infer([tokens[row] for row in rows]).astype(np.float64)
            margins[rows] = scores[:, 0] - scores[:, 1]
        if not np.isfinite(margins).all():
            number = int(np.argmin(np.isfinite(margins)))
            raise InputError(f"{self.reader.source} gives scores that are not numbers for {both[0][number][:80]!r}")
        found: Floats = expit((margins[: len(queries)] - margins[len(queries) :]) / 2)
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores."""
        more = {"strategy": self.strategy, "top": self.top, "budget": self.budget}
        return {**self.reader.fingerprint(), **more}
