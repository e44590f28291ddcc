"""Where negatives may come from: ranked lists of permitted documents by a dense index, by BM25, or by both.

Every list is freed of what is forbidden before it is numbered, and is searched deeper until it has enough left. With
both sources a document has the better of its two ranks and one score, that of the dense model: scores of BM25 and of a
model are never compared with each other. A model reads the first tokens of a text alone, so that two texts may be one
to it: a document that has the vector of one of the row's positives is as forbidden as a copy of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.negatives import Forbidden, PermittedDocuments
from retrieval.progress import progress
from retrieval.stored_neighbors import stored_neighbors

if TYPE_CHECKING:
    from indexes import FaissIndex
    from indexes.neighbors import Neighbors
    from retrieval.bm25 import BM25Searcher
    from retrieval.corpus import Corpus
    from retrieval.embedding_store import EmbeddingStore
    from retrieval.encoder import Encoder
    from retrieval.rows import TrainingRow

log = logging.getLogger(__name__)

Documents = NDArray[np.int64]  # row numbers of the corpus
Scores = NDArray[np.float32]

_PAIR_BLOCK = 1 << 16  # pairs of query and positive that are scored at once
_LEAST_DEPTH = 160  # searched for, so that another mining with a somewhat wider window finds its answer
_LARGEST_ANSWER = 1 << 22  # documents that are found at once where a search goes deeper
_SAME_SCORE = 1e-4  # as a share of 1 + |score|: more than rounding parts the scores of equal vectors
_SPARE = 32  # documents fetched beyond what is wanted: most queries have fewer forbidden ones among their best


@dataclass(frozen=True, slots=True)
class Candidates:
    """The permitted candidates of one row, best first.

    Attributes:
        documents: (candidates,) row numbers of the corpus.
        scores: (candidates,) of one kind.
        ranks: (candidates,) int64 from 1.
        positive_scores: (positives,) of the same kind, in the row's order; empty where they cannot be told.
    """

    documents: Documents
    scores: Scores
    ranks: NDArray[np.int64]
    positive_scores: Scores

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> Candidates:
        """Return some of the candidates, in the order given."""
        chosen = np.array(places, dtype=np.int64)
        return Candidates(self.documents[chosen], self.scores[chosen], self.ranks[chosen], self.positive_scores)


class Source(Protocol):
    """Ranks documents for the queries of training rows, which are known by their numbers."""

    def best(self, numbers: Sequence[int], k: int) -> Iterator[tuple[Documents, Scores]]:
        """Yield the best documents of each row's query, k or more where there are as many, best first."""
        ...

    def positive_scores(self) -> list[Scores]:
        """Return the scores of every row's positives."""
        ...

    def same_as_positive(self, number: int, documents: Documents, scores: Scores) -> NDArray[np.bool_]:
        """Return which of (documents,), which have these scores, are one of the row's positives to the source."""
        ...


