"""Turn a reranker's scores over a run into training rows for a dual encoder; `train --rows` reads them.

The scores are those in RUN: what `rerank` wrote. Only the training split's judgements are read: documents judged
relevant are the positives (else the best document of the list), the rest of the list are the negatives.
--as graded cuts the scores to grades 0, 1, 2, …; --as soft makes probabilities (bixse); --as margin keeps the scores
(margin_mse, kl_div).
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import get_args

from retrieval.cli.flags import add_flags
from retrieval.cli.outputs import check_file_target
from retrieval.errors import InputError

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright label --run taught.run --data my-beir-folder --k 30 --as margin --out rows.jsonl
  rankwright label --run taught.run --data my-beir-folder --k 30 --as graded --thresholds 0,2.5 --out rows.jsonl
the run before it, and the student after it:
  rankwright rerank --run dense.run --model runs/reranker --data my-beir-folder --split train --k 30 --out taught.run
  rankwright train --model M --data my-beir-folder --rows rows.jsonl --loss margin_mse --out runs/student
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    from retrieval.labelling import QUANTILES, Kind, Probability

    parser.add_argument("--run", required=True, metavar="RUN", help="a reranked run, in TREC's six columns")
    add_flags(parser, "data", "out", required=("data", "out"))
    parser.add_argument("--split", default="train", metavar="S", help="the training split (default: train)")
    parser.add_argument("--as", dest="kind", choices=get_args(Kind), required=True, help="what the labels are")
    parser.add_argument(
        "--k", type=int, default=100, help="documents of each list, at most those reranked (default: 100)"
    )
    graded = parser.add_argument_group("--as graded (default: by quantiles)")
    shown = ",".join(map(str, QUANTILES))
    graded.add_argument("--quantiles", metavar="Q,Q", help=f"of all scores, where grades begin (default: {shown})")
    graded.add_argument("--thresholds", metavar="S,S", help="scores where grades begin (below 0: --thresholds=-1,2)")
    soft = parser.add_argument_group("--as soft")
    soft.add_argument("--probability", choices=get_args(Probability), help="of a score (default: sigmoid)")
    soft.add_argument("--temperature", type=float, metavar="T", help="divides the scores first (default: 1)")
    add_flags(parser, "overwrite", "on-error")


def run(args: argparse.Namespace) -> int:
    """Check the settings, read run and judgements, write the rows."""
    from retrieval.collection import Collection
    from retrieval.labelling import check_labelling, label
    from retrieval.textfiles import publish_lines
    from retrieval.trec import read_run

    own = {"graded": ("quantiles", "thresholds"), "soft": ("probability", "temperature")}
    for kind, names in own.items():
        for name in names:
            if kind != args.kind and getattr(args, name) is not None:
                raise InputError(f"--{name} has no meaning for --as {args.kind}")
    settings = {
        "k": args.k,
        "quantiles": _numbers(args, "quantiles"),
        "thresholds": _numbers(args, "thresholds"),
        "probability": args.probability or "sigmoid",
        "temperature": 1.0 if args.temperature is None else args.temperature,
    }
    check_labelling(args.kind, **settings)
    check_file_target(args.out, overwrite=args.overwrite)
    collection = Collection.load(args.data)
    qrels, queries = collection.qrels(args.split), collection.queries(args.split)
    taught = read_run(Path(args.run))
    rows = label(taught, args.kind, qrels, queries, collection.corpus, on_error=args.on_error, **settings)
    publish_lines(Path(args.out), (json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False) for row in rows))
    logger.info("%s: %d rows, %s", args.out, len(rows), args.kind)
    return 0


def _numbers(args: argparse.Namespace, name: str) -> list[float] | None:
    text = getattr(args, name)
    try:
        return None if text is None else [float(part) for part in str(text).split(",")]
    except ValueError:
        raise InputError(f"--{name} got {text!r}; wanted numbers between commas, such as 0.5,0.9") from None
