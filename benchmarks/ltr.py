"""Learning to rank on features: five losses on an MLP and on the context-aware scorer, against LightGBM's LambdaMART.

    lambdarank test     LightGBM's example: trained on its 201 training queries, tested on its own 50
    lambdarank folds    5 folds over those 201 training queries, pooled
    trecnews folds      5 folds over the 50 queries of fastrank's TREC News example (train and test together), pooled

Every method has six trials on dev (a fifth of the training queries, by hash; nDCG@10) in each part, with seed 0: three
learning rates × two dropouts, or two learning rates × three sizes of a tree. The best is frozen and trained with five
seeds; then test is read. All of them stop by dev, see standardised features, and take a feature that a line leaves out
for 0, as these sparse files mean it. A cell is one method on one of the three; about half an hour on two cores, less
with `--jobs 2`.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from indexes.storage import sha256_file
from retrieval.comparison import averaged
from retrieval.errors import InputError
from retrieval.feature_evaluation import MEASURES, means, measure_lists
from retrieval.feature_ranker import FeatureRanker
from retrieval.ltr_training import train_ltr
from retrieval.splits import folds
from retrieval.statistics import paired, paired_bootstrap
from retrieval.svmlight import FeatureLists, read_svmlight, write_svmlight

NAME = "ltr"
SOURCES = (
    "benchmarks/ltr.py",
    "rankers/feature_scorers.py",
    "rankers/lists.py",
    "rankers/losses/*.py",
    "rankers/metrics.py",
    "retrieval/checkpoints.py",
    "retrieval/feature_evaluation.py",
    "retrieval/feature_normalisation.py",
    "retrieval/feature_ranker.py",
    "retrieval/lambdamart.py",
    "retrieval/loop_config.py",
    "retrieval/ltr_*.py",
    "retrieval/measures.py",
    "retrieval/near_duplicates.py",
    "retrieval/objective.py",
    "retrieval/optimizer.py",
    "retrieval/splits.py",
    "retrieval/statistics.py",
    "retrieval/svmlight.py",
    "retrieval/training_loop.py",
)
LOSSES = ("softmax_ce", "listmle", "ranknet", "ndcg_loss2pp", "approx_ndcg")
SEEDS = 5
FOLDS = 5
STAGES = ("lambdarank test", "lambdarank folds", "trecnews folds")
FILES = {
    "lambdarank": ("ltr_lambdarank/train.txt", "ltr_lambdarank/test.txt"),
    "trecnews": ("ltr_trecnews/trec_news_2018.train", "ltr_trecnews/trec_news_2018.test"),
}
BASELINE = "LambdaMART"
FIXED: dict[str, dict[str, Any]] = {
    "mlp": {"hidden_sizes": [128], "num_train_epochs": 30, "early_stopping_patience": 8},
    "context": {
        "hidden_sizes": [64],
        "blocks": 2,
        "heads": 4,
        "feed_forward": 128,
        "num_train_epochs": 30,
        "early_stopping_patience": 8,
    },
    "lambdamart": {
        "num_trees": 300,
        "early_stopping_patience": 50,
        "feature_fraction": 0.8,
        "bagging_fraction": 0.8,
    },
}
TRIALS: dict[str, dict[str, tuple[Any, ...]]] = {
    "mlp": {"learning_rate": (1e-3, 3e-3, 1e-2), "dropout": (0.1, 0.4)},
    "context": {"learning_rate": (1e-3, 3e-3, 1e-2), "dropout": (0.1, 0.4)},
    "lambdamart": {"learning_rate": (0.03, 0.1), "num_leaves": (7, 15, 31)},
}
SECONDS = {"mlp": 1.3, "context": 2.2, "lambdamart": 1.3}  # of one training on two cores
NOTES = (
    "Six trials of each method on dev by nDCG@10, one seed; the best frozen, 5 seeds on test, averaged per query "
    "before intervals are taken. p: paired randomisation over queries, after Holm over a table's differences.",
    "nDCG@k gains the grade, nDCG(dcg='exp-log2')@k gains 2^grade − 1; a query without a relevant document counts 0 "
    "(LightGBM's own metric counts 1 there). The losses and LambdaMART's gradients have their defaults, gain exp2.",
    "Both collections are small examples of public tools: 50 to 251 queries, features of undocumented origin.",
)


def prepare(options: Options) -> str:
    """Write the lists of every part, once, and return the hash of the files they come from."""
    hashes = []
    for name, paths in FILES.items():
        for path in paths:
            source = options.shared / "data" / path
            if not source.is_file():
                raise InputError("no such file; give the folder that holds data/ with --shared DIR", path=source)
            hashes.append(sha256_file(source))
        train, test = (_read(options, path) for path in paths)
        test = replace(test, query_ids=[f"test-{query_id}" for query_id in test.query_ids])
        if name == "lambdarank":
            _write(options, "lambdarank test", 0, train, test)
        pool = train if name == "lambdarank" else _joined(train, test)
        for number, split in enumerate(folds({query_id: {} for query_id in pool.query_ids}, {}, n=FOLDS)):
            kept = [place for place, query_id in enumerate(pool.query_ids) if query_id not in split["test"]]
            held = [place for place, query_id in enumerate(pool.query_ids) if query_id in split["test"]]
            _write(options, f"{name} folds", number, pool.select(kept), pool.select(held))
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def _read(options: Options, path: str) -> FeatureLists:
    lists = read_svmlight(options.shared / "data" / path)
    return lists.select(range(min(len(lists), 12))) if options.tiny else lists


def _joined(one: FeatureLists, other: FeatureLists) -> FeatureLists:
    numbers = np.union1d(one.numbers, other.numbers)
    one, other = one.align(numbers), other.align(numbers)
    return replace(
        one,
        query_ids=[*one.query_ids, *other.query_ids],
        sizes=np.concatenate([one.sizes, other.sizes]),
        labels=np.concatenate([one.labels, other.labels]),
        features=np.concatenate([one.features, other.features]),
        doc_ids=None,
    )


def _part(options: Options, stage: str, number: int) -> Path:
    return options.build / "splits" / NAME / stage.replace(" ", "_") / str(number)


def _write(options: Options, stage: str, number: int, train: FeatureLists, test: FeatureLists) -> None:
    folder = _part(options, stage, number)
    for name, lists in (("train", train), ("test", test)):
        write_svmlight(folder / f"{name}.txt", lists)


def plan(options: Options, results: Results) -> Plan:
    """Name a cell for every method and stage."""
    methods = [(BASELINE, "lambdamart", "lambdarank")]
    methods += [(f"{scorer}, {loss}", scorer, loss) for scorer in ("mlp", "context") for loss in LOSSES]
    cells = []
    for stage in STAGES:
        for method, scorer, loss in methods:
            settings: dict[str, Any] = {
                "stage": stage,
                "data": stage.split()[0],
                "method": method,
                "scorer": scorer,
                "fixed": {**FIXED[scorer], "loss": loss, "missing": "zero"},
                "trials": _trials(scorer),
                "seeds": SEEDS,
            }
            if options.tiny:
                settings |= {"trials": settings["trials"][:2], "seeds": 2}
                settings["fixed"] |= {"num_train_epochs": 1, "num_trees": 5}
            runs = (len(settings["trials"]) + settings["seeds"]) * _parts(stage)
            cells.append(Cell(settings=settings, seconds=5 + runs * SECONDS[scorer], sources=SOURCES))
    return Plan(cells)


def _trials(scorer: str) -> list[dict[str, Any]]:
    names = list(TRIALS[scorer])
    return [dict(zip(names, values, strict=True)) for values in product(*TRIALS[scorer].values())]


def _parts(stage: str) -> int:
    return FOLDS if stage.endswith("folds") else 1


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Choose by dev and measure on test, part by part; the queries of all folds are pooled."""
    logging.getLogger("retrieval").setLevel(logging.WARNING)
    seeds: list[dict[str, dict[str, float]]] = [{name: {} for name in MEASURES} for _ in range(settings["seeds"])]
    chosen = []
    for number in range(_parts(settings["stage"])):
        part = _part(options, settings["stage"], number)
        fixed = {**settings["fixed"], "scorer": settings["scorer"], "features": str(part / "train.txt")}
        tried = []
        for place, trial in enumerate(settings["trials"]):
            out = folder / f"trial-{number}-{place}"
            tried.append(train_ltr(**fixed, **trial, out=str(out)).dev["best_nDCG@10"])
        best = int(np.argmax(tried))  # of equals the first
        chosen.append({**settings["trials"][best], "dev": tried[best]})
        test = read_svmlight(part / "test.txt")
        for seed, found in enumerate(seeds):
            out = folder / f"seed-{number}-{seed}"
            train_ltr(**fixed, **settings["trials"][best], seed=seed, out=str(out))
            scores = FeatureRanker.load(out).score_lists(test)
            for name, values in measure_lists(test, scores).items():
                found[name] |= values
    return {"chosen": chosen, "seeds": [{"per_query": found, "mean": means(found)} for found in seeds]}


