"""From training rows to batches: which rows meet, which documents are drawn, and what every cell of the matrix means.

A batch is a matrix of queries against the distinct documents of all its rows. The id-aware rules, from the training
split's judgements only:

* a document judged relevant for a query is never its negative: it is a label where the loss accepts several
  positives, else `where` is False;
* a document occurs as one column, however many rows bring it; so does a text that two ids share;
* in the columns' direction (each document is asked for its query) a query occurs as one row in the same sense;
* a document judged 0 is an ordinary negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.corpus import Corpus
from retrieval.errors import InputError
from retrieval.rows import TrainingRow
from retrieval.trec import Qrels

# A document of a row: its id in the collection, or ("text", its text) where the row brought the text itself.
Key = str | tuple[str, str]
# A document and its text; None where the corpus has it.
Document = tuple[Key, str | None]
# query → document → grade, over the training split's qrels and the rows' own positives
Judgements = dict[str, dict[Key, float]]

# Streams of random numbers that must not touch each other.
_ORDER, _DRAW = 0, 1


@dataclass(frozen=True, slots=True)
class Batch:
    """One in-batch matrix.

    Attributes:
        query_ids, queries: (queries,) ids and texts.
        documents: (columns,) distinct texts.
        row_query: (rows,) int64, the query that each row of the matrix scores. One row per query, or one per
            (query, positive) for a loss that wants exactly one positive in a row.
        labels: (rows, columns) float32.
        where: (rows, columns) bool, True = a real, comparable entry.
        where_columns: the same for the columns' direction, in which a query of several rows is one: a column keeps
            the row that it is relevant to, or the first.
        causes: how many cells, columns or rows each id-aware rule touched.

    """

    query_ids: list[str]
    queries: list[str]
    documents: list[str]
    row_query: NDArray[np.int64]
    labels: NDArray[np.float32]
    where: NDArray[np.bool_]
    where_columns: NDArray[np.bool_]
    causes: Counter[str] = field(default_factory=Counter)


ANY_GRADE = float(np.finfo(np.float32).tiny)  # as positive_from: every grade above 0


@dataclass(frozen=True, slots=True)
class LabelRule:
    """What a loss accepts as labels.

    Attributes:
        several: whether one row may have several positives.
        positive_from: the grade from which a document counts as positive and may be drawn as one, > 0.
        scale: labels are grades divided by this (the highest grade for a loss over probabilities, else 1).

    """

    several: bool
    positive_from: float = 1.0
    scale: float = 1.0

    def __str__(self) -> str:
        return "above 0" if self.positive_from == ANY_GRADE else f">= {self.positive_from:g}"


def collect_judgements(rows: Iterable[TrainingRow], qrels: Qrels) -> Judgements:
    """Join the training qrels with the grades that the rows themselves give; the higher grade wins."""
    found: Judgements = {}
    for row in rows:
        known = found.setdefault(row.query_id, {})
        graded = [
            *zip(positive_documents(row), positive_grades(row), strict=True),
            *zip(negative_documents(row), row.negative_labels, strict=False),  # labels are optional
        ]
        for (key, _), grade in graded:
            known[key] = max(grade, known.get(key, 0.0))
    for query_id, judged in qrels.items():
        if query_id in found:
            known = found[query_id]
            for doc_id, grade in judged.items():
                known[doc_id] = max(float(grade), known.get(doc_id, 0.0))
    return found


def positive_documents(row: TrainingRow) -> list[Document]:
    """Return the row's positives."""
    return _documents(row.positive_ids, row.positives)


def negative_documents(row: TrainingRow) -> list[Document]:
    """Return the row's negatives."""
    return _documents(row.negative_ids, row.negatives)


def _documents(ids: Sequence[str], texts: Sequence[str]) -> list[Document]:
    if not ids:
        return [(("text", text), text) for text in texts]
    known: Sequence[str | None] = texts or [None] * len(ids)
    return list(zip(ids, known, strict=True))


def positive_grades(row: TrainingRow) -> Sequence[float]:
    """Return the grade of each positive; 1 where the row gives none."""
    return row.positive_labels or [1.0] * max(len(row.positive_ids), len(row.positives))


