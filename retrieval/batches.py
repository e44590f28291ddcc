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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.batch_order import EpochOrder, RandomOrder, group_numbers
from retrieval.cells import Cells, CellTargets, numbered
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

_DRAW = 1  # a stream of random numbers of its own; retrieval.batch_order has the others


@dataclass(frozen=True, slots=True)
class Batch:
    """One in-batch matrix.

    Attributes:
        query_ids, queries: (queries,) ids and texts.
        query_numbers: (queries,) int64, which of all training queries each is: where a loss keeps its state.
        documents: (columns,) distinct texts.
        row_query: (rows,) int64, the query that each row of the matrix scores. One row per query, or one per
            (query, positive) for a loss that wants exactly one positive in a row.
        targets: labels and masks, of which only the unusual cells are kept.
        causes: how many cells, columns or rows each id-aware rule touched.
        row_numbers: (queries,) int64, which of the batcher's rows each is.
        positive_columns: of each query, the columns of the positives that it drew.
        epoch: for which the documents were drawn.

    """

    query_ids: list[str]
    queries: list[str]
    query_numbers: NDArray[np.int64]
    documents: list[str]
    row_query: NDArray[np.int64]
    targets: CellTargets
    causes: Counter[str] = field(default_factory=Counter)
    row_numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    positive_columns: Sequence[Sequence[int]] = ()
    epoch: int = 0

    @property
    def labels(self) -> NDArray[np.float32]:
        """(rows, columns) float32, whole."""
        return self.targets.rows(0, len(self.targets))[0]

    @property
    def where(self) -> NDArray[np.bool_]:
        """(rows, columns) bool, whole: True = a real, comparable entry."""
        return self.targets.rows(0, len(self.targets))[1]

    @property
    def where_columns(self) -> NDArray[np.bool_]:
        """(rows, columns) bool, whole: the same for the columns' direction."""
        return self.targets.where_columns(0, len(self.targets))


ANY_GRADE = float(np.finfo(np.float32).tiny)  # as positive_from: every grade above 0


@dataclass(frozen=True, slots=True)
class LabelRule:
    """What a loss accepts as labels.

    Attributes:
        several: whether one row may have several positives.
        positive_from: the grade from which a document counts as positive and may be drawn as one, > 0.
        scale: labels are grades divided by this (the highest grade for a loss over probabilities, else 1).
        teacher: labels are the scores that a teacher gave the row's own documents; all others are masked.

    """

    several: bool
    positive_from: float = 1.0
    scale: float = 1.0
    teacher: bool = False

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


