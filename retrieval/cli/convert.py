"""Turn qrels, runs, training rows and collections from one format into another.

  qrels        beir, trec, json
  run          trec, json (as BEIR and pytrec_eval have it), msmarco (query, document, rank)
  rows         rankwright, sentence-transformers, tevatron, flagembedding
  collection   irds (SRC is irds:ID) to beir

--from may be left out where the file shows what it is. A name that two kinds have can be made plain: trec-run,
json-qrels. A file that ends in .gz is read and written compressed. What the new format cannot hold is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from retrieval.cli.flags import add_flags
from retrieval.convert import convert

EXAMPLES = """examples:
  rankwright convert qrels.txt qrels/test.tsv --to beir               TREC's four columns to BEIR's three
  rankwright convert run.trec run.json --to json                      for BEIR or pytrec_eval
  rankwright convert mined.jsonl rows.jsonl --to rankwright           from whichever tool wrote it
  rankwright convert rows.jsonl triplets.jsonl --to sentence-transformers --data scifact
  rankwright convert irds:vaswani vaswani --to beir
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this verb's flags."""
    parser.add_argument("source", metavar="SRC", help="a file, or irds:ID")
    parser.add_argument("target", metavar="DST", help="the new file or folder")
    parser.add_argument("--from", metavar="F", dest="source_format", help="format of SRC (default: what it looks like)")
    parser.add_argument("--to", metavar="F", dest="target_format", required=True, help="format of DST")
    add_flags(parser, "data", "on-error", "overwrite", "json")


def run(args: argparse.Namespace) -> int:
    """Convert and say what was written and what was lost."""
    done = convert(
        args.source,
        args.target,
        args.target_format,
        args.source_format,
        data=args.data,
        on_error=args.on_error,
        overwrite=args.overwrite,
    )
    if args.json:
        print(json.dumps(asdict(done), ensure_ascii=False))
        return 0
    if not args.quiet:
        what = {"qrels": "judgements", "run": "results", "rows": "rows", "collection": "documents"}[done.kind]
        print(f"{args.target}: {done.records:,} {what}, {done.source_format} → {done.target_format}")
    for what, sentences in (("lost", done.lost), ("note", done.notes)):
        for sentence in sentences:
            print(f"{what}: {sentence}", file=sys.stderr)
    return 0
