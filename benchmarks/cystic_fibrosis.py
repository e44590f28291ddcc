"""Graded labels against binary ones on Cystic Fibrosis (99 queries, grades 1 to 3), by 5-fold cross-validation.

Four ways to use the same lists: graded `bixse` (grade / 3 as a probability), graded `softmax_ce`, and `infonce` with
the grades binarised at >= 1 and at >= 3. A list is 8 judged documents of a query, drawn by the seed; 3 epochs at 128
tokens; 3 seeds; every query is tested in its own fold and all 99 are pooled. Learning rate and temperature are taken
over from SciFact's dev, so `scifact` runs first.

About 85 minutes on two cores with bf16: 60 runs of 85 s, untrained and BM25. To stay below 90, documents are searched
at the 128 tokens that they are trained at, not at 256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import data, quality, scifact, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from benchmarks.judged_lists import write_judged_lists
from retrieval.collection import Collection
from retrieval.splits import fingerprint, folds

NAME = "cystic_fibrosis"
MEASURES = ("nDCG@10", "RR@10")
SEEDS, FOLDS = 3, 5
LIST, BATCH, EPOCHS = 8, 8, 3
TRAINING_QUERIES, DOCUMENTS = 68, 1_239

# Row of the table → loss, and the grade from which a document is relevant to it.
METHODS = {
    "infonce, grade ≥ 1": ("infonce", 1),
    "infonce, grade ≥ 3": ("infonce", 3),
    "bixse, graded": ("bixse", 1),
    "softmax_ce, graded": ("softmax_ce", 1),
}
BASELINES = ("untrained", "infonce, grade ≥ 1", "infonce, grade ≥ 3")
NOTES = (
    "5-fold cross-validation over queries, near-equal ones together (68 training, 11 dev, 20 test in a fold; dev is "
    "not used), all 99 queries pooled. 99 queries resolve differences of about 0.03 to 0.05.",
    "Every method trains on the same lists: 8 judged documents of each query drawn by the seed, 3 epochs, 8 lists in a "
    "batch, 64/128 tokens, searched at 64/128. At grade ≥ 3 about 18 % of the lists have nothing relevant and "
    "teach nothing.",
    "Learning rate and temperature are those of the loss's best trial on SciFact's dev; nothing was chosen here.",
    "Cut: documents are searched at 128 tokens, not at 256.",
)


def prepare(options: Options) -> str:
    """Write the folds, once, and return the hash of what is read."""
    source = data.collection(NAME, options)
    parts = folds(source.qrels("test"), source.queries("test"), n=FOLDS)
    hashes = [data.split_folder(source, part, _folder(options, number)) for number, part in enumerate(parts)]
    whole = fingerprint({"test": source.qrels("test")})
    return data.data_hash(source, " ".join([whole, *hashes]))


def _folder(options: Options, fold: int) -> Path:
    return options.build / "splits" / NAME / f"fold-{fold}"


def plan(options: Options, results: Results) -> Plan:
    """Name the two yardsticks, and a run for each method, seed and fold once SciFact's settings are known."""
    cells = [_cell(method, {}, options) for method in ("BM25", "untrained")]
    chosen = scifact.winners(options, results)
    if chosen is None:
        later = len(METHODS) * quality.seeds(SEEDS, options) * FOLDS * _cell("infonce", {"train": {}}, options).seconds
        return Plan(cells, later=later, waiting="scifact's trials on dev; run `scifact` first")
    for seed in range(quality.seeds(SEEDS, options)):
        for method in METHODS:
            train = _train(method, chosen, options)
            cells += [_cell(method, {"fold": n, "seed": seed, "train": train}, options) for n in range(FOLDS)]
    return Plan(cells)


def _train(method: str, chosen: dict[str, dict[str, Any]], options: Options) -> dict[str, Any]:
    loss, positive_from = METHODS[method]
    taken_over = ("loss", "learning_rate", scifact.TEMPERATURES[loss][0])
    wanted: dict[str, Any] = {
        **{name: chosen[loss][name] for name in taken_over},
        "num_train_epochs": EPOCHS,
        "num_positives": LIST,
        "num_negatives": LIST,
        "per_device_train_batch_size": BATCH,
        "query_max_length": 64,
        "document_max_length": 128,
    }
    if loss == "infonce":
        wanted["loss.positive_from"] = positive_from
    return quality.frozen(wanted, tiny=options.tiny)


def _cell(method: str, own: dict[str, Any], options: Options) -> Cell:
    settings = {"data": NAME, "split": "test", "method": method, "measures": list(MEASURES), **own}
    if method != "BM25":
        settings["search"] = quality.lengths(64, 128, tiny=options.tiny)
    trains = "train" in own
    if trains:
        settings["list"] = LIST
    # A list of 8 costs what 7 pairs cost: it has one query.
    pairs = EPOCHS * TRAINING_QUERIES * 7 if trains else 0
    expected = quality.seconds(method, documents=DOCUMENTS, length=128, pairs=pairs)
    own_code = ("benchmarks/judged_lists.py",) if trains else ()
    return Cell(settings=settings, seconds=expected, sources=(*quality.sources(method), *own_code))


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run one cell."""
    if "train" not in settings:
        return quality.work(settings, folder, data.collection(NAME, options).path)[0]
    fold, rows = _folder(options, settings["fold"]), folder / "rows.jsonl"
    positive_from = METHODS[settings["method"]][1]
    n_empty = write_judged_lists(
        Collection.load(fold), rows, size=settings["list"], seed=settings["seed"], positive_from=positive_from
    )
    return {**quality.work(settings, folder, fold, rows=[rows])[0], "lists_without_relevant": n_empty}


def table(options: Options, results: Results) -> str:
    """Return the results over all 99 queries."""
    planned = plan(options, results)
    cells = planned.cells
    rows = []
    for method in ("BM25", "untrained", *METHODS):
        mine = [cell for cell in cells if cell.settings["method"] == method]
        seeds = []
        for seed in dict.fromkeys(cell.settings.get("seed") for cell in mine):
            parts = [results.values(NAME, cell) for cell in mine if cell.settings.get("seed") == seed]
            if all(part is not None for part in parts):
                seeds.append(parts)
        note = ""
        if method in METHODS and mine:
            train, setting = mine[0].settings["train"], scifact.TEMPERATURES[METHODS[method][0]][0]
            note = f"lr {train['learning_rate']:g}, {setting.removeprefix('loss.')} {train[setting]:g}"
        rows.append(tables.Row(method, seeds, method in METHODS, note))
    return tables.report(
        title="Cystic Fibrosis: graded against binary labels, 99 queries",
        command="python -m benchmarks scifact cystic_fibrosis",
        tables=[tables.comparison(rows, MEASURES, BASELINES)],
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in cells),
        waiting=planned.waiting,
    )


EXPERIMENT = Experiment(
    name=NAME, module="benchmarks.cystic_fibrosis", prepare=prepare, plan=plan, work=work, table=table
)
