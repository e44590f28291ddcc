"""Train a ranker on features: SVMlight files with query ids (LETOR, MSLR-WEB, or what `rankwright features` writes).

    2 qid:301 1:0.5 3:-1.25 # FT911-3032         grade, query, number:value of the features, document id

--scorer linear, mlp and context (self-attention over the list: a document's score depends on the others) are trained
with any loss of `rankwright losses`, at a temperature of 1 unless --set loss.temperature says otherwise; lambdamart is
LightGBM's, with its objectives lambdarank and rank_xendcg. Normalisation is fitted on the training lists alone and kept
with the model. nDCG has two conventions: nDCG@10 gains the grade, nDCG(dcg='exp-log2')@10 gains 2^grade - 1.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import fields

from retrieval.cli.flags import add_flags
from retrieval.cli.training_flags import add_training_flags
from retrieval.ltr_config import LtrConfig

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright train-ltr --features train.txt --valid vali.txt --test test.txt --out runs/mlp --loss lambdarank
  rankwright train-ltr --features train.txt --out runs/context --scorer context --loss "softmax_ce + 0.1*approx_ndcg"
  rankwright train-ltr --features train.txt --out runs/trees --scorer lambdamart --num-leaves 15 --set loss.gain=linear
"""

_HELP = {
    "scorer": "linear, mlp, context or lambdamart",
    "normalisation": "standard: mean 0, deviation 1 over training; query: 0 to 1 within each list; none",
    "missing": "what a feature is that a line leaves out: mean (trees: a branch of its own), or zero",
    "ids_restart": "the files number their queries anew: an id in two files means two queries",
    "per_device_train_batch_size": "lists of a batch",
    "hidden_sizes": "units of each hidden layer of mlp and context",
    "blocks": "self-attention blocks of context",
    "heads": "attention heads of each block",
    "feed_forward": "units of each block's inner layer",
    "dropout": "share of units left out in training",
    "num_trees": "trees of lambdamart, of which the best number on dev is kept",
    "num_leaves": "leaves of a tree",
    "min_data_in_leaf": "training documents in a leaf, at least",
    "feature_fraction": "share of the features that each tree may use",
    "bagging_fraction": "share of the training documents that each tree is grown from",
    "early_stopping_patience": "validations, or trees, without a better dev nDCG@10 before the run stops; 0: never",
}
_OURS = ("features", "valid", "test", "loss", "learning_rate", "out", "seed", "device")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of LtrConfig."""
    parser.add_argument("--features", metavar="FILE", required=True, help="SVMlight file of the training lists")
    valid = (
        "of the dev lists; default: a fifth of the queries, by the hash of their ids alone (near-equal queries stay "
    )
    valid += "together in what `rankwright features --dev-out` writes)"
    parser.add_argument("--valid", metavar="FILE", help=valid)
    parser.add_argument("--test", metavar="FILE", help="of lists that the finished model is measured on")
    losses = "a loss (see: rankwright losses) or a sum, default softmax_ce; of lambdamart lambdarank or rank_xendcg"
    parser.add_argument("--loss", metavar="EXPR", default="", help=losses)
    rates = "peak rate of AdamW, default 1e-3; of lambdamart a tree's, default 0.1"
    parser.add_argument("--learning-rate", metavar="RATE", default=0.0, help=rates)
    add_flags(parser, "out", "seed", "device", "overwrite", "resume", "dry-run", "json", required=("out",))
    add_training_flags(parser, LtrConfig, _HELP, given=_OURS)


def run(args: argparse.Namespace) -> int:
    """Check every setting, then train."""
    names = {f.name for f in fields(LtrConfig)}
    values = {name: value for name, value in vars(args).items() if name in names}
    config = LtrConfig.from_dict(values | args.nested)
    from retrieval.ltr_training import dry_run, train_ltr

    if args.dry_run:
        steps = dry_run(config, resume=args.resume, overwrite=args.overwrite)
        logger.info("settings and data are good; %d steps; nothing was written", steps)
        print(json.dumps(config.to_dict(), indent=None if args.json else 2))
        return 0
    result = train_ltr(config, resume=args.resume, overwrite=args.overwrite)
    if args.json:
        found = {"out": str(result.out), "steps": result.steps, "best_step": result.best_step}
        print(json.dumps(found | {"dev": result.dev, "test": result.test}))
        return 0
    unit = "trees" if config.scorer == "lambdamart" else "step"
    print(f"{result.out / 'model'}: {unit} {result.best_step} of {result.steps}")
    for split, values in (("dev", result.dev), ("test", result.test)):
        for name, value in values.items():
            print(f"  {split:<4} {name:<30} {value:.4f}")
    return 0
