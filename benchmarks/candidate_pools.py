"""What rerankers are measured on: for each query the union of BM25's top 50 and the untrained dense model's top 50.

Documents of a pool stand in the order of reciprocal rank fusion, so that a pool is a run too. Also the small MedQuAD:
1,500 training, 200 dev and 300 test queries, those of the lowest sha256 of their ids in each split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import data
from benchmarks.cells import Options, code_hash
from benchmarks.quality import ENCODING, MODEL
from indexes.storage import write_json
from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.fusion import fuse
from retrieval.search import Searcher, build_index
from retrieval.splits import carve_dev
from retrieval.trec import Qrels, Run

DEPTH = 50
SMALL_MEDQUAD = {"train": 1_500, "dev": 200, "test": 300}
SOURCES = ("benchmarks/candidate_pools.py", "retrieval/bm25.py", "retrieval/fusion.py", "retrieval/search.py")


def small_medquad(options: Options) -> tuple[Collection, str]:
    """Return MedQuAD with some of its queries, as a folder of its own, and the hash of what is read."""
    source = data.collection("medquad", options)
    splits = {name: data.first_queries(source.qrels(name), count) for name, count in SMALL_MEDQUAD.items()}
    return _split(source, splits, options.build / "splits" / "medquad_small")


def carved_scifact(options: Options) -> tuple[Collection, str]:
    """Return SciFact with a dev split carved from its training queries, and the hash of what is read."""
    source = data.collection("scifact", options)
    train, dev = carve_dev(source.qrels("train"), source.queries("train"))
    splits = {"train": train, "dev": dev, "test": source.qrels("test")}
    return _split(source, splits, options.build / "splits" / "scifact")


def pools(collection: Collection, queries: Mapping[str, str], folder: Path, options: Options) -> dict[str, Run]:
    """Return the runs "BM25" and "untrained" to DEPTH, and "pool", their union by reciprocal rank fusion.

    They are kept below `options.build`, under a hash of documents, queries and the code that makes them.

    Args:
        collection: whose documents are searched.
        queries: query id → text.
        folder: where an index may be built.
        options: where things lie.

    """
    decides = json.dumps([collection.corpus.sha256, sorted(queries.items()), code_hash((*SOURCES, *ENCODING))])
    kept = options.build / "pools" / f"{hashlib.sha256(decides.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        write_json(kept, _made(collection, queries, folder))
    found: dict[str, Run] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _made(collection: Collection, queries: Mapping[str, str], folder: Path) -> dict[str, Run]:
    encoder = Encoder.load(MODEL, query_max_length=64, document_max_length=128)
    build_index(folder, encoder=encoder, collection=collection)
    dense = Searcher.load(folder, encoder=encoder).run(queries, DEPTH)
    lexical = BM25Searcher.build(collection.corpus).run(queries, DEPTH)
    return {"BM25": lexical, "untrained": dense, "pool": fuse([lexical, dense], "rrf")}


def _split(source: Collection, splits: dict[str, Qrels], folder: Path) -> tuple[Collection, str]:
    found = data.data_hash(source, data.split_folder(source, splits, folder))
    return Collection.load(folder), found
