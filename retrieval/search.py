"""The searcher: an index, its ids, the model that made it, and the texts, joined.

An index folder holds `index.faiss` (plain `faiss.read_index` opens it), `ids.txt`, `offsets.npy` (where each
document lies in the corpus file), perhaps `texts.jsonl` (`--store-text`), and the manifest of `indexes.storage` with
the model's fingerprint. Another model, or a missing, altered or cut-off file, is refused with both values named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from indexes import FaissIndex, Neighbors
from indexes.neighbors import Vectors
from indexes.storage import Artifact, check_target, publishing, read_folder, write_lines, writing
from retrieval.corpus import Corpus
from retrieval.embeddings import load_embeddings, read_ids
from retrieval.errors import InputError
from retrieval.ids import IdTable
from retrieval.trec import Run, check_id, ranked

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.encoder import Encoder

logger = logging.getLogger(__name__)

KIND = "index"
_QUERY_BLOCK = 1_024


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found; `title` and `text` are None when the index cannot reach the texts."""

    doc_id: str
    score: float
    title: str | None
    text: str | None


def build_index(
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    collection: Collection | None = None,
    embeddings: str | Path | None = None,
    factory: str = "Flat",
    search_parameters: Mapping[str, float] | None = None,
    store_text: bool = False,
    overwrite: bool = False,
) -> None:
    """Publish an index folder, from a model and a collection or from embeddings that `encode` wrote.

    Args:
        out: the folder; an existing one needs `overwrite`, and stays readable until the new one is complete.
        encoder, collection: encode this collection's documents with this model.
        embeddings: or take these; with `collection` as well, texts can be found.
        factory: a FAISS factory string: Flat (exact), "IVF256,Flat", "HNSW32", …
        search_parameters: FAISS's, such as {"nprobe": 16}; kept in the folder.
        store_text: copy the texts into the folder, so that they are found wherever it goes.
        overwrite: replace an existing index.

    Raises:
        InputError: neither or both sources are given, or embeddings and collection do not belong together.
        ValueError: a vector that is not finite (its document named), or a factory that FAISS does not know.
    """
    target = Path(out)
    check_target(target, overwrite=overwrite)
    if (embeddings is None) == (encoder is None) or (encoder is not None and collection is None):
        raise InputError("an index is built from --model and --data, or from --embeddings")
    if store_text and collection is None:
        raise InputError("--store-text needs --data, where the texts are")
    corpus = collection.corpus if collection is not None else None
    ids: Sequence[str]
    if embeddings is not None:
        ids, vectors, model = _stored(embeddings, corpus)
    elif encoder is not None and corpus is not None:
        ids, model = corpus.ids, encoder.fingerprint()
        vectors = _encode(encoder, corpus)
    for row, doc_id in enumerate(ids):
        check_id(doc_id, f"document id of row {row}")
    index = FaissIndex(vectors.shape[1], factory, search_parameters=search_parameters)
    index.train_and_add(vectors, ids)
    manifest: dict[str, Any] = {"kind": KIND, "model": model, "documents": len(ids)}
    if corpus is not None:
        manifest["corpus"] = {"path": str(corpus.path.resolve()), "sha256": corpus.sha256, "stored": store_text}
    with publishing(target, manifest, overwrite=overwrite) as folder:
        manifest["index"] = index.write(folder)
        write_lines(folder / "ids.txt", ids)
        if corpus is not None:
            _write_texts(folder, corpus, store_text=store_text)


def _encode(encoder: Encoder, corpus: Corpus) -> Vectors:
    vectors = np.empty((len(corpus), encoder.dim), dtype=np.float32)
    filled = 0
    for block in encoder.encode_blocks(_text_blocks(corpus), encoder.document, total=len(corpus)):
        vectors[filled : filled + len(block)] = block
        filled += len(block)
    return vectors


def _text_blocks(corpus: Corpus, size: int = 2_048) -> Iterator[list[str]]:
    for start in range(0, len(corpus), size):
        yield corpus.texts(range(start, min(start + size, len(corpus))))


def _stored(folder: str | Path, corpus: Corpus | None) -> tuple[Sequence[str], Vectors, dict[str, Any]]:
    found = load_embeddings(folder)
    side = found.manifest["side"]
    if side != "document":
        raise InputError(f"holds {side} embeddings; an index takes those of documents", path=folder)
    if corpus is not None and corpus.sha256 != found.manifest["data_sha256"]:
        message = (
            f"made from a corpus with sha256 {found.manifest['data_sha256'][:12]}…, --data has {corpus.sha256[:12]}…"
        )
        raise InputError(message, path=folder)
    return found.ids, np.ascontiguousarray(found.vectors), found.manifest["model"]


def _write_texts(folder: Path, corpus: Corpus, *, store_text: bool) -> None:
    """Write where each document lies, in the corpus file or in a copy of it."""
    offsets = np.asarray(corpus.offsets, dtype=np.int64)
    if store_text:
        offsets = np.empty(len(corpus), dtype=np.int64)
        with writing(folder / "texts.jsonl") as file:
            place = 0
            for row, document in enumerate(corpus):
                record = {"_id": document.doc_id, "title": document.title, "text": document.text}
                line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
                offsets[row], place = place, place + len(line)
                file.write(line)
    with writing(folder / "offsets.npy") as file:
        np.lib.format.write_array(file, offsets, allow_pickle=False)


