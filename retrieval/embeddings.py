"""Embeddings as files: encoded in parts that survive an interruption, published as one checked folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from indexes.neighbors import check_vectors
from indexes.storage import check_target, open_folder, publishing, remove_folder, write_lines, writing
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.ids import IdTable
from retrieval.trec import check_id

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

logger = logging.getLogger(__name__)

KIND = "embeddings"
PART = 16_384  # texts per part: what an interruption loses at most

TargetSide = Literal["document", "query"]


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """A published folder of embeddings.

    Attributes:
        ids: document or query ids, by row.
        vectors: (n, dim) float32, mapped from the file.
        manifest: what the folder says of itself: side, model fingerprint, hash of the data.
    """

    ids: IdTable
    vectors: NDArray[np.float32]
    manifest: dict[str, Any]


def encode_collection(
    encoder: Encoder,
    collection: Collection,
    out: Path,
    *,
    side: TargetSide = "document",
    split: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Encode all documents, or the queries of a split, into the folder `out`.

    Work is kept in hidden parts beside `out`, so that `resume` encodes only what is missing.

    Raises:
        InputError: `out` exists, or there are parts of another model or other data to resume from.
    """
    check_target(out, overwrite=overwrite)
    ids, texts = _documents(collection) if side == "document" else _queries(collection, split)
    for number, text_id in enumerate(ids):
        check_id(text_id, f"{side} id of row {number}")
    manifest = {
        "kind": KIND,
        "side": side,
        "model": encoder.fingerprint(),
        "rows": len(ids),
        "data_sha256": _hash(collection, ids, side),
    }
    parts = _Parts(out, manifest, resume=resume)
    known = encoder.document if side == "document" else encoder.query
    starts = [start for start in range(0, len(ids), PART) if not parts.has(start)]
    blocks = (texts(range(start, min(start + PART, len(ids)))) for start in starts)
    unit = "docs" if side == "document" else "queries"
    left = sum(min(PART, len(ids) - start) for start in starts)
    for start, vectors in zip(starts, encoder.encode_blocks(blocks, known, total=left, unit=unit), strict=True):
        parts.write(start, check_vectors(vectors, encoder.dim, ids[start : start + len(vectors)]))
    with publishing(out, manifest, overwrite=overwrite) as folder:
        with writing(folder / "embeddings.npy") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), encoder.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(ids), PART):
                file.write(parts.read(start).astype("<f4", copy=False).tobytes())
        write_lines(folder / "ids.txt", ids)
    parts.remove()


class _Parts:
    """The hidden folder of finished parts, which belongs to one model and one set of texts."""

    def __init__(self, out: Path, manifest: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = out.parent / f".{out.name}.parts"
        key = json.dumps({name: manifest[name] for name in ("side", "model", "data_sha256")}, sort_keys=True)
        path = self.folder / "key.json"
        if self.folder.is_dir() and not resume:
            remove_folder(self.folder)
        if path.is_file() and path.read_text(encoding="utf-8") != key + "\n":
            raise InputError("parts of another model or other data lie here; run without --resume", path=self.folder)
        write_lines(path, [key])

    def _path(self, start: int) -> Path:
        return self.folder / f"part-{start:012d}.npy"

    def has(self, start: int) -> bool:
        return self._path(start).is_file()

    def write(self, start: int, vectors: NDArray[np.float32]) -> None:
        with writing(self._path(start)) as file:
            np.lib.format.write_array(file, vectors, allow_pickle=False)

    def read(self, start: int) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = np.load(self._path(start), allow_pickle=False)
        return vectors

    def remove(self) -> None:
        remove_folder(self.folder)


def _documents(collection: Collection) -> tuple[Sequence[str], Any]:
    corpus = collection.corpus
    return corpus.ids, corpus.texts


def _queries(collection: Collection, split: str | None) -> tuple[Sequence[str], Any]:
    queries = collection.queries(split)
    texts = list(queries.values())
    return list(queries), lambda rows: texts[rows.start : rows.stop]


def _hash(collection: Collection, ids: Sequence[str], side: TargetSide) -> str:
    if side == "document":
        return collection.corpus.sha256
    queries = collection.queries()
    return hashlib.sha256(json.dumps([[i, queries[i]] for i in ids]).encode("utf-8")).hexdigest()


def load_embeddings(folder: str | Path, *, verify: Literal["full", "size"] = "full") -> StoredEmbeddings:
    """Open a folder that :func:`encode_collection` published, every byte of it checked."""
    artifact = open_folder(folder, kind=KIND, verify=verify)
    vectors = np.load(artifact.path / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    ids = read_ids(artifact.path / "ids.txt")
    if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(ids):
        message = (
            f"embeddings.npy is {vectors.dtype} {vectors.shape} for {len(ids)} ids; wanted float32 ({len(ids)}, dim)"
        )
        raise InputError(message, path=folder)
    return StoredEmbeddings(ids, vectors, artifact.manifest)


def read_ids(path: Path) -> IdTable:
    """Read an id file of ours: one id per line, UTF-8."""

    def lines() -> Iterator[str]:
        with path.open("rb") as file:
            for raw in file:
                yield raw[:-1].decode("utf-8")

    return IdTable.build(lines())
