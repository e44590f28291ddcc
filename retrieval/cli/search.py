"""Search an index or BM25: one text by hand, or the queries of a split, of a file, or given as embeddings.

A text prints what was found; a set of queries writes a TREC run to --out (or to stdout).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.cli.flags import add_flags
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.search import Hit
    from retrieval.trec import Run

EXAMPLES = """examples:
  rankwright search --index runs/demo/index "sort an array in place"
  rankwright search --index runs/demo/index --data pydocs --split test --k 100 --out test.run
  rankwright search --index my.index --queries queries.jsonl --out mine.run
  rankwright search --index my.index --embeddings my.queries --out mine.run
  rankwright search --bm25 --data pydocs "sort an array in place"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.add_argument("text", nargs="?", help="what to search for")
    source = parser.add_argument_group("what is searched")
    source.add_argument("--index", metavar="DIR", help="an index folder")
    source.add_argument("--bm25", action="store_true", help="BM25 over --data (k1 0.9, b 0.4, English stemmer)")
    queries = parser.add_argument_group("with what")
    queries.add_argument("--queries", metavar="FILE", help="JSONL with _id and text, or lines of id TAB text")
    queries.add_argument("--embeddings", metavar="DIR", help="query embeddings that `encode --side query` wrote")
    add_flags(parser, "data", "split", "model", "device", "out", "overwrite", "json")
    parser.add_argument("--k", type=int, default=None, help="documents per query (default: 10 for a text, else 100)")
    parser.add_argument("--tag", default="rankwright", help="the run's name, its last column (default: rankwright)")
    parser.add_argument("--exclude-self", action="store_true", help="leave out the document whose id is the query's")
    parser.add_argument("--verify", choices=["full", "size"], default="full", help="how the index is checked on load")


def run(args: argparse.Namespace) -> int:
    """Search and print, or write a run."""
    _check(args)
    from retrieval.collection import Collection

    collection = None if args.data is None else Collection.load(args.data)
    if args.text is not None:
        _print_hits(_hits(args, collection, args.k or 10), as_json=args.json)
        return 0
    k = args.k or 100
    found = _run(args, collection, k + bool(args.exclude_self))
    if args.exclude_self:
        found = {q: dict([hit for hit in docs.items() if hit[0] != q][:k]) for q, docs in found.items()}
    _write(found, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.index) == bool(args.bm25):
        raise InputError("give one of --index DIR and --bm25 (with --data)")
    if args.bm25 and args.data is None:
        raise InputError("--bm25 needs --data, the collection to search")
    if args.bm25 and args.embeddings:
        raise InputError("--bm25 takes texts, not --embeddings")
    if args.k is not None and args.k < 1:
        raise InputError(f"--k must be >= 1, got {args.k}")
    given = [name for name in ("text", "queries", "embeddings", "split") if getattr(args, name) is not None]
    if len(given) != 1:
        got = f"got {' and '.join(given)}" if given else "got nothing to search for"
        raise InputError(f'{got}; wanted one of "text", --data D --split S, --queries FILE, --embeddings DIR')
    if args.split is not None and args.data is None:
        raise InputError("--split needs --data, the collection that it is a split of")
    if args.out is not None:
        from indexes.storage import check_target

        check_target(args.out, overwrite=args.overwrite)


def _hits(args: argparse.Namespace, collection: Collection | None, k: int) -> Sequence[Hit]:
    from retrieval.search import Hit, Searcher

    if not args.bm25:
        return Searcher.load(args.index, model=args.model, device=args.device, verify=args.verify).search(args.text, k)
    from retrieval.bm25 import BM25Searcher

    assert collection is not None
    corpus = collection.corpus
    hits = []
    for doc_id, score in BM25Searcher.build(corpus).search(args.text, k):
        document = corpus.document(corpus.row(doc_id))
        hits.append(Hit(doc_id, score, document.title, document.text))
    return hits


def _run(args: argparse.Namespace, collection: Collection | None, k: int) -> Run:
    if args.bm25:
        from retrieval.bm25 import BM25Searcher

        assert collection is not None
        return BM25Searcher.build(collection.corpus).run(_queries(args, collection), k)
    from retrieval.search import Searcher

    searcher = Searcher.load(args.index, model=args.model, device=args.device, verify=args.verify)
    if args.embeddings is None:
        return searcher.run(_queries(args, collection), k)
    from retrieval.embeddings import load_embeddings

    stored = load_embeddings(args.embeddings)
    _same_model(searcher.manifest["model"], stored.manifest["model"], args.embeddings)
    if stored.manifest["side"] != "query":
        raise InputError("holds document embeddings; a search takes those of queries", path=args.embeddings)
    return searcher.run_vectors(list(stored.ids), stored.vectors, k)


def _same_model(index: dict[str, Any], queries: dict[str, Any], path: str) -> None:
    for name, value in index.items():
        if name not in ("source", "precision", "query_max_length", "query_prompt") and queries.get(name) != value:
            message = f"made with {name} {queries.get(name)!r}, the index with {value!r}; encode with the index's model"
            raise InputError(message, path=path)


def _queries(args: argparse.Namespace, collection: Collection | None) -> dict[str, str]:
    if args.queries is not None:
        from retrieval.collection import read_queries

        return read_queries(args.queries)
    assert collection is not None
    return collection.queries(args.split)


def _print_hits(hits: Sequence[Hit], *, as_json: bool) -> None:
    if as_json:
        found = [{"doc_id": h.doc_id, "score": h.score, "title": h.title, "text": h.text} for h in hits]
        print(json.dumps(found, ensure_ascii=False))
        return
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank:>3}  {hit.score:.4f}  {hit.doc_id}" + (f"  {hit.title}" if hit.title else ""))
        if hit.text:
            text = " ".join(hit.text.split())
            print(f"             {text[:100]}{'…' if len(text) > 100 else ''}")


def _write(found: Run, args: argparse.Namespace) -> None:
    from retrieval.trec import write_run

    if args.out is not None:
        write_run(Path(args.out), found, args.tag)
    elif args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        from retrieval.trec import run_lines

        sys.stdout.writelines(f"{line}\n" for q, docs in found.items() for line in run_lines(q, docs, args.tag))