def teacher_scores(row: TrainingRow) -> dict[Key, float]:
    """Return what a teacher gave each document of the row that it scored."""
    scored = [
        *zip(positive_documents(row), row.positive_scores, strict=False),
        *zip(negative_documents(row), row.negative_scores, strict=False),
    ]
    return {key: score for (key, _), score in scored}


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
        if rule.teacher:
            self.rows = [row for row in self.rows if len(teacher_scores(row)) > 1]
        self.dropped = len(rows) - len(self.rows)
        self.order: EpochOrder = RandomOrder(len(self.rows), batch_size, seed)
        self.query_number: dict[str, int] = {}
        for row in self.rows:
            self.query_number.setdefault(row.query_id, len(self.query_number))
        if not self.rows and rule.teacher:
            raise InputError(
                f"none of the {len(rows)} training rows has a teacher's scores of two documents; give rows with "
                "positive_scores and negative_scores"
            )
        if not self.rows:
            raise InputError(f"none of the {len(rows)} training rows has a positive of grade {rule}")
        given = num_negatives > 0 and any(row.negative_ids or row.negatives for row in self.rows)
        if min(batch_size, len(self.rows)) == 1 and not given:
            raise InputError("a batch is one query without negatives, from which nothing is learned; make it larger")

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the row numbers of each batch of an epoch."""
        return self.order.batches(epoch)

    def groups(self) -> NDArray[np.int64]:
        """Return the group of each row, (rows,): rows with the same first positive are one."""
        return group_numbers([self.eligible(row)[0][0] for row in self.rows])

    def eligible(self, row: TrainingRow) -> list[Document]:
        """Return the documents of a row that it may draw as positives."""
        graded = zip(positive_documents(row), positive_grades(row), strict=True)
        return [document for document, grade in graded if grade >= self.rule.positive_from]

    def make(self, numbers: Sequence[int], epoch: int) -> Batch:
        """Make the batch of these rows: draw their documents, merge columns, fill labels and `where`."""
        rows = [self.rows[number] for number in numbers]
        drawn = [self._draw(row, number, epoch) for row, number in zip(rows, numbers, strict=True)]
        causes: Counter[str] = Counter()
        columns, documents = self._columns(drawn, causes)
        own = [[columns[key] for key, _ in positives] for positives, _ in drawn]
        make = self._taught if self.rule.teacher else self._several if self.rule.several else self._single
        row_query, labelled, masked = make(rows, columns, own, causes)
        queries = numbered([rows[i].query for i in row_query])
        causes["duplicate_query"] += len(queries) - len(set(queries.tolist()))
        return Batch(
            query_ids=[row.query_id for row in rows],
            queries=[row.query for row in rows],
            query_numbers=np.array([self.query_number[row.query_id] for row in rows], dtype=np.int64),
            documents=documents,
            row_query=np.array(row_query, dtype=np.int64),
            targets=CellTargets(
                shape=(len(row_query), len(documents)),
                labelled=_cells(labelled),
                labels=np.array([label for row in labelled for _, label in sorted(row.items())], dtype=np.float32),
                excepted=_cells(masked),
                queries=queries,
                is_valid=not self.rule.teacher,
            ),
            causes=causes,
            row_numbers=np.array(numbers, dtype=np.int64),
            positive_columns=own,
            epoch=epoch,
        )

    def _draw(self, row: TrainingRow, number: int, epoch: int) -> tuple[list[Document], list[Document]]:
        """Draw positives and negatives of one row, without replacement."""
        random = np.random.default_rng([self.seed, _DRAW, epoch, number])
        return (
            draw_some(self.eligible(row), self.num_positives, random),
            draw_some(negative_documents(row), self.num_negatives, random),
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

    def _grades(self, row: TrainingRow, columns: Mapping[Key, int]) -> dict[int, float]:
        """Return the grade, > 0, of each column that is judged for a row's query."""
        found: dict[int, float] = {}
        for key, grade in self.judgements.get(row.query_id, {}).items():
            if grade > 0 and (column := columns.get(key)) is not None:
                found[column] = max(grade, found.get(column, 0.0))
        return found

    def _several(self, rows: Rows, columns: Mapping[Key, int], own: Own, causes: Counter[str]) -> Matrix:
        """One row per query; every judged document that is in the batch is labelled with its grade."""
        grades = [self._grades(row, columns) for row in rows]
        relevant = sum(grade >= self.rule.positive_from for row in grades for grade in row.values())
        causes["relevant_labelled"] += relevant - sum(len(set(mine)) for mine in own)
        labels = [{column: grade / self.rule.scale for column, grade in row.items()} for row in grades]
        return list(range(len(rows))), labels, [()] * len(rows)

    def _single(self, rows: Rows, columns: Mapping[Key, int], own: Own, causes: Counter[str]) -> Matrix:
        """One row per (query, drawn positive); the query's other relevant documents are masked."""
        row_query, labels, masked = [], [], []
        for i, row in enumerate(rows):
            grades = self._grades(row, columns)
            relevant = {column for column, grade in grades.items() if grade >= self.rule.positive_from}
            for column in dict.fromkeys(own[i]):
                row_query.append(i)
                labels.append({column: grades[column]})
                masked.append(relevant - {column})
        causes["relevant_masked"] += sum(map(len, masked))
        return row_query, labels, masked

    def _taught(self, rows: Rows, columns: Mapping[Key, int], own: Own, causes: Counter[str]) -> Matrix:
        """One row per query; its own documents that a teacher scored, and nothing else."""
        labels = [{columns[key]: score for key, score in teacher_scores(row).items() if key in columns} for row in rows]
        return list(range(len(rows))), labels, labels


Rows = Sequence[TrainingRow]
Own = Sequence[Sequence[int]]  # for each row the columns of the positives that it drew
# the query of each row of the matrix; the labels of its labelled cells; the columns that are not as most cells are
Matrix = tuple[list[int], Sequence[Mapping[int, float]], Sequence[Iterable[int]]]


def _cells(rows: Sequence[Iterable[int]]) -> Cells:
    found = [(i, column) for i, row in enumerate(rows) for column in sorted(row)]
    places = np.array(found, dtype=np.int64).reshape(-1, 2)
    return Cells(places[:, 0], places[:, 1])


def draw_some(documents: Sequence[Document], count: int, random: np.random.Generator) -> list[Document]:
    """Draw `count` documents without replacement, in the order drawn; all of them where there are no more."""
    return [documents[i] for i in random.permutation(len(documents))[:count]]


def micro_batches(batcher: Batcher, epoch: int, accumulation: int) -> Iterator[list[NDArray[np.int64]]]:
    """Yield the batches of each optimizer step of an epoch; the last step may have fewer."""
    batches = batcher.epoch(epoch)
    for start in range(0, len(batches), accumulation):
        yield batches[start : start + accumulation]
