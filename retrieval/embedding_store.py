"""A store of embeddings that knows a text by its content: what was encoded once is not encoded again.

    STORE/
        3f0c…/                one folder for all that decides a vector: weights, side, prompt, length, precision
            91ab…/            one shard, named after its texts; published by `indexes.storage`, never changed
                CURRENT
                v000001/manifest.json  digests.npy  vectors.npy
        corpora/7d20…/        the texts of one corpus file by their hashes, so that an unchanged one is not read again
        neighbors/…           answers of searches: `retrieval.stored_neighbors`

Scores of a reranker are kept likewise, as vectors of one component: `retrieval.stored_scores`.

Ids do not matter, nor does the order: of a corpus that has changed only the new texts are encoded, whichever collection
they come from. Every shard says in its manifest whose vectors it holds, so that stores of several machines become one
by copying their folders into one another; where two shards hold a text, the first by name is used. Deleting a folder
costs nothing but the time to encode its texts again. Of processes that encode with the same settings at once, one
encodes and the others wait; where everything is there, the store is only read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexes.neighbors import Vectors
from indexes.storage import CURRENT, Artifact, StorageError, locked, open_folder, publishing, read_folder, writing
from retrieval.cache import cache_folder
from retrieval.embeddings import TargetSide, check_part, load_array
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.corpus import Corpus
    from retrieval.encoder import Encoder

log = logging.getLogger(__name__)

KIND = "embedding shard"
SHARD = 8_192  # texts; 12 MiB of 384 dimensions, a minute of a CPU
BLOCK = 2_048  # texts read and encoded at once: what a kill may lose beside an unfinished shard
_POLL = 0.5  # seconds between two looks at a lock that another process holds

Texts = Callable[[Sequence[int]], list[str]]
Shards = dict[str, tuple[NDArray[np.uint8], Vectors]]  # name → digests, vectors


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """The vectors of some texts, in the order in which these were given, mapped from the shards' files.

    Attributes:
        dim: components of a vector.
        key: what decided the vectors, `vector_key`.
        digests: (texts, 32) uint8, the sha256 of each text.
        encoded: how many distinct texts the store did not have.
    """

    dim: int
    key: Mapping[str, Any]
    digests: NDArray[np.uint8]
    encoded: int
    _shards: Sequence[Vectors]
    _places: NDArray[np.int64]  # (texts, 2): shard, row in it

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, rows: NDArray[np.int64] | slice | None = None) -> Vectors:
        """Return the (rows, dim) float32 vectors of some of the texts, or of all, in memory."""
        places = self._places if rows is None else self._places[rows]
        found = np.empty((len(places), self.dim), dtype=np.float32)
        for number in np.unique(places[:, 0]).tolist():
            mine = places[:, 0] == number
            found[mine] = self._shards[number][places[mine, 1]]
        return found

    def blocks(self, size: int = 1 << 16) -> Iterator[Vectors]:
        """Yield all vectors, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))


