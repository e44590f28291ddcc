"""Write features of a run's documents as SVMlight, for `train-ltr`.

Of every document: place and score in the run, BM25, lengths in words, how far the words of query, title and document
overlap; with --model the cosine of a dual encoder, with --reranker the score of a cross-encoder. The file names each
feature in a comment on top, and FILE.recipe.json says how they are made, so that `rerank --features FILE` makes the
same ones. --dev-out takes a fifth of the queries, by the hash of their ids; near-equal queries stay together.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.cli.flags import add_flags
from retrieval.cli.outputs import check_file_target
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.features import FeatureExtractor

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright features --run train.run --data my-beir-folder --split train --out train.svm --dev-out dev.svm
  rankwright features --run train.run --data my-beir-folder --split train --model runs/mine --reranker runs/ce \\
      --out train.svm
  rankwright train-ltr --features train.svm --valid dev.svm --scorer context --loss softmax_ce --out runs/ltr
  rankwright rerank --run test.run --model runs/ltr --features train.svm --data my-beir-folder --out reranked.run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.add_argument("--run", required=True, metavar="RUN", help="the run, in TREC's six columns")
    add_flags(parser, "data", "split", "out", required=("data", "split", "out"))
    parser.add_argument("--dev-out", metavar="FILE", help="a fifth of the queries goes here instead of to --out")
    parser.add_argument("--k", type=int, default=100, help="documents of each query (default: 100)")
    parser.add_argument("--model", metavar="M", help="a dual encoder, for the cosine")
    parser.add_argument("--reranker", metavar="M", help="a cross-encoder, for its score")
    add_flags(parser, "precision", "device", "overwrite", "on-error")


def run(args: argparse.Namespace) -> int:
    """Check the settings, compute the features, write them and their recipe."""
    from indexes.storage import write_json
    from retrieval.collection import Collection
    from retrieval.features import feature_lists, recipe_path
    from retrieval.known_documents import known_documents
    from retrieval.splits import carve_dev
    from retrieval.svmlight import write_svmlight
    from retrieval.trec import ranked, read_run

    if args.k < 1:
        raise InputError(f"--k must be >= 1, got {args.k}")
    if args.dev_out is not None and Path(args.dev_out).absolute() == Path(args.out).absolute():
        raise InputError(f"--out and --dev-out are both {args.out}; wanted two files")
    for path in (args.out, str(recipe_path(args.out)), *([args.dev_out] if args.dev_out is not None else [])):
        check_file_target(path, overwrite=args.overwrite)
    found = read_run(Path(args.run))
    collection = Collection.load(args.data)
    queries, qrels = collection.queries(args.split), collection.qrels(args.split)
    answered = {query_id: grades for query_id, grades in qrels.items() if found.get(query_id) and query_id in queries}
    if not answered:
        raise InputError(f"has no query of split {args.split!r} of {collection.name}", path=args.run)
    listed = {query_id: dict(ranked(found[query_id])[: args.k]) for query_id in answered}
    best = known_documents(listed, collection.corpus, args.on_error)
    answered = {query_id: grades for query_id, grades in answered.items() if best.get(query_id)}
    if not answered:
        raise InputError(f"has no document of {collection.name}", path=args.run)
    parts = {args.out: answered}
    if args.dev_out is not None:
        parts[args.out], parts[args.dev_out] = carve_dev(answered, queries)
    extractor = _extractor(args, collection)
    lists = feature_lists(best, extractor, queries, answered, k=args.k)
    for path, chosen in parts.items():
        own = lists.select([place for place, query_id in enumerate(lists.query_ids) if query_id in chosen])
        write_svmlight(path, own)
        logger.info("%s: %d queries, %d documents, %d features", path, len(own), len(own.labels), len(own.numbers))
    write_json(recipe_path(args.out), extractor.recipe())
    if len(answered) < len(qrels):
        logger.warning(
            "%d of the %d queries of split %s are not in the run", len(qrels) - len(answered), len(qrels), args.split
        )
    return 0


def _extractor(args: argparse.Namespace, collection: Collection) -> FeatureExtractor:
    from retrieval.features import FeatureExtractor

    encoder = reranker = None
    if args.model is not None:
        from retrieval.encoder import Encoder

        encoder = Encoder.load(args.model, precision=args.precision, device=args.device)
    if args.reranker is not None:
        from retrieval.reranking import load_reranker

        reranker = load_reranker(args.reranker, precision=args.precision, device=args.device)
    return FeatureExtractor(collection.corpus, encoder=encoder, reranker=reranker)
