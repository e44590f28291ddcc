"""Flags that several verbs share, each defined once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.encoder import Encoder

_COMMON: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "data": (("--data",), {"metavar": "D", "help": "a collection: a BEIR folder, irds:ID, or pydocs"}),
    "split": (("--split",), {"metavar": "S", "help": "the split of the collection, such as train, dev or test"}),
    "model": (
        ("--model",),
        {"metavar": "M", "help": "a model folder, a training --out, a hub id, or package:MODULE/SUBPATH"},
    ),
    "out": (("--out",), {"metavar": "PATH", "help": "where the result goes"}),
    "seed": (("--seed",), {"type": int, "default": 0, "help": "same seed, same bytes (default: 0)"}),
    "precision": (
        ("--precision",),
        {
            "choices": ["auto", "fp32", "bf16"],
            "default": "auto",
            "help": "auto is bf16 where the silicon has it (default: auto)",
        },
    ),
    "device": (("--device",), {"default": "auto", "metavar": "DEV", "help": "auto, cpu or cuda[:i] (default: auto)"}),
    "overwrite": (("--overwrite",), {"action": "store_true", "help": "replace what is there already"}),
    "resume": (("--resume",), {"action": "store_true", "help": "go on where an interrupted run stopped"}),
    "json": (("--json",), {"action": "store_true", "help": "print one JSON document on stdout"}),
    "on-error": (
        ("--on-error",),
        {"choices": ["fail", "skip"], "default": "fail", "help": "skip counts and lists bad lines (default: fail)"},
    ),
    "dry-run": (("--dry-run",), {"action": "store_true", "help": "check everything, write nothing"}),
}


def add_flags(parser: argparse.ArgumentParser, *names: str, required: tuple[str, ...] = ()) -> None:
    """Add the shared flags called `names` (without dashes) to `parser`."""
    for name in names:
        flags, options = _COMMON[name]
        parser.add_argument(*flags, **options, required=name in required)  # type: ignore[arg-type]


def add_model_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add what decides how texts become vectors."""
    add_flags(parser, "model", "precision", "device", required=("model",) if required else ())
    group = parser.add_argument_group("texts (default: the model's own)")
    group.add_argument("--query-max-length", type=int, metavar="N", help="tokens, special ones included")
    group.add_argument("--document-max-length", type=int, metavar="N", help="tokens, special ones included")
    group.add_argument("--query-prompt", metavar="TEXT", help="put before every query")
    group.add_argument("--document-prompt", metavar="TEXT", help="put before every document")
    group.add_argument("--pooling", metavar="NAME", help="for a plain HF encoder: mean, cls, max or lasttoken")
    group.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of one forward pass, padding included")


def encoder_of(args: argparse.Namespace) -> Encoder:
    """Load the encoder that the flags of :func:`add_model_flags` describe."""
    from retrieval.encoder import Encoder

    return Encoder.load(
        args.model,
        precision=args.precision,
        device=args.device,
        query_max_length=args.query_max_length,
        document_max_length=args.document_max_length,
        query_prompt=args.query_prompt,
        document_prompt=args.document_prompt,
        pooling=args.pooling,
        batch_tokens=args.batch_tokens,
    )


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every verb has: --config, --set and --quiet."""
    group = parser.add_argument_group("settings")
    group.add_argument("--config", metavar="FILE", help="YAML with this verb's settings; flags and --set win over it")
    group.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="assignments", help="one setting"
    )
    group.add_argument("--quiet", action="store_true", help="no progress, only warnings and errors")
