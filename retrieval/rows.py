"""Training rows: a query with its relevant documents and, perhaps, others; by id, by text, or both."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retrieval.corpus import shown
from retrieval.dialects import DIALECTS, Record, check_keys, is_labelled_pair, merge_pairs, recognise
from retrieval.errors import InputError, fail
from retrieval.progress import progress
from retrieval.textfiles import numbered_lines, parse_json

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.corpus import Corpus

log = logging.getLogger(__name__)

_LISTED = 20  # skipped lines that the log names one by one
_SIDES = ("positive", "negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One query and its documents.

    A side (positive or negative) names its documents by id, holds their texts, or both; with both, the i-th id and
    the i-th text are one document, and the text is what is read. Labels, scores and ranks are empty or have one
    entry for each document of their side.

    query_id: the same for all rows of a query; made from the text where the source has none.
    positive_labels, negative_labels: grades or probabilities of relevance.
    positive_scores, negative_scores: what a teacher gave.
    negative_ranks: places, from 1, in the list that the negatives were mined from.
    """

    query_id: str
    query: str
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    positive_labels: tuple[float, ...] = ()
    negative_labels: tuple[float, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    negative_ranks: tuple[int, ...] = ()

    def positive_texts(self, corpus: Corpus | None = None) -> list[str]:
        """Return the texts of the positives, from the corpus where the row has ids alone."""
        return _texts(self.positives, self.positive_ids, corpus)

    def negative_texts(self, corpus: Corpus | None = None) -> list[str]:
        """Return the texts of the negatives, from the corpus where the row has ids alone."""
        return _texts(self.negatives, self.negative_ids, corpus)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that stands in a file of ours: every field that is not empty."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values if value}


def read_rows(
    path: str | Path,
    collection: Collection | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    report: Callable[[InputError], None] | None = None,
) -> tuple[list[TrainingRow], str]:
    """Read training rows and recognise from the first whose they are.

    Args:
        path: one JSON value a line, `.gz` too.
        collection: where ids are looked up; without one they are not checked.
        on_error: "skip" leaves defective rows out, counts them, and lists them in the log.
        report: called with each defect instead; the row is left out when it returns.

    Returns:
        The rows in file order, and a key of `retrieval.dialects.DIALECTS`. Sentence Transformers' labelled pairs
        become one row for each query, at its first place.

    Raises:
        InputError: with file and line: not a row of the dialect, no positive, a document that is positive and
            negative, lists that do not match in length, an id that the collection lacks. Or no row is left.
    """
    path = Path(path)
    if on_error not in ("fail", "skip"):
        raise InputError(f"on_error must be 'fail' or 'skip', got {on_error!r}")
    skipped: list[InputError] = []
    report = report or (skipped.append if on_error == "skip" else fail)
    rows: list[TrainingRow] = []
    dialect = ""
    check = _Check(collection)
    for number, found, record in _records(path, report):
        dialect = found
        try:
            rows.append(check.row(record))
        except InputError as error:
            report(_placed(error, path, number))
    for defect in skipped[:_LISTED]:
        log.warning("skipped %s", defect)
    if skipped:
        log.warning("%s: skipped %d rows, kept %d", path, len(skipped), len(rows))
    if not rows:
        raise InputError("holds no training row that can be used", path=path, kind="empty")
    return rows, dialect


def rows_from_qrels(collection: Collection, split: str = "train", *, positive_from: int = 1) -> list[TrainingRow]:
    """Make one row for each query of a split: judged relevant → positives, judged lower → negatives, with grades.

    Args:
        collection: judgements of documents that it lacks are left out and counted in the log.
        split: whose judgements are used.
        positive_from: the lowest grade that counts as relevant. Grades below 0 (junk) become 0.

    Raises:
        InputError: no query has a relevant document.
    """
    queries, corpus = collection.queries(split), collection.corpus
    rows: list[TrainingRow] = []
    n_unknown = n_without = 0
    for query_id, grades in collection.qrels(split).items():
        if query_id not in queries:  # without text, about which `queries` has warned
            continue
        known = {doc_id: grade for doc_id, grade in grades.items() if doc_id in corpus}
        n_unknown += len(grades) - len(known)
        positives = {doc_id: grade for doc_id, grade in known.items() if grade >= positive_from}
        negatives = {doc_id: max(grade, 0) for doc_id, grade in known.items() if grade < positive_from}
        if not positives:
            n_without += 1
            continue
        rows.append(
            TrainingRow(
                query_id=query_id,
                query=queries[query_id],
                positive_ids=tuple(positives),
                negative_ids=tuple(negatives),
                positive_labels=tuple(map(float, positives.values())),
                negative_labels=tuple(map(float, negatives.values())),
            )
        )
    path = collection.qrels_path(split)
    if n_unknown:
        log.warning("%s: %d judgements name documents that are not in the corpus; left out", path, n_unknown)
    if n_without:
        log.warning("%s: %d queries have no relevant document; left out of training", path, n_without)
    if not rows:
        raise InputError(f"no query has a document of grade {positive_from} or more", path=path)
    return rows


def _records(path: Path, report: Callable[[InputError], None]) -> Iterator[tuple[int, str, Record]]:
    """Yield (line number, dialect, record) of each row; the dialect of the first holds for all."""
    expected = ""
    pairs: list[tuple[int, Record]] = []
    lines = progress(numbered_lines(path, report), unit="rows", label=f"reading {path.name}")
    for number, text in lines:
        try:
            value = parse_json(text, path, number)
            dialect = recognise(value)
            expected = expected or dialect
            if dialect != expected:
                message = f"is a row of {dialect}, but the file began with {expected}; split the file"
                raise InputError(message, kind="mixed dialects")
            check_keys(value, DIALECTS[dialect])
            record = DIALECTS[dialect].parse(value)
        except InputError as error:
            report(_placed(error, path, number))
            continue
        if dialect == "sentence-transformers" and is_labelled_pair(value):
            pairs.append((number, record))
        else:
            yield number, dialect, record
    for number, record in merge_pairs(pairs):
        yield number, expected, record


class _Check:
    """Turns records into rows, or says in an InputError without a place what is wrong with one."""

    def __init__(self, collection: Collection | None) -> None:
        self._collection = collection
        self._queries: dict[str, str] | None = None

    def row(self, record: Record) -> TrainingRow:
        query_id, query = self._query(record)
        values: dict[str, Any] = {}
        for side in _SIDES:
            values.update(self._side(record, side))
        if not values["positive_ids"] and not values["positives"]:
            raise InputError("has no relevant document; give positive_ids or positives", kind="no positive")
        for positives, negatives in (("positive_ids", "negative_ids"), ("positives", "negatives")):
            if both := set(values[positives]) & set(values[negatives]):
                message = f"{shown(min(both))} is in {positives} and in {negatives}; keep one"
                raise InputError(message, kind="positive is negative")
        return TrainingRow(query_id=query_id, query=query, **values)

    def _query(self, record: Record) -> tuple[str, str]:
        query_id, query = record.get("query_id"), record.get("query")
        for field, value in (("query_id", query_id), ("query", query)):
            if value is not None and not isinstance(value, str):
                raise InputError(f'"{field}" is {shown(value)}; wanted a string', kind="wrong type")
        if query is None and query_id and self._collection:
            if self._queries is None:
                self._queries = self._collection.queries()
            query = self._queries.get(query_id)
            if query is None:
                raise InputError(f"query {query_id!r} is not in the collection", kind="unknown query")
        if query is None:
            raise InputError('has no "query", and no collection to look it up in; give --data', kind="no query")
        if not query.strip():
            raise InputError('"query" is empty', kind="no query")
        return query_id or f"text:{hashlib.sha256(query.encode()).hexdigest()[:16]}", query

    def _side(self, record: Record, side: str) -> dict[str, Any]:
        ids = _strings(record, f"{side}_ids")
        texts = _strings(record, f"{side}s")
        if ids and texts and len(ids) != len(texts):
            message = f"got {len(ids)} {side}_ids and {len(texts)} {side}s; with both, they are the same documents"
            raise InputError(message, kind="misaligned")
        if self._collection and not texts:
            for place, doc_id in enumerate(ids):
                if doc_id not in self._collection.corpus:
                    message = f"{side}_ids[{place}] is {doc_id!r}, which is not in the corpus"
                    raise InputError(message, kind="unknown document")
        size = len(ids) or len(texts)
        values: dict[str, Any] = {f"{side}_ids": ids, f"{side}s": texts}
        for what in ("labels", "scores", "ranks"):
            field = f"{side}_{what}"
            if field not in record or (side, what) == ("positive", "ranks"):
                continue
            numbers = _numbers(record, field, whole=what == "ranks")
            if numbers and len(numbers) != size:
                message = f"got {len(numbers)} {field} for {size} documents; wanted one each"
                raise InputError(message, kind="misaligned")
            values[field] = numbers
        return values


def _strings(record: Record, field: str) -> tuple[str, ...]:
    values = record.get(field)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise InputError(f'"{field}" is {shown(values)}; wanted a list of strings', kind="wrong type")
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{field}[{place}] is {shown(value)}; wanted a string", kind="wrong type")
        if not value.strip():
            raise InputError(f"{field}[{place}] is empty", kind="empty text")
    return tuple(values)


def _numbers(record: Record, field: str, *, whole: bool) -> tuple[float, ...]:
    values = record[field]
    if values is None:
        return ()
    if not isinstance(values, list):
        raise InputError(f'"{field}" is {shown(values)}; wanted a list of numbers', kind="wrong type")
    for place, value in enumerate(values):
        good = isinstance(value, int) if whole else isinstance(value, int | float) and math.isfinite(value)
        if not good or isinstance(value, bool) or (whole and value < 1):
            wanted = "a whole number from 1" if whole else "a finite number"
            raise InputError(f"{field}[{place}] is {shown(value)}; wanted {wanted}", kind="wrong type")
    return tuple(values) if whole else tuple(map(float, values))


def _texts(texts: Sequence[str], ids: Sequence[str], corpus: Corpus | None) -> list[str]:
    if texts or not ids:
        return list(texts)
    if corpus is None:
        raise InputError(f"the text of document {ids[0]!r} is not in the row; give the collection (--data)")
    return [corpus.text(corpus.row(doc_id)) for doc_id in ids]


def _placed(error: InputError, path: Path, line: int) -> InputError:
    """Return the error with its place, unless it has one."""
    if error.path is not None:
        return error
    return InputError(error.reason, path=path, line=line, kind=error.kind)