class DenseSource:
    """All documents by their inner product with the query, exactly.

    Args:
        encoder: the model.
        corpus: the documents.
        rows: the training rows; a positive that comes as a text is encoded as a document.
        store: where embeddings are taken from, and kept.
    """

    def __init__(self, encoder: Encoder, corpus: Corpus, rows: Sequence[TrainingRow], store: EmbeddingStore) -> None:
        self.corpus, self.rows, self._store, fingerprint = corpus, rows, store, encoder.fingerprint()
        self._documents = store.embed_corpus(encoder, corpus, fingerprint)
        ids = [row.query_id for row in rows]
        self._stored_queries = store.embed(
            encoder, "query", ids, lambda some: [rows[i].query for i in some], fingerprint=fingerprint
        )
        self._queries = self._stored_queries.rows()
        given = [text for row in rows for text in row.positives]
        owners = [row.query_id for row in rows for _ in row.positives]
        texts = store.embed(encoder, "document", owners, lambda some: [given[i] for i in some], fingerprint=fingerprint)
        self._texts = texts.rows()
        zero = np.flatnonzero(~self._queries.any(axis=1)).tolist()
        if zero:
            message = "%d of %d queries have a zero vector and no dense candidates (first: %s)"
            log.warning(message, len(zero), len(rows), ids[zero[0]])

    @cached_property
    def index(self) -> FaissIndex:
        """The documents, to be searched."""
        from indexes import FaissIndex

        index = FaissIndex(self._documents.dim)
        for block in self._documents.blocks():
            index.add(block)
        return index

    def best(self, numbers: Sequence[int], k: int) -> Iterator[tuple[Documents, Scores]]:
        """Yield the best documents of each row's query, equal ones in the order of the corpus.

        A query whose vector is zero has none.
        """
        if len(numbers) == len(self.rows):
            k = max(k, _LEAST_DEPTH)
            found = stored_neighbors(self._store.folder, self._stored_queries, self._documents, k, lambda: self.index)
            yield from _found(found)
            return
        size = max(1, _LARGEST_ANSWER // k)
        for start in range(0, len(numbers), size):
            yield from _found(self.index.search(self._queries[list(numbers[start : start + size])], k))

    def scores(self, number: int, documents: Documents) -> Scores:
        """Return the scores of some documents for one row's query."""
        found: Scores = self._documents.rows(documents) @ self._queries[number]
        return found

    def positive_scores(self) -> list[Scores]:
        """Return the scores of every row's positives, however far down they rank."""
        return self._positive_scores

    @cached_property
    def _positive_scores(self) -> list[Scores]:
        owners = np.repeat(np.arange(len(self.rows)), list(map(len, self._positives)))
        places = np.concatenate(self._positives)
        scores = np.empty(len(places), dtype=np.float32)
        for start in range(0, len(places), _PAIR_BLOCK):
            block = slice(start, start + _PAIR_BLOCK)
            vectors = self._vectors(places[block])
            scores[block] = np.einsum("ij,ij->i", self._queries[owners[block]], vectors)
        return np.split(scores, np.cumsum(list(map(len, self._positives)))[:-1])

    @cached_property
    def _positives(self) -> list[NDArray[np.int64]]:
        """Where each row's positives lie: rows of the corpus; below 0: -1 - number of the text."""
        found, n_texts = [], 0
        for row in self.rows:
            if row.positives:
                places = [-1 - text for text in range(n_texts, n_texts + len(row.positives))]
                n_texts += len(places)
            else:
                places = [self.corpus.row(doc_id) for doc_id in row.positive_ids]
            found.append(np.array(places, dtype=np.int64))
        return found

    def _vectors(self, places: NDArray[np.int64]) -> Scores:
        """Return the (places, dim) vectors of positives."""
        vectors = np.empty((len(places), self._documents.dim), dtype=np.float32)
        vectors[places >= 0] = self._documents.rows(places[places >= 0])
        vectors[places < 0] = self._texts[-1 - places[places < 0]]
        return vectors

    def same_as_positive(self, number: int, documents: Documents, scores: Scores) -> NDArray[np.bool_]:
        """Return which of (documents,) have exactly the vector of one of the row's positives."""
        return same_vectors(
            scores,
            self._positive_scores[number],
            lambda near: self._documents.rows(documents[near]),
            lambda: self._vectors(self._positives[number]),
        )


def same_vectors(
    scores: Scores,
    positive_scores: Scores,
    documents: Callable[[NDArray[np.intp]], Scores],
    positives: Callable[[], Scores],
) -> NDArray[np.bool_]:
    """Return which documents have exactly the vector of a positive.

    Args:
        scores: (documents,)
        positive_scores: (positives,) by the same query.
        documents: returns the vectors of some of the documents; of those alone that score like a positive.
        positives: returns the (positives, dim) vectors.
    """
    same: NDArray[np.bool_] = np.zeros(len(scores), dtype=bool)
    likeness = np.abs(scores[:, None] - positive_scores) <= _SAME_SCORE * (1 + np.abs(positive_scores))
    near = np.flatnonzero(likeness.any(axis=1))
    if len(near):
        same[near] = (documents(near)[:, None] == positives()).all(axis=2).any(axis=1)
    return same


def _found(neighbors: Neighbors) -> Iterator[tuple[Documents, Scores]]:
    """Yield each query's documents and scores without what fills up short rows."""
    for documents, scores in zip(neighbors.rows, neighbors.scores, strict=True):
        if len(documents) and documents[-1] < 0:
            documents, scores = documents[documents >= 0], scores[documents >= 0]
        yield documents, scores


class BM25Source:
    """The documents that share a term with the query, by BM25."""

    def __init__(self, searcher: BM25Searcher, rows: Sequence[TrainingRow]) -> None:
        self.searcher, self.rows = searcher, rows

    def best(self, numbers: Sequence[int], k: int) -> Iterator[tuple[Documents, Scores]]:
        """Yield the best documents of each row's query; fewer where fewer share a term with it."""
        corpus = self.searcher.corpus
        for number in numbers:
            found = self.searcher.search(self.rows[number].query, k)
            rows = np.array([corpus.row(doc_id) for doc_id, _ in found], dtype=np.int64)
            yield rows, np.array([score for _, score in found], dtype=np.float32)

    def positive_scores(self) -> list[Scores]:
        """Return the scores of every row's positives; none for a row that brings them as texts."""
        corpus = self.searcher.corpus
        found = []
        for row in self.rows:
            rows = [] if row.positives else [corpus.row(doc_id) for doc_id in row.positive_ids]
            found.append(self.searcher.scores(row.query)[rows])
        return found

    def same_as_positive(self, number: int, documents: Documents, scores: Scores) -> NDArray[np.bool_]:
        """Return none: BM25 reads whole texts, and copies of these are known without it."""
        return np.zeros(len(documents), dtype=bool)


def permitted_candidates(
    sources: Sequence[Source],
    n_documents: int,
    permitted: PermittedDocuments,
    forbidden: Sequence[Forbidden],
    depth: int,
    removed: Counter[str],
) -> list[Candidates]:
    """Return every row's candidates down to rank `depth`.

    Args:
        sources: one of them, or the dense one and BM25 in this order.
        n_documents: in the corpus.
        permitted, forbidden: what may be a negative, and what of each row may not.
        depth: of each list; a list is shorter only where the source has no more.
        removed: counts what was forbidden above the lists' ends.
    """
    lists = [_to_depth(source, n_documents, permitted, forbidden, depth, removed) for source in sources]
    positives = sources[0].positive_scores()
    if len(lists) == 1:
        return [
            Candidates(documents, scores, np.arange(1, len(documents) + 1), positives[number])
            for number, (documents, scores) in enumerate(lists[0])
        ]
    dense = sources[0]
    assert isinstance(dense, DenseSource)
    found = []
    for number, (by_model, by_words) in enumerate(zip(*lists, strict=True)):
        documents, scores, ranks = _union(dense, number, by_model, by_words[0])
        # Again: a text that both found under two ids, and what the model alone knows.
        kept = _permitted(dense, number, permitted, forbidden[number], documents, scores)
        found.append(Candidates(documents[kept], scores[kept], ranks[kept], positives[number]))
    return found


def _to_depth(
    source: Source,
    n_documents: int,
    permitted: PermittedDocuments,
    forbidden: Sequence[Forbidden],
    depth: int,
    removed: Counter[str],
) -> list[tuple[Documents, Scores]]:
    """Search as deep as it takes to find `depth` permitted documents of every row."""
    lists: dict[int, tuple[Documents, Scores]] = {}
    pending: Sequence[int] = range(len(forbidden))
    k = min(depth + _SPARE, n_documents)
    with progress(total=len(pending), unit="queries", label="searching") as bar:
        while pending:
            too_short = []
            for number, (documents, scores) in zip(pending, source.best(pending, k), strict=True):
                mask = _permitted(source, number, permitted, forbidden[number], documents, scores)
                ends = np.flatnonzero(mask)[depth - 1 : depth]
                if not len(ends) and k <= len(documents) < n_documents:
                    too_short.append(number)
                    continue
                if len(ends):
                    n = int(ends[0]) + 1
                    documents, scores, mask = documents[:n], scores[:n], mask[:n]
                forbidden[number].count(documents, mask, removed)
                lists[number] = documents[mask], scores[mask]
                bar.update()
            pending, k = too_short, min(2 * k, n_documents)
    return [lists[number] for number in range(len(forbidden))]


def _permitted(
    source: Source,
    number: int,
    permitted: PermittedDocuments,
    forbidden: Forbidden,
    documents: Documents,
    scores: Scores,
) -> NDArray[np.bool_]:
    """Return which of a row's documents, best first, may be negatives."""
    mask = permitted.mask(forbidden, documents)
    places = np.flatnonzero(mask)
    mask[places] = ~source.same_as_positive(number, documents[places], scores[places])
    return mask


def _union(
    dense: DenseSource, number: int, by_model: tuple[Documents, Scores], by_words: Documents
) -> tuple[Documents, Scores, NDArray[np.int64]]:
    """Return the documents of both lists with scores and best ranks, by rank and then by score."""
    documents, scores = by_model
    new = ~np.isin(by_words, documents)
    ranks = np.arange(1, len(documents) + 1)
    rank_of = {row: rank for rank, row in enumerate(by_words.tolist(), start=1)}
    ranks = np.array(
        [min(rank, rank_of.get(row, rank)) for rank, row in zip(ranks.tolist(), documents.tolist(), strict=True)],
        dtype=np.int64,
    )
    documents = np.concatenate([documents, by_words[new]])
    scores = np.concatenate([scores, dense.scores(number, by_words[new])])
    ranks = np.concatenate([ranks, np.flatnonzero(new) + 1])
    order = np.lexsort((documents, -scores, ranks))
    return documents[order], scores[order], ranks[order]
