"""Lists of judged documents drawn by a seed, as training rows: the same documents whatever counts as relevant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from indexes.storage import write_lines
from retrieval.collection import Collection


def write_judged_lists(collection: Collection, path: Path, *, size: int, seed: int, positive_from: int) -> int:
    """Write one row for each training query and return how many have nothing relevant and were left out.

    A list is `size` judged documents of the query (all of them where there are fewer), drawn by the seed and the
    query's id; those of a grade >= `positive_from` are its positives, with their grades, the others its negatives.
    """
    rows = list(_rows(collection, size, seed, positive_from))
    write_lines(path, (json.dumps(row) for row in rows if row["positive_ids"]))
    return sum(not row["positive_ids"] for row in rows)


def _rows(collection: Collection, size: int, seed: int, positive_from: int) -> Iterator[dict[str, object]]:
    queries = collection.queries("train")
    for query_id, grades in collection.qrels("train").items():
        known = sorted(doc_id for doc_id in grades if doc_id in collection.corpus)
        number = int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, number]).permutation(len(known))[:size]
        drawn = [known[place] for place in order]
        positive = [doc_id for doc_id in drawn if grades[doc_id] >= positive_from]
        yield {
            "query_id": query_id,
            "query": queries[query_id],
            "positive_ids": positive,
            "positive_labels": [grades[doc_id] for doc_id in positive],
            "negative_ids": [doc_id for doc_id in drawn if doc_id not in positive],
        }
