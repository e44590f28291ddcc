"""Read everything that a collection and training rows hold; report counts, lengths, leaks and every defect."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.collection import Collection, read_queries
from retrieval.corpus import MAX_CHARACTERS, Corpus, Document
from retrieval.errors import InputError
from retrieval.rows import read_rows
from retrieval.splits import of_seen_documents, relevant_documents
from retrieval.trec import check_id, numbered_qrels, read_qrels

PERCENTILES = (5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at: its sort, the message without the place, the file, and the line or None."""

    kind: str
    message: str
    path: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.message}"


@dataclass(slots=True)
class DataReport:
    """What `inspect` found, in plain values that JSON can hold.

    documents, queries: counts, and lengths as {"words": {"50": median, …}, "characters": …}.
    splits: name → counts, histogram of grades, and recall_bound, the highest mean recall that documents of the
        corpus can reach.
    leaks: one entry for each two splits, or training file and split, that share something.
    seen: one entry for each training split or file and split that share relevant documents: of how many queries.
    rows: file → dialect and counts.
    defects: what makes the data unusable as it is. warnings: what is worth knowing, leaks among it.
    """

    name: str
    documents: dict[str, Any] = field(default_factory=dict)
    queries: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    defects: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    def defect(self, error: InputError) -> None:
        """Add a defect; readers call this instead of raising."""
        self.defects.append(Finding(error.kind, error.reason, str(error.path or self.name), error.line))

    def warn(self, kind: str, message: str, path: Path, line: int | None = None) -> None:
        """Add a warning."""
        self.warnings.append(Finding(kind, message, str(path), line))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn what ends the reading of a file, such as damaged gzip data, into a defect."""
        try:
            yield
        except InputError as error:
            self.defect(error)


def inspect(source: str | Path, rows: Sequence[str | Path] = ()) -> DataReport:
    """Read every line of a collection and of files with training rows.

    Args:
        source: what `Collection.load` takes.
        rows: files of training rows, checked against the collection.

    Raises:
        InputError: there is no collection at `source`. All other defects are in the report.
    """
    collection = Collection.load(source)
    report = DataReport(collection.name)
    corpus = _read_documents(report, collection)
    texts = _read_queries(report, collection)
    if corpus is not None:  # what could be read serves the checks that follow; reading it again would raise
        collection.corpus, collection.query_texts = corpus, texts or {}
    parts: dict[str, _Part] = {}
    with report.collecting():
        for split in collection.splits:
            with report.collecting():
                parts[split] = _read_split(report, collection, split, corpus, texts)
    for path in map(Path, rows):
        with report.collecting():
            parts[str(path)] = _read_rows_file(report, collection if corpus is not None else None, path)
    _find_leaks(report, parts)
    return report


@dataclass(frozen=True, slots=True)
class _Part:
    """What a split or a file of rows could leak: its (query id, text, relevant documents), with lines."""

    path: Path
    family: str
    relevant: dict[str, set[str]]
    texts: dict[str, str]
    lines: dict[str, int]


def _read_documents(report: DataReport, collection: Collection) -> Corpus | None:
    words, characters, digests, lines = array("I"), array("I"), array("Q"), array("Q")
    counts: Counter[str] = Counter()
    path = collection.corpus_path

    def visit(line: int, document: Document) -> None:
        text = document.full_text
        words.append(len(text.split()))
        characters.append(len(text))
        counts["titled"] += bool(document.title)
        counts["cut"] += len(text) > MAX_CHARACTERS
        _check_id(report, document.doc_id, "document id", path, line)
        if not text:
            report.warn("empty document", f"document {document.doc_id!r} is empty", path, line)
            counts["empty"] += 1
            return
        digests.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))
        lines.append(line)

    corpus = None
    with report.collecting():
        corpus = Corpus.load(path, report=report.defect, visit=visit)
    repeated = _repeated(digests, lines)
    for first, line in repeated:
        report.warn("duplicate text", f"has the same title and text as line {first}", path, line)
    report.documents = {
        "count": len(words),
        "titled": counts["titled"],
        "empty": counts["empty"],
        "duplicate_texts": len(repeated),
        f"longer_than_{MAX_CHARACTERS}_characters": counts["cut"],
        "words": _percentiles(words),
        "characters": _percentiles(characters),
    }
    return corpus


def _read_queries(report: DataReport, collection: Collection) -> dict[str, str] | None:
    try:
        path = collection.queries_path
    except InputError as error:
        if collection.splits:  # a corpus alone is a collection, too
            report.defect(error)
        return None

    def visit(line: int, query_id: str, text: str) -> None:
        _check_id(report, query_id, "query id", path, line)
        if not text.strip():
            message = f"query {query_id!r} is empty; it is not searched and scores 0"
            report.warn("empty query", message, path, line)

    try:
        texts = read_queries(path, report.defect, visit)
    except InputError as error:
        report.defect(error)
        return None
    same = Counter(normalised(text) for text in texts.values() if text.strip())
    report.queries = {
        "count": len(texts),
        "empty": sum(not text.strip() for text in texts.values()),
        "duplicate_texts": sum(same.values()) - len(same),
        "words": _percentiles([len(text.split()) for text in texts.values()]),
        "characters": _percentiles([len(text) for text in texts.values()]),
    }
    return texts


def _read_split(
    report: DataReport,
    collection: Collection,
    split: str,
    corpus: Corpus | None,
    texts: Mapping[str, str] | None,
) -> _Part:
    path = collection.qrels_path(split)
    qrels = read_qrels(path, report.defect)
    lines: dict[str, int] = {}
    n_unknown = 0
    for line, query_id, doc_id, _ in numbered_qrels(path, lambda error: None):
        is_first = lines.setdefault(query_id, line) == line
        if is_first and texts is not None and query_id not in texts:
            message = f"query {query_id!r} is not in {collection.queries_path.name}"
            report.defect(InputError(message, path=path, line=line, kind="unknown query"))
        if corpus is not None and doc_id not in corpus:
            n_unknown += 1
            message = f"document {doc_id!r} is not in the corpus, so nothing can find it"
            report.warn("unknown document", message, path, line)
    grades = Counter(grade for judged in qrels.values() for grade in judged.values())
    relevant = relevant_documents(qrels)
    report.splits[split] = {
        "queries": len(qrels),
        "judgements": sum(map(len, qrels.values())),
        "grades": {str(grade): n for grade, n in sorted(grades.items())},
        "without_relevant": sum(not documents for documents in relevant.values()),
        "unknown_documents": n_unknown,
        "recall_bound": _recall_bound(relevant, corpus),
    }
    family = re.split(r"[._-]", split)[0]
    return _Part(path, family, relevant, {q: (texts or {}).get(q, "") for q in qrels}, lines)


def _read_rows_file(report: DataReport, collection: Collection | None, path: Path) -> _Part:
    before = len(report.defects)
    rows, dialect = read_rows(path, collection, report=report.defect)
    report.rows[str(path)] = {
        "dialect": dialect,
        "rows": len(rows),
        "defective": len(report.defects) - before,
        "queries": len({row.query_id for row in rows}),
        "positives": sum(len(row.positive_ids or row.positives) for row in rows),
        "negatives": sum(len(row.negative_ids or row.negatives) for row in rows),
        "without_negatives": sum(not (row.negative_ids or row.negatives) for row in rows),
        "with_labels": sum(bool(row.positive_labels or row.negative_labels) for row in rows),
        "with_scores": sum(bool(row.positive_scores or row.negative_scores) for row in rows),
    }
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row.query_id, set()).update(row.positive_ids)
    return _Part(path, "train", relevant, {row.query_id: row.query for row in rows}, {})


def _find_leaks(report: DataReport, parts: Mapping[str, _Part]) -> None:
    """Compare all parts; splits with the same first word (test, test_sum8) are two views of one and may share."""
    ordered = sorted(parts, key=lambda name: (parts[name].family != "train", name))
    for first, second in combinations(ordered, 2):
        one, other = parts[first], parts[second]
        if one.family == other.family:
            continue
        by_text: dict[str, set[str]] = {}
        for query_id, text in one.texts.items():
            by_text.setdefault(normalised(text), set()).update(one.relevant[query_id])
        counts: Counter[str] = Counter()
        for query_id, documents in other.relevant.items():
            text = normalised(other.texts[query_id])
            leaks = []
            if query_id in one.relevant:
                leaks.append("query id")
            if text and text in by_text:
                leaks.append("query text")
            if text and documents & by_text.get(text, set()):
                leaks.append("query text with a relevant document")
            counts.update(leaks)
            if leaks:
                message = f"query {query_id!r} is in {one.path.name} too: the same {' and '.join(leaks)}"
                report.warn(f"leak ({leaks[-1]})", message, other.path, other.lines.get(query_id))
        if counts:
            report.leaks.append({"between": [first, second], **counts})
        if one.family == "train" and (seen := of_seen_documents(one.relevant, other.relevant)):
            report.seen.append({"between": [first, second], "queries": len(seen), "of": len(other.relevant)})


def normalised(text: str) -> str:
    """Return the words of a text in lower case, so that case, punctuation and blanks make no difference."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _percentiles(values: Sequence[int]) -> dict[str, int]:
    """Return {percentile: value} of observed values (no interpolation); nothing for no values."""
    if not len(values):
        return {}
    found = np.percentile(np.asarray(values), PERCENTILES, method="inverted_cdf")
    return {str(percentile): int(value) for percentile, value in zip(PERCENTILES, found, strict=True)}


def _repeated(digests: array[int], lines: array[int]) -> list[tuple[int, int]]:
    """Return (first line, later line) of every text that was there before, by later line."""
    order = np.argsort(np.asarray(digests, dtype=np.uint64), kind="stable")
    values, places = np.asarray(digests, dtype=np.uint64)[order], np.asarray(lines, dtype=np.int64)[order]
    is_new = np.concatenate(([True], values[1:] != values[:-1])) if len(values) else np.zeros(0, dtype=bool)
    firsts = places[is_new][np.cumsum(is_new) - 1]  # the first line of each place's group
    pairs = zip(firsts[~is_new].tolist(), places[~is_new].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: pair[1])


def _recall_bound(relevant: Mapping[str, set[str]], corpus: Corpus | None) -> float | None:
    """Mean over queries with a relevant document of the share of those that are in the corpus."""
    if corpus is None:
        return None
    shares = [sum(doc in corpus for doc in docs) / len(docs) for docs in relevant.values() if docs]
    return float(np.mean(shares)) if shares else None


def _check_id(report: DataReport, text: str, what: str, path: Path, line: int) -> None:
    try:
        check_id(text, what)
    except InputError as error:
        report.warn("unsafe id", error.reason, path, line)
