"""List the losses: what each is for, the labels that it takes, what it costs, where it comes from.

With a name it prints that loss's documentation (formula, empty case, source) and its settings with their defaults, as
they stand under `loss.` in YAML and --set. Losses add up: --loss "bixse + 0.5*ranknet".
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retrieval.cli.flags import add_flags
from retrieval.errors import InputError, did_you_mean, require

if TYPE_CHECKING:
    from rankers.losses import LossEntry, Regulariser

EXAMPLES = """examples:
  rankwright losses                     the table
  rankwright losses bixse               one loss: its formula, its settings and their defaults
  rankwright losses --json              one array, an object for each loss: name, labels, use, cost, paper
"""

_COLUMNS = ("name", "labels", "cost", "use", "paper")
_KEYS = ("name", "labels", "use", "cost", "paper")  # of the JSON: API.md's order


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("loss", metavar="NAME", nargs="?", help="one loss, or regulariser, to be told in full")
    add_flags(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Print the table, or one loss."""
    require("torch", "train")
    from rankers.losses import LOSSES, REGULARISERS

    if args.loss is not None and args.loss not in {**LOSSES, **REGULARISERS}:
        raise InputError(f"unknown loss {args.loss!r}{did_you_mean(args.loss, [*LOSSES, *REGULARISERS])}")
    if args.json:
        every: dict[str, LossEntry | Regulariser] = {**LOSSES, **REGULARISERS}
        chosen = LOSSES if args.loss is None else [args.loss]
        print(json.dumps([_object(every[name]) for name in chosen], indent=2, ensure_ascii=False))
    elif args.loss in LOSSES:
        print("\n".join(_told(LOSSES[args.loss])))
    elif args.loss in REGULARISERS:
        entry = REGULARISERS[args.loss]
        print("\n".join([_documentation(entry.fn), "", *_settings(entry.defaults)]))
    else:
        print("\n".join(_table(_COLUMNS, (_object(entry) for entry in LOSSES.values()))))
        print("\nterms over embeddings instead of scores (rankers.losses.REGULARISERS):\n")
        print("\n".join(_table(("name", "use", "paper"), (_object(entry) for entry in REGULARISERS.values()))))
    return 0


def _object(entry: LossEntry | Regulariser) -> dict[str, str]:
    return {key: getattr(entry, key) for key in _KEYS if hasattr(entry, key)}


def _told(entry: LossEntry) -> Iterator[str]:
    """Yield what is known of a loss, as lines."""
    yield f"{entry.name}: {entry.use}"
    yield ""
    yield _documentation(entry.fn)
    yield ""
    yield f"labels: {entry.labels}"
    yield f"cost: {entry.cost}; needs: {entry.needs}"
    if entry.state:
        yield f"state of each query: {', '.join(entry.state)}"
    parameters = inspect.signature(entry.fn).parameters
    known = {
        name: entry.defaults[name] if name in entry.defaults else parameters[name].default for name in entry.settings
    }
    yield from _settings(known)


def _documentation(fn: Any) -> str:
    return inspect.getdoc(fn) or ""


def _settings(defaults: Mapping[str, Any]) -> Iterator[str]:
    """Yield each setting with its default; None is shown as in YAML."""
    yield "settings and defaults:"
    for name, value in defaults.items():
        yield f"  loss.{name}: {json.dumps(value)}"


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Yield aligned lines, the heading first."""
    lines = [tuple(columns), *(tuple(row[column] for column in columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
