"""What speaks for and against each mined negative: its rank, scores, and how like the query's positives it reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from retrieval.errors import InputError
from retrieval.false_negatives import ScoredQuery, Values, ranks_among
from retrieval.near_duplicates import jaccard, shingles
from retrieval.progress import progress
from retrieval.reranking import PAIRS_PER_BLOCK, ByText, Reranker, RunReranker
from retrieval.rows import TrainingRow
from retrieval.text_likeness import TextLikeness
from retrieval.trec import Run, ranked

if TYPE_CHECKING:
    from retrieval.corpus import Corpus

log = logging.getLogger(__name__)

_SHINGLE = 3  # words
_ALIKE = 0.4  # cosine below which two texts are not compared word by word: nearly equal ones are far above it
_BLOCK = 4_096  # texts that are read at once
_RISES = 0.1  # where more of the steps down a list go up in score, it was not ordered by these scores


def _nothing() -> Values:
    return np.zeros((0, 0))


@dataclass(slots=True)
class MinedQuery:
    """A query's documents, from all its rows, negatives by rising rank.

    Attributes:
        text: the query.
        positives, negatives: ids.
        ranks: (negatives,) in the miner's list, from 1.
        row_scores: document id → score in the rows, where there is one.
        scores: of all its documents, by the reranker or from the rows; empty where there are none.
        cosines: (negatives, positives) by `retrieval.text_likeness`.
        positive_cosines: (positives, positives) likewise.
        repeats: (negatives, positives) Jaccard similarity of shingles, 0 where the cosine rules a near duplicate out.

    """

    text: str
    positives: list[str]
    negatives: list[str]
    ranks: Values
    row_scores: dict[str, float]
    scores: dict[str, float] = field(default_factory=dict)
    cosines: Values = field(default_factory=_nothing)
    positive_cosines: Values = field(default_factory=_nothing)
    repeats: Values = field(default_factory=_nothing)

    @property
    def has_row_scores(self) -> bool:
        """Whether the rows have a score of each document."""
        return all(doc_id in self.row_scores for doc_id in (*self.positives, *self.negatives))

    def positive_ranks(self) -> Values:
        """Return the (positives, 2) first and last rank that each positive could have, by the rows' scores.

        nan where these are missing or do not fall with the ranks, as those do by which the list was made; a few that
        are out of place change nothing.
        """
        if not self.has_row_scores:
            return np.full((len(self.positives), 2), np.nan)
        negatives = numbers(self.row_scores, self.negatives)
        if (np.diff(negatives) > 0).sum() > _RISES * (len(negatives) - 1):
            return np.full((len(self.positives), 2), np.nan)
        return ranks_among(numbers(self.row_scores, self.positives), -np.sort(-negatives), self.ranks)


def mined_queries(rows: Iterable[TrainingRow], corpus: Corpus) -> dict[str, MinedQuery]:
    """Return query id → its documents; a document that another row of the query has as positive is no negative.

    Raises:
        InputError: a document without an id or that the corpus lacks; no negative at all.
    """
    found: dict[str, MinedQuery] = {}
    ranks: dict[str, dict[str, float]] = {}
    n_unranked = 0
    for row in rows:
        where = f"query {row.query_id!r}"
        if len(row.negatives) > len(row.negative_ids) or len(row.positives) > len(row.positive_ids):
            raise InputError(f"{where}: has documents without ids; the audit reads rows as `mine` writes them")
        query = found.setdefault(row.query_id, MinedQuery(row.query, [], [], np.zeros(0), {}))
        own = ranks.setdefault(row.query_id, {})
        query.positives += [doc_id for doc_id in row.positive_ids if doc_id not in query.positives]
        places = row.negative_ranks or range(1, len(row.negative_ids) + 1)
        n_unranked += not row.negative_ranks and len(row.negative_ids) > 0
        for doc_id, rank in zip(row.negative_ids, places, strict=True):
            own.setdefault(doc_id, float(rank))
        for ids, scores in ((row.positive_ids, row.positive_scores), (row.negative_ids, row.negative_scores)):
            query.row_scores.update(zip(ids, scores, strict=False))
    n_both = 0
    for query_id, query in found.items():
        if not query.positives:
            raise InputError(f"query {query_id!r}: has no positive to compare its negatives with")
        own = ranks[query_id]
        n_both += len(own.keys() & set(query.positives))
        query.negatives = sorted(own.keys() - set(query.positives), key=lambda doc_id: (own[doc_id], doc_id))
        query.ranks = np.array([own[doc_id] for doc_id in query.negatives], dtype=np.float64)
        for doc_id in (*query.positives, *query.negatives):
            if doc_id not in corpus:
                raise InputError(
                    f"query {query_id!r}: document {doc_id!r} is not in the corpus; is --data the right one?"
                )
    if n_unranked:
        log.warning(
            "%d rows have no negative_ranks; their negatives are taken to stand in the order of ranks", n_unranked
        )
    if n_both:
        log.warning("%d negatives are positives in another row of the same query; left out", n_both)
    if not any(query.negatives for query in found.values()):
        raise InputError("the rows have no negative; `mine` finds some")
    return found


def score(queries: Mapping[str, MinedQuery], reranker: Reranker | RunReranker | None, corpus: Corpus) -> str:
    """Fill in `scores` and return what they are: "reranker", "rows" without one, or "" where there are none."""
    if reranker is not None:
        _rescore(queries, reranker if isinstance(reranker, RunReranker) else ByText(reranker, corpus))
        return "reranker"
    scored = [query for query in queries.values() if query.has_row_scores]
    for query in scored:
        query.scores = query.row_scores
    if not scored:
        return ""
    if len(scored) < len(queries):
        log.warning("%d of %d queries lack scores; not in the estimate", len(queries) - len(scored), len(queries))
    return "rows"


def compare_texts(queries: Mapping[str, MinedQuery], corpus: Corpus) -> None:
    """Fill in how like the positives the negatives read."""
    ids = dict.fromkeys(doc_id for query in queries.values() for doc_id in (*query.positives, *query.negatives))
    place = {doc_id: number for number, doc_id in enumerate(ids)}
    rows = [corpus.row(doc_id) for doc_id in ids]
    blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    likeness = TextLikeness(text for block in blocks for text in corpus.texts(block))
    for query in progress(queries.values(), unit="queries", label="comparing texts"):
        positives, negatives = ([place[doc_id] for doc_id in part] for part in (query.positives, query.negatives))
        query.cosines = likeness.cosines(negatives, positives)
        query.positive_cosines = likeness.cosines(positives, positives)
        query.repeats = np.zeros_like(query.cosines)
        alike = np.argwhere(query.cosines >= _ALIKE).tolist()
        wanted = {query.negatives[i] for i, _ in alike} | {query.positives[j] for _, j in alike}
        sets = {doc_id: shingles(corpus.text(corpus.row(doc_id)), _SHINGLE) for doc_id in wanted}
        for i, j in alike:
            query.repeats[i, j] = jaccard(sets[query.negatives[i]], sets[query.positives[j]])


def by_scores(queries: Iterable[MinedQuery]) -> list[ScoredQuery]:
    """Return the scores of queries that have them."""
    return [
        ScoredQuery(
            numbers(query.scores, query.positives),
            query.positive_ranks(),
            numbers(query.scores, query.negatives),
            query.ranks,
        )
        for query in queries
        if query.scores
    ]


def by_likeness(queries: Iterable[MinedQuery]) -> list[ScoredQuery]:
    """Return mean cosines to the query's known positives, of a positive to the others."""
    return [
        ScoredQuery(
            (query.positive_cosines.sum(axis=1) - query.positive_cosines.diagonal()) / (len(query.positives) - 1),
            query.positive_ranks(),
            query.cosines.mean(axis=1),
            query.ranks,
        )
        for query in queries
        if len(query.positives) > 1
    ]


