"""Hard batches and hard negatives at equal steps: random, cluster, global proxies, negatives mined once or refreshed.

MedQuAD (2,000 training queries by hash, batches of 64 and 16) and pydocs (2,000, batches of 32), three epochs at 32/64
tokens, three seeds. nDCG@10 at five points on dev (300 queries by hash, a pool of 6,000 documents) stands beside the
seconds of training up to there: with the mining, the refreshes, the clustering, the proxies' own forward and backward
pass and the drawing of the epochs, without the validations. The best of the five points then searches all documents
for the test queries, once.

Chosen on pydocs' dev with one seed, two trials of each method: the learning rate by random batches, then each other
method's own setting at that rate; all is carried over to MedQuAD.

About 5 hours on two cores with bf16; two runs side by side (`--jobs 2`) end sooner. All runs must have the same number
of threads: the table refuses seconds of different ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import data, quality, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from indexes.storage import write_lines
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.mining import mine
from retrieval.negatives import NegativeRules, parse_range
from retrieval.search import Searcher, build_index
from retrieval.statistics import paired, paired_bootstrap
from retrieval.training import train

NAME = "hard_batches"
SOURCES = (
    *quality.TRAINING,
    "benchmarks/hard_batches.py",
    "indexes/clusters.py",
    "rankers/engine.py",
    "retrieval/batch_order.py",
    "retrieval/embedding_store.py",
    "retrieval/hard_examples.py",
    "retrieval/hardness_schedule.py",
    "retrieval/mining.py",
    "retrieval/negative_candidates.py",
    "retrieval/negatives.py",
    "retrieval/objective.py",
    "retrieval/proxies.py",
    "retrieval/refreshed_negatives.py",
    "retrieval/stored_neighbors.py",
    "retrieval/validation.py",
)
MEASURES = ("nDCG@10", "RR@10")
SEEDS, EPOCHS, POINTS = 3, 3, 5
QUERIES, DEV, POOL = 2_000, 300, 6_000
MINED = 3  # negatives of a query in a file that is mined once; each epoch draws one of them
LENGTHS = (32, 64)
METHODS = ("random", "cluster", "proxy", "mined", "refreshed")
# "branch": the proxies' branch and loss, and random batches
COLLECTIONS = {
    ("medquad", 64): (*METHODS, "branch"),
    ("pydocs", 32): METHODS,
    ("medquad", 16): ("random", "proxy", "refreshed"),
}
TRIED_ON = ("pydocs", 32)
LEARNING_RATES = (2e-5, 5e-5)
HARDNESS, RANGES = ("0.5", "1"), ("1:30", "10:100")
OWN = {"cluster": HARDNESS, "proxy": HARDNESS, "mined": RANGES, "refreshed": RANGES}  # the setting that is tried
DOCUMENTS = {"medquad": 15_809, "pydocs": 5_900}
NOTES = (
    "2,000 training queries by hash, 3 epochs, 32/64 tokens, InfoNCE at 0.05, one relevant document each; mined and "
    "refreshed add one negative a query and step (relative margin 0.05, at random from their ranks): mined has three "
    "of each query from the start, of which an epoch draws one; refreshed finds one anew before each epoch, among the "
    "start model's best 100. All methods take equally many steps; branch has the proxies' loss and random batches.",
    "Seconds: of training, with everything that the method adds; validations are left out. Equal time is read from the "
    "points: dev nDCG@10 of 300 queries over a pool of 6,000 documents, which holds what is judged for each and BM25's "
    "best 50; mean over seeds, at seconds from the start.",
    "Test: the best of the five points on dev, or the start model where none beats it; all documents.",
    "Chosen on pydocs' dev, one seed, two trials each: the learning rate by random batches alone (cut: not by each "
    "method), then hardness 0.5 or 1, ranks 1:30 or 10:100. MedQuAD takes over what was chosen there.",
)


def prepare(options: Options) -> str:
    """Make the folders with fewer queries and return one hash of all that is read."""
    return " ".join(_small(name, options)[1][:8] for name in DOCUMENTS)


def plan(options: Options, results: Results) -> Plan:
    """Name the trials of the learning rate, then those of each method, then the runs for test."""
    cells = [_cell("dev", *TRIED_ON, "random", 0, {"learning_rate": rate}, options) for rate in _rates(options)]
    rate = _best(cells, results)
    runs = sum(len(methods) for methods in COLLECTIONS.values()) * quality.seeds(SEEDS, options)
    if rate is None:
        later = 250.0 * (runs + 2 * len(OWN))
        return Plan(cells, later=later, waiting="the trials of the learning rate on dev")
    tried = {name: _trials(name, rate, options) for name in OWN}
    cells += [cell for trials in tried.values() for cell in trials]
    chosen = {name: _best(trials, results) for name, trials in tried.items()} | {"random": rate, "branch": rate}
    if any(settings is None for settings in chosen.values()):
        return Plan(cells, later=250.0 * runs, waiting="the trials of each method on dev")
    for (name, size), methods in COLLECTIONS.items():
        for seed in range(quality.seeds(SEEDS, options)):
            cells += [_cell("test", name, size, method, seed, chosen[method] or {}, options) for method in methods]
    return Plan(cells)


def _rates(options: Options) -> Sequence[float]:
    return LEARNING_RATES[: 1 if options.tiny else None]


def _trials(method: str, rate: dict[str, Any], options: Options) -> list[Cell]:
    values = OWN[method][: 1 if options.tiny else None]
    return [_cell("dev", *TRIED_ON, method, 0, {**rate, _knob(method): value}, options) for value in values]


def _knob(method: str) -> str:
    return "hardness" if method in ("cluster", "proxy") else "refresh_range" if method == "refreshed" else "range"


def _best(cells: Sequence[Cell], results: Results) -> dict[str, Any] | None:
    """Return the tried settings with the best last point on dev; None while a trial is missing."""
    found = [(cell.settings["tried"], results.values(NAME, cell)) for cell in cells]
    if any(values is None for _, values in found):
        return None
    complete = [(tried, values) for tried, values in found if values is not None]
    best: dict[str, Any] = max(complete, key=lambda pair: pair[1]["curve"][-1][2])[0]  # of equals the first
    return best


def _cell(stage: str, name: str, size: int, method: str, seed: int, tried: dict[str, Any], options: Options) -> Cell:
    steps = EPOCHS * -(-QUERIES // size)
    own: dict[str, Any] = {"batching": method} if method in ("cluster", "proxy") else {}
    if method == "branch":
        own = {"batching": "proxy", "hardness": "0"}
    if method == "refreshed":
        own = {"refresh_every": steps // EPOCHS, "refresh_depth": 100}
    wanted: dict[str, Any] = {
        "loss": "infonce",
        "loss.temperature": 0.05,
        "num_train_epochs": EPOCHS,
        "num_positives": 1,
        "num_negatives": int(method in ("mined", "refreshed")),
        "per_device_train_batch_size": size,
        "query_max_length": LENGTHS[0],
        "document_max_length": LENGTHS[1],
        "eval_strategy": "steps",
        "eval_steps": -(-steps // POINTS),
        "eval_pool_size": POOL,
        "eval_full": False,
        **own,
        **{key: value for key, value in tried.items() if key != "range"},
    }
    if options.tiny:
        wanted |= {"max_steps": 4, "eval_steps": 2, "per_device_train_batch_size": 4, "eval_pool_size": 20}
        wanted |= {"refresh_every": 2} if method == "refreshed" else {}
        wanted.pop("num_train_epochs")
    settings = {
        "stage": stage,
        "data": name,
        "batch": size,
        "method": method,
        "seed": seed,
        "tried": tried,
        "train": quality.frozen(wanted, tiny=False) if not options.tiny else wanted,
    }
    hard = method in ("mined", "refreshed")
    seconds = 30 + EPOCHS * QUERIES / (28 if hard else 42) + POINTS * 18 + (60 if method == "mined" else 0)
    if stage == "test":
        seconds += DOCUMENTS[name] / 350
    return Cell(settings=settings, seconds=seconds + 60 * hard, sources=SOURCES)


def _small(name: str, options: Options) -> tuple[Path, str]:
    """Return a folder of the collection with fewer training and dev queries, and the hash of what is read."""
    source = data.collection(name, options)
    splits = {"train": data.first_queries(source.qrels("train"), QUERIES), "test": source.qrels("test")}
    splits["dev"] = data.first_queries(source.qrels("dev"), DEV)
    folder = options.build / "splits" / f"hard_batches_{name}"
    return folder, data.data_hash(source, data.split_folder(source, splits, folder))


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Train as the settings say, with a store of embeddings of its own, and measure the points and perhaps test."""
    place, _ = _small(settings["data"], options)
    os.environ["RANKWRIGHT_CACHE"] = str(folder / "cache")  # nothing is encoded already
    wanted, rows, spent = dict(settings["train"]), [], 0.0
    if settings["method"] == "mined":
        path, spent = _mined(settings, place, folder)
        rows = [str(path)]
    train(model=quality.MODEL, data=str(place), out=str(folder / "run"), rows=rows, seed=settings["seed"], **wanted)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [line for line in lines if "dev_pool_nDCG@10" in line]
    values: Values = {
        "curve": [[p["step"], round(p["seconds"] + spent, 1), round(p["dev_pool_nDCG@10"], 5)] for p in points],
        "seconds": round(lines[-1]["seconds"] + spent, 1),
        "pause_seconds": round(spent + sum(line.get("pause_seconds", 0.0) for line in lines), 1),
        "likeness": [
            [round(line[f"likeness_{i}"], 4) for i in range(1, 11)] + [round(line["likeness_random"], 4)]
            for line in lines
            if "likeness_10" in line
        ],
    }
    if settings["stage"] == "test":
        collection = Collection.load(place)
        lengths = {name: wanted[name] for name in ("query_max_length", "document_max_length")}
        encoder = Encoder.load(str(folder / "run"), **lengths)
        build_index(folder / "index", encoder=encoder, collection=collection)
        run = Searcher.load(folder / "index", encoder=encoder).run(collection.queries("test"), quality.DEPTH)
        values |= quality.measured(collection.qrels("test"), run, MEASURES)
    return values


