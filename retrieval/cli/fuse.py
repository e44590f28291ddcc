"""Fuse runs of the same queries into one, by the ranks of their documents or by their scores.

rrf needs nothing but ranks. combsum adds scores, each list brought to [0, 1] first (--norm minmax), so that with
--weights it is the weighted sum of hybrid search; combmnz also multiplies by the number of runs that found a document.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import get_args

from retrieval.cli.flags import add_flags
from retrieval.cli.outputs import check_file_target
from retrieval.errors import InputError

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright fuse bm25.run dense.run --out hybrid.run
  rankwright fuse bm25.run dense.run --method combsum --weights 0.3,0.7 --out hybrid.run
  rankwright fuse a.run b.run c.run --method combmnz --norm zscore --k 100 --out fused.run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    from retrieval.fusion import RANK_CONSTANT, Method, Norm

    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs in TREC's six columns, two or more")
    parser.add_argument("--method", choices=get_args(Method), default="rrf", help="how (default: rrf)")
    parser.add_argument("--weights", metavar="W,W", help="one for each run, in their order (default: all 1)")
    parser.add_argument("--norm", choices=get_args(Norm), help="of combsum and combmnz (default: minmax)")
    parser.add_argument(
        "--rank-constant",
        type=float,
        default=RANK_CONSTANT,
        metavar="N",
        help=f"of rrf: 1 / (N + rank) (default: {RANK_CONSTANT})",
    )
    parser.add_argument("--k", type=int, help="keep the best k documents of each query (default: all)")
    parser.add_argument("--tag", default="rankwright", help="the run's name, its last column (default: rankwright)")
    add_flags(parser, "out", "overwrite", required=("out",))


def run(args: argparse.Namespace) -> int:
    """Read the runs, fuse them, write the result."""
    from retrieval.fusion import check_fusion, fuse
    from retrieval.trec import read_run, write_run

    weights = None if args.weights is None else [_weight(text) for text in str(args.weights).split(",")]
    check_fusion(len(args.runs), args.method, weights, args.norm, args.rank_constant, args.k)
    check_file_target(args.out, overwrite=args.overwrite, tag=args.tag)
    runs = [read_run(Path(path)) for path in args.runs]
    fused = fuse(runs, args.method, weights=weights, norm=args.norm, rank_constant=args.rank_constant, k=args.k)
    write_run(Path(args.out), fused, args.tag)
    logger.info("%s: %d queries of %d runs, fused by %s", args.out, len(fused), len(runs), args.method)
    return 0


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--weights got {text!r}; wanted numbers between commas, such as 0.3,0.7") from None
