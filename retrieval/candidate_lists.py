"""From training rows to lists that a reranker scores: which documents are drawn, and what label each has.

A list is a query's relevant documents, of which the seed draws some in each epoch, and others: those that the row
gives (mined, or judged not relevant), and where these are too few, documents without a judgement from a pool, which
is a run or BM25's top 100. A document that is judged relevant for the query, or whose text equals a relevant one's,
is never drawn as not relevant: where a row gives it as a negative, it has its grade, or is left out for a loss that
wants one relevant document.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import (
    Document,
    Judgements,
    Key,
    LabelRule,
    draw_some,
    negative_documents,
    positive_documents,
    positive_grades,
    teacher_scores,
)
from retrieval.bm25 import BM25Searcher
from retrieval.corpus import Corpus
from retrieval.errors import InputError
from retrieval.known_documents import known_documents
from retrieval.near_duplicates import groups_by_pairs
from retrieval.rows import TrainingRow
from retrieval.trec import Run, ranked

log = logging.getLogger(__name__)

POOL_DEPTH = 100

# Streams of random numbers that must not touch each other.
_ORDER, _DRAW, _DUELS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class CandidateList:
    """One query and the documents that are compared with each other.

    Attributes:
        query_id, query: id and text.
        number: which of all training queries it is: where a loss keeps its state.
        documents: their texts, relevant ones first.
        labels: (documents,) float32.
        filled: how many came from the pool.

    """

    query_id: str
    query: str
    number: int
    documents: list[str]
    labels: NDArray[np.float32]
    filled: int = 0


class Pool:
    """Documents that may fill a list: the best of a run, or, without one or where it lacks a query, what BM25 finds.

    Raises:
        InputError: the run has a document that the corpus lacks.

    """

    def __init__(self, corpus: Corpus, run: Run | None = None, depth: int = POOL_DEPTH) -> None:
        self.corpus, self.depth = corpus, depth
        self.run = None if run is None else known_documents(run, corpus)

    def documents(self, query_id: str, query: str, depth: int | None = None) -> list[str]:
        """Return the ids of the best documents, at most `depth` (None: the pool's), best first."""
        found = {} if self.run is None else self.run.get(query_id, {})
        best = ranked(found) if found else self._bm25.search(query, depth or self.depth)
        return [doc_id for doc_id, _ in best[: depth or self.depth]]

    def check(self, query_ids: Collection[str], source: str | None = None) -> None:
        """Warn of training queries that the run lacks; refuse a run that has none of them.

        Args:
            query_ids: of the training queries.
            source: the file of the run, for the message.

        """
        if self.run is None:
            return
        lacking = [query_id for query_id in query_ids if not self.run.get(query_id)]
        if len(lacking) == len(query_ids):
            message = f"has documents for none of the {len(lacking)} training queries; is it of another collection?"
            raise InputError(message, path=source)
        if lacking:
            what = "%d of %d training queries have no documents in the run (first: %s); BM25 fills their lists"
            log.warning(what, len(lacking), len(query_ids), lacking[0])

    @cached_property
    def _bm25(self) -> BM25Searcher:
        return BM25Searcher.build(self.corpus)


class ListBatcher:
    """Draws lists from rows; every draw depends on (seed, epoch, row) alone, so any step can be made again.

    Attributes:
        rows: those that make a list.
        dropped: how many do not, having no document of the loss's grade.
        query_number: of each query's id.

    """

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        pool: Pool,
        judgements: Judgements,
        rule: LabelRule,
        *,
        batch_size: int,
        num_positives: int = 1,
        num_negatives: int = 7,
        novelty: bool = False,
        seed: int = 0,
    ) -> None:
        self.pool, self.judgements, self.rule, self.novelty = pool, judgements, rule, novelty
        self.batch_size, self.seed = batch_size, seed
        self.num_positives, self.num_negatives = num_positives if rule.several else 1, num_negatives
        self.rows = [row for row in rows if any(g >= rule.positive_from for g in positive_grades(row))]
        if rule.teacher:
            self.rows = [row for row in self.rows if len(teacher_scores(row)) > 1]
        self.dropped = len(rows) - len(self.rows)
        if not self.rows:
            what = "a teacher's scores of two documents" if rule.teacher else f"a positive of grade {rule}"
            raise InputError(f"none of the {len(rows)} training rows has {what}")
        self.query_number: dict[str, int] = {}
        for row in self.rows:
            self.query_number.setdefault(row.query_id, len(self.query_number))

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the row numbers of each batch of an epoch: a random order, cut into batches, the last one short."""
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.rows))
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def make(self, number: int, epoch: int) -> CandidateList:
        """Draw the documents of a row's list in an epoch."""
        row = self.rows[number]
        random = np.random.default_rng([self.seed, _DRAW, epoch, number])
        judged, least = self.judgements.get(row.query_id, {}), self.rule.positive_from
        graded = zip(positive_documents(row), positive_grades(row), strict=True)
        relevant = [document for document, grade in graded if grade >= least]
        others = negative_documents(row)
        if not self.rule.several:
            others = [document for document in others if judged.get(document[0], 0.0) < least]
        known = {self._text(document) for document in [*relevant, *self._relevant(judged)]}
        scores = teacher_scores(row) if self.rule.teacher else {}
        if self.rule.teacher:
            relevant = [document for document in relevant if document[0] in scores]
            others = [document for document in others if document[0] in scores]
        drawn = self._texts(draw_some(relevant, self.num_positives, random))
        wanted = len(drawn) + self.num_negatives
        self._add(drawn, draw_some(others, len(others), random), known, judged, wanted)
        given = len(drawn)
        if given < wanted and not self.rule.teacher:
            pool = self.pool.documents(row.query_id, row.query)
            strangers: list[Document] = [(doc_id, None) for doc_id in pool if doc_id not in judged]
            self._add(drawn, draw_some(strangers, len(strangers), random), known, judged, wanted)
        texts = list(drawn)
        labels = np.array([self._label(row, key, scores) for key in drawn.values()], dtype=np.float32)
        return CandidateList(
            row.query_id,
            row.query,
            self.query_number[row.query_id],
            texts,
            self._novel(texts, labels) if self.novelty else labels,
            filled=len(texts) - given,
        )

    def duels(self, number: int, epoch: int, count: int) -> list[CandidateList]:
        """Draw at most `count` pairs of different labels from a row's list, each as a list of two in a drawn order.

        The better one has the label 1, the other 0; a teacher's scores stay as they are. A list whose labels are all
        equal has no pair.
        """
        made = self.make(number, epoch)
        random = np.random.default_rng([self.seed, _DUELS, epoch, number])
        pairs = np.array([p for p in combinations(range(len(made.labels)), 2) if np.ptp(made.labels[list(p)])], int)
        chosen = random.permutation(len(pairs))[:count]
        found = []
        for pair, is_turned in zip(pairs[chosen], random.random(len(chosen)) < 0.5, strict=True):
            places = pair[::-1] if is_turned else pair
            labels = made.labels[places]
            if not self.rule.teacher:
                labels = (labels == labels.max()).astype(np.float32)
            found.append(replace(made, documents=[made.documents[i] for i in places], labels=labels, filled=0))
        return found

    def _relevant(self, judged: Mapping[Key, float]) -> list[Document]:
        """Return what is judged relevant for a query, in its own row or elsewhere."""
        corpus = self.pool.corpus
        return [
            (key, key[1] if isinstance(key, tuple) else None)
            for key, grade in judged.items()
            if grade >= self.rule.positive_from and (isinstance(key, tuple) or key in corpus)
        ]

    def _add(
        self,
        drawn: dict[str, Key],
        documents: Sequence[Document],
        known: Collection[str],
        judged: Mapping[Key, float],
        wanted: int,
    ) -> None:
        """Add documents with new texts until there are `wanted`; one with a known text only with a grade of its own."""
        for document in documents:
            if len(drawn) >= wanted:
                return
            text = self._text(document)
            if text not in known or judged.get(document[0], 0.0) >= self.rule.positive_from:
                drawn.setdefault(text, document[0])

    def _texts(self, documents: Sequence[Document]) -> dict[str, Key]:
        """Return text → key; of a text that occurs twice, the first."""
        found: dict[str, Key] = {}
        for document in documents:
            found.setdefault(self._text(document), document[0])
        return found

    def _text(self, document: Document) -> str:
        key, text = document
        if text is not None:
            return text
        assert isinstance(key, str)
        corpus = self.pool.corpus
        return corpus.text(corpus.row(key))

    def _label(self, row: TrainingRow, key: Key, scores: Mapping[Key, float]) -> float:
        if self.rule.teacher:
            return scores[key]
        return self.judgements.get(row.query_id, {}).get(key, 0.0) / self.rule.scale

    def _novel(self, texts: Sequence[str], labels: NDArray[np.float32]) -> NDArray[np.float32]:
        from rankers.set_encoder import novelty_labels

        return novelty_labels(labels, groups_by_pairs(texts))