def _mined(settings: Settings, place: Path, folder: Path) -> tuple[Path, float]:
    """Mine as refreshed does at its beginning, and return the file and the seconds once all is loaded."""
    lengths = {name: settings["train"][name] for name in ("query_max_length", "document_max_length")}
    first, last = parse_range(settings["tried"]["range"])
    rules = NegativeRules(
        first_rank=first,
        last_rank=last,
        num_negatives=MINED,
        relative_margin=0.05,
        sampling="random",
        seed=settings["seed"],
    )
    store, collection = EmbeddingStore(folder / "store"), Collection.load(place)
    encoder = Encoder.load(quality.MODEL, **lengths)
    started = time.perf_counter()
    found = mine(collection, encoder, rules=rules, store=store)
    write_lines(folder / "rows.jsonl", (json.dumps(row.to_dict()) for row in found.rows))
    return folder / "rows.jsonl", time.perf_counter() - started


def table(options: Options, results: Results) -> str:
    """Return a table of test, the points on dev, and what of the gain at which cost, for each collection and batch."""
    planned = plan(options, results)
    records = [(cell, record) for cell in planned.cells if (record := results.find(NAME, cell)) is not None]
    found = [(cell.settings, record["values"]) for cell, record in records]
    shown = []
    for (name, size), methods in COLLECTIONS.items():
        mine = {
            method: [
                values
                for settings, values in found
                if (settings["stage"], settings["data"], settings["batch"], settings["method"])
                == ("test", name, size, method)
            ]
            for method in methods
        }
        rows = [tables.Row(m, [[v] for v in values], True, _shown(m, found)) for m, values in mine.items()]
        made = tables.comparison(rows, MEASURES, ("random", "refreshed"))
        if made:
            parts = [f"**{name}, batches of {size}: test**", made, _points(mine), *_gains(mine)]
            shown.append("\n\n".join(part for part in parts if part))
    shown += [_likeness(found), _trials_table(found)]
    return tables.report(
        title="Hard batches by global proxies, beside mined negatives",
        command="python -m benchmarks hard_batches",
        tables=shown,
        notes=[*NOTES, *_threads([record for cell, record in records if cell.settings["stage"] == "test"])],
        missing=len(planned.cells) - len(records),
        waiting=planned.waiting,
    )


