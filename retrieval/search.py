"""The searcher: an index, its ids, the model that made it, and the texts, joined.

An index folder holds `index.faiss` (plain `faiss.read_index` opens it), `ids.txt`, `offsets.npy` (where each
document lies in the corpus file), perhaps `texts.jsonl` (`--store-text`), and the manifest of `indexes.storage` with
the model's fingerprint. Another model, or a missing, altered or cut-off file, is refused with both values named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from indexes import FaissIndex, Neighbors
from indexes.neighbors import Vectors, check_k, check_vectors
from indexes.storage import Artifact, publishing, read_folder, write_lines, writing
from retrieval.corpus import Corpus
from retrieval.embeddings import check_part, load_array, load_embeddings, read_ids
from retrieval.encoder import BLOCK, first_difference
from retrieval.errors import InputError
from retrieval.ids import IdTable
from retrieval.progress import progress
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
    if store_text and collection is None:
        raise InputError("--store-text needs --data, where the texts are")
    manifest: dict[str, Any] = {"kind": KIND}
    # From the start: what is in the way shows before the long part, and nobody else builds here meanwhile.
    with publishing(out, manifest, overwrite=overwrite) as folder:
        corpus = None if collection is None else collection.corpus
        ids, model, make_vectors = _source(encoder, corpus, embeddings)
        for row, doc_id in enumerate(ids):
            check_id(doc_id, f"document id of row {row}")
        index = FaissIndex(model["dim"], factory, search_parameters=search_parameters)
        index.train_and_add(make_vectors(), ids)
        manifest |= {"model": model, "documents": len(ids), "index": index.write(folder)}
        write_lines(folder / "ids.txt", ids)
        if corpus is not None:
            manifest["corpus"] = {"path": str(corpus.path.resolve()), "sha256": corpus.sha256, "stored": store_text}
            _write_texts(folder, corpus, store_text=store_text)


def _source(
    encoder: Encoder | None, corpus: Corpus | None, embeddings: str | Path | None
) -> tuple[IdTable, dict[str, Any], Callable[[], Vectors]]:
    """Return the ids, the model's fingerprint, and the function that makes the vectors, which may take long."""
    if embeddings is not None and encoder is None:
        return _stored(embeddings, corpus)
    if embeddings is None and encoder is not None and corpus is not None:
        return corpus.ids, encoder.fingerprint(), partial(_encode, encoder, corpus)
    raise InputError("an index is built from --model and --data, or from --embeddings")


def _encode(encoder: Encoder, corpus: Corpus) -> Vectors:
    vectors = np.empty((len(corpus), encoder.dim), dtype=np.float32)
    starts = range(0, len(corpus), BLOCK)
    texts = (corpus.texts(range(start, min(start + BLOCK, len(corpus)))) for start in starts)
    blocks = encoder.encode_blocks(texts, encoder.document, total=len(corpus))
    for start, block in zip(starts, blocks, strict=True):
        vectors[start : start + len(block)] = check_part(block, encoder.dim, corpus.ids[start : start + len(block)])
    return vectors


def _stored(folder: str | Path, corpus: Corpus | None) -> tuple[IdTable, dict[str, Any], Callable[[], Vectors]]:
    found = load_embeddings(folder)
    side, data = found.manifest["side"], found.manifest["data_sha256"]
    if side != "document":
        raise InputError(f"holds {side} embeddings; an index takes those of documents", path=folder)
    if corpus is not None and corpus.sha256 != data:
        raise InputError(f"made from a corpus with sha256 {data}, --data has {corpus.sha256}", path=folder)
    return found.ids, found.manifest["model"], partial(np.ascontiguousarray, found.vectors)


def _write_texts(folder: Path, corpus: Corpus, *, store_text: bool) -> None:
    """Write where each document lies, in the corpus file or in a copy of it."""
    offsets = np.asarray(corpus.offsets, dtype=np.int64)
    if store_text:
        offsets = np.empty(len(corpus), dtype=np.int64)
        with writing(folder / "texts.jsonl") as file:
            place = 0
            for row, document in enumerate(progress(corpus, total=len(corpus), unit="docs", label="storing texts")):
                record = {"_id": document.doc_id, "title": document.title, "text": document.text}
                line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
                offsets[row], place = place, place + len(line)
                file.write(line)
    with writing(folder / "offsets.npy") as file:
        np.lib.format.write_array(file, offsets, allow_pickle=False)


