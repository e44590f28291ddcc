"""The training rows that other tools read, turned into records with the field names of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from retrieval.corpus import shown
from retrieval.errors import InputError

Record = dict[str, Any]  # field of `retrieval.rows.TrainingRow` → value, not yet checked

FIELDS = (
    "query_id",
    "query",
    *(f"{side}_{what}" for what in ("ids", "labels", "scores") for side in ("positive", "negative")),
    "positives",
    "negatives",
    "negative_ranks",
)

# Columns of Sentence Transformers. It goes by their order; these are the names that its data sets use.
_QUERY = ("anchor", "query", "question", "sentence1", "sentence_A", "text1")
_DOCUMENT = (
    "positive",
    "answer",
    "sentence2",
    "sentence_B",
    "text2",
    "response",
    "document",
    "documents",
    "docs",
)
_NEGATIVE = re.compile(r"negative(_?\d+)?")
_LABEL = ("label", "labels", "score", "scores")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to read one tool's rows.

    summary: the keys that a row has, for messages.
    keys: every key that is read; one that is nearly the same is taken for a typing error, others are ignored.
    parse: turns a JSON value into a record, or raises an InputError without a place.
    """

    summary: str
    keys: tuple[str, ...]
    parse: Callable[[Any], Record]


def recognise(value: Any) -> str:
    """Return the key in `DIALECTS` whose rows look like this JSON value.

    Raises:
        InputError: none do.
    """
    if isinstance(value, list):
        return "sentence-transformers"
    keys = value.keys() if isinstance(value, dict) else set()
    tevatron = {"positive_passages", "negative_passages", "positive_document_ids", "negative_document_ids"}
    if keys & tevatron:
        return "tevatron"
    if keys & {"pos", "neg"}:
        return "flagembedding"
    if keys & {"positive_ids", "positives", "negative_ids", "negatives"}:
        return "rankwright"
    if "set" in keys or (keys & set(_QUERY) and keys & set(_DOCUMENT)):
        return "sentence-transformers"
    if "query_id" in keys:
        return "rankwright"
    got = f"the keys {', '.join(map(repr, list(keys)[:6]))}" if keys else shown(value)
    known = "; ".join(f"{name}: {dialect.summary}" for name, dialect in DIALECTS.items())
    raise InputError(f"got {got}, which is no training row ({known})", kind="unknown dialect")


def check_keys(value: Any, dialect: Dialect) -> None:
    """Raise an InputError if a key is nearly one that has a meaning: it would be ignored without a word."""
    for key in value if isinstance(value, dict) else ():
        near = get_close_matches(key, dialect.keys, n=1, cutoff=0.85)
        if near and key not in dialect.keys and near[0] not in value and not _NEGATIVE.fullmatch(key):
            raise InputError(f"unknown key {key!r}; did you mean {near[0]!r}?", kind="unknown key")


def merge_pairs(records: Iterable[tuple[int, Record]]) -> Iterator[tuple[int, Record]]:
    """Join labelled pairs, which come one document a line, into one record for each query, at its first line."""
    merged: dict[str, tuple[int, Record]] = {}
    for number, record in records:
        _, whole = merged.setdefault(record["query"], (number, {"query": record["query"]}))
        for field, values in record.items():
            if field != "query":
                whole.setdefault(field, []).extend(values)
    yield from merged.values()


def is_labelled_pair(value: Any) -> bool:
    """Whether this row of Sentence Transformers is one document with a label, the others being on other lines."""
    if not isinstance(value, dict) or not any(name in value for name in _LABEL):
        return False
    return isinstance(_first(value, _DOCUMENT), str) and not _negatives(value)


def _parse_ours(value: Any) -> Record:
    return {field: value[field] for field in FIELDS if field in value}


def _parse_sentence_transformers(value: Any) -> Record:
    if isinstance(value, dict) and "set" in value:
        value = value["set"]
    if isinstance(value, list):
        if len(value) < 2 or not all(isinstance(text, str) for text in value):
            raise InputError("wanted an array of strings [anchor, positive, negative, …]", kind="wrong type")
        return {"query": value[0], "positives": [value[1]], "negatives": value[2:]}
    query, document = _first(value, _QUERY), _first(value, _DOCUMENT)
    if not isinstance(query, str):
        raise InputError(f"the query is {shown(query)}; wanted a string", kind="wrong type")
    negatives = _negatives(value)
    labels = _first(value, _LABEL)
    if isinstance(document, list):
        return _labelled_list(query, document, value)
    record: Record = {"query": query, "positives": [document], "negatives": negatives}
    if labels is None:
        return record
    if negatives:
        return record | _teacher_scores(labels, len(negatives))
    _check_number(labels)
    if labels > 0:
        return {"query": query, "positives": [document], "positive_labels": [labels]}
    return {"query": query, "negatives": [document], "negative_labels": [labels]}


