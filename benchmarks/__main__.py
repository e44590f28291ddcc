"""Run the benchmarks behind the README's tables: `python -m benchmarks [NAME…]`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.cells import ROOT, Experiment, Options, Results
from benchmarks.grid import run_grid
from indexes.storage import StorageError
from retrieval.errors import InputError

NAMES = (
    "scifact",
    "medquad",
    "cystic_fibrosis",
    "pydocs",
    "heads",
    "rerankers",
    "distillation",
    "ltr",
    "tournaments",
    "speed",
    "reranker_speed",
    "mining_speed",
    "proxy_cost",
    "blind_spot",
    "large_batches",
    "hard_batches",
    "diagnostics",
    "audit",
    "doctor",
)
EXAMPLES = """examples:
  python -m benchmarks                          everything; finished cells are skipped
  python -m benchmarks scifact --budget-minutes 60
  python -m benchmarks --table > tables.md      what is finished so far
  python -m benchmarks --tiny                   a dry run on scraps of the data, about 10 minutes
"""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says and return the exit status: 0, 1 when a cell failed, 2 for a bad command."""
    args = _parser().parse_args(arguments)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    build = ROOT / "build" / "tiny" if args.tiny else ROOT / "build"
    results_folder = args.results or (build / "results" if args.tiny else ROOT / "benchmarks" / "results")
    options = Options(shared=args.shared.resolve(), results=results_folder.resolve(), build=build, tiny=args.tiny)
    deadline = time.monotonic() + 60 * args.budget_minutes if args.budget_minutes is not None else float("inf")
    status = 0
    for name in NAMES:
        if args.names and name not in args.names:
            continue
        experiment: Experiment = import_module(f"benchmarks.{name}").EXPERIMENT
        try:
            if not args.table:
                results = Results(options.results, args.keep)
                done = run_grid(experiment, options, results, deadline=deadline, jobs=args.jobs, say=_say)
                status = max(status, 0 if done else 1)
            print(_table(experiment, options), flush=True)
        except (InputError, StorageError) as error:
            _say(f"{name}: {error}")
            status = 2
        except KeyboardInterrupt:
            _say("stopped; finished cells are kept, the same command goes on")
            return 130
    return status


def _table(experiment: Experiment, options: Options) -> str:
    """Return the table of everything finished, and say what of it is older than the code."""
    results = Results(options.results, keep=True)
    now = Results(options.results)
    cells = [cell for cell in experiment.plan(options, results).cells if results.find(experiment.name, cell)]
    n_old = sum(now.find(experiment.name, cell) is None for cell in cells)
    lines = [experiment.table(options, results)]
    if options.tiny:
        lines.insert(0, "**A dry run on scraps of the data: these numbers mean nothing.**\n")
    if n_old:
        lines.append(
            f"{n_old} of the {len(cells)} finished cells were made by older code than that of this checkout.\n"
        )
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run the experiments behind the README's tables, cell by cell; finished cells are skipped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all, in this order)")
    parser.add_argument("--budget-minutes", type=float, metavar="N", help="begin no cell that would end later")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        choices=range(1, 1 + (os.cpu_count() or 1)),
        metavar="N",
        help="run N cells side by side, each with its share of the cores; never those about speed (1)",
    )
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of what is finished")
    parser.add_argument("--tiny", action="store_true", help="a dry run on scraps of the data, results in build/tiny")
    parser.add_argument("--keep", action="store_true", help="accept finished cells of older code")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", metavar="DIR", help="holds data/NAME (%(default)s)"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="where finished cells are (benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
