"""Find out which loss helps on your data: equal tuning on dev, settings frozen, test read once per seed.

Every loss gets the same trials (learning rates × temperatures), chosen by nDCG@10 on dev. With --heads a small head is
trained over embeddings that are computed once, so that ten losses take minutes; without it the whole encoder is.
--out holds trials.jsonl, frozen.json, tests.jsonl, results.json, curves.png and the models of the first seed.
Settings of a loss stand under its name: --set loss.sl_at_k.k=20. A sum is a loss too: --losses "infonce,bixse+0.5*mw".
Ctrl-C loses the run that it meets (of a whole encoder not even that); --resume goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.cli.flags import add_flags
from retrieval.errors import InputError, require

if TYPE_CHECKING:
    from retrieval.bench_config import BenchConfig

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright bench-losses --data my-beir-folder --model sentence-transformers/all-MiniLM-L6-v2 \\
      --losses infonce,bixse,mw --heads linear --out bench/heads
  rankwright bench-losses --data D --model M --losses infonce,sl_at_k --heads mlp --sides both --label-noise 0.2 \\
      --measures nDCG@20,P@5 --folds 5 --out bench/noise
  rankwright bench-losses --data D --model M --losses infonce,bixse --out bench/full --dry-run
  rankwright bench-losses --data D --model M --losses infonce,bixse --out bench/full --resume
"""

# flag → (type of its values, help); a flag with several values takes them with commas between
_LISTS: dict[str, tuple[type, str]] = {
    "losses": (str, "names or sums; the others are compared with the first"),
    "measures": (str, "of test; the first one is compared (default: nDCG@10,RR@10,R@100)"),
    "learning-rates": (float, "of the grid (default: 1e-3,3e-3,1e-2 with heads, else 2e-5,5e-5,1e-4)"),
    "temperatures": (float, "of the grid, for every loss (default: a third, one and three times the loss's own)"),
}
_NUMBERS: dict[str, tuple[type, str]] = {
    "seeds": (int, "runs of the frozen settings (default: 3)"),
    "trials": (int, "settings of each loss that are tried on dev (default: 9)"),
    "hidden": (int, "units of an mlp head (default: 128)"),
    "folds": (int, "cross-validation over the test split's queries, where there is no other split"),
    "label-noise": (float, "share of training positives that are exchanged for documents not judged"),
    "per-device-train-batch-size": (int, "queries of a batch (default: 128 with heads, else 32)"),
    "num-train-epochs": (float, "default: 20 with heads, else 1"),
    "num-positives": (int, "relevant documents per query and epoch (default: 1)"),
    "num-negatives": (int, "given negatives per query and epoch (default: 7)"),
    "evaluations": (int, "measurements of dev in a run (default: 10)"),
    "query-max-length": (int, "tokens of a query; default: the model's own"),
    "document-max-length": (int, "tokens of a document; default: the model's own"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field of BenchConfig."""
    add_flags(parser, "data", "model", "out", "precision", "device", required=("data", "model", "out"))
    add_flags(parser, "overwrite", "resume", "dry-run", "json")
    group = parser.add_argument_group("comparison")
    for name, (_, text) in _LISTS.items():
        group.add_argument(f"--{name}", metavar="A,B", help=text, required=name == "losses")
    group.add_argument("--heads", metavar="KIND", help="train a head, linear or mlp, over embeddings computed once")
    group.add_argument("--sides", metavar="SIDES", help="where the head stands: query (default) or both")
    group.add_argument("--rows", metavar="FILE", action="append", help="JSONL of training rows (repeatable)")
    for name in ("train", "dev", "test"):
        group.add_argument(f"--{name}-split", metavar="S", help=f"default: {name}")
    for name, (kind, text) in _NUMBERS.items():
        group.add_argument(f"--{name}", metavar=name.split("-")[-1].upper(), type=kind, help=text)
    parser.set_defaults(nested={})


def run(args: argparse.Namespace) -> int:
    """Check every setting, then compare."""
    require("torch", "train")
    config = _config(args)
    if args.dry_run:
        return _show_plan(config, as_json=args.json)
    from retrieval.bench_results import table_lines
    from retrieval.loss_bench import bench_losses

    results = bench_losses(config, resume=args.resume, overwrite=args.overwrite)
    _draw(Path(config.out))
    print(json.dumps(results, ensure_ascii=False) if args.json else "\n".join(table_lines(results)))
    return 0


def _config(args: argparse.Namespace) -> BenchConfig:
    from retrieval.bench_config import BenchConfig

    values: dict[str, Any] = {name: getattr(args, name) for name in ("data", "model", "out", "precision", "device")}
    for name, (kind, _) in _LISTS.items():
        dest = name.replace("-", "_")
        values[dest] = _split(name, kind, getattr(args, dest))
    names = (
        "heads",
        "sides",
        "rows",
        "train_split",
        "dev_split",
        "test_split",
        *(n.replace("-", "_") for n in _NUMBERS),
    )
    values |= {name: getattr(args, name) for name in names}
    values["rows"] = tuple(args.rows or ())
    for key in args.nested:
        if not key.startswith("loss."):
            raise InputError(f"unknown setting {key!r}; settings of a loss are written loss.NAME.SETTING")
    values["loss_settings"] = {key.removeprefix("loss."): value for key, value in args.nested.items()}
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    return BenchConfig(**given)


def _split(name: str, kind: type, text: Any) -> tuple[Any, ...]:
    """Return the values of a flag that takes several."""
    parts = [part.strip() for part in str(text).split(",") if part.strip()] if text is not None else []
    try:
        return tuple(kind(part) for part in parts)
    except ValueError:
        raise InputError(f"--{name} got {text!r}; wanted numbers with commas between them") from None


def _show_plan(config: BenchConfig, *, as_json: bool) -> int:
    from retrieval.bench_cost import cost
    from retrieval.collection import Collection

    found = cost(config, Collection.load(config.data))
    grids = {loss: config.grid(loss) for loss in config.losses}
    minutes = round(found.seconds / 60, 1)
    if as_json:
        plan = {
            "settings": config.to_dict(),
            "grid": {loss: [setting.to_dict() for setting in grid] for loss, grid in grids.items()},
            "trials": found.trials,
            "tests": found.tests,
            "steps": found.steps,
            "minutes": minutes,
        }
        print(json.dumps(plan, ensure_ascii=False))
        return 0
    width = max(map(len, grids))
    for loss, grid in grids.items():
        print(f"{loss:<{width}}  {' | '.join(map(str, grid))}")
    print(
        f"\n{found.trials} trials on dev and {found.tests} runs for test, of {found.steps:,} steps each; "
        f"{found.training:,} training and {found.dev:,} dev queries, {found.documents:,} documents"
    )
    print(f"about {minutes:g} minutes with MiniLM-L6 on two cores; nothing was written")
    return 0


def _draw(out: Path) -> None:
    """Draw the best trials' curves, or say what is missing for it."""
    from retrieval.learning_curves import best_curves, draw

    lines = (out / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    try:
        draw(best_curves([json.loads(line) for line in lines]), out / "curves.png")
    except InputError as error:
        logger.warning("no picture of the learning curves: %s", error)