class EmbeddingStore:
    """A folder of embeddings; see the module. Each shard is opened and checked once.

    Args:
        folder: made when first written to; None is `embeddings` in the user's cache.

    Raises:
        InputError: it is a file.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = cache_folder() / "embeddings" if folder is None else Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("is a file; wanted the folder of a store of embeddings", path=self.folder)
        self._opened: dict[Path, Shards] = {}

    def embed_corpus(
        self, encoder: Encoder, corpus: Corpus, fingerprint: Mapping[str, Any] | None = None
    ) -> StoredVectors:
        """Return the vectors of all documents, in the order of the corpus; see `embed`."""
        digests = self.corpus_digests(corpus)
        return self.embed(encoder, "document", corpus.ids, corpus.texts, digests=digests, fingerprint=fingerprint)

    def embed(
        self,
        encoder: Encoder,
        side: TargetSide,
        ids: Sequence[str],
        texts: Texts,
        *,
        digests: NDArray[np.uint8] | None = None,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> StoredVectors:
        """Return the vectors of texts, encoding those that the store lacks.

        Shards that are finished stay when the work is stopped, and the same call goes on from there. While another
        process encodes with the same settings, this one waits, and then encodes what is still missing.

        Args:
            encoder: the model.
            side: "document" or "query", which prompt and length apply.
            ids: of the texts, for messages.
            texts: returns the texts of some of them, by their numbers from 0.
            digests: `text_digests` of all of them, where they are known; else every text is read once more.
            fingerprint: `encoder.fingerprint()`, where it is known; it takes a third of a second.

        Raises:
            StorageError: a shard is damaged.
            ValueError: a vector is not finite; its text's id is named.
        """
        key = vector_key(fingerprint or encoder.fingerprint(), side)
        folder = self._folder_of(key)
        digests = _digests_of(len(ids), texts) if digests is None else digests
        if not len(digests):
            return StoredVectors(encoder.dim, key, digests, 0, [], np.empty((0, 2), dtype=np.int64))
        places, missing = _look_up(self._shards(folder, key), digests)
        encoded = 0
        if len(missing):
            with _locked_in_turn(folder):
                # Again: now nobody else writes here.
                _, missing = _look_up(self._shards(folder, key), digests)
                encoded = len(missing)
                if encoded:
                    log.info("%s: encoding %d new %s texts, of %d in all", folder, encoded, side, len(ids))
                    _encode(encoder, side, folder, key, missing, ids, texts, digests)
                places, left = _look_up(self._shards(folder, key), digests)
            if len(left):
                raise StorageError(f"{folder}: shards that were just written are gone; is something deleting them?")
        vectors = [vectors for _, vectors in self._opened[folder].values()]
        return StoredVectors(encoder.dim, key, digests, encoded, vectors, places)

    def corpus_digests(self, corpus: Corpus) -> NDArray[np.uint8]:
        """Return `text_digests` of all documents; the texts are read only where this corpus file was not met before.

        Raises:
            StorageError: what is stored of it is damaged.
        """
        folder = self.folder / "corpora" / _name(f"{corpus.sha256} {len(corpus)} title text".encode())

        def read(artifact: Artifact) -> NDArray[np.uint8]:
            return load_array(artifact.path / "digests.npy", np.uint8, (len(corpus), 32))

        if (folder / CURRENT).exists():
            try:
                return read_folder(folder, read, kind="text digests")
            except ValueError as error:
                raise StorageError(f"{error}; or delete {folder}, and the corpus is read again") from error
        digests = _digests_of(len(corpus), corpus.texts)
        with keeping(folder, "hashes of texts"):
            manifest = {"kind": "text digests", "corpus_sha256": corpus.sha256}
            with publishing(folder, manifest, overwrite=True) as temporary:
                _write_array(temporary / "digests.npy", digests)
        return digests

    def look_up(self, key: dict[str, Any], digests: NDArray[np.uint8]) -> tuple[Vectors, NDArray[np.bool_]]:
        """Return what `keep` kept under a key: (digests, dim) vectors, and which of them are there.

        Raises:
            StorageError: a shard is damaged.
        """
        shards = self._shards(self._folder_of(key), key)
        places, _ = _look_up(shards, digests)
        held: NDArray[np.bool_] = places[:, 1] >= 0
        found = np.zeros((len(digests), key["dim"]), dtype=np.float32)
        vectors = StoredVectors(key["dim"], key, digests, 0, [vectors for _, vectors in shards.values()], places)
        found[held] = vectors.rows(np.flatnonzero(held))
        return found, held

    def keep(self, key: dict[str, Any], digests: NDArray[np.uint8], vectors: Vectors, source: str) -> None:
        """Keep (digests, dim) vectors that were not made by `embed`; those that cannot be written are not kept.

        Args:
            key: all that decides them, as JSON values, with their number of components as "dim".
            digests: (digests, 32) uint8, what each is known by.
            vectors: float32.
            source: of what made them, for people who look into the store.
        """
        folder = self._folder_of(key)
        with keeping(folder, "scores"):
            _publish(folder, key, digests, vectors, source)

    def _folder_of(self, key: dict[str, Any]) -> Path:
        return self.folder / _name(json.dumps(key, sort_keys=True).encode())

    def _shards(self, folder: Path, key: dict[str, Any]) -> Shards:
        """Return all shards of a folder by name; those that are new since the last call are opened and checked."""
        known = self._opened.get(folder, {})
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        # One without CURRENT was never finished; nobody has seen it.
        names = [path.name for path in paths if path.name[0] != "." and (path / CURRENT).exists()]
        self._opened[folder] = {name: known.get(name) or _open_shard(folder / name, key) for name in names}
        return self._opened[folder]


@contextmanager
def keeping(folder: Path, what: str) -> Iterator[None]:
    """Let what spares later runs some work stay unwritten, with a line in the log, where it cannot be written."""
    try:
        yield
    except (StorageError, OSError) as error:
        log.warning("%s are not kept in %s: %s", what, folder, error)


@contextmanager
def _locked_in_turn(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and wait for it as long as it takes."""
    with ExitStack() as stack:
        is_waiting = False
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except StorageError as error:
                if not is_waiting:
                    log.info("another process encodes with the same settings; waiting for its embeddings (%s)", error)
                is_waiting = True
                time.sleep(_POLL)
        yield


