"""Training rows written for other tools, each with a list of what its format cannot hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from retrieval.corpus import Corpus
from retrieval.rows import TrainingRow


class Written(NamedTuple):
    """The JSON objects of a file, made one by one; what they cannot hold; what to know about them."""

    lines: Iterator[dict[str, Any]]
    lost: list[str]
    notes: list[str]


Writer = Callable[[Sequence[TrainingRow], Corpus | None], Written]


def to_rankwright(rows: Sequence[TrainingRow], corpus: Corpus | None) -> Written:
    """Write our own rows; ids stay ids."""
    return Written((row.to_dict() for row in rows), [], [])


def to_sentence_transformers(rows: Sequence[TrainingRow], corpus: Corpus | None) -> Written:
    """Write a triplet for each positive and each negative of it, or pairs if no row has negatives.

    All lines of a data set have the same columns, so rows without negatives cannot stand among triplets. If every
    row has teacher's scores on both sides, each triplet has `scores`: [positive, negative].
    """
    triplets = any(row.negative_ids or row.negatives for row in rows)
    scored = triplets and all(row.positive_scores and (row.negative_scores or not _n_negatives(row)) for row in rows)

    def lines() -> Iterator[dict[str, Any]]:
        for row in rows:
            positives, negatives = row.positive_texts(corpus), row.negative_texts(corpus)
            for place, positive in enumerate(positives):
                pair = {"anchor": row.query, "positive": positive}
                if not triplets:
                    yield pair
                for other, negative in enumerate(negatives):
                    scores = [row.positive_scores[place], row.negative_scores[other]] if scored else None
                    yield pair | {"negative": negative} | ({"scores": scores} if scores else {})

    names = ["query_id", "ids", "labels", "negative_ranks"]
    lost = _lost_fields(rows, names if scored else [*names, "scores"])
    n_without = sum(not _n_negatives(row) for row in rows)
    if triplets and n_without:
        lost.append(f"{n_without} of {len(rows)} rows, which have no negative for a triplet")
    return Written(lines(), lost, [])


def to_flagembedding(rows: Sequence[TrainingRow], corpus: Corpus | None) -> Written:
    """Write {"query", "pos", "neg"} and, where a row has scores on both sides, "pos_scores" and "neg_scores"."""

    def lines() -> Iterator[dict[str, Any]]:
        for row in rows:
            line: dict[str, Any] = {"query": row.query}
            line |= {"pos": row.positive_texts(corpus), "neg": row.negative_texts(corpus)}
            if _is_scored(row):
                line |= {"pos_scores": list(row.positive_scores), "neg_scores": list(row.negative_scores)}
            yield line

    lost = _lost_fields(rows, ["query_id", "ids", "labels", "negative_ranks"])
    n_half = sum(not _is_scored(row) and bool(row.positive_scores or row.negative_scores) for row in rows)
    if n_half:
        lost.append(f"scores of {n_half} rows, which have them on one side alone")
    n_without = sum(not _n_negatives(row) for row in rows)
    notes = [f"{n_without} rows have no negative; FlagEmbedding wants some, so mine them"] if n_without else []
    return Written(lines(), lost, notes)


def to_tevatron(rows: Sequence[TrainingRow], corpus: Corpus | None) -> Written:
    """Write {"query_id", "query", "positive_passages", "negative_passages"}; a text without id gets its hash as one."""

    def passages(ids: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
        if ids and not texts and corpus is not None:
            documents = [corpus.document(corpus.row(doc_id)) for doc_id in ids]
            return [{"docid": d.doc_id, "title": d.title, "text": d.text} for d in documents]
        ids = ids or [f"text:{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in texts]
        return [{"docid": doc_id, "title": "", "text": text} for doc_id, text in zip(ids, texts, strict=True)]

    def lines() -> Iterator[dict[str, Any]]:
        for row in rows:
            if corpus is None:  # says which text is missing
                row.positive_texts(), row.negative_texts()
            yield {
                "query_id": row.query_id,
                "query": row.query,
                "positive_passages": passages(row.positive_ids, row.positives),
                "negative_passages": passages(row.negative_ids, row.negatives),
            }

    return Written(lines(), _lost_fields(rows, ["labels", "scores", "negative_ranks"]), [])


def _n_negatives(row: TrainingRow) -> int:
    return len(row.negative_ids or row.negatives)


def _is_scored(row: TrainingRow) -> bool:
    return bool(row.positive_scores) and bool(row.negative_scores or not _n_negatives(row))


def _lost_fields(rows: Sequence[TrainingRow], names: Sequence[str]) -> list[str]:
    """Name those of the fields that some row has; "ids", "labels" and "scores" mean both sides."""
    lost = []
    for name in names:
        fields = (name,) if name in ("query_id", "negative_ranks") else (f"positive_{name}", f"negative_{name}")
        n_rows = sum(any(getattr(row, field) for field in fields) for row in rows)
        made = name == "query_id" and all(row.query_id.startswith("text:") for row in rows)
        if n_rows and not made:
            lost.append(f"{name} of {n_rows} rows")
    return lost


WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        "rankwright": to_rankwright,
        "sentence-transformers": to_sentence_transformers,
        "tevatron": to_tevatron,
        "flagembedding": to_flagembedding,
    }
)
