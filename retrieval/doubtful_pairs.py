"""Doubtful negatives for a person to label: written as a TSV, read back as judgements or as a mask of the rows.

One line is one (query, document) pair; the last column, `label`, is empty. Whoever reads the pairs writes a grade into
it: 0 not relevant, 1 or more relevant; lines left empty are not labelled. Columns are known by their names, so that a
spreadsheet may move them or add others, and quotes are those that spreadsheets write. A line feed or a tab within a
text becomes a blank, so that a line of the file is a pair.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from retrieval.errors import InputError, did_you_mean
from retrieval.rows import TrainingRow
from retrieval.textfiles import numbered_lines, publish_lines
from retrieval.trec import Qrels

log = logging.getLogger(__name__)

NEEDED = ("query_id", "doc_id", "label")
LONGEST = 2_000  # characters of a text that are shown
_LARGEST_GRADE = 2**31 - 1
_OF_NEGATIVES = ("negative_ids", "negatives", "negative_labels", "negative_scores", "negative_ranks")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtfulPair:
    """A negative that may be relevant, with what a person needs to decide.

    Attributes:
        query_id, query: whose negative it is.
        doc_id, document: the negative and its text.
        rank: in the miner's list.
        score: what it is doubtful by: the reranker's, or the miner's; None where there is none.
        margin: its score minus the mean score of the query's positives; above 0 it looks better than they do.
        likeness: cosine of its words and those of the positive most like it, 0 to 1.
        repeats: the share of runs of words that it has in common with a positive, 0 to 1 (Jaccard).
        best_positive_id, best_positive: the query's positive that it nearly repeats, or else the one most like it.

    """

    query_id: str
    query: str
    doc_id: str
    rank: int
    score: float | None
    margin: float | None
    likeness: float
    repeats: float
    best_positive_id: str
    best_positive: str
    document: str


COLUMNS = (*(field.name for field in fields(DoubtfulPair)), "label")


def write_doubtful(path: str | Path, pairs: Iterable[DoubtfulPair]) -> None:
    """Publish the pairs as a TSV with an empty column `label`; compressed if `path` ends in .gz.

    Raises:
        InputError: as `check_unlabelled`.
    """
    path = Path(path)
    check_unlabelled(path)
    lines = ([*(_shown(getattr(pair, name)) for name in COLUMNS[:-1]), ""] for pair in pairs)
    publish_lines(path, map(_line, [list(COLUMNS), *lines]))


def check_unlabelled(path: Path) -> None:
    """Refuse to lose labels that somebody wrote into the file.

    Raises:
        InputError: it holds some, or it is not a file of this kind.
    """
    if path.exists() and (n_labelled := sum(label != "" for *_, label in _labelled(path))):
        raise InputError(f"holds {n_labelled} labels, which would be lost; move it away first", path=path)


def read_labels(path: str | Path, rows: Sequence[TrainingRow]) -> Qrels:
    """Read the labels that a person wrote: query id → document id → grade.

    Args:
        path: what `write_doubtful` wrote, with labels; lines without one are passed over.
        rows: the rows that were audited.

    Raises:
        InputError: with file and line: a column is missing, a label is no grade, two labels contradict each other, or
            a pair is not a negative of the rows. Or there is no label at all.
    """
    path = Path(path)
    negatives: dict[str, set[str]] = {}
    for row in rows:
        negatives.setdefault(row.query_id, set()).update(row.negative_ids)
    labels: Qrels = {}
    lines: dict[tuple[str, str], int] = {}
    for number, query_id, doc_id, text in _labelled(path):
        if not text:
            continue
        grade = _grade(text, path, number)
        if doc_id not in negatives.get(query_id, ()):
            what = f"query {query_id!r} has no negative {doc_id!r}" if query_id in negatives else f"query {query_id!r}"
            where = "in the rows" if query_id in negatives else "is not in the rows"
            raise InputError(f"{what} {where}; give the rows that were audited", path=path, line=number)
        known = labels.setdefault(query_id, {})
        if known.get(doc_id, grade) != grade:
            first = lines[query_id, doc_id]
            message = f"query {query_id!r}, document {doc_id!r}: label {grade}, but {known[doc_id]} on line {first}"
            raise InputError(f"{message}; keep one", path=path, line=number, kind="contradictory judgement")
        known[doc_id] = grade
        lines.setdefault((query_id, doc_id), number)
    if not labels:
        raise InputError('has no label; write 0, 1, 2, … into the column "label"', path=path, kind="empty")
    return labels


def write_label_qrels(path: str | Path, labels: Qrels) -> None:
    """Publish labels as qrels in BEIR's three columns.

    Raises:
        InputError: an id holds a tab or a line end, which the format cannot carry.
    """
    for query_id, grades in labels.items():
        for doc_id in (query_id, *grades):
            if set(doc_id) & set("\t\r\n"):
                raise InputError(f"id {doc_id!r} holds a tab or a line end, which qrels cannot carry")
    lines = (f"{q}\t{d}\t{grade}" for q, grades in labels.items() for d, grade in grades.items())
    publish_lines(Path(path), ["query-id\tcorpus-id\tscore", *lines])


def masked_rows(rows: Iterable[TrainingRow], labels: Mapping[str, Mapping[str, int]]) -> Iterator[TrainingRow]:
    """Yield the rows without the negatives that are labelled relevant (grade >= 1); a row may be left with none."""
    for row in rows:
        grades = labels.get(row.query_id, {})
        kept = [place for place, doc_id in enumerate(row.negative_ids) if grades.get(doc_id, 0) < 1]
        if len(kept) == len(row.negative_ids):
            yield row
            continue
        values = {name: getattr(row, name) for name in _OF_NEGATIVES}
        less: dict[str, Any] = {name: tuple(value[i] for i in kept) for name, value in values.items() if value}
        yield replace(row, **less)


def _labelled(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield (line number, query id, document id, label as it is written) of each line."""
    places: dict[str, int] = {}
    for number, text in numbered_lines(path):
        cells = next(csv.reader([text], dialect="excel-tab"))
        if not places:
            places = {name.strip().casefold(): place for place, name in enumerate(cells)}
            for name in NEEDED:
                if name not in places:
                    hint = did_you_mean(name, places)
                    message = f'has no column "{name}"{hint}; wanted the TSV that `audit --out` wrote'
                    raise InputError(message, path=path, line=number, kind="wrong columns")
            continue
        if len(cells) <= max(places[name] for name in NEEDED):
            message = f"got {len(cells)} columns between tabs, wanted {len(places)} as in the first line"
            raise InputError(message, path=path, line=number, kind="wrong columns")
        yield number, cells[places["query_id"]], cells[places["doc_id"]], cells[places["label"]].strip()


def _grade(text: str, path: Path, number: int) -> int:
    try:
        grade = int(text) if "_" not in text else -1
    except ValueError:
        grade = -1
    if not 0 <= grade <= _LARGEST_GRADE:
        message = f"label {text!r} is no grade; wanted 0 (not relevant), 1, 2, … or nothing"
        raise InputError(message, path=path, line=number, kind="grade")
    return grade


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, dialect="excel-tab", lineterminator="").writerow(cells)
    return buffer.getvalue()


def flattened(text: str) -> str:
    """Return a text as one line, cut after `LONGEST` characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
