"""Train a reranker: a cross-encoder, a Set-Encoder, a T5-type or a pairwise scorer, on lists of documents.

Each list holds some of a query's relevant documents and others: the negatives of the training rows and, where these are
too few, documents without a judgement from --run, or from BM25's top 100 where there is no run or it lacks the query.
The run folder --out is like that of `train`; out/model is loaded by `rerank`, by retrieval.load_reranker and, where it
is a classifier, by sentence-transformers' CrossEncoder.
Every loss can be used; scores are not bounded, so their temperature is 1 unless --set loss.temperature says otherwise.
"""

from __future__ import annotations

import argparse

from retrieval.cli.flags import add_flags
from retrieval.cli.training_flags import add_training_flags, run_training_verb
from retrieval.reranker_config import RerankerConfig

EXAMPLES = """examples:
  rankwright train-reranker --model sentence-transformers/all-MiniLM-L6-v2 --data my-beir-folder --out runs/reranker
  rankwright train-reranker --model cross-encoder/ms-marco-MiniLM-L6-v2 --data my-beir-folder --run dense.run \\
      --loss ranknet --num-negatives 15 --out runs/mine
  rankwright train-reranker --model M --data D --architecture set --novelty --num-positives 4 --num-negatives 28 \\
      --out runs/set
  rankwright train-reranker --model M --data D --architecture pairwise --loss "0.5*point_ce" --out runs/pairwise
  rankwright rerank --run dense.run --model runs/reranker --data my-beir-folder --split test --k 100 --out better.run
"""

_HELP = {
    "rows": "JSONL of training rows (repeatable); without it, rows are made from the training split's qrels",
    "run": "a TREC run whose documents fill the lists; default: BM25's top 100",
    "train_split": "the split that is trained on",
    "dev_split": "the split that is validated on; absent: carved from the training queries by hash",
    "architecture": "classifier, set (a Set-Encoder), pairwise (reads two documents at once and says which is better), "
    "encoder or encoder_decoder (T5); auto: what the folder says",
    "novelty": "of near-duplicates in a list the best alone keeps its grade; with --architecture set",
    "per_device_train_batch_size": "lists of a batch",
    "num_positives": "relevant documents of a list, drawn by the seed in each epoch",
    "num_negatives": "other documents of a list",
    "set_size": "as how many documents a list counts with --architecture set, however many it has; default: as those "
    "of training; 0: as it is (the paper's formula)",
    "num_pairs": "pairs of a list with different labels that are compared, with --architecture pairwise",
    "early_stopping_patience": "validations without a better dev nDCG@10 before the run stops; 0: never",
    "eval_queries": "dev queries whose candidates are reranked in a validation",
    "eval_depth": "candidates of each of them",
    "query_max_length": "tokens of the query; default: as long as the pair lets it be",
    "max_length": "tokens of query and document together; default: the model's own",
    "batch_tokens": "tokens of one forward pass; default: what suits the device",
}
_SHARED = ("model", "data", "out", "seed", "precision", "device")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of RerankerConfig."""
    add_flags(parser, *_SHARED, "overwrite", "resume", "dry-run", "json", required=("model", "data", "out"))
    add_training_flags(parser, RerankerConfig, _HELP, given=_SHARED)


def run(args: argparse.Namespace) -> int:
    """Check every setting, then train."""
    from retrieval.errors import require

    require("torch", "train")
    from retrieval.reranker_training import dry_run, train_reranker

    return run_training_verb(args, RerankerConfig, train_reranker, dry_run)
