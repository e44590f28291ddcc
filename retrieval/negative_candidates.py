"""Where negatives may come from: ranked lists of permitted documents by a dense index, by BM25, or by both.

Every list is freed of what is forbidden before it is numbered, and is searched deeper until it has enough left. With
both sources a document has the better of its two ranks and one score, that of the dense model: scores of BM25 and of a
model are never compared with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.negatives import Forbidden, PermittedDocuments
from retrieval.progress import progress
from retrieval.stored_neighbors import stored_neighbors
from retrieval.trec import rank_order

if TYPE_CHECKING:
    from indexes import FaissIndex
    from retrieval.bm25 import BM25Searcher
    from retrieval.corpus import Corpus
    from retrieval.embedding_store import EmbeddingStore
    from retrieval.encoder import Encoder
    from retrieval.rows import TrainingRow

Documents = NDArray[np.int64]  # row numbers of the corpus
Scores = NDArray[np.float32]

_PAIR_BLOCK = 1 << 16  # pairs of query and positive that are scored at once
_LEAST_DEPTH = 160  # searched for, so that another mining with a somewhat wider window finds its answer
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

    @cached_property
    def index(self) -> FaissIndex:
        """The documents, to be searched."""
        from indexes import FaissIndex

        index = FaissIndex(self._documents.dim)
        for block in self._documents.blocks():
            index.add(block)
        return index

    def best(self, numbers: Sequence[int], k: int) -> Iterator[tuple[Documents, Scores]]:
        """Yield the best documents of each row's query; ties by trec_eval's rule."""
        if len(numbers) == len(self.rows):
            k = max(k, _LEAST_DEPTH)
            found = stored_neighbors(self._store.folder, self._stored_queries, self._documents, k, lambda: self.index)
        else:
            found = self.index.search(self._queries[list(numbers)], k, ties=True)
        tied = ((found.scores[:, 1:] == found.scores[:, :-1]) & (found.rows[:, 1:] >= 0)).any(axis=1)
        for documents, scores, has_ties in zip(found.rows, found.scores, tied.tolist(), strict=True):
            if documents[-1] < 0:
                documents, scores = documents[documents >= 0], scores[documents >= 0]
            if has_ties:
                order = rank_order([self.corpus.ids[row] for row in documents.tolist()], scores)
                documents, scores = documents[order], scores[order]
            yield documents, scores

    def scores(self, number: int, documents: Documents) -> Scores:
        """Return the scores of some documents for one row's query."""
        found: Scores = self._documents.rows(documents) @ self._queries[number]
        return found

    def positive_scores(self) -> list[Scores]:
        """Return the scores of every row's positives, however far down they rank."""
        owners: list[int] = []
        places: list[int] = []  # rows of the corpus; below 0: -1 - number of the text
        n_texts = 0
        for number, row in enumerate(self.rows):
            if row.positives:
                mine = [-1 - text for text in range(n_texts, n_texts + len(row.positives))]
                n_texts += len(mine)
            else:
                mine = [self.corpus.row(doc_id) for doc_id in row.positive_ids]
            places += mine
            owners += [number] * len(mine)
        scores = np.empty(len(places), dtype=np.float32)
        for start in range(0, len(places), _PAIR_BLOCK):
            some = np.array(places[start : start + _PAIR_BLOCK], dtype=np.int64)
            vectors = np.empty((len(some), self._queries.shape[1]), dtype=np.float32)
            vectors[some >= 0] = self._documents.rows(some[some >= 0])
            vectors[some < 0] = self._texts[-1 - some[some < 0]]
            queries = self._queries[owners[start : start + _PAIR_BLOCK]]
            scores[start : start + _PAIR_BLOCK] = np.einsum("ij,ij->i", queries, vectors)
        ends = np.searchsorted(owners, np.arange(1, len(self.rows) + 1))
        return np.split(scores, ends[:-1])


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
        kept = permitted.mask(forbidden[number], documents)  # a text that both found under two ids
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
                mask = permitted.mask(forbidden[number], documents)
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
