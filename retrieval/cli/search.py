"""Search an index or BM25: one text by hand, or the queries of a split, of a file, or given as embeddings.

A text prints what was found; a set of queries writes a TREC run to --out (or to stdout).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.cli.flags import add_flags
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.search import Hit, Searcher
    from retrieval.trec import Run

logger = logging.getLogger(__name__)

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
    parser.add_argument(
        "--verify",
        choices=["full", "size"],
        default="full",
        help="checks of the index on load: full hashes every file, size compares their sizes alone (default: full)",
    )


def run(args: argparse.Namespace) -> int:
    """Search and print, or write a run."""
    _check(args)
    if args.text is not None:
        _print_hits(_hits(args, args.k or 10), as_json=args.json)
        return 0
    k = args.k or 100
    found = _run(args, k + bool(args.exclude_self))
    if args.exclude_self:
        found = {q: dict([hit for hit in docs.items() if hit[0] != q][:k]) for q, docs in found.items()}
    _write(found, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together, or cannot be written, before anything is loaded."""
    if (args.index is not None) == args.bm25:
        raise InputError("give one of --index DIR and --bm25 (with --data)")
    if args.bm25 and args.data is None:
        raise InputError("--bm25 needs --data, the collection to search")
    if args.bm25 and args.embeddings is not None:
        raise InputError("--bm25 takes texts, not --embeddings")
    if args.k is not None and args.k < 1:
        raise InputError(f"--k must be >= 1, got {args.k}")
    given = [name for name in ("text", "queries", "embeddings", "split") if getattr(args, name) is not None]
    if len(given) != 1:
        got = f"got {' and '.join(given)}" if given else "got nothing to search for"
        raise InputError(f'{got}; wanted one of "text", --data D --split S, --queries FILE, --embeddings DIR')
    if args.split is not None and args.data is None:
        raise InputError("--split needs --data, the collection that it is a split of")
    if args.text is not None and not args.text.strip():
        raise InputError("the text to search for is empty")
    useless = {
        "--model": args.model is not None and (args.bm25 or args.embeddings is not None),
        "--data": args.data is not None and not args.bm25 and args.split is None,
        "--out": args.out is not None and args.text is not None,
        "--exclude-self": args.exclude_self and args.text is not None,
    }
    for flag, is_useless in useless.items():
        if is_useless:
            raise InputError(f"{flag} has no meaning for {'BM25' if args.bm25 else 'this search'} by {given[0]}")
    _check_output(args)


def _check_output(args: argparse.Namespace) -> None:
    from indexes.storage import check_target
    from retrieval.trec import check_id

    check_id(args.tag, "tag")
    if args.out is not None:
        check_target(args.out, overwrite=args.overwrite)
        if Path(args.out).is_dir():
            raise InputError("is a folder; a run is a file", path=args.out)


def _hits(args: argparse.Namespace, k: int) -> Sequence[Hit]:
    from retrieval.search import Hit

    if not args.bm25:
        return _searcher(args).search(args.text, k)
    from retrieval.bm25 import BM25Searcher
    from retrieval.collection import Collection

    corpus = Collection.load(args.data).corpus
    hits = []
    for doc_id, score in BM25Searcher.build(corpus).search(args.text, k):
        document = corpus.document(corpus.row(doc_id))
        hits.append(Hit(doc_id, score, document.title, document.text))
    return hits


def _run(args: argparse.Namespace, k: int) -> Run:
    if args.embeddings is not None:
        return _searcher(args).run_embeddings(args.embeddings, k)
    queries = _queries(args)
    if not args.bm25:
        return _searcher(args).run(queries, k)
    from retrieval.bm25 import BM25Searcher
    from retrieval.collection import Collection

    return BM25Searcher.build(Collection.load(args.data).corpus).run(queries, k)


def _searcher(args: argparse.Namespace) -> Searcher:
    from retrieval.search import Searcher

    return Searcher.load(args.index, model=args.model, device=args.device, verify=args.verify)


def _queries(args: argparse.Namespace) -> dict[str, str]:
    from retrieval.collection import Collection, read_queries

    if args.queries is None:
        return Collection.load(args.data).queries(args.split)
    texts = read_queries(args.queries)
    queries = {query_id: text for query_id, text in texts.items() if text.strip()}
    if len(queries) < len(texts):
        logger.warning(
            "%s: %d of %d queries are empty and left out", args.queries, len(texts) - len(queries), len(texts)
        )
    return queries


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