def _threads(records: Sequence[dict[str, Any]]) -> list[str]:
    """Say with how many threads the runs for test were timed, which must be one number (InputError)."""
    threads = sorted({record["machine"]["threads"] for record in records})
    if len(threads) > 1:
        raise InputError(f"runs with {threads} threads; their seconds are not comparable: run all with the same --jobs")
    if not records:
        return []
    beside = records[0]["machine"]["cores"] // threads[0]
    also = f", {beside} runs side by side" if beside > 1 else ""
    return [f"Seconds are those of {threads[0]} thread{'s' * (threads[0] > 1)} a run{also}."]


def _shown(method: str, found: Sequence[tuple[Settings, Values]]) -> str:
    tried: dict[str, Any] = next((s["tried"] for s, _ in found if s["stage"] == "test" and s["method"] == method), {})
    return ", ".join(f"{name} {value}" for name, value in tried.items())


def _points(mine: dict[str, list[Values]]) -> str:
    body = []
    for method, runs in mine.items():
        if runs:
            points = list(zip(*(run["curve"] for run in runs), strict=True))
            cells = [f"{sum(p[2] for p in at) / len(at):.4f} at {median(p[1] for p in at):.0f} s" for at in points]
            body.append([method, *cells, f"{median(run['seconds'] for run in runs):.0f} s"])
    width = max((len(row) for row in body), default=2)
    body = [[*row[:-1], *[tables.NOTHING] * (width - len(row)), row[-1]] for row in body]
    return tables.markdown(["dev nDCG@10", *(f"point {i}" for i in range(width - 2)), "all"], body) if body else ""