class Batcher:
    """Draws batches from rows; every draw depends on (seed, epoch, row) alone, so any batch can be made again."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        corpus: Corpus,
        judgements: Judgements,
        rule: LabelRule,
        *,
        batch_size: int,
        num_positives: int = 1,
        num_negatives: int = 0,
        seed: int = 0,
    ) -> None:
        self.corpus, self.judgements, self.rule = corpus, judgements, rule
        self.batch_size, self.seed = batch_size, seed
        self.num_positives, self.num_negatives = num_positives, num_negatives
        self.rows = [row for row in rows if any(g >= rule.positive_from for g in positive_grades(row))]
        self.dropped = len(rows) - len(self.rows)
        if not self.rows:
            raise InputError(f"none of the {len(rows)} training rows has a positive of grade {rule}")
        given = num_negatives > 0 and any(row.negative_ids or row.negatives for row in self.rows)
        if min(batch_size, len(self.rows)) == 1 and not given:
            raise InputError("a batch is one query without negatives, from which nothing is learned; make it larger")

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the row numbers of each batch of an epoch: a random order, cut into batches, the last one short."""
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.rows))
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def make(self, numbers: Sequence[int], epoch: int) -> Batch:
        """Make the batch of these rows: draw their documents, merge columns, fill labels and `where`."""
        rows = [self.rows[number] for number in numbers]
        drawn = [self._draw(row, number, epoch) for row, number in zip(rows, numbers, strict=True)]
        causes: Counter[str] = Counter()
        columns, documents = self._columns(drawn, causes)
        grades = np.zeros((len(rows), len(documents)), dtype=np.float32)
        for i, row in enumerate(rows):
            for key, grade in self.judgements.get(row.query_id, {}).items():
                if (column := columns.get(key)) is not None:
                    grades[i, column] = max(grade, grades[i, column])
        own = [[columns[key] for key, _ in positives] for positives, _ in drawn]
        row_query, labels, where = (self._several if self.rule.several else self._single)(grades, own, causes)
        return Batch(
            query_ids=[row.query_id for row in rows],
            queries=[row.query for row in rows],
            documents=documents,
            row_query=row_query,
            labels=labels,
            where=where,
            where_columns=_one_row_per_query([rows[i].query for i in row_query], labels, where, causes),
            causes=causes,
        )

    def _draw(self, row: TrainingRow, number: int, epoch: int) -> tuple[list[Document], list[Document]]:
        """Draw positives and negatives of one row, without replacement."""
        random = np.random.default_rng([self.seed, _DRAW, epoch, number])
        graded = zip(positive_documents(row), positive_grades(row), strict=True)
        positives = [document for document, grade in graded if grade >= self.rule.positive_from]
        return (
            _some(positives, self.num_positives, random),
            _some(negative_documents(row), self.num_negatives, random),
        )

    def _columns(
        self, drawn: Sequence[tuple[list[Document], list[Document]]], causes: Counter[str]
    ) -> tuple[dict[Key, int], list[str]]:
        """Give every distinct document one column: positives of all rows first, then negatives."""
        found = [d for positives, _ in drawn for d in positives] + [d for _, negs in drawn for d in negs]
        distinct = dict(reversed(found))  # the first text of a key wins
        distinct = {key: distinct[key] for key in dict.fromkeys(key for key, _ in found)}
        causes["duplicate_document"] += len(found) - len(distinct)
        stored = [key for key, text in distinct.items() if text is None and isinstance(key, str)]
        texts = iter(self.corpus.texts([self.corpus.row(doc_id) for doc_id in stored]))
        columns: dict[Key, int] = {}
        column_of_text: dict[str, int] = {}
        for key, text in distinct.items():
            text = next(texts) if text is None else text
            columns[key] = column_of_text.setdefault(text, len(column_of_text))
        causes["duplicate_text"] += len(distinct) - len(column_of_text)
        return columns, list(column_of_text)

    def _several(
        self, grades: NDArray[np.float32], own: list[list[int]], causes: Counter[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """One row per query; every judged document that is in the batch is labelled with its grade."""
        causes["relevant_labelled"] += int((grades >= self.rule.positive_from).sum()) - sum(len(set(o)) for o in own)
        return np.arange(len(own)), grades / np.float32(self.rule.scale), np.ones(grades.shape, dtype=bool)

    def _single(
        self, grades: NDArray[np.float32], own: list[list[int]], causes: Counter[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """One row per (query, drawn positive); the query's other relevant documents are masked."""
        pairs = [(i, column) for i, mine in enumerate(own) for column in dict.fromkeys(mine)]
        row_query = np.array([i for i, _ in pairs], dtype=np.int64)
        positive = np.array([column for _, column in pairs], dtype=np.int64)
        labels = np.zeros((len(pairs), grades.shape[1]), dtype=np.float32)
        labels[np.arange(len(pairs)), positive] = grades[row_query, positive]
        where = (grades[row_query] < self.rule.positive_from) | (labels > 0)
        causes["relevant_masked"] += int((~where).sum())
        return row_query, labels, where


def _one_row_per_query(
    queries: Sequence[str], labels: NDArray[np.float32], where: NDArray[np.bool_], causes: Counter[str]
) -> NDArray[np.bool_]:
    """Return `where` with, in each column, one row of every query text: the one with a label, or the first."""
    rows_of: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows_of.setdefault(query, []).append(row)
    causes["duplicate_query"] += len(queries) - len(rows_of)
    if len(rows_of) == len(queries):
        return where
    kept = where.copy()
    columns = np.arange(where.shape[1])
    for rows in rows_of.values():
        if len(rows) > 1:
            chosen = np.array(rows)[(labels[rows] > 0).argmax(axis=0)]
            kept[rows] = False
            kept[chosen, columns] = where[chosen, columns]
    return kept


def _some(documents: list[Document], count: int, random: np.random.Generator) -> list[Document]:
    """Draw `count` documents without replacement, in the order drawn; all of them where there are no more."""
    return [documents[i] for i in random.permutation(len(documents))[:count]]


def micro_batches(batcher: Batcher, epoch: int, accumulation: int) -> Iterator[list[NDArray[np.int64]]]:
    """Yield the batches of each optimizer step of an epoch; the last step may have fewer."""
    batches = batcher.epoch(epoch)
    for start in range(0, len(batches), accumulation):
        yield batches[start : start + accumulation]
