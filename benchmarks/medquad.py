"""One epoch of InfoNCE on MedQuAD, against the untrained model and BM25.

Exactly one epoch over the 12,119 training queries, one relevant answer each, drawn by the seed; 32 query and 128
document tokens; 3 seeds; nDCG@10 and R@100 on test over all 15,809 answers. The settings were fixed beforehand; dev
is not read.

In-batch negatives are easy here, since a question names its disease: each cell also records how many of the negatives
of its batches are about the query's own disease (the answer's title), and of the test queries whose first answer is
wrong, for how many the wrong answer is about the right disease.

About 32 minutes on two cores with bf16: 3 runs of 10 minutes, untrained and BM25.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, quality, tables, topics
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values

NAME = "medquad"
MEASURES = ("nDCG@10", "R@100")
SEEDS = 3
QUERIES, DOCUMENTS = 12_119, 15_809
TRAIN: dict[str, Any] = {
    "loss": "infonce",
    "loss.temperature": 0.05,
    "learning_rate": 5e-5,
    "num_train_epochs": 1,
    "num_positives": 1,
    "num_negatives": 0,
    "per_device_train_batch_size": 64,
    "query_max_length": 32,
    "document_max_length": 128,
}
NOTES = (
    "One epoch over all 12,119 training queries (batch 64, 32/128 tokens), one relevant answer each drawn by the seed; "
    "lr 5e-5, temperature 0.05, fixed beforehand: dev was not read. Searched at 32/128 tokens.",
)


def prepare(options: Options) -> str:
    """Return the hash of the collection."""
    return data.data_hash(data.collection(NAME, options))


def plan(options: Options, results: Results) -> Plan:
    """Name the two yardsticks and one run for each seed."""
    train = quality.frozen(TRAIN, tiny=options.tiny)
    methods: list[tuple[str, dict[str, Any]]] = [("BM25", {}), ("untrained", {})]
    methods += [("infonce", {"seed": seed, "train": train}) for seed in range(quality.seeds(SEEDS, options))]
    cells = []
    for method, own in methods:
        settings = {"data": NAME, "split": "test", "method": method, "measures": list(MEASURES), **own}
        if method != "BM25":
            settings["search"] = quality.lengths(32, 128, tiny=options.tiny)
        expected = quality.seconds(method, documents=DOCUMENTS, length=128, pairs=QUERIES if own else 0)
        sources = (*quality.sources(method), "benchmarks/topics.py")
        cells.append(Cell(settings=settings, seconds=expected, sources=sources))
    return Plan(cells)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run one cell and look at which documents it mistakes, and at how hard its batches were."""
    collection = data.collection(NAME, options)
    values, run = quality.work(settings, folder, collection.path)
    values["mistakes"] = topics.mistakes(collection, collection.qrels("test"), run)
    if "train" in settings:
        batch_size = settings["train"]["per_device_train_batch_size"]
        values["own_topic_negatives"] = topics.own_topic_negatives(collection, batch_size, settings["seed"])
    return values


def table(options: Options, results: Results) -> str:
    """Return the results on test."""
    cells = plan(options, results).cells
    rows = []
    for method in ("BM25", "untrained", "infonce"):
        mine = [cell for cell in cells if cell.settings["method"] == method]
        found = [values for cell in mine if (values := results.values(NAME, cell)) is not None]
        rows.append(tables.Row(method, [[v] for v in found], method == "infonce"))
    mistaken = [
        [row.name, _mean(row, "queries"), _mean(row, "first_is_wrong"), _mean(row, "of_the_same_topic")]
        for row in rows
        if row.seeds
    ]
    heads = ["", "test queries", "first answer wrong", "of these about the right disease"]
    return tables.report(
        title="MedQuAD: one epoch of InfoNCE, on test",
        command="python -m benchmarks medquad",
        tables=[
            tables.comparison(rows, MEASURES, ("BM25", "untrained")),
            tables.markdown(heads, mistaken) if mistaken else "",
        ],
        notes=[*NOTES, *_batches(rows[-1])],
        missing=sum(results.values(NAME, cell) is None for cell in cells),
    )


def _mean(row: tables.Row, name: str) -> str:
    return f"{np.mean([values['mistakes'][name] for (values,) in row.seeds]):.0f}"


def _batches(row: tables.Row) -> list[str]:
    if not row.seeds:
        return []
    values = [values for (values,) in row.seeds]
    mean = np.mean([v["own_topic_negatives"]["mean"] for v in values])
    share = np.mean([v["own_topic_negatives"]["queries_with_one"] for v in values])
    first, last = (np.mean([v[name] for v in values]) for name in ("loss_first", "loss_last"))
    return [
        f"Random in-batch negatives are easy: of a query's 63, {mean:.2f} are about its own disease "
        f"({100 * share:.0f} % of the queries have one at all), and the loss falls from {first:.2f} to {last:.2f}."
    ]


EXPERIMENT = Experiment(name=NAME, module="benchmarks.medquad", prepare=prepare, plan=plan, work=work, table=table)