def _gains(mine: dict[str, list[Values]]) -> list[str]:
    """Say what proxies gain, of what refreshed negatives gain, and what both cost."""
    if not all(mine.get(method) for method in ("random", "proxy", "refreshed")):
        return []
    known = {method: tables.Row(method, [[v] for v in runs]) for method, runs in mine.items() if runs}
    if not all(known[method].claims for method in ("random", "proxy", "refreshed")):
        return []
    rows = {method: row.per_query(MEASURES[0]) for method, row in known.items()}
    told, gains = [], {}
    for one, other in (("proxy", "random"), ("proxy", "refreshed"), ("refreshed", "random")):
        gains[one, other] = found = paired_bootstrap(*paired(rows[one], rows[other]))
        told.append(f"{one} − {other} {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]")
    # by seed: runs of one seed follow each other, in spells of the same speed
    added, spread = {}, {}
    for method in ("proxy", "refreshed"):
        each = [one["seconds"] - other["seconds"] for one, other in zip(mine[method], mine["random"], strict=True)]
        added[method] = median(each)
        paused = median(run["pause_seconds"] for run in mine[method])
        spread[method] = (
            f"{added[method]:.0f} [{min(each):.0f}, {max(each):.0f}], {paused:.0f} of them between the steps"
        )
    costs = f"added seconds, by seed: proxy {spread['proxy']}, refreshed {spread['refreshed']}"
    refreshed = gains["refreshed", "random"]
    if refreshed.low > 0:
        share = gains["proxy", "random"].value / refreshed.value
        costs += f"; proxies have {100 * share:.0f} % of the gain at {100 * added['proxy'] / added['refreshed']:.0f} %"
        costs += " of the added time"
    else:
        costs += "; refreshed − random does not exclude 0, so no share of its gain is told"
    return [f"nDCG@10: {'; '.join(told)}. {costs[0].upper()}{costs[1:]}."]


def _likeness(found: Sequence[tuple[Settings, Values]]) -> str:
    body = [
        [f"{s['data']}, {s['batch']}, seed {s['seed']}, epoch {epoch}", *(f"{value:.3f}" for value in values)]
        for s, v in found
        if (s["stage"], s["method"]) == ("test", "proxy")  # the branch's rows are told their likeness too
        for epoch, values in enumerate(v["likeness"], start=2)
    ]
    heads = ["likeness of a batch's proxies by tenths of the drawing", *map(str, range(1, 11)), "random"]
    return tables.markdown(heads, body) if body else ""


def _trials_table(found: Sequence[tuple[Settings, Values]]) -> str:
    body = [
        [s["method"], ", ".join(f"{name} {value}" for name, value in s["tried"].items()), f"{v['curve'][-1][2]:.4f}"]
        for s, v in found
        if s["stage"] == "dev"
    ]
    return tables.markdown(["pydocs, trials on dev", "settings", "nDCG@10 at the last point"], body) if body else ""


EXPERIMENT = Experiment(name=NAME, module="benchmarks.hard_batches", prepare=prepare, plan=plan, work=work, table=table)
