"""Hard negatives that are mined again while the model learns, as ANCE does it, at a cost that a CPU can pay.

The start model searches the whole corpus once for every training query; the best `depth` permitted documents of a query
are its candidates for the run. A refresh encodes with the model of that step only what the coming steps need: the
queries that are due, their candidates and their positives. It orders the candidates anew and chooses among them by the
same rules as `rankwright mine`. With depth 0 every refresh searches the whole corpus, which is then encoded each time.

Source: Xiong et al. 2020, ANCE (arXiv:2007.00808), whose refresh is the one with depth 0.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexes import FaissIndex
from retrieval.batches import Batcher
from retrieval.embedding_store import EmbeddingStore
from retrieval.negative_candidates import Candidates, DenseSource, Source, permitted_candidates, same_vectors
from retrieval.negatives import NegativeRules, PermittedDocuments, choose_places
from retrieval.rows import TrainingRow

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]


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
        self._candidates: list[Rows] = []
        self._negatives: list[Rows] = [np.empty(0, dtype=np.int64) for _ in batcher.rows]

    @property
    def has_begun(self) -> bool:
        """Whether every row has its candidates."""
        return bool(self._candidates)

    @cached_property
    def _permitted(self) -> PermittedDocuments:
        digests = EmbeddingStore().corpus_digests(self._corpus)
        return PermittedDocuments(self._corpus, self._batcher.rows, self._batcher.judgements, digests)

    def begin(self) -> None:
        """Search the corpus with the start model, whose embeddings may lie in the store already."""
        rows = self._batcher.rows
        given = sum(bool(row.negative_ids or row.negatives) for row in rows)
        if given:
            logger.warning("refresh_every replaces the negatives that %d of %d rows bring", given, len(rows))
        source = DenseSource(self._encoder, self._corpus, rows, EmbeddingStore())
        found = self._searched(source, rows, self._depth or self._rules.last_rank)
        self._candidates = [one.documents for one in found]
        self._take(range(len(rows)), self._chosen(rows, found, 0))

    def refresh(self, numbers: Sequence[int], step: int) -> None:
        """Mine the negatives of these rows again with the model as it is; `step` makes the draw another one."""
        rows = [self._batcher.rows[number] for number in numbers]
        queries = self._encoder.encode_query([row.query for row in rows])
        compares = self._rules.has_margin or not self._depth  # with the positives
        positives = [self._positives(row) if compares else np.empty(0, dtype=np.int64) for row in rows]
        if self._depth:
            candidates = [self._candidates[number] for number in numbers]
            needed = np.unique(np.concatenate([*candidates, *positives]))
        else:
            candidates, needed = [], np.arange(len(self._corpus))
        vectors = self._encoder.encode_document(self._corpus.texts(needed.tolist()))
        given = self._given_texts(rows if compares else [])
        own = [
            np.concatenate([given[text] for text in row.positives if given] or [vectors[np.searchsorted(needed, ids)]])
            for row, ids in zip(rows, positives, strict=True)
        ]
        if self._depth:
            found = [
                _ordered(documents, vectors[np.searchsorted(needed, documents)] @ query, positive @ query)
                for documents, query, positive in zip(candidates, queries, own, strict=True)
            ]
        else:
            found = self._searched(_AsItIs(queries, vectors, own), rows, self._rules.last_rank)
        message = "step %d: negatives of %d queries mined again; %d documents encoded"
        logger.info(message, step, len(rows), len(needed))
        self._take(numbers, self._chosen(rows, found, step))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep."""
        return {
            f"{name}_{what}": array
            for name, lists in (("negative", self._negatives), ("candidate", self._candidates))
            for what, array in (("counts", np.array(list(map(len, lists)))), ("rows", np.concatenate(lists)))
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what a checkpoint kept."""
        self._candidates, negatives = (
            np.split(arrays[f"{name}_rows"], np.cumsum(arrays[f"{name}_counts"])[:-1])
            for name in ("candidate", "negative")
        )
        self._take(range(len(self._batcher.rows)), negatives)

    def _searched(self, source: Source, rows: Sequence[TrainingRow], depth: int) -> list[Candidates]:
        """Return the best permitted documents of each row."""
        forbidden = [self._permitted.forbidden(row) for row in rows]
        return permitted_candidates([source], len(self._corpus), self._permitted, forbidden, depth, Counter())

    def _chosen(self, rows: Sequence[TrainingRow], found: Sequence[Candidates], step: int) -> list[Rows]:
        rules = self._rules
        chosen = []
        for row, one in zip(rows, found, strict=True):
            places = choose_places(
                rules,
                one.scores,
                one.ranks,
                rules.positive_score(one.positive_scores),
                f"{row.query_id} {step}",
                exempt=np.isin(one.documents, self._permitted.judged_irrelevant(row)),
            )
            chosen.append(one.documents[places])
        sizes = np.array([len(one) for one in chosen])
        none, fewer = int((sizes == 0).sum()), int((sizes < rules.num_negatives).sum())
        if none:
            message = "%d of %d rows find no negative; a wider refresh_range or a smaller margin would find some"
            logger.warning(message, none, len(rows))
        elif fewer:
            logger.info("%d of %d rows find fewer than %d negatives", fewer, len(rows), rules.num_negatives)
        return chosen

    def _positives(self, row: TrainingRow) -> Rows:
        """Return the rows of the corpus that are a row's positives; none where it brings them as texts."""
        return np.array([] if row.positives else [self._corpus.row(d) for d in row.positive_ids], dtype=np.int64)

    def _given_texts(self, rows: Sequence[TrainingRow]) -> dict[str, Vectors]:
        """Return the (1, dim) vector of each text that rows bring as a positive."""
        texts = list(dict.fromkeys(text for row in rows for text in row.positives))
        return dict(zip(texts, self._encoder.encode_document(texts)[:, None], strict=True)) if texts else {}

    def _take(self, numbers: Sequence[int], negatives: Sequence[Rows]) -> None:
        for number, rows in zip(numbers, negatives, strict=True):
            self._negatives[number] = rows
            ids = tuple(self._corpus.ids[row] for row in rows.tolist())
            none: dict[str, Any] = dict.fromkeys(
                ("negatives", "negative_labels", "negative_scores", "negative_ranks"), ()
            )
            self._batcher.rows[number] = replace(self._batcher.rows[number], negative_ids=ids, **none)


class _AsItIs:
    """All documents by the model as it is: vectors in memory, which no store keeps."""

    def __init__(self, queries: Vectors, documents: Vectors, positives: Sequence[Vectors]) -> None:
        self._queries, self._documents, self._positives = queries, documents, positives
        self._positive_scores = [own @ query for own, query in zip(positives, queries, strict=True)]
        self._index = FaissIndex(documents.shape[1])
        self._index.add(documents)

    def best(self, numbers: Sequence[int], k: int) -> Iterator[tuple[Rows, Vectors]]:
        """Yield the best documents of each query."""
        found = self._index.search(self._queries[list(numbers)], k)
        for rows, scores in zip(found.rows, found.scores, strict=True):
            yield rows[rows >= 0], scores[rows >= 0]

    def positive_scores(self) -> list[Vectors]:
        """Return the scores of every row's positives."""
        return self._positive_scores

    def same_as_positive(self, number: int, documents: Rows, scores: Vectors) -> NDArray[np.bool_]:
        """Return which of (documents,) have exactly the vector of one of the row's positives."""
        own = self._positive_scores[number]
        return same_vectors(scores, own, lambda near: self._documents[documents[near]], lambda: self._positives[number])


def _ordered(documents: Rows, scores: Vectors, positive_scores: Vectors) -> Candidates:
    order = np.argsort(-scores, kind="stable")
    return Candidates(documents[order], scores[order], np.arange(1, len(order) + 1), positive_scores)
