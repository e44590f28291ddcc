"""Teacher to student: a reranker's scores of MedQuAD's training pools become the labels of a dual encoder.

For each seed, the listwise reranker of `rerankers.py` is trained on the small MedQuAD's 1,500 training queries and
scores their pools; `label` makes rows of the scores; MiniLM-L6 is trained on them by two recipes that were chosen
beforehand, and by InfoNCE on the judgements alone, all with 1 + 7 documents of each query and one epoch; each student
searches all 15,809 documents for the 300 test queries.

About 2.5 hours on two cores with bf16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import candidate_pools, quality, rerankers, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from indexes.storage import write_lines
from retrieval.cross_encoder import CrossEncoder
from retrieval.labelling import label
from retrieval.reranker_training import train_reranker
from retrieval.reranking import rerank

NAME = "distillation"
SOURCES = (*rerankers.SOURCES, *quality.TRAINING, "benchmarks/distillation.py", "retrieval/labelling.py")
MEASURES = ("nDCG@10", "RR@10")
SEEDS = 3
# How a student is trained; those with a teacher read its scores.
RECIPES: dict[str, dict[str, Any]] = {
    "InfoNCE on judgements": {"loss": "infonce", "loss.temperature": 0.05},
    "KL to the teacher": {"loss": "kl_div", "loss.temperature": 0.05, "loss.teacher_temperature": 1.0},
    "MarginMSE to the teacher": {"loss": "margin_mse", "loss.scale": 10.0},
}
TRAIN = {
    "learning_rate": 5e-5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "num_positives": 1,
    "num_negatives": 7,
    "query_max_length": 32,
    "document_max_length": 128,
}
NOTES = (
    "Teacher: the listwise reranker (softmax_ce, 1 + 7, one pass, its learning rate from `rerankers`' dev); it scores "
    "the pools of the 1,500 training queries, 85 documents each. Students: one epoch over the same queries, 1 relevant "
    "document and 7 drawn from the pool, batch 32, lr 5e-5; InfoNCE also has the batch's other documents as negatives.",
    "Left out of training: queries of whose relevant documents no first stage found one. Searched: all 15,809 "
    "documents at 32/128 tokens, the 300 test queries of the small MedQuAD. Recipes: chosen beforehand, not tuned.",
)


def prepare(options: Options) -> str:
    """Make the split folder and return the hash of what is read."""
    return candidate_pools.small_medquad(options)[1]


def plan(options: Options, results: Results) -> Plan:
    """Name the untrained model and, once the teacher's learning rate is chosen, the seeds."""
    search = quality.lengths(32, 128, tiny=options.tiny)
    settings = {"data": "medquad_small", "split": "test", "method": "untrained", "measures": list(MEASURES)}
    cells = [Cell(settings={**settings, "search": search}, seconds=90, sources=quality.ENCODING)]
    rate = rerankers.best_rate("listwise", options, results)
    if rate is None:
        return Plan(cells, later=SEEDS * 3_000.0, waiting="the trials of rerankers")
    for seed in range(quality.seeds(SEEDS, options)):
        own: dict[str, Any] = {
            "data": "medquad_small",
            "method": "students",
            "seed": seed,
            "teacher": rerankers.train_settings("listwise", rate, "medquad", options),
            "recipes": RECIPES,
            "train": quality.frozen(dict(TRAIN), tiny=options.tiny),
            "search": search,
        }
        cells.append(Cell(settings=own, seconds=3_000, sources=SOURCES))
    return Plan(cells)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Measure the untrained model, or train a teacher and its students."""
    source, _ = candidate_pools.small_medquad(options)
    if settings["method"] == "untrained":
        return quality.work(settings, folder, source.path)[0]
    train_reranker(
        model=quality.MODEL,
        data=str(source.path),
        out=str(folder / "teacher"),
        seed=settings["seed"],
        **settings["teacher"],
    )
    queries, qrels = source.queries("train"), source.qrels("train")
    pool = candidate_pools.pools(source, queries, folder / "index", options)["pool"]
    taught = rerank(pool, CrossEncoder.load(folder / "teacher"), queries, source.corpus, k=2 * candidate_pools.DEPTH)
    rows = folder / "rows.jsonl"
    made = label(taught, "margin", qrels, queries, source.corpus, k=2 * candidate_pools.DEPTH)
    # Where a pool holds nothing relevant, the positive is the teacher's choice: left out for all recipes.
    made = [row for row in made if any(qrels[row.query_id].get(doc_id, 0) > 0 for doc_id in row.positive_ids)]
    write_lines(rows, (json.dumps(row.to_dict(), ensure_ascii=False) for row in made))
    values: Values = {"rows": len(made)}
    for number, (recipe, own) in enumerate(settings["recipes"].items()):
        asked = {
            "method": recipe,
            "split": "test",
            "seed": settings["seed"],
            "measures": list(MEASURES),
            "train": settings["train"] | own,
            "search": settings["search"],
        }
        place = folder / f"student{number}"
        values[recipe] = quality.work(asked, place, source.path, rows=[rows])[0]
    return values


def table(options: Options, results: Results) -> str:
    """Return the students beside the untrained model."""
    planned = plan(options, results)
    found = [(cell.settings, values) for cell in planned.cells if (values := results.values(NAME, cell)) is not None]
    rows = [tables.Row("untrained", [[v] for s, v in found if s["method"] == "untrained"], False)]
    taught = [values for settings, values in found if settings["method"] == "students"]
    rows += [tables.Row(recipe, [[values[recipe]] for values in taught]) for recipe in RECIPES]
    return tables.report(
        title="Distillation: MedQuAD's listwise reranker into the dual encoder",
        command="python -m benchmarks rerankers distillation",
        tables=[tables.comparison(rows, MEASURES, ("untrained", "InfoNCE on judgements"))],
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in planned.cells),
        waiting=planned.waiting,
    )


EXPERIMENT = Experiment(name=NAME, module="benchmarks.distillation", prepare=prepare, plan=plan, work=work, table=table)
