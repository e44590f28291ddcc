"""The collections that the benchmarks read: from the shared folder, split by rule, or as scraps for a dry run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cells import Options
from indexes.storage import remove_folder, sha256_file, write_lines
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.splits import fingerprint, write_split
from retrieval.trec import Qrels

SCRAP_QUERIES, SCRAP_DOCUMENTS = 12, 60  # of a dry run: queries of each split, documents besides the judged ones


def collection(name: str, options: Options) -> Collection:
    """Open `shared/data/NAME` or pydocs; in a dry run, a scrap of it.

    Raises:
        InputError: the folder is not there.

    """
    source = "pydocs" if name == "pydocs" else options.shared / "data" / name
    if isinstance(source, Path) and not source.is_dir():
        raise InputError("no such collection; give the folder that holds data/ with --shared DIR", path=source)
    whole = Collection.load(source)
    return _scrap(whole, options.build / "scraps" / name) if options.tiny else whole


def split_folder(source: Collection, splits: Mapping[str, Qrels], folder: Path) -> str:
    """Make `folder` a collection with these splits, unless it is one, and return their hash."""
    wanted, record = fingerprint(splits), folder / "split.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("fingerprint") != wanted or not (folder / "qrels").is_dir() or not _leads_to(folder, source):
        if folder.exists():
            remove_folder(folder)
        write_split(source, splits, folder)
    return wanted


def first_queries(qrels: Qrels, count: int) -> Qrels:
    """Return the queries of the lowest sha256 of their ids, in that order."""
    kept = sorted(qrels, key=lambda query_id: hashlib.sha256(query_id.encode()).hexdigest())[:count]
    return {query_id: qrels[query_id] for query_id in kept}


def data_hash(source: Collection, splits_hash: str = "") -> str:
    """Return one hash of documents, queries, and the splits given or else the collection's own."""
    own = splits_hash or fingerprint({split: source.qrels(split) for split in source.splits})
    parts = [source.corpus.sha256, sha256_file(source.queries_path), own]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _leads_to(folder: Path, source: Collection) -> bool:
    """Whether the links of a split folder are those of this source: it may lie elsewhere now."""
    return all((folder / path.name).resolve() == path.resolve() for path in (source.corpus_path, source.queries_path))


def _scrap(whole: Collection, folder: Path) -> Collection:
    """Write the first queries of every split, what is judged for them, and some more documents."""
    qrels = {split: dict(list(whole.qrels(split).items())[:SCRAP_QUERIES]) for split in whole.splits}
    qrels = {split: {q: dict(list(grades.items())[:20]) for q, grades in kept.items()} for split, kept in qrels.items()}
    judged = {doc_id for kept in qrels.values() for grades in kept.values() for doc_id in grades}
    rows = sorted({whole.corpus.row(d) for d in judged if d in whole.corpus} | set(range(SCRAP_DOCUMENTS)))
    texts = whole.queries()
    documents = [whole.corpus.document(row) for row in rows]
    logging.getLogger(__name__).info("%s: a scrap of %d documents", whole.name, len(documents))
    write_lines(
        folder / "corpus.jsonl",
        (json.dumps({"_id": d.doc_id, "title": d.title, "text": d.text}) for d in documents),
    )
    queries = dict.fromkeys(query_id for kept in qrels.values() for query_id in kept)
    write_lines(folder / "queries.jsonl", (json.dumps({"_id": q, "text": texts[q]}) for q in queries if q in texts))
    for split, kept in qrels.items():
        lines = [f"{q}\t{d}\t{grade}" for q, grades in kept.items() for d, grade in grades.items()]
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *lines])
    return Collection(folder, name=whole.name)
