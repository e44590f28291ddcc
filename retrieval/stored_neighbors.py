"""Answers of an exact search that are kept in the store of embeddings: the same search is not done twice.

    STORE/neighbors/5e21…/    named after both sides' vector keys and the texts; rows.npy, scores.npy

An answer of depth k serves every smaller depth, so that another mining with other ranks, margins or draws searches
nothing. A deeper one replaces it. Texts are known by their hashes and documents by their places, never by ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.neighbors import Neighbors
from indexes.storage import CURRENT, StorageError, open_folder, publishing, writing
from retrieval.embeddings import load_array
from retrieval.progress import progress

if TYPE_CHECKING:
    from indexes import FaissIndex
    from indexes.neighbors import Vectors
    from retrieval.embedding_store import StoredVectors

KIND = "neighbors"

# Queries per search: faiss computes as many at once, and each block costs its threads a wait.
_BLOCK = 4_096


def stored_neighbors(
    store: Path, queries: StoredVectors, documents: StoredVectors, k: int, index: Callable[[], FaissIndex]
) -> Neighbors:
    """Return the k best documents of every query or more, all that tie at the last place among them.

    Args:
        store: the folder of the store.
        queries, documents: what is searched with, and what is searched.
        k: at least 1.
        index: makes an exact index over the documents; called only where there is something to search.

    Raises:
        StorageError: what is stored is damaged, or another process is writing the same.
    """
    digest = hashlib.sha256(json.dumps([queries.key, documents.key], sort_keys=True).encode())
    digest.update(queries.digests.tobytes())
    digest.update(documents.digests.tobytes())
    folder = store / "neighbors" / digest.hexdigest()[:32]
    found = _read(folder, len(queries)) if (folder / CURRENT).exists() else None
    if found is not None and found[0] >= min(k, len(documents)):
        return found[1]
    neighbors = _search(index(), queries.rows(), k)
    manifest = {"kind": KIND, "k": k, "width": neighbors.rows.shape[1]}
    with publishing(folder, manifest, overwrite=True) as temporary:
        for name, array in (("rows.npy", neighbors.rows), ("scores.npy", neighbors.scores)):
            with writing(temporary / name) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return neighbors


def _search(index: FaissIndex, queries: Vectors, k: int) -> Neighbors:
    """Search block by block; a block in which many tie is wider than others."""
    parts: list[Neighbors] = []
    with progress(total=len(queries), unit="queries", label="searching") as bar:
        for start in range(0, len(queries), _BLOCK):
            parts.append(index.search(queries[start : start + _BLOCK], k, ties=True))
            bar.update(len(parts[-1].rows))
    width = max([k, *(part.rows.shape[1] for part in parts)])
    rows = np.full((len(queries), width), -1, dtype=np.int64)
    scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
    for number, part in enumerate(parts):
        block = slice(number * _BLOCK, number * _BLOCK + len(part.rows))
        rows[block, : part.rows.shape[1]] = part.rows
        scores[block, : part.rows.shape[1]] = part.scores
    return Neighbors(rows, scores)


def _read(folder: Path, n_queries: int) -> tuple[int, Neighbors]:
    """Return the depth of a stored answer, and the answer."""
    try:
        artifact = open_folder(folder, kind=KIND)
        known: dict[str, Any] = artifact.manifest
        shape = (n_queries, int(known["width"]))
        rows = load_array(artifact.path / "rows.npy", np.int64, shape)
        scores = load_array(artifact.path / "scores.npy", np.float32, shape)
        # As plain arrays, still mapped: a memmap makes each of its rows a slow object.
        return int(known["k"]), Neighbors(np.asarray(rows), np.asarray(scores))
    except ValueError as error:
        raise StorageError(f"{error}; or delete {folder}, and the search is done again") from error
