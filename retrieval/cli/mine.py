"""Find hard negatives for training rows: documents that a model or BM25 ranks high and nobody judged relevant.

Never chosen: a document that is judged relevant in the training split (or in --qrels) or positive in its row, and one
with the same text as such a document, the query, or a candidate before it. Documents judged not relevant pass every
margin. Ranks count what is left, from 1. A query that finds fewer than asked keeps what it has, and is counted.

Embeddings, searches and a reranker's scores are kept (--store), so that another mining with other settings takes
seconds, and after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from retrieval.cli.flags import add_flags, add_model_flags, encoder_of
from retrieval.cli.outputs import check_file_target
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.negatives import NegativeRules
    from retrieval.reranking import Reranker
    from retrieval.rows import TrainingRow

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright mine --model runs/demo/run --data pydocs --split train --out rows.jsonl
  rankwright mine --model M --data my-beir-folder --range 10:100 --sampling random --num-negatives 15 --out rows.jsonl
  rankwright mine --model M --data my-beir-folder --candidates dense,bm25 --reranker runs/reranker --out rows.jsonl
  rankwright mine --model M --data my-beir-folder --qrels labelled.tsv --out rows.jsonl
then:
  rankwright train --model M --data my-beir-folder --rows rows.jsonl --num-negatives 3 --out runs/harder
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    from retrieval.mining import DEFAULT_RULES
    from retrieval.negatives import MarginFrom, Sampling

    add_model_flags(parser, required=False)
    add_flags(parser, "data", "out", required=("data", "out"))
    parser.add_argument("--split", metavar="S", help="the training split (default: train)")
    parser.add_argument(
        "--rows", action="append", metavar="FILE", help="mine for these rows, not for the split's queries"
    )
    parser.add_argument(
        "--qrels",
        action="append",
        metavar="QRELS",
        help="further judgements, such as those of audit --as qrels: a file or D:SPLIT (repeatable); what they call "
        "relevant is no negative",
    )
    where = parser.add_argument_group("candidates")
    where.add_argument(
        "--candidates",
        default="dense",
        metavar="C,C",
        help="dense (exact search with --model), bm25, or both: the better rank counts, and the model's score",
    )
    first, last = DEFAULT_RULES.first_rank, DEFAULT_RULES.last_rank
    where.add_argument(
        "--range", default=f"{first}:{last}", metavar="A:B", help="ranks from A to B, of 1, 2, … (default: %(default)s)"
    )
    where.add_argument("--reranker", metavar="M", help="scores positives and candidates again; its scores then count")
    which = parser.add_argument_group("which become negatives (s: its score; s+: the positive's)")
    which.add_argument("--absolute-margin", type=float, metavar="X", help="drop candidates with s > s+ - X")
    which.add_argument(
        "--relative-margin",
        metavar="X",
        help=f"drop candidates with s > s+ - X |s+| (default: {DEFAULT_RULES.relative_margin}, unless another limit is "
        "given or BM25 alone scores); none: no such limit",
    )
    which.add_argument(
        "--margin-from",
        choices=get_args(MarginFrom),
        default=DEFAULT_RULES.margin_from,
        help="whose score s+ is where a row has several positives (default: %(default)s)",
    )
    which.add_argument("--max-score", type=float, metavar="X", help="drop candidates with s > X")
    number = "of each query, at most (default: %(default)s)"
    which.add_argument("--num-negatives", type=int, default=DEFAULT_RULES.num_negatives, help=number)
    which.add_argument(
        "--sampling",
        choices=get_args(Sampling),
        default="top",
        help="of those left in the window: the first ones, any at random, or by gumbel the better-scored ones more "
        "often (default: %(default)s)",
    )
    which.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"of gumbel: p ~ exp(s / T) (default {DEFAULT_RULES.temperature})",
    )
    parser.add_argument(
        "--store", metavar="DIR", help="where embeddings and scores are kept (default: in the user's cache)"
    )
    add_flags(parser, "seed", "overwrite")


def run(args: argparse.Namespace) -> int:
    """Check the settings, mine, write the rows."""
    from retrieval.mining import DEFAULT_SPLIT, check_mining

    candidates = args.candidates.split(",")
    rules = _rules(args, candidates)
    check_mining(candidates, rules, has_encoder=args.model is not None, has_reranker=args.reranker is not None)
    if args.model is not None and "dense" not in candidates:
        raise InputError("--model has no meaning without dense candidates; BM25 needs none")
    check_file_target(args.out, overwrite=args.overwrite)
    from retrieval.cli.evaluate import load_qrels
    from retrieval.collection import Collection
    from retrieval.embedding_store import EmbeddingStore
    from retrieval.mining import mine, row_lines
    from retrieval.textfiles import publish_lines

    out, store = Path(args.out), EmbeddingStore(args.store)
    further_qrels = [load_qrels(source)[0] for source in args.qrels or ()]
    collection = Collection.load(args.data)
    if args.split is not None or args.rows is None:  # beside rows the default split may be missing
        collection.qrels_path(args.split or DEFAULT_SPLIT)
    mined = mine(
        collection,
        encoder_of(args) if "dense" in candidates else None,
        split=args.split or DEFAULT_SPLIT,
        rows=_rows(args, collection),
        candidates=candidates,
        rules=rules,
        reranker=_reranker(args),
        store=store,
        further_qrels=further_qrels,
    )
    publish_lines(out, row_lines(mined.rows))
    logger.info("%s: %d rows", out, len(mined.rows))
    return 0


def _rules(args: argparse.Namespace, candidates: list[str]) -> NegativeRules:
    """Return the rules that the flags say; the margin that is the default gives way to any limit that is given."""
    from retrieval.mining import default_rules
    from retrieval.negatives import NegativeRules, parse_range

    if args.temperature is not None and args.sampling != "gumbel":
        raise InputError(f"--temperature is of --sampling gumbel; it has no meaning for {args.sampling}")
    relative = _relative_margin(args.relative_margin)
    if args.relative_margin is None and args.absolute_margin is None and args.max_score is None:
        relative = default_rules(candidates, has_reranker=args.reranker is not None).relative_margin
    first, last = parse_range(args.range, "--range")
    own = {} if args.temperature is None else {"temperature": args.temperature}
    return NegativeRules(
        first_rank=first,
        last_rank=last,
        num_negatives=args.num_negatives,
        absolute_margin=args.absolute_margin,
        relative_margin=relative,
        margin_from=args.margin_from,
        max_score=args.max_score,
        sampling=args.sampling,
        seed=args.seed,
        **own,
    )


def _relative_margin(text: str | None) -> float | None:
    if text is None or text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--relative-margin got {text!r}; wanted a share such as 0.05, or none") from None


def _rows(args: argparse.Namespace, collection: Collection) -> list[TrainingRow] | None:
    """Return the rows of all files, or None where there are none."""
    from retrieval.rows import read_rows

    if args.rows is None:
        return None
    return [row for path in args.rows for row in read_rows(Path(path), collection)[0]]


def _reranker(args: argparse.Namespace) -> Reranker | None:
    from retrieval.reranking import load_reranker

    if args.reranker is None:
        return None
    return load_reranker(args.reranker, precision=args.precision, device=args.device)