class Searcher:
    """Searches an index folder by text, by a set of queries, or by given vectors.

    Attributes:
        index: the vectors.
        ids: document ids by row.
        manifest: what the folder says of itself.
    """

    def __init__(self, folder: Path, index: FaissIndex, ids: IdTable, manifest: dict[str, Any]) -> None:
        if len(ids) != len(index):
            raise InputError(f"{len(ids)} ids for {len(index)} vectors; build the index again", path=folder)
        self.folder, self.index, self.ids, self.manifest = folder, index, ids, manifest
        self._encoder: Encoder | None = None
        self._model: str | None = None
        self._device = "auto"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        encoder: Encoder | None = None,
        device: str = "auto",
        verify: Literal["full", "size"] = "full",
    ) -> Searcher:
        """Open an index folder; the model is loaded when the first text is searched.

        Args:
            folder: what `rankwright index` wrote.
            model: where the model lies now, if not where it lay when the index was built.
            encoder: or the loaded model.
            device: auto, cpu or cuda[:i], for the model.
            verify: "full" hashes every file (about 1 GB/s), "size" compares sizes only.

        Raises:
            StorageError: a file is missing, altered or cut off; the message names it and both values.
            InputError: the model's fingerprint is another; both values are named.
        """

        def read(artifact: Artifact) -> Searcher:
            index = FaissIndex.read(artifact.path, artifact.manifest.get("index"))
            return cls(artifact.path, index, read_ids(artifact.path / "ids.txt"), artifact.manifest)

        searcher = read_folder(folder, read, kind=KIND, verify=verify)
        searcher._model, searcher._device = model, device
        if encoder is not None:
            searcher._use(encoder)
        return searcher

    @property
    def encoder(self) -> Encoder:
        """The query encoder, loaded with the settings that the index was built with and compared with them."""
        if self._encoder is None:
            from retrieval.encoder import Encoder

            known = self.manifest["model"]
            loaded = Encoder.load(
                self._model or known["source"],
                precision=known["precision"],
                device=self._device,
                query_max_length=known["query_max_length"],
                document_max_length=known["document_max_length"],
                query_prompt=known["query_prompt"],
                document_prompt=known["document_prompt"],
            )
            self._use(loaded)
        assert self._encoder is not None
        return self._encoder

    def _use(self, encoder: Encoder) -> None:
        """Take `encoder` if it is the one that made the index. Where it was loaded from and precision may differ."""
        known, now = self.manifest["model"], encoder.fingerprint()
        for name, value in known.items():
            if name not in ("source", "precision") and now.get(name) != value:
                message = f"the index was built with {name} {value!r}, the model {encoder.source} has {now.get(name)!r}"
                raise InputError(f"{message}; give the same --model, or build the index again", path=self.folder.parent)
        self._encoder = encoder

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """Return the k best documents for a text, best first."""
        (found,) = self._runs(["query"], self.encoder.encode_query([text]), k)
        return [self._hit(doc_id, score) for doc_id, score in found]

    def run(self, queries: Mapping[str, str], k: int = 100) -> Run:
        """Return the k best documents of every query: query_id → doc_id → score, best first."""
        return self.run_vectors(list(queries), self.encoder.encode_query(list(queries.values())), k)

    def run_vectors(self, query_ids: Sequence[str], vectors: Vectors, k: int = 100) -> Run:
        """Return the same for given (queries, dim) float32 vectors; no model is loaded."""
        if len(query_ids) != len(vectors):
            raise InputError(f"got {len(query_ids)} query ids and {len(vectors)} vectors; wanted one each")
        return dict(zip(query_ids, map(dict, self._runs(query_ids, vectors, k)), strict=True))

    def _runs(self, query_ids: Sequence[str], vectors: Vectors, k: int) -> Iterator[list[tuple[str, float]]]:
        """Yield each query's ranking. Ties are ordered by trec_eval's rule, so all that tie at rank k are fetched."""
        for start in range(0, len(query_ids), _QUERY_BLOCK):
            found: Neighbors = self.index.search(vectors[start : start + _QUERY_BLOCK], k, ties=True)
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
                scored = {self.ids[row]: score for row, score in zip(rows, scores, strict=True) if row >= 0}
                yield ranked(scored)[:k]

    def _hit(self, doc_id: str, score: float) -> Hit:
        if self._texts is None:
            return Hit(doc_id, score, None, None)
        document = self._texts.document(self._texts.row(doc_id))
        return Hit(doc_id, score, document.title, document.text)

    @cached_property
    def _texts(self) -> Corpus | None:
        """The documents, from the copy in the folder or from the corpus file while it is the same; else None."""
        known = self.manifest.get("corpus")
        if known is None:
            logger.warning("the index was built without --data: results have no text")
            return None
        path = self.folder / "texts.jsonl" if known["stored"] else Path(known["path"])
        if not path.is_file():
            logger.warning("%s is gone: results have no text; build the index with --store-text to keep it", path)
            return None
        offsets = np.load(self.folder / "offsets.npy", allow_pickle=False)
        corpus = Corpus(path, offsets, self.ids)
        if not known["stored"] and corpus.sha256 != known["sha256"]:
            logger.warning("%s has changed since the index was built: results have no text", path)
            return None
        return corpus