def vector_key(fingerprint: Mapping[str, Any], side: TargetSide) -> dict[str, Any]:
    """Return all that decides the vector of a text on one side; the batch that it was encoded in does not count."""
    own = {name: fingerprint[f"{side}_{name}"] for name in ("prompt", "max_length")}
    shared = {name: fingerprint[name] for name in ("weights_sha256", "modules", "dim", "similarity", "precision")}
    return {"side": side, **own, **shared}


def text_digests(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return the (texts, 32) uint8 sha256 of each text's UTF-8 bytes."""
    joined = b"".join(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), 32)


def _encode(
    encoder: Encoder,
    side: TargetSide,
    folder: Path,
    key: dict[str, Any],
    missing: NDArray[np.int64],
    ids: Sequence[str],
    texts: Texts,
    digests: NDArray[np.uint8],
) -> None:
    """Encode the missing texts block by block; what is finished is published also where something stops the work."""
    known, unit = (encoder.document, "docs") if side == "document" else (encoder.query, "queries")
    parts = [missing[start : start + BLOCK] for start in range(0, len(missing), BLOCK)]
    blocks = (texts(part.tolist()) for part in parts)
    rows: list[NDArray[np.int64]] = []
    vectors: list[Vectors] = []

    def publish() -> None:
        if rows:
            _publish(folder, key, digests[np.concatenate(rows)], np.concatenate(vectors), encoder.source)
            rows.clear()
            vectors.clear()

    encoded = encoder.encode_blocks(blocks, known, total=len(missing), unit=unit)
    for part in parts:
        try:
            block = check_part(next(encoded), encoder.dim, [ids[row] for row in part.tolist()])
        except BaseException:
            publish()
            raise
        rows.append(part)
        vectors.append(block)
        if sum(map(len, rows)) >= SHARD:
            publish()
    publish()


def _publish(folder: Path, key: dict[str, Any], digests: NDArray[np.uint8], vectors: Vectors, source: str) -> None:
    manifest = {"kind": KIND, "vectors_of": key, "rows": len(vectors), "model": source}
    with publishing(folder / _name(digests.tobytes()), manifest) as shard:
        _write_array(shard / "digests.npy", digests)
        _write_array(shard / "vectors.npy", vectors)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    with writing(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _digests_of(count: int, texts: Texts) -> NDArray[np.uint8]:
    starts = range(0, count, BLOCK)
    blocks = [text_digests(texts(range(start, min(start + BLOCK, count)))) for start in starts]
    return np.concatenate(blocks) if blocks else text_digests([])


def _open_shard(folder: Path, key: dict[str, Any]) -> tuple[NDArray[np.uint8], Vectors]:
    try:
        artifact = open_folder(folder, kind=KIND)
        if artifact.manifest.get("vectors_of") != json.loads(json.dumps(key)):
            raise StorageError(f"{folder}: holds vectors of another model or other settings than its folder")
        n_rows = int(artifact.manifest["rows"])
        digests = load_array(artifact.path / "digests.npy", np.uint8, (n_rows, 32))
        return digests, load_array(artifact.path / "vectors.npy", np.float32, (n_rows, key["dim"]))
    except ValueError as error:
        raise StorageError(f"{error}; or delete {folder}, and its texts are encoded again") from error


def _look_up(shards: Shards, digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (shard, row in it) of each digest, void where it is missing, and the first number of each missing text."""
    held = [found for found, _ in shards.values()]
    known = np.concatenate([_sortable(found) for found in held] or [_sortable(text_digests([]))])
    wanted = _sortable(digests)
    sorted_by = np.argsort(known, kind="stable")  # of equal ones the first comes first
    at = np.searchsorted(known, wanted, sorter=sorted_by)
    rows = np.append(sorted_by, -1)[at]
    rows[rows >= 0] = np.where(known[rows[rows >= 0]] == wanted[rows >= 0], rows[rows >= 0], -1)
    starts = np.cumsum([0, *map(len, held)])
    shard = np.searchsorted(starts, rows, side="right") - 1
    places = np.stack([shard, rows - starts[shard]], axis=1)
    lacking = np.flatnonzero(rows < 0)
    _, first = np.unique(wanted[lacking], return_index=True)
    return places, lacking[np.sort(first)]


def _sortable(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Return digests as strings of 32 bytes. numpy ignores zeros at the end, of which equal lengths have equal ones."""
    return np.ascontiguousarray(digests).view("S32")[:, 0]


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
