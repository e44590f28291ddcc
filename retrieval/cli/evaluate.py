"""Measure a run against qrels.

Every measure sees the same ranking, trec_eval's: by falling score (as float32), equal scores by falling document
id. The mean is over all queries of the qrels: one that the run lacks, or that has no relevant document, counts 0.
Names are those of ir-measures (nDCG@10 RR@10 AP R@100 P@5 Success@5 Judged@10, nDCG(dcg='exp-log2')@10);
trec_eval's (ndcg_cut_10, map) and ranx's (ndcg@10, mrr@10) are understood too. Intervals: 95 %, bootstrap over
queries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import get_args

from retrieval.cli.flags import add_flags
from retrieval.errors import InputError
from retrieval.evaluation import Estimate, evaluate
from retrieval.measures import DEFAULT_MEASURES, parse_measures
from retrieval.trec import Qrels, Ties, read_qrels, read_run

EXAMPLES = """examples:
  rankwright evaluate qrels/test.tsv bm25.run
  rankwright evaluate scifact:test bm25.run nDCG@10 R@100      the split of a BEIR folder
  rankwright evaluate pydocs:test bm25.run --per-query
  rankwright evaluate irds:vaswani:test vaswani.run --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this verb's flags."""
    parser.add_argument(
        "qrels", metavar="QRELS", help="a file (BEIR's three columns or TREC's four) or D:split of a collection D"
    )
    parser.add_argument("run", metavar="RUN", help="a run in TREC's six columns")
    parser.add_argument(
        "measures",
        metavar="MEASURE",
        nargs="*",
        default=list(DEFAULT_MEASURES),
        help=f"default: {' '.join(DEFAULT_MEASURES)}",
    )
    parser.add_argument("--per-query", action="store_true", help="print every query's values, too")
    parser.add_argument("--only-returned", action="store_true", help="average over the queries that the run answers")
    parser.add_argument(
        "--only-answerable", action="store_true", help="average over the queries with a relevant document"
    )
    parser.add_argument(
        "--ties",
        choices=get_args(Ties),
        default="trec",
        help="order of equal scores: by falling document id (trec, default) or as in the file",
    )
    add_flags(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Print the estimates."""
    parse_measures(args.measures)  # before anything is read
    qrels, corpus = load_qrels(args.qrels)
    estimates = evaluate(
        qrels,
        read_run(args.run),
        args.measures,
        only_returned=args.only_returned,
        only_answerable=args.only_answerable,
        ties=args.ties,
        corpus=corpus,
    )
    if args.json:
        print(json.dumps(as_json(estimates, per_query=args.per_query), ensure_ascii=False, allow_nan=False))
        return 0
    if args.per_query:
        print("\n".join([*per_query_lines(estimates), ""]))
    print("\n".join(table_lines(estimates)))
    return 0


def load_qrels(source: str) -> tuple[Qrels, Container[str] | None]:
    """Read the qrels of a file or of `D:split`; with the split comes the collection's corpus.

    Raises:
        InputError: neither a file nor a split of a collection.
    """
    path = Path(source)
    if path.is_file():
        return read_qrels(path), None
    name, _, split = source.rpartition(":")
    if not name or not split or name == "irds":
        is_collection = path.is_dir() or source == "pydocs" or name == "irds"
        problem = "is a collection; name its split, too" if is_collection else "no such file"
        raise InputError(f"{problem}: QRELS is a file or D:SPLIT, such as {path.name}:test", path=source)
    from retrieval.collection import Collection

    collection = Collection.load(name)
    return collection.qrels(split), collection.corpus


def as_json(estimates: Mapping[str, Estimate], *, per_query: bool = False) -> dict[str, object]:
    """Return what --json prints: {"measures": {name: {"value", "low", "high"}}, "n", "missing"}, unrounded.

    With `per_query` also {"per_query": {query id: {name: value}}}.
    """
    first = next(iter(estimates.values()))
    found: dict[str, object] = {
        "measures": {
            name: {"value": float(estimate), "low": estimate.low, "high": estimate.high}
            for name, estimate in estimates.items()
        },
        "n": first.n,
        "missing": first.missing,
    }
    if per_query:
        found["per_query"] = {
            query_id: {name: estimate.per_query[query_id] for name, estimate in estimates.items()}
            for query_id in first.per_query
        }
    return found


def table_lines(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return the table of means and what they stand on."""
    rows = [("measure", "value", "95 % interval", "judged@k")]
    for name, estimate in estimates.items():
        interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
        rows.append((name, f"{estimate:.4f}", interval, f"{100 * estimate.judged:.1f} %"))
    first = next(iter(estimates.values()))
    counts = f"{first.n:,} queries; missing from the run: {first.missing:,}; "
    lines = [*_aligned(rows), "", counts + f"without a relevant document: {first.without_relevant:,}"]
    gains = {"linear": "the grade", "exp2": "2^grade - 1"}
    lines += [
        f"{name} has {estimate.gain} gain ({gains[estimate.gain]})"
        for name, estimate in estimates.items()
        if estimate.gain is not None
    ]
    ties = [
        f"{name} in {100 * (estimate.tied or 0):.1f} % of the queries "
        f"({estimate.pessimistic:.4f} to {estimate.optimistic:.4f} in any order)"
        for name, estimate in estimates.items()
        if estimate.tied or estimate.optimistic != estimate.pessimistic
    ]
    return [*lines, f"equal scores decide {', '.join(ties)}"] if ties else lines


def per_query_lines(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return a table with a line for each query."""
    queries = next(iter(estimates.values())).per_query
    rows = [("query", *estimates)]
    rows += [(query_id, *(f"{e.per_query[query_id]:.4f}" for e in estimates.values())) for query_id in queries]
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Pad columns: the first to the right of its text, the numbers to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