def _labelled_list(query: Any, documents: list[Any], value: Mapping[str, Any]) -> Record:
    labels, scores = _first(value, ("labels", "label")), _first(value, ("scores", "score"))
    suffix, numbers = ("labels", labels) if labels is not None else ("scores", scores)
    if not isinstance(numbers, list) or len(numbers) != len(documents):
        got = f"{len(numbers)}" if isinstance(numbers, list) else "none"
        message = f"{len(documents)} documents need as many labels or scores, got {got}"
        raise InputError(message, kind="misaligned")
    for number in numbers:
        _check_number(number)
    # Without labels the list is as mine_hard_negatives writes it: the positive first, similarities for all.
    positive = [number > 0 if suffix == "labels" else place == 0 for place, number in enumerate(numbers)]
    record: Record = {"query": query}
    for side, wanted in (("positive", True), ("negative", False)):
        places = [place for place, is_positive in enumerate(positive) if is_positive is wanted]
        record[f"{side}s"] = [documents[place] for place in places]
        record[f"{side}_{suffix}"] = [numbers[place] for place in places]
    return record


def _teacher_scores(labels: Any, n_negatives: int) -> Record:
    """Turn [positive, negatives…] or margins (positive − negative), as for MarginMSE, into scores of both sides."""
    numbers = labels if isinstance(labels, list) else [labels]
    for number in numbers:
        _check_number(number)
    if len(numbers) == 1 + n_negatives:
        return {"positive_scores": numbers[:1], "negative_scores": numbers[1:]}
    if len(numbers) == n_negatives:
        return {"positive_scores": [0.0], "negative_scores": [-margin for margin in numbers]}
    message = f"got {len(numbers)} scores for 1 positive and {n_negatives} negatives; wanted one each, or margins"
    raise InputError(message, kind="misaligned")


def _parse_tevatron(value: Any) -> Record:
    query = value["query"] if "query" in value else value.get("query_text")
    record: Record = {"query": query}
    if value.get("query_id") is not None:
        record["query_id"] = value["query_id"]
    for side in ("positive", "negative"):
        if f"{side}_passages" in value:
            record.update(_passages(value[f"{side}_passages"], side))
        elif f"{side}_document_ids" in value:
            record[f"{side}_ids"] = value[f"{side}_document_ids"]
    return record


def _passages(passages: Any, side: str) -> Record:
    field = f"{side}_passages"
    if not isinstance(passages, list):
        raise InputError(f'"{field}" must be a list of passages', kind="wrong type")
    ids, texts = [], []
    for place, passage in enumerate(passages):
        if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
            raise InputError(f'{field}[{place}] must be an object with a string "text"', kind="wrong type")
        ids.append(passage.get("docid"))
        texts.append(f"{passage.get('title') or ''} {passage['text']}".strip())
    has_ids = all(isinstance(doc_id, str) and doc_id for doc_id in ids)
    return {f"{side}s": texts, **({f"{side}_ids": ids} if has_ids else {})}


def _parse_flagembedding(value: Any) -> Record:
    names = {
        "query": "query",
        "query_id": "query_id",
        "pos": "positives",
        "neg": "negatives",
        "pos_scores": "positive_scores",
        "neg_scores": "negative_scores",
        "pos_id": "positive_ids",
        "neg_id": "negative_ids",
    }
    return {ours: value[theirs] for theirs, ours in names.items() if value.get(theirs) is not None}


def _first(value: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((value[name] for name in names if name in value), None)


def _negatives(value: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    for key, text in value.items():
        if _NEGATIVE.fullmatch(key):
            found.extend(text if isinstance(text, list) else [text])
    return found


def _check_number(number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"a label or score is {shown(number)}; wanted a number", kind="wrong type")


_SENTENCE_TRANSFORMERS_KEYS = (*_QUERY, *_DOCUMENT, *_LABEL, "negative", "set")
_TEVATRON_KEYS = (
    *("query_id", "query", "query_text", "positive_passages", "negative_passages"),
    *("positive_document_ids", "negative_document_ids"),
)
_FLAGEMBEDDING_KEYS = (
    *("query", "query_id", "pos", "neg", "pos_scores", "neg_scores"),
    *("pos_id", "neg_id"),
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "rankwright": Dialect("query with positive_ids or positives", FIELDS, _parse_ours),
        "sentence-transformers": Dialect(
            "anchor, positive, negative", _SENTENCE_TRANSFORMERS_KEYS, _parse_sentence_transformers
        ),
        "tevatron": Dialect("query, positive_passages", _TEVATRON_KEYS, _parse_tevatron),
        "flagembedding": Dialect("query, pos, neg", _FLAGEMBEDDING_KEYS, _parse_flagembedding),
    }
)
