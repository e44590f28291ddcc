"""Scores of a reranker that are kept in the store of embeddings: no pair of query and document is scored twice.

    STORE/
        8d1e…/                one folder for all that decides a score: the reranker's fingerprint
            17c0…/            one shard, as of embeddings: the vector of a pair is its score

A pair is known by the content of its two texts. Where a reranker reads lists, so that a document's score depends on the
others (Set-Encoder, tournaments, and whatever does not say of itself that it scores pairs), the list is part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.embedding_store import text_digests
from retrieval.reranking import score_in_blocks

if TYPE_CHECKING:
    from retrieval.embedding_store import EmbeddingStore
    from retrieval.reranking import RunReranker
    from retrieval.trec import Run

SHARD = 1 << 16  # pairs; what a kill may lose is some minutes of a CPU's work

Digests = NDArray[np.uint8]


def stored_scores(
    store: EmbeddingStore,
    reranker: RunReranker,
    queries: Mapping[str, str],
    candidates: Run,
    digests: Mapping[str, Digests],
    *,
    reads_lists: bool,
) -> dict[str, NDArray[np.float32]]:
    """Return the scores of every query's candidates, scoring those that the store lacks.

    What is scored stays when the work is stopped, and the same call goes on from there.

    Args:
        store: where scores are taken from, and kept.
        reranker: its fingerprint says all that decides a score beside the texts.
        queries: name → text.
        candidates: name → document → score of the first stage, best first.
        digests: name → (documents, 32) `text_digests` of its documents, in their order.
        reads_lists: whether the documents of a list change each other's scores.

    Raises:
        StorageError: a shard is damaged.
        InputError: as `score_in_blocks`.
    """
    fingerprint = reranker.fingerprint()
    key = {"scores_of": _without_place(fingerprint), "dim": 1}
    pairs = {name: pair_digests(queries[name], digests[name], reads_lists=reads_lists) for name in candidates}
    values, held = store.look_up(key, np.concatenate([text_digests([]), *pairs.values()]))
    scores: dict[str, NDArray[np.float32]] = {}
    lacking: dict[str, NDArray[np.bool_]] = {}
    stop = 0
    for name, of_list in pairs.items():
        start, stop = stop, stop + len(of_list)
        scores[name] = values[start:stop, 0]
        if not held[start:stop].all():
            lacking[name] = ~held[start:stop] | reads_lists
    todo = {name: dict(compress(candidates[name].items(), mask.tolist())) for name, mask in lacking.items()}
    new: list[str] = []

    def keep() -> None:
        if new:
            of_pairs = np.concatenate([pairs[name][lacking[name]] for name in new])
            values = np.concatenate([scores[name][lacking[name]] for name in new])
            store.keep(key, of_pairs, values[:, None], str(fingerprint.get("source", "")))
            new.clear()

    try:
        for part in score_in_blocks(reranker, queries, todo):
            for name, found in part.items():
                scores[name][lacking[name]] = found
            new += part
            if sum(len(todo[name]) for name in new) >= SHARD:
                keep()
    finally:
        keep()
    return scores


def pair_digests(query: str, documents: Digests, *, reads_lists: bool) -> Digests:
    """Return the (documents, 32) sha256 of what each pair of a list is known by."""
    start = text_digests([query]).tobytes() + (hashlib.sha256(documents.tobytes()).digest() if reads_lists else b"")
    joined = b"".join(hashlib.sha256(start + document.tobytes()).digest() for document in documents)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(documents), 32)


def _without_place(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint without where the model lies, if it says which weights these are."""
    return {
        name: value for name, value in fingerprint.items() if name != "source" or "weights_sha256" not in fingerprint
    }
