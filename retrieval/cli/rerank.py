"""Score the best documents of a run again with a reranker, and keep the others below them in their old order.

--model is a cross-encoder (what `train-reranker` wrote, a folder, or a hub id); with --features FILE it is what
`train-ltr` wrote, and FILE is what `features` made for it: the same features are computed for the candidates.
Finished lists are kept while the command runs: after Ctrl-C, --resume goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.cli.flags import add_flags
from retrieval.cli.outputs import check_file_target
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.reranking import Reranker, RunReranker
    from retrieval.trec import Run

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright rerank --run dense.run --model runs/reranker --data my-beir-folder --split test --k 100 --out reranked.run
  rankwright rerank --run dense.run --model cross-encoder/ms-marco-MiniLM-L6-v2 --data my-beir-folder --out reranked.run
  rankwright rerank --run dense.run --model runs/ltr --features train.svm --data my-beir-folder --out reranked.run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.add_argument("--run", required=True, metavar="RUN", help="the run, in TREC's six columns")
    add_flags(parser, "model", "data", "split", "out", required=("model", "data", "out"))
    parser.add_argument("--queries", metavar="FILE", help="texts of the queries, where they are not in the collection")
    parser.add_argument("--k", type=int, default=100, help="documents per query that are scored again (default: 100)")
    parser.add_argument("--features", metavar="FILE", help="--model is of `train-ltr`; what `features` wrote for it")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of one forward pass, padding included")
    duels = parser.add_argument_group("for a pairwise model, which compares documents two by two")
    strategies = "heap (default), sort, knockout, bubble, max_logits, max_wins or bradley_terry"
    duels.add_argument("--strategy", metavar="S", help=f"who meets whom: {strategies}")
    duels.add_argument("--top", type=int, metavar="N", help="ranks that heap and sort find (default: 10)")
    duels.add_argument("--budget", type=int, metavar="N", help="sequences read for a query, two for each duel")
    parser.add_argument("--tag", default="rankwright", help="the run's name, its last column (default: rankwright)")
    add_flags(parser, "precision", "device", "overwrite", "resume", "on-error")


def run(args: argparse.Namespace) -> int:
    """Check the settings, rerank, write the run."""
    if args.k < 1:
        raise InputError(f"--k must be >= 1, got {args.k}")
    if args.resume and args.overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    if args.split is not None and args.queries is not None:
        raise InputError("got --split and --queries; wanted one of them, or none")
    if tournament := _tournament(args):
        from retrieval.pairwise_reranker import check_tournament

        if args.features is not None:
            raise InputError(f"--{next(iter(tournament))} is of a pairwise model; one of `train-ltr` has no tournament")
        check_tournament(**tournament)
    check_file_target(args.out, overwrite=args.overwrite or args.resume, tag=args.tag)
    from retrieval.collection import Collection
    from retrieval.reranking import rerank
    from retrieval.scored_blocks import blocks_folder, open_blocks
    from retrieval.trec import check_ids, read_run, write_run

    if args.resume and Path(args.out).exists() and not blocks_folder(Path(args.out)).exists():
        logger.warning("%s is complete; nothing to do (whether it has these settings was not looked at)", args.out)
        return 0

    with open_blocks(Path(args.out), resume=args.resume) as blocks:
        found = read_run(Path(args.run))
        check_ids(found)  # before hours of scoring: the result has the same ones
        collection = Collection.load(args.data)
        queries = _queries(args, collection)
        found = _of_split(args, found, queries, collection)
        reranker = _reranker(args, collection)
        result = rerank(found, reranker, queries, collection.corpus, k=args.k, on_error=args.on_error, blocks=blocks)
        write_run(Path(args.out), result, args.tag)
    logger.info("%s: %d queries, the first %d documents of each reranked", args.out, len(result), args.k)
    return 0


def _of_split(args: argparse.Namespace, found: Run, queries: Mapping[str, str], collection: Collection) -> Run:
    """Return the run without the queries of other splits, or refuse one of which nothing is left."""
    if args.split is not None:
        n_all = len(found)
        found = {query_id: docs for query_id, docs in found.items() if query_id in queries}
        if not found:
            raise InputError(f"has no query of split {args.split!r} of {collection.name}", path=args.run)
        if len(found) < n_all:
            logger.info("%d of the run's %d queries are not in split %s", n_all - len(found), n_all, args.split)
    if not found:
        raise InputError("holds no document to rerank", path=args.run, kind="empty")
    return found


def _tournament(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a tournament that are given."""
    given = {name: getattr(args, name) for name in ("strategy", "top", "budget")}
    return {name: value for name, value in given.items() if value is not None}


def _queries(args: argparse.Namespace, collection: Collection) -> dict[str, str]:
    from retrieval.collection import read_queries

    return collection.queries(args.split) if args.queries is None else read_queries(Path(args.queries))


def _reranker(args: argparse.Namespace, collection: Collection) -> Reranker | RunReranker:
    if args.features is None:
        from retrieval.reranking import load_reranker

        how = {"precision": args.precision, "device": args.device, "batch_tokens": args.batch_tokens}
        return load_reranker(args.model, **how, **_tournament(args))
    from retrieval.feature_ranker import FeatureRanker
    from retrieval.features import FeatureReranker, load_extractor

    ranker = FeatureRanker.load(args.model)
    extractor = load_extractor(args.features, collection, precision=args.precision, device=args.device)
    return FeatureReranker(ranker, extractor)
