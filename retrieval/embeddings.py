"""Embeddings as files: encoded in parts that survive an interruption, published as one checked folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from indexes.neighbors import Vectors, check_vectors
from indexes.storage import (
    CURRENT,
    Artifact,
    check_folder,
    locked,
    open_folder,
    publishing,
    read_folder,
    remove_folder,
    write_lines,
    writing,
)
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.ids import IdTable
from retrieval.trec import check_id

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

logger = logging.getLogger(__name__)

KIND = "embeddings"
PART = 2_048  # texts per part: what an interruption loses at most, some 20 seconds of a CPU

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
    vectors: Vectors
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
    """Encode all documents, or the queries of a split (None: all queries), into the folder `out`.

    Work is kept in a hidden folder of parts beside `out`, so that `resume` encodes only what is missing; where `out`
    is complete it does nothing.

    Raises:
        InputError: `out` exists; or what there is to resume from is of another model or other data.
        ValueError: a vector that is not finite; names the text's id.
        StorageError: another process is writing here.
    """
    if side == "document" and split is not None:
        raise InputError(f"split {split!r} is of queries; it goes with --side query")
    check_folder(out, overwrite=overwrite or resume)
    ids, texts, data_sha256 = _documents(collection) if side == "document" else _queries(collection, split)
    for row, text_id in enumerate(ids):
        check_id(text_id, f"{side} id of row {row}")
    key = {"side": side, "model": encoder.fingerprint(), "data_sha256": data_sha256}
    if resume and not overwrite and (out / CURRENT).exists():
        _refuse_unless_finished(out, key)
        return
    with locked(parts_folder := out.parent / f".{out.name}.parts"):
        parts = _Parts(parts_folder, key, (len(ids), encoder.dim), resume=resume)
        starts = [start for start in range(0, len(ids), PART) if not parts.has(start)]
        blocks = (texts(range(start, min(start + PART, len(ids)))) for start in starts)
        known, unit = (encoder.document, "docs") if side == "document" else (encoder.query, "queries")
        left = sum(min(PART, len(ids) - start) for start in starts)
        for start, vectors in zip(starts, encoder.encode_blocks(blocks, known, total=left, unit=unit), strict=True):
            parts.write(start, check_part(vectors, encoder.dim, ids[start : start + len(vectors)]))
        manifest = {"kind": KIND, **key, "rows": len(ids)}
        with publishing(out, manifest, overwrite=overwrite) as folder:
            with writing(folder / "embeddings.npy") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), encoder.dim)}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(ids), PART):
                    file.write(parts.read(start).tobytes())
            write_lines(folder / "ids.txt", ids)
        remove_folder(parts_folder)


def check_part(vectors: Vectors, dim: int, ids: Sequence[str]) -> Vectors:
    """Return vectors that an index may see, and warn of those that are zero.

    Raises:
        ValueError: a vector is not finite; names its id.
    """
    vectors = check_vectors(vectors, dim, ids)
    zero = np.flatnonzero(~vectors.any(axis=1)).tolist()
    if zero:
        message = "%d of %d vectors are zero (first: %s) and match nothing; is there no known word in their texts?"
        logger.warning(message, len(zero), len(vectors), ids[zero[0]])
    return vectors


def _refuse_unless_finished(out: Path, key: dict[str, Any]) -> None:
    manifest = open_folder(out, kind=KIND).manifest
    for name, value in key.items():
        if manifest.get(name) != value:
            message = f"is complete, but of another {'model' if name == 'model' else name}; choose another place"
            raise InputError(f"{message} or ask for --overwrite", path=out)
    logger.info("%s is complete (%d rows); nothing to do", out, manifest["rows"])


class _Parts:
    """Finished parts in a folder that one process holds; the name of each tells what it was made from."""

    def __init__(self, folder: Path, key: dict[str, Any], shape: tuple[int, int], *, resume: bool) -> None:
        self.folder, self.shape, self.resume = folder, shape, resume
        text = json.dumps({**key, "part": PART}, sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = folder / "key.json"
        if resume and path.is_file() and path.read_text(encoding="utf-8") != text + "\n":
            raise InputError("parts of another model or other data lie here; run without --resume", path=folder)
        write_lines(path, [text])

    def _path(self, start: int) -> Path:
        return self.folder / f"part-{self.name}-{start:012d}.npy"

    def has(self, start: int) -> bool:
        """Whether an earlier run left this part, and whole."""
        try:
            return self.resume and bool(len(self.read(start)))
        except (InputError, OSError):
            return False

    def write(self, start: int, vectors: Vectors) -> None:
        with writing(self._path(start)) as file:
            np.lib.format.write_array(file, vectors, allow_pickle=False)

    def read(self, start: int) -> Vectors:
        rows, dim = self.shape
        return load_array(self._path(start), np.float32, (min(PART, rows - start), dim))


def _documents(collection: Collection) -> tuple[Sequence[str], Callable[[range], list[str]], str]:
    corpus = collection.corpus
    return corpus.ids, corpus.texts, corpus.sha256


def _queries(collection: Collection, split: str | None) -> tuple[Sequence[str], Callable[[range], list[str]], str]:
    queries = collection.queries(split)
    texts = list(queries.values())
    data_sha256 = hashlib.sha256(json.dumps(list(queries.items())).encode("utf-8")).hexdigest()
    return list(queries), lambda rows: texts[rows.start : rows.stop], data_sha256


def load_embeddings(folder: str | Path, *, verify: Literal["full", "size"] = "full") -> StoredEmbeddings:
    """Open a folder that :func:`encode_collection` published, every byte of it checked.

    Raises:
        StorageError: there is no such folder, or a file is missing, altered or cut off.
    """

    def read(artifact: Artifact) -> StoredEmbeddings:
        ids = read_ids(artifact.path / "ids.txt")
        dim = artifact.manifest["model"]["dim"]
        vectors = load_array(artifact.path / "embeddings.npy", np.float32, (len(ids), dim))
        return StoredEmbeddings(ids, vectors, artifact.manifest)

    return read_folder(folder, read, kind=KIND, verify=verify)


def load_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a .npy file into memory; what its header promises is neither allocated nor unpickled.

    Raises:
        InputError: the file is no array, or not of this type and shape; both are named.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"is no array that can be read ({error})", path=path) from error
    if array.dtype != dtype or array.shape != shape:
        wanted = f"{np.dtype(dtype)} {shape}"
        raise InputError(f"holds {array.dtype} {array.shape}, wanted {wanted}; build the folder again", path=path)
    return array


def read_ids(path: Path) -> IdTable:
    """Read an id file of ours: one id per line, UTF-8."""

    def lines() -> Iterator[str]:
        with path.open("rb") as file:
            for raw in file:
                yield raw[:-1].decode("utf-8")

    return IdTable.build(lines())
