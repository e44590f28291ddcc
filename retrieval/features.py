"""Features of a run's candidates, for learning to rank: one extractor makes them for training and for serving.

    run_rank, run_score   the place (from 1) and the score in the run
    bm25(k1=…,b=…)        over title + " " + text of this corpus; 0 where no word is shared
    query_words, title_words, document_words
                          lengths in words; a document is title + " " + text
    query_in_title, query_in_document
                          the share of the query's distinct words that occur there; missing for a query without words
    title_in_query        the share of the title's distinct words that occur in the query; missing without a title
    cosine(model …)       with a dual encoder
    reranker(model …)     the score of a reranker of texts

A word is a run of letters, digits and underscores, without regard to case. The names go into the SVMlight file and from
there into the ranker; in place of "…" they hold a hash of what decides the model's vectors or scores. A ranker only
serves with an extractor of the same names. The recipe beside the file, FILE.recipe.json, says where the models lie, so
that the extractor can be made again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.bm25 import BM25Searcher
from retrieval.errors import InputError
from retrieval.progress import progress
from retrieval.svmlight import FeatureLists
from retrieval.trec import Qrels, Run, ranked

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.corpus import Corpus, Document
    from retrieval.encoder import Encoder
    from retrieval.feature_ranker import FeatureRanker
    from retrieval.reranking import Reranker

_K1, _B = 0.9, 0.4
_WORD = re.compile(r"\w+")
_VECTORS_KEPT = 200_000  # of documents; 0.3 GB with 384 dimensions
# What a model's fingerprint holds beside what decides its numbers; precision moves them by rounding alone, and the
# pooling of an encoder stands among its modules too.
_NOT_DECIDING = {"source", "precision"}
_NOT_DECIDING_VECTORS = {*_NOT_DECIDING, "pooling"}
_FORMAT = 1


class FeatureExtractor:
    """Computes the features of candidates.

    Args:
        corpus: the documents.
        encoder: adds the cosine of query and document.
        reranker: adds its score.
        bm25: an index of `corpus`, with k1 = 0.9 and b = 0.4, where there is one already.

    Attributes:
        names: (features,) what each column is; column i is feature number i + 1 of a file.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        encoder: Encoder | None = None,
        reranker: Reranker | None = None,
        bm25: BM25Searcher | None = None,
    ) -> None:
        self.corpus, self.encoder, self.reranker = corpus, encoder, reranker
        self._bm25 = bm25 or BM25Searcher.build(corpus, k1=_K1, b=_B)
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self.names = [
            "run_rank",
            "run_score",
            f"bm25(k1={_K1},b={_B})",
            *("query_words", "title_words", "document_words"),
            *("query_in_title", "query_in_document", "title_in_query"),
        ]
        if encoder is not None:
            self.names.append(f"cosine(model {_hash(encoder.fingerprint(), _NOT_DECIDING_VECTORS)})")
        if reranker is not None:
            self.names.append(f"reranker(model {_hash(reranker.fingerprint(), _NOT_DECIDING)})")

    def features(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        """Return the features of every query's candidates; nan = missing.

        Args:
            queries: query id → text.
            candidates: query id → document id → score in the run, best first.

        Returns:
            For each query of `candidates` a (documents, features) array, in the order of its documents.

        Raises:
            InputError: a document is not in the corpus.
        """
        columns = [self._by_words(queries, candidates)]
        if self.encoder is not None:
            columns.append(self._cosines(self.encoder, queries, candidates))
        if self.reranker is not None:
            texts = [self.corpus.texts(map(self.corpus.row, found)) for found in candidates.values()]
            columns.append(self.reranker.score([queries[query_id] for query_id in candidates], texts))
        return [np.column_stack(parts).astype(np.float32) for parts in zip(*columns, strict=True)]

    def recipe(self) -> dict[str, Any]:
        """Return the names, and the fingerprints of the models, from which `load_extractor` makes this one again."""
        models = {"dense": self.encoder, "reranker": self.reranker}
        known = {what: None if model is None else model.fingerprint() for what, model in models.items()}
        return {"format": _FORMAT, "names": self.names, **known}

    def _by_words(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = []
        for query_id, scores in progress(candidates.items(), total=len(candidates), unit="lists", label="features"):
            query = queries[query_id]
            bm25, words = self._bm25.scores(query), _words(query)
            rows = [
                [rank, score, bm25[self.corpus.row(doc_id)], *_lengths_and_shares(words, self._document(doc_id))]
                for rank, (doc_id, score) in enumerate(scores.items(), start=1)
            ]
            found.append(np.array(rows, dtype=np.float32).reshape(len(rows), 9))
        return found

    def _cosines(self, encoder: Encoder, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        if len(self._vectors) > _VECTORS_KEPT:
            self._vectors.clear()
        distinct = dict.fromkeys(doc_id for found in candidates.values() for doc_id in found)
        new = [doc_id for doc_id in distinct if doc_id not in self._vectors]
        vectors = encoder.encode_document(self.corpus.texts(map(self.corpus.row, new)))
        self._vectors |= dict(zip(new, _unit(vectors), strict=True))
        asked = _unit(encoder.encode_query([queries[query_id] for query_id in candidates]))
        return [
            np.array([vector @ self._vectors[doc_id] for doc_id in found], dtype=np.float32)
            for vector, found in zip(asked, candidates.values(), strict=True)
        ]

    def _document(self, doc_id: str) -> Document:
        return self.corpus.document(self.corpus.row(doc_id))


class FeatureReranker:
    """A trained feature ranker that computes the features of a run's candidates itself.

    Args:
        ranker: what `train-ltr` trained on a file of `features`.
        extractor: makes the same features.

    Raises:
        InputError: a feature of the ranker is another one here, or none; both are named.
    """

    def __init__(self, ranker: FeatureRanker, extractor: FeatureExtractor) -> None:
        if ranker.names is None:
            raise InputError("the ranker's training file named no feature; train on a file that `features` wrote")
        for number, name in zip(ranker.numbers.tolist(), ranker.names, strict=True):
            now = extractor.names[number - 1] if number <= len(extractor.names) else "none"
            if name != now:
                raise InputError(f"feature {number} of the ranker is {name!r}, of these candidates it is {now!r}")
        self.ranker, self.extractor = ranker, extractor

    def score_run(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        """Return the scores of every query's candidates."""
        columns = self.ranker.numbers - 1
        return self.ranker.score([own[:, columns] for own in self.extractor.features(queries, candidates)])

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores."""
        corpus = self.extractor.corpus.sha256
        return {"ranker": self.ranker.fingerprint(), "names": self.extractor.names, "corpus_sha256": corpus}


def feature_lists(
    run: Mapping[str, Mapping[str, float]],
    extractor: FeatureExtractor,
    queries: Mapping[str, str],
    qrels: Qrels,
    *,
    k: int = 100,
) -> FeatureLists:
    """Return the features of the k best documents of every judged query, with their grades.

    Args:
        run: its queries without documents, without judgements or without text are left out.
        extractor: makes the features.
        queries: query id → text.
        qrels: of one split; a document without a judgement, or with one below 0, has grade 0.
        k: documents per query.

    Raises:
        InputError: k is below 1, no query is left, or a document is not in the corpus.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    chosen = {q: dict(ranked(found)[:k]) for q, found in run.items() if found and q in qrels and q in queries}
    if not chosen:
        raise InputError(f"none of the {len(run)} queries of the run has documents and judgements in this split")
    made = extractor.features(queries, chosen)
    grades = [max(qrels[query_id].get(doc_id, 0), 0) for query_id, found in chosen.items() for doc_id in found]
    return FeatureLists(
        query_ids=list(chosen),
        sizes=np.array([len(found) for found in chosen.values()], dtype=np.int64),
        labels=np.array(grades, dtype=np.float32),
        features=np.concatenate(made),
        doc_ids=[doc_id for found in chosen.values() for doc_id in found],
        numbers=np.arange(1, len(extractor.names) + 1),
        names=extractor.names,
    )


def recipe_path(features: str | Path) -> Path:
    """Return where the recipe of a feature file lies."""
    return Path(f"{features}.recipe.json")


def load_extractor(
    features: str | Path, collection: Collection, *, precision: str = "auto", device: str = "auto"
) -> FeatureExtractor:
    """Make the extractor of a feature file again, over the documents of a collection, which may be another.

    Args:
        features: the file that `rankwright features` wrote; its recipe lies beside it.
        collection: the documents.
        precision, device: of the models.

    Raises:
        InputError: there is no recipe, it is damaged, or a model is no longer what it was (both hashes are named).
    """
    path = recipe_path(features)
    if not path.is_file():
        raise InputError("no such file; it lies beside the file that `rankwright features` wrote", path=path)
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        if recipe["format"] != _FORMAT:
            raise InputError(f"is of format {recipe['format']!r}, this version reads {_FORMAT}", path=path)
        names, dense, reranker = recipe["names"], recipe["dense"], recipe["reranker"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is damaged ({type(error).__name__}: {error}); make the features again", path=path) from None
    extractor = FeatureExtractor(
        collection.corpus,
        encoder=None if dense is None else _encoder(dense, precision, device),
        reranker=None if reranker is None else _reranker(reranker, precision, device),
    )
    for was, now in zip(names, extractor.names, strict=False):
        if was != now:
            raise InputError(f"the features were made with {was!r}, now it is {now!r}", path=path)
    return extractor


def _encoder(known: Mapping[str, Any], precision: str, device: str) -> Encoder:
    from retrieval.encoder import Encoder

    own = ("query_max_length", "document_max_length", "query_prompt", "document_prompt", "pooling")
    settings: dict[str, Any] = {name: known.get(name) for name in own}
    return Encoder.load(known["source"], precision=precision, device=device, **settings)


def _reranker(known: Mapping[str, Any], precision: str, device: str) -> Reranker:
    from retrieval.reranking import load_reranker

    settings: dict[str, Any] = {name: known.get(name) for name in ("query_max_length", "max_length")}
    settings |= {name: known[name] for name in ("strategy", "top", "budget") if name in known}  # of a pairwise model
    return load_reranker(known["source"], precision=precision, device=device, **settings)


def _lengths_and_shares(query: Sequence[str], document: Document) -> Iterator[float]:
    """Yield the six features that words alone make."""
    title, whole = _words(document.title), _words(document.full_text)
    yield from (len(query), len(title), len(whole))
    yield from (_share(query, title), _share(query, whole), _share(title, query))


def _share(words: Sequence[str], others: Sequence[str]) -> float:
    """Return the share of the distinct `words` that are among the `others`; nan where there is no word."""
    distinct = set(words)
    return len(distinct & set(others)) / len(distinct) if distinct else np.nan


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def _hash(fingerprint: Mapping[str, Any], without: set[str]) -> str:
    deciding = {name: value for name, value in fingerprint.items() if name not in without}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
