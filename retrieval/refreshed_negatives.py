"""Hard negatives that are mined again while the model learns, as ANCE does it, at a cost that a CPU can pay.

The start model searches the whole corpus once for every training query; the best `depth` permitted documents of a query
are its candidates for the run. A refresh encodes with the model of that step only what the coming steps need: the
queries that are due, their candidates and their positives. It orders the candidates anew and chooses among them by the
same rules as `rankwright mine`. With depth 0 every refresh searches the whole corpus, which is then encoded each time.

Source: Xiong et al. 2020, ANCE (arXiv:2007.00808), whose refresh is the one with depth 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexes import FaissIndex
from retrieval.batches import Batcher, positive_documents
from retrieval.embedding_store import EmbeddingStore
from retrieval.negatives import NegativeRules, PermittedDocuments, choose_places

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
VectorsOf = Callable[[Rows], NDArray[np.float32]]  # rows of the corpus → their vectors

_MORE = 64  # candidates fetched beyond the depth, for those that are forbidden
_QUERIES = 1_024  # searched at once


class RefreshedNegatives:
    """The mined negatives of a batcher's rows, and how they are mined again.

    Args:
        encoder: the model, which learns.
        batcher: whose rows get the negatives.
        rules: which candidates are taken; ranks are counted among permitted candidates.
        depth: candidates of each query that a refresh encodes; 0: the whole corpus.

    """

    def __init__(self, encoder: Encoder, batcher: Batcher, rules: NegativeRules, depth: int) -> None:
        self._encoder, self._batcher, self._rules = encoder, batcher, rules
        self._corpus, self._depth = batcher.corpus, depth
        self._permitted = PermittedDocuments(self._corpus, batcher.rows, batcher.judgements)
        self._candidates: list[Rows] = []
        self._negatives: list[Rows] = []

    def begin(self) -> None:
        """Search the corpus with the start model, whose embeddings may lie in the store already."""
        numbers = list(range(len(self._batcher.rows)))
        stored = EmbeddingStore().embed(
            self._encoder, "document", self._corpus.ids, lambda rows: self._corpus.texts(rows)
        )
        queries = self._encoder.encode_query([row.query for row in self._batcher.rows])
        self._candidates = self._searched(numbers, queries, stored.blocks(), self._depth or self._rules.last_rank)
        self._negatives = [np.empty(0, dtype=np.int64) for _ in numbers]
        self._take(numbers, self._chosen(numbers, queries, self._candidates, 0, stored.rows))

    def refresh(self, numbers: Sequence[int], step: int) -> None:
        """Mine the negatives of these rows again with the model as it is; `step` makes the draw another one."""
        rows = [self._batcher.rows[number] for number in numbers]
        queries = self._encoder.encode_query([row.query for row in rows])
        if self._depth == 0:
            vectors = self._encoder.encode_document(self._corpus.texts(range(len(self._corpus))))
            candidates = self._searched(numbers, queries, [vectors], self._rules.last_rank)
            found = self._chosen(numbers, queries, candidates, step, lambda wanted: vectors[wanted])
        else:
            candidates = [self._candidates[number] for number in numbers]
            needed = np.unique(np.concatenate([*candidates, *map(self._positive_rows, numbers)]))
            vectors = self._encoder.encode_document(self._corpus.texts(needed.tolist()))
            found = self._chosen(
                numbers, queries, candidates, step, lambda wanted: vectors[np.searchsorted(needed, wanted)]
            )
            logger.info(
                "step %d: negatives of %d queries mined again; %d documents encoded", step, len(rows), len(needed)
            )
        self._take(numbers, found)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep."""
        return {
            "negative_counts": np.array([len(rows) for rows in self._negatives], dtype=np.int64),
            "negative_rows": np.concatenate([np.empty(0, dtype=np.int64), *self._negatives]),
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what a checkpoint kept; `begin` was called before, with the start model."""
        edges = np.cumsum(arrays["negative_counts"])[:-1]
        self._take(range(len(self._batcher.rows)), np.split(arrays["negative_rows"], edges))

    def _searched(
        self,
        numbers: Sequence[int],
        queries: NDArray[np.float32],
        documents: Iterable[NDArray[np.float32]],
        depth: int,
    ) -> list[Rows]:
        """Return the best `depth` permitted documents of each row, best first."""
        index = FaissIndex(queries.shape[1])
        for vectors in documents:
            index.add(vectors)
        found: list[Rows] = []
        for start in range(0, len(numbers), _QUERIES):
            neighbours = index.search(queries[start : start + _QUERIES], depth + _MORE)
            for number, rows in zip(numbers[start : start + _QUERIES], neighbours.rows, strict=True):
                rows = rows[rows >= 0]
                mask = self._permitted.mask(self._permitted.forbidden(self._batcher.rows[number]), rows)
                found.append(rows[mask][:depth])
        return found

    def _chosen(
        self,
        numbers: Sequence[int],
        queries: NDArray[np.float32],
        candidates: Sequence[Rows],
        step: int,
        vectors: VectorsOf,
    ) -> list[Rows]:
        """Return the negatives of each row: what the rules take of its candidates, ordered by their scores now."""
        found: list[Rows] = []
        for number, query, rows in zip(numbers, queries, candidates, strict=True):
            scores = vectors(rows) @ query
            order = np.argsort(-scores, kind="stable")
            ranks = np.arange(1, len(rows) + 1)
            key = f"{self._batcher.rows[number].query_id} {step}"
            positive = self._positive_score(number, query, vectors) if self._rules.has_margin else None
            found.append(rows[order][choose_places(self._rules, scores[order], ranks, positive, key)])
        return found

    def _positive_rows(self, number: int) -> Rows:
        keys = [key for key, _ in positive_documents(self._batcher.rows[number])]
        known = [self._corpus.row(key) for key in keys if isinstance(key, str) and key in self._corpus]
        return np.array(known, dtype=np.int64)

    def _positive_score(self, number: int, query: NDArray[np.float32], vectors: VectorsOf) -> float:
        """Return the lowest score of a row's positives: what the margins are measured from."""
        rows = self._positive_rows(number)
        if len(rows):
            return float((vectors(rows) @ query).min())
        texts = [text for _, text in positive_documents(self._batcher.rows[number]) if text is not None]
        return float((self._encoder.encode_document(texts) @ query).min())

    def _take(self, numbers: Sequence[int], negatives: Sequence[Rows]) -> None:
        for number, rows in zip(numbers, negatives, strict=True):
            self._negatives[number] = rows
            ids = tuple(self._corpus.ids[row] for row in rows.tolist())
            self._batcher.rows[number] = replace(
                self._batcher.rows[number],
                negative_ids=ids,
                negatives=(),
                negative_labels=(),
                negative_scores=(),
                negative_ranks=(),
            )