def table(options: Options, results: Results) -> str:
    """Return for each stage all methods, and their differences to LambdaMART in each measure."""
    cells = plan(options, results).cells
    shown = []
    for stage in STAGES:
        rows = []
        for cell in cells:
            values = results.values(NAME, cell) if cell.settings["stage"] == stage else None
            if values is not None:
                rows.append(
                    tables.Row(cell.settings["method"], [[seed] for seed in values["seeds"]], note=_note(values))
                )
        if rows:
            count = len(rows[0].per_query(MEASURES[0]))
            shown.append(f"**{stage}**, {count} queries\n\n" + tables.comparison(rows, MEASURES, [BASELINE]))
            shown.append(_differences(rows))
    return tables.report(
        title="Learning to rank on features: networks against LambdaMART",
        command="python -m benchmarks ltr",
        tables=shown,
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in cells),
    )


def _note(values: Values) -> str:
    shown = ["/".join(f"{value:g}" for name, value in one.items() if name != "dev") for one in values["chosen"]]
    return "; ".join(dict.fromkeys(shown))


def _differences(rows: list[tables.Row]) -> str:
    """Return each method's paired difference to LambdaMART, with its interval, in every measure."""
    base = next((row for row in rows if row.name == BASELINE), None)
    if base is None or len(rows) < 2:
        return ""
    body = []
    for row in rows:
        if row is not base:
            cells = []
            for measure in MEASURES:
                ours, theirs = averaged(row.per_seed(measure)), averaged(base.per_seed(measure))
                found = paired_bootstrap(*paired(ours, theirs))
                cells.append(f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
            body.append([row.name, *cells])
    return tables.markdown(["", *(f"{measure} − {BASELINE} [95 %]" for measure in MEASURES)], body)


EXPERIMENT = Experiment(name=NAME, module="benchmarks.ltr", prepare=prepare, plan=plan, work=work, table=table)
