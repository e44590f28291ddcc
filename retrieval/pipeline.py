"""A first stage that finds, a second one that reranks: joined, timed, and called like one searcher.

    Pipeline(Searcher.load("scifact.index"), load_reranker("runs/reranker")).search("is vitamin D protective?")
    Pipeline(Hybrid([BM25Searcher.build(corpus), searcher]), reranker).run(queries, k=100)

Whatever has `run(queries, k)` is a first stage: `Searcher`, `BM25Searcher`, several of them as a `Hybrid`, a
`Pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from retrieval.bm25 import BM25Searcher
from retrieval.errors import InputError
from retrieval.fusion import RANK_CONSTANT, Method, Norm, check_fusion, fuse
from retrieval.reranking import Reranker, RunReranker, rerank
from retrieval.search import Hit, Searcher
from retrieval.trec import Run

if TYPE_CHECKING:
    from retrieval.corpus import Corpus


class FirstStage(Protocol):
    """Finds the best documents of queries."""

    def run(self, queries: Mapping[str, str], k: int) -> Run:
        """Return at most k documents of every query: query id → document id → score, best first."""
        ...


class Hybrid:
    """Several first stages as one: each finds k documents of a query, and the lists are fused.

    Args:
        searchers: two or more.
        method, weights, norm, rank_constant: as in `retrieval.fusion.fuse`.
    """

    def __init__(
        self,
        searchers: Sequence[FirstStage],
        method: Method = "rrf",
        *,
        weights: Sequence[float] | None = None,
        norm: Norm | None = None,
        rank_constant: float = RANK_CONSTANT,
    ) -> None:
        check_fusion(len(searchers), method, weights, norm, rank_constant, None)
        self.searchers = list(searchers)
        self._fuse = partial(fuse, method=method, weights=weights, norm=norm, rank_constant=rank_constant)

    def run(self, queries: Mapping[str, str], k: int) -> Run:
        """Return the k best documents of every query after fusion; one that nothing answers has none."""
        return self._fuse([searcher.run(queries, k) for searcher in self.searchers], k=k)


class Pipeline:
    """Retrieves, reranks the best `depth` documents, and keeps the others below them in their old order.

    Args:
        searcher: the first stage.
        reranker: the second; None: there is none.
        corpus: the documents; None: those that the first stage searches, where it has them.
        depth: how many documents of each query are retrieved (at least as many as are asked for) and reranked.

    Attributes:
        timings: seconds that each stage of the last call took: "retrieve", "rerank" and, of `search`, "texts".

    Raises:
        InputError: `depth` is below 1, or a reranker of texts has no corpus.
    """

    def __init__(
        self,
        searcher: FirstStage,
        reranker: Reranker | RunReranker | None = None,
        *,
        corpus: Corpus | None = None,
        depth: int = 100,
    ) -> None:
        if depth < 1:
            raise InputError(f"depth must be at least 1, got {depth}")
        self.searcher, self.reranker, self.depth = searcher, reranker, depth
        self.corpus = corpus if corpus is not None else corpus_of(searcher)
        if self.corpus is None and reranker is not None and not isinstance(reranker, RunReranker):
            raise InputError("the first stage has no texts for the reranker; give corpus= (Collection.load(D).corpus)")
        self.timings: dict[str, float] = {}

    def run(self, queries: Mapping[str, str], k: int = 100) -> Run:
        """Return the k best documents of every query: query id → document id → score, best first.

        Raises:
            InputError: k is below 1, or the first stage finds a document that the corpus lacks.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        self.timings = {}
        with self._timed("retrieve"):
            found = self.searcher.run(queries, max(k, self.depth))
        if self.reranker is not None:
            with self._timed("rerank"):
                found = rerank(found, self.reranker, queries, self.corpus, k=self.depth)
        return {query_id: dict(list(scores.items())[:k]) for query_id, scores in found.items()}

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """Return the k best documents for a text, best first; without a corpus they have no title and text."""
        found = self.run({"": text}, k).get("", {})
        with self._timed("texts"):
            return [self._hit(doc_id, score) for doc_id, score in found.items()]

    def _hit(self, doc_id: str, score: float) -> Hit:
        if self.corpus is None:
            return Hit(doc_id, score, None, None)
        document = self.corpus.document(self.corpus.row(doc_id))
        return Hit(doc_id, score, document.title, document.text)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[stage] = time.perf_counter() - started


def corpus_of(searcher: FirstStage) -> Corpus | None:
    """Return the documents that a first stage searches, or None where it cannot reach them."""
    if isinstance(searcher, Searcher):
        return searcher.texts()
    if isinstance(searcher, BM25Searcher | Pipeline):
        return searcher.corpus
    parts = searcher.searchers if isinstance(searcher, Hybrid) else []
    return next((corpus for corpus in map(corpus_of, parts) if corpus is not None), None)
