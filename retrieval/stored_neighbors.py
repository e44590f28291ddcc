"""Answers of an exact search that are kept in the store of embeddings: the same search is not done twice.

    STORE/neighbors/5e21…/    named after both sides' vector keys and the texts; rows.npy, scores.npy

An answer of depth k serves every smaller depth, so that another mining with other ranks, margins or draws searches
nothing. A deeper one replaces it. Texts are known by their hashes and documents by their places, never by ids. Of
documents with equal scores the earlier ones are taken and come first, so that no answer depends on how deep it goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexes.neighbors import Neighbors
from indexes.storage import CURRENT, Artifact, StorageError, publishing, read_folder, writing
from retrieval.embedding_store import keeping
from retrieval.embeddings import load_array
from retrieval.progress import progress

if TYPE_CHECKING:
    from indexes import FaissIndex
    from indexes.neighbors import Vectors
    from retrieval.embedding_store import StoredVectors

KIND = "nearest documents"

# Queries per search: faiss computes as many at once, and each block costs its threads a wait.
_BLOCK = 4_096


def stored_neighbors(
    store: Path, queries: StoredVectors, documents: StoredVectors, k: int, index: Callable[[], FaissIndex]
) -> Neighbors:
    """Return the k best documents of every query or more; none for a query whose vector is zero.

    An answer that cannot be written, because the disk is read-only or another process is writing it, is not kept.

    Args:
        store: the folder of the store.
        queries, documents: what is searched with, and what is searched.
        k: at least 1.
        index: makes an exact index over the documents; called only where there is something to search.

    Raises:
        StorageError: what is stored is damaged.
    """
    digest = hashlib.sha256(json.dumps([KIND, queries.key, documents.key], sort_keys=True).encode())
    digest.update(queries.digests.tobytes())
    digest.update(documents.digests.tobytes())
    folder = store / "neighbors" / digest.hexdigest()[:32]
    k = min(k, len(documents))
    found = _read(folder, len(queries)) if (folder / CURRENT).exists() else None
    if found is not None and found.rows.shape[1] >= k:
        return found
    neighbors = _search(index(), queries.rows(), k)
    with keeping(folder, "neighbors"), publishing(folder, {"kind": KIND, "k": k}, overwrite=True) as temporary:
        for name, array in (("rows.npy", neighbors.rows), ("scores.npy", neighbors.scores)):
            with writing(temporary / name) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return neighbors


def _search(index: FaissIndex, queries: Vectors, k: int) -> Neighbors:
    """Search block by block. Every document ties for a zero vector, so it is not asked."""
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    asked = np.flatnonzero(queries.any(axis=1))
    with progress(total=len(asked), unit="queries", label="searching") as bar:
        for start in range(0, len(asked), _BLOCK):
            block = asked[start : start + _BLOCK]
            found = index.search(queries[block], k)
            rows[block], scores[block] = found.rows, found.scores
            bar.update(len(block))
    return Neighbors(rows, scores)


def _read(folder: Path, n_queries: int) -> Neighbors:
    def read(artifact: Artifact) -> Neighbors:
        shape = (n_queries, int(artifact.manifest["k"]))
        rows = load_array(artifact.path / "rows.npy", np.int64, shape)
        scores = load_array(artifact.path / "scores.npy", np.float32, shape)
        # As plain arrays, still mapped: a memmap makes each of its rows a slow object.
        return Neighbors(np.asarray(rows), np.asarray(scores))

    try:
        return read_folder(folder, read, kind=KIND)
    except ValueError as error:
        raise StorageError(f"{error}; or delete {folder}, and the search is done again") from error