def numbers(known: Mapping[str, float], doc_ids: Iterable[str]) -> Values:
    """Return the (documents,) numbers of documents, by id."""
    return np.array([known[doc_id] for doc_id in doc_ids], dtype=np.float64)


def _rescore(queries: Mapping[str, MinedQuery], reranker: RunReranker) -> None:
    """Fill in the reranker's scores as they are; `rerank` would part equal ones."""
    texts = {query_id: query.text for query_id, query in queries.items()}
    block: Run = {}
    last = next(reversed(texts))
    for query_id, query in queries.items():
        block[query_id] = _listed(query)
        if sum(map(len, block.values())) < PAIRS_PER_BLOCK and query_id != last:
            continue
        for name, scores in zip(block, reranker.score_run(texts, block), strict=True):
            if not np.isfinite(scores).all():
                raise InputError(f"query {name!r}: the reranker gives scores that are not finite numbers")
            queries[name].scores = dict(zip(block[name], scores.tolist(), strict=True))
        block = {}


def _listed(query: MinedQuery) -> dict[str, float]:
    """Return the candidates, best first, with the scores in the rows or, where these are unknown, falling numbers."""
    ids = [*query.positives, *query.negatives]
    if query.has_row_scores:
        return dict(ranked({doc_id: query.row_scores[doc_id] for doc_id in ids}))
    return {doc_id: -float(number) for number, doc_id in enumerate(ids)}
