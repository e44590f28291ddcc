"""The flags of a training verb: one for every field of its settings, and what runs and reports it."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

from retrieval.loop_config import LoopConfig

if TYPE_CHECKING:
    from retrieval.training_loop import TrainResult

C = TypeVar("C", bound=LoopConfig)

logger = logging.getLogger(__name__)

_HELP = {
    "loss": 'a loss (see: rankwright losses), or a sum such as "bixse + 0.5*ranknet"',
    "loss_learning_rate": "of learned settings (--set loss.scale=learned); default: 100 × --learning-rate",
    "gradient_accumulation_steps": "batches per optimizer step",
    "learning_rate": "peak rate of AdamW, with linear warm-up and decay",
    "num_train_epochs": "passes over the training rows",
    "weight_decay": "of AdamW; not of biases and normalisation weights",
    "logging_steps": "optimizer steps between lines of metrics.jsonl",
    "max_steps": "optimizer steps; > 0 wins over --num-train-epochs",
    "warmup_ratio": "share of all steps",
    "max_grad_norm": "gradients are clipped to this norm; 0: not",
    "eval_strategy": "no, epoch or steps",
    "eval_steps": "optimizer steps between validations, with --eval-strategy steps",
    "early_stopping_patience": "validations without a better dev nDCG@10 before the run stops; 0: never",
    "save_steps": "optimizer steps between checkpoints",
    "save_total_limit": "checkpoints kept beside the best one",
}
_METAVARS = {"rows": "FILE", "loss": "EXPR"}


def add_training_flags(
    parser: argparse.ArgumentParser, config: type[LoopConfig], helps: Mapping[str, str], *, given: tuple[str, ...]
) -> None:
    """Add a flag for every field of a training's settings but those in `given`, which have theirs.

    Args:
        parser: the verb's.
        config: the settings.
        helps: field → help text, of the fields that not every training has or that mean something else here.
        given: fields that are left out.

    """
    group = parser.add_argument_group("training (Hugging Face's names)")
    known = {**_HELP, **helps}
    for f in fields(config):
        if f.name in given or f.name == "loss_settings":
            continue
        default = None if f.default is MISSING else f.default
        value = ",".join(map(str, default)) if isinstance(default, tuple) else default
        shown = "" if default in (None, ()) else f" (default: {value})"
        options: dict[str, Any] = {"default": default, "help": known.get(f.name, "") + shown}
        if f.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = _METAVARS.get(f.name, f.name.split("_")[-1].upper())
            if f.name == "rows":
                options["action"] = "append"
                options["default"] = None
            elif str(f.type).startswith("tuple[int"):
                options |= {"nargs": "+", "metavar": "N"}
        group.add_argument(f"--{f.name.replace('_', '-')}", **options)
    parser.set_defaults(nested={})


def run_training_verb(
    args: argparse.Namespace,
    config: type[C],
    train: Callable[..., TrainResult],
    dry_run: Callable[..., int],
) -> int:
    """Check every setting, then train, or say with --dry-run what would be done.

    Args:
        args: the parsed command.
        config: the class of its settings.
        train: (settings, resume=, overwrite=) trains.
        dry_run: the same without a step; returns how many there are.

    """
    names = {f.name for f in fields(config)}
    values = {name: value for name, value in vars(args).items() if name in names}
    settings = config.from_dict(values | args.nested)
    if args.dry_run:
        steps = dry_run(settings, resume=args.resume, overwrite=args.overwrite)
        logger.info("settings, model and data are good; %d steps; nothing was written", steps)
        print(json.dumps(settings.to_dict(), indent=None if args.json else 2))
        return 0
    result = train(settings, resume=args.resume, overwrite=args.overwrite)
    if args.json:
        found = {"out": str(result.out), "steps": result.steps, "best_step": result.best_step, "dev": result.dev}
        print(json.dumps(found))
    else:
        print(f"{result.out / 'model'}: step {result.best_step} of {result.steps}")
        for name, value in result.dev.items():
            print(f"  dev {name:<18} {value:.4f}")
    return 0
