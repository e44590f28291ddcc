"""Collections of ir_datasets, written once as BEIR folders into the cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indexes.storage import StorageError, publish_plain, write_lines
from retrieval.cache import cache_folder
from retrieval.errors import InputError, did_you_mean, require
from retrieval.progress import progress

log = logging.getLogger(__name__)

_SPLITS = ("train", "dev", "valid", "validation", "val", "test", "eval")


def irds_folder(dataset_id: str) -> Path:
    """Return the cached BEIR folder of an ir_datasets id; `fetch` writes it on first use."""
    folder = cache_folder() / "irds" / dataset_id.replace("/", "--")
    if not folder.is_dir():
        log.info("irds:%s is written to %s, once", dataset_id, folder)
        fetch(dataset_id, folder)
    return folder


def fetch(dataset_id: str, folder: Path) -> list[str]:
    """Write a dataset of ir_datasets as a BEIR folder, which must not exist; return what such a folder cannot hold.

    An id with judgements gives one split, named by the last part of the id that names one ("train" in
    beir/scifact/train), else "test". One without gives a split for each id below it over the same documents.

    Raises:
        InputError: ir_datasets is not installed, does not know the id, or cannot fetch it.
    """
    ir_datasets: Any = require("ir_datasets", "irds")
    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        hint = did_you_mean(dataset_id, ir_datasets.registry)
        hint = hint if hint.startswith("; did") else "; `ir_datasets list` names all"
        raise InputError(f"ir_datasets knows no {dataset_id!r}{hint}") from None
    if not dataset.has_docs():
        raise InputError(f"irds:{dataset_id} has no documents, so it is no collection")
    parts = _parts(ir_datasets, dataset_id, dataset)
    chatter = logging.getLogger("ir_datasets")
    chatter.addFilter(_is_error)  # it tells every try of every mirror
    try:
        _write_beir(dataset, parts, folder)
    except (InputError, StorageError):
        raise
    except Exception as error:  # RuntimeError, errors of requests and others come as they are
        reason = " ".join(str(error.args[0] if error.args else error).split())[:200]
        message = f"irds:{dataset_id} cannot be fetched ({type(error).__name__}: {reason}); "
        raise InputError(message + "it needs the network, or its files in $IR_DATASETS_HOME") from error
    finally:
        chatter.removeFilter(_is_error)
    others = [name for name in dataset.docs_cls()._fields if name not in ("doc_id", "title", "text")]
    lost = [f"the fields of documents that their default_text() leaves out, of {', '.join(others)}"] if others else []
    return lost + (["the iteration column of the judgements"] if parts else [])


def _write_beir(dataset: Any, parts: dict[str, Any], folder: Path) -> None:
    """Write documents of `dataset`, and queries and judgements of `parts` (by split), in one step."""
    with publish_plain(folder) as temporary:
        write_lines(temporary / "corpus.jsonl", map(_dumped, _documents(dataset)))
        queries: dict[str, str] = {}
        for source in [dataset, *parts.values()]:
            if source.has_queries():
                queries.update((query.query_id, query.default_text()) for query in source.queries_iter())
        if queries:
            lines = (_dumped({"_id": query_id, "text": text}) for query_id, text in queries.items())
            write_lines(temporary / "queries.jsonl", lines)
        for split, part in parts.items():
            # The last judgement of a pair wins, as in ir_datasets' own qrels_dict: some collections repeat pairs.
            grades = {(qrel.query_id, qrel.doc_id): int(qrel.relevance) for qrel in part.qrels_iter()}
            lines = (f"{query_id}\t{doc_id}\t{grade}" for (query_id, doc_id), grade in grades.items())
            (temporary / "qrels").mkdir(exist_ok=True)
            write_lines(temporary / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *lines])


def _parts(ir_datasets: Any, dataset_id: str, dataset: Any) -> dict[str, Any]:
    if dataset.has_qrels():
        named = [part for part in dataset_id.split("/") if part in _SPLITS]
        return {named[-1] if named else "test": dataset}
    found: dict[str, Any] = {}
    for other in ir_datasets.registry:
        if other.startswith(f"{dataset_id}/"):
            below = ir_datasets.load(other)
            same = not below.has_docs() or below.docs_namespace() == dataset.docs_namespace()
            if below.has_qrels() and same:
                found[other.removeprefix(f"{dataset_id}/").replace("/", "-")] = below
    return found


def _documents(dataset: Any) -> Iterator[dict[str, str]]:
    total = dataset.docs_count() if hasattr(dataset, "docs_count") else None
    for document in progress(dataset.docs_iter(), total=total, unit="docs", label="fetching documents"):
        title = str(getattr(document, "title", None) or "").strip()
        text = document.default_text().strip()
        # A document's default_text() begins with its title, for which a BEIR folder has a field.
        body = text.removeprefix(title).lstrip()
        yield {"_id": document.doc_id, "title": title, "text": body}


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _dumped(record: dict[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False)