class Searcher:
    """Searches an index folder by text, by a set of queries, or by given vectors, from any number of threads.

    Attributes:
        index: the vectors.
        ids: document ids by row.
        manifest: what the folder says of itself.
    """

    def __init__(
        self, folder: Path, index: FaissIndex, ids: IdTable, manifest: dict[str, Any], texts: Corpus | None = None
    ) -> None:
        if len(ids) != len(index):
            raise InputError(f"{len(ids)} ids for {len(index)} vectors; build the index again", path=folder)
        self.folder, self.index, self.ids, self.manifest = folder, index, ids, manifest
        self._encoder: Encoder | None = None
        self._model: str | None = None
        self._device = "auto"
        self._texts, self._texts_checked = texts, False
        self._loading = Lock()

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
        target = Path(folder)

        def read(artifact: Artifact) -> Searcher:
            index = FaissIndex.read(artifact.path, artifact.manifest.get("index"))
            ids = read_ids(artifact.path / "ids.txt")
            return cls(target, index, ids, artifact.manifest, _open_texts(artifact, ids))

        searcher = read_folder(target, read, kind=KIND, verify=verify)
        searcher._model, searcher._device = model, device
        if encoder is not None:
            searcher._use(encoder)
        return searcher

    @property
    def encoder(self) -> Encoder:
        """The query encoder, loaded with the settings that the index was built with and compared with them."""
        with self._loading:
            if self._encoder is None:
                from retrieval.encoder import Encoder

                known = self.manifest["model"]
                names = ("query_max_length", "document_max_length", "query_prompt", "document_prompt", "pooling")
                settings = {name: known.get(name) for name in names}
                place = self._model or known["source"]
                self._use(Encoder.load(place, precision=known["precision"], device=self._device, **settings))
            assert self._encoder is not None
            return self._encoder

    def _use(self, encoder: Encoder) -> None:
        """Take `encoder` if it is the one that made the index. Where it was loaded from and precision may differ."""
        if found := first_difference(self.manifest["model"], encoder.fingerprint()):
            name, value, now = found
            message = f"the index was built with {name} {value!r}, the model {encoder.source} has {now!r}"
            raise InputError(f"{message}; give the same --model, or build the index again", path=self.folder)
        self._encoder = encoder

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """Return the k best documents for a text, best first."""
        check_k(k)
        (found,) = self._rankings(self.encoder.encode_query([text]), k)
        return [self._hit(doc_id, score) for doc_id, score in found]

    def run(self, queries: Mapping[str, str], k: int = 100) -> Run:
        """Return the k best documents of every query: query_id → doc_id → score, best first."""
        check_k(k)
        return self.run_vectors(list(queries), self.encoder.encode_query(list(queries.values())), k)

    def run_vectors(self, query_ids: Sequence[str], vectors: Vectors, k: int = 100) -> Run:
        """Return the same for given (queries, dim) float32 vectors; no model is loaded.

        Raises:
            InputError: not one id for each vector, or an id twice.
            ValueError: vectors of another dimension (both are named), or not finite (the query is named).
        """
        check_k(k)
        if len(set(query_ids)) != len(vectors) or len(query_ids) != len(vectors):
            got = f"{len(query_ids)} query ids ({len(set(query_ids))} distinct) and {len(vectors)} vectors"
            raise InputError(f"got {got}; wanted one id for each vector")
        vectors = check_vectors(vectors, self.index.dim, query_ids, what="query")
        return dict(zip(query_ids, map(dict, self._rankings(vectors, k)), strict=True))

    def run_embeddings(self, folder: str | Path, k: int = 100) -> Run:
        """Return the same for the query embeddings that `rankwright encode --side query` wrote; no model is loaded.

        Raises:
            StorageError: the folder is damaged.
            InputError: they are of documents, or another model's, or made with another prompt or length.
        """
        stored = load_embeddings(folder)
        if stored.manifest["side"] != "query":
            raise InputError("holds embeddings of documents; a search takes those of queries", path=folder)
        other_side = ("document_prompt", "document_max_length")
        if found := first_difference(self.manifest["model"], stored.manifest["model"], ignored=other_side):
            name, value, now = found
            message = f"made with {name} {now!r}, the index with {value!r}; encode the queries as the index was built"
            raise InputError(message, path=folder)
        return self.run_vectors(list(stored.ids), stored.vectors, k)

    def _rankings(self, vectors: Vectors, k: int) -> Iterator[list[tuple[str, float]]]:
        """Yield each query's ranking. Ties are ordered by trec_eval's rule, so all that tie at rank k are fetched."""
        for start in range(0, len(vectors), _QUERY_BLOCK):
            found: Neighbors = self.index.search(vectors[start : start + _QUERY_BLOCK], k, ties=True)
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
                scored = {self.ids[row]: score for row, score in zip(rows, scores, strict=True) if row >= 0}
                yield ranked(scored)[:k]

    def _hit(self, doc_id: str, score: float) -> Hit:
        texts = self.texts()
        if texts is None:
            return Hit(doc_id, score, None, None)
        document = texts.document(texts.row(doc_id))
        return Hit(doc_id, score, document.title, document.text)

    def texts(self) -> Corpus | None:
        """Return the documents, from the copy in the folder or from the corpus file while it is the same; else None."""
        with self._loading:
            if not self._texts_checked:
                self._texts_checked = True
                known = self.manifest.get("corpus")
                problem = None
                if known is None:
                    problem = "the index was built without --data"
                elif self._texts is None:
                    problem = f"{known['path']} is gone (--store-text keeps texts in the index)"
                elif not known["stored"] and self._texts.sha256 != known["sha256"]:
                    problem = f"{known['path']} has changed since the index was built"
                if problem is not None:
                    self._texts = None
                    logger.warning("%s: results have no text", problem)
            return self._texts


def _open_texts(artifact: Artifact, ids: IdTable) -> Corpus | None:
    """Open the documents of an index; what is open stays readable when a newer index replaces this one."""
    known = artifact.manifest.get("corpus")
    if known is None:
        return None
    offsets = load_array(artifact.path / "offsets.npy", np.int64, (len(ids),))
    if not known["stored"]:
        path = Path(known["path"])
        return Corpus(path, offsets, ids) if path.is_file() else None
    corpus = Corpus(artifact.path / "texts.jsonl", offsets, ids)
    if len(corpus):
        corpus.document(0)
    return corpus
