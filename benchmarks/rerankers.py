"""Rerankers: pointwise, pairwise and listwise losses, a Set-Encoder, and what they carry over to other collections.

MiniLM-L6's encoder with a new output layer, trained for one pass over lists of 1 relevant + 7 documents of BM25's top
100, scores the candidate pools of `candidate_pools.py`, each pair once. Every method has the same three learning rates
on dev, one seed; the best is frozen; 3 seeds on test. The models of both collections also rerank the other one and
Cystic Fibrosis, none of whose queries they have seen: RankT5's claim is that listwise ones lose less there.

About 15 hours on two cores with bf16; made on a large GPU, with --jobs 8, in minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import candidate_pools, data, quality, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from retrieval.collection import Collection
from retrieval.cross_encoder import CrossEncoder
from retrieval.reranker_training import train_reranker
from retrieval.reranking import rerank

NAME = "rerankers"
SOURCES = (
    *quality.ENCODING,
    *candidate_pools.SOURCES,
    "benchmarks/rerankers.py",
    "rankers/losses/*.py",
    "rankers/pair_scorer.py",
    "rankers/set_encoder.py",
    "retrieval/candidate_lists.py",
    "retrieval/cross_encoder.py",
    "retrieval/cross_encoder_models.py",
    "retrieval/loop_config.py",
    "retrieval/pair_tokens.py",
    "retrieval/reranker_config.py",
    "retrieval/reranker_training.py",
    "retrieval/reranking.py",
    "retrieval/training_loop.py",
)
MEASURES = ("nDCG@10", "RR@10")
SEEDS = 3
LEARNING_RATES = (2e-5, 5e-5, 1e-4)
# method → loss, architecture
METHODS = {
    "pointwise": ("point_ce", "classifier"),
    "pairwise": ("ranknet", "classifier"),
    "listwise": ("softmax_ce", "classifier"),
    "poly1": ("poly1", "classifier"),
    "set-encoder": ("softmax_ce", "set"),
}
COLLECTIONS = ("scifact", "medquad")
TARGETS = {"scifact": ("scifact", "medquad", "cystic_fibrosis"), "medquad": ("medquad", "scifact", "cystic_fibrosis")}
TRAINING_QUERIES = {"scifact": 646, "medquad": 1_500}
PAIRS = {"scifact": 25_500, "medquad": 25_500, "cystic_fibrosis": 8_000}  # of the test pools
LENGTH = 192
# Expected speeds on two cores with bf16, pairs/s at 192 tokens.
TRAINED_PER_SECOND, SCORED_PER_SECOND = 16.0, 130.0
NOTES = (
    "Reranked: the union of BM25's top 50 and the untrained MiniLM-L6's top 50, 85 documents of a query in the mean; "
    "`pool` is their reciprocal rank fusion. nDCG counts relevant documents that no first stage found.",
    "Lists of 1 + 7, one pass, 16 lists a step, pairs of 192 tokens; MedQuAD: 1,500 training and 300 test queries, by "
    "hash; SciFact: 646 training queries and all 300 of test. Learning rate from 2e-5, 5e-5 and 1e-4 on dev, 1 seed; "
    "every loss divides by a temperature of 1.",
)


def prepare(options: Options) -> str:
    """Make the split folders and return one hash of all that is read."""
    parts = [candidate_pools.small_medquad(options)[1], candidate_pools.carved_scifact(options)[1]]
    parts.append(data.data_hash(data.collection("cystic_fibrosis", options)))
    return " ".join(part[:8] for part in parts)


def plan(options: Options, results: Results) -> Plan:
    """Name the first stages, the trials on dev and, when those of a collection are done, its runs for test."""
    cells = [
        _cell("first stage", name, "first stage", None, 0.0, options) for name in (*COLLECTIONS, "cystic_fibrosis")
    ]
    later = 0.0
    for name in COLLECTIONS:
        mine = trials(name, options)
        cells += mine
        chosen = best_rates(name, options, results)
        final = [
            _cell("test", name, method, seed, (chosen or {}).get(method, LEARNING_RATES[0]), options)
            for method in METHODS
            for seed in range(quality.seeds(SEEDS, options))
        ]
        if chosen is None:
            later += sum(cell.seconds for cell in final)
        else:
            cells += final
    return Plan(cells, later=later, waiting="the trials on dev" if later else "")


def trials(name: str, options: Options) -> list[Cell]:
    """Return the cells on dev of a collection."""
    rates = LEARNING_RATES[: 1 if options.tiny else None]
    return [_cell("dev", name, method, 0, rate, options) for method in METHODS for rate in rates]


def best_rates(name: str, options: Options, results: Results) -> dict[str, float] | None:
    """Return each method's learning rate with the best nDCG@10 on dev; None while a trial is missing."""
    best: dict[str, tuple[float, float]] = {}
    for cell in trials(name, options):
        values = results.values(NAME, cell)
        if values is None:
            return None
        score, rate = values[name]["mean"][MEASURES[0]], cell.settings["train"]["learning_rate"]
        method = cell.settings["method"]
        if method not in best or score > best[method][0]:  # of equals the first: the lower rate
            best[method] = score, rate
    return {method: rate for method, (_, rate) in best.items()}


def _cell(stage: str, name: str, method: str, seed: int | None, rate: float, options: Options) -> Cell:
    settings: dict[str, Any] = {"stage": stage, "data": name, "method": method, "pool": candidate_pools.DEPTH}
    if seed is None:
        return Cell(settings=settings, seconds=90, sources=SOURCES)
    targets = TARGETS[name] if stage == "test" else (name,)
    settings |= {"seed": seed, "targets": list(targets), "train": train_settings(method, rate, options)}
    pairs = sum(PAIRS[target] for target in targets)
    seconds = 20 + 8 * TRAINING_QUERIES[name] / TRAINED_PER_SECOND + pairs / SCORED_PER_SECOND
    return Cell(settings=settings, seconds=seconds, sources=SOURCES)


def train_settings(method: str, rate: float, options: Options) -> dict[str, Any]:
    """Return the settings of a run."""
    loss, architecture = METHODS[method]
    wanted: dict[str, Any] = {
        "loss": loss,
        "architecture": architecture,
        "learning_rate": rate,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "num_positives": 1,
        "num_negatives": 7,
        "max_length": LENGTH,
        "eval_strategy": "no",
        "logging_steps": 5,
        "save_steps": 1_000_000,
    }
    return wanted | ({"max_steps": 2, "per_device_train_batch_size": 2, "max_length": 24} if options.tiny else {})


def collection(name: str, options: Options) -> Collection:
    """Open a collection that is trained on or reranked."""
    if name == "medquad":
        return candidate_pools.small_medquad(options)[0]
    if name == "scifact":
        return candidate_pools.carved_scifact(options)[0]
    return data.collection(name, options)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Measure the first stages of a collection, or train a reranker and measure what it makes of pools."""
    name = settings["data"]
    if settings["stage"] == "first stage":
        source = collection(name, options)
        qrels = source.qrels("test")
        found = candidate_pools.pools(source, source.queries("test"), folder / "index")
        values = {method: quality.measured(qrels, run, MEASURES) for method, run in found.items()}
        sizes = [len(documents) for documents in found["pool"].values()]
        return {**values, "documents_per_query": round(sum(sizes) / len(sizes), 1)}
    train_reranker(
        model=quality.MODEL,
        data=str(collection(name, options).path),
        out=str(folder / "run"),
        seed=settings["seed"],
        **settings["train"],
    )
    model = CrossEncoder.load(folder / "run")
    split = "dev" if settings["stage"] == "dev" else "test"
    values = {}
    for target in settings["targets"]:
        source = collection(target, options)
        queries = source.queries(split)
        pool = candidate_pools.pools(source, queries, folder / f"index-{target}")["pool"]
        run = rerank(pool, model, queries, source.corpus, k=2 * candidate_pools.DEPTH)
        values[target] = quality.measured(source.qrels(split), run, MEASURES)
    return values


def table(options: Options, results: Results) -> str:
    """Return a table for each pair of a collection that was trained on and one that is reranked."""
    planned = plan(options, results)
    found = [(cell.settings, values) for cell in planned.cells if (values := results.values(NAME, cell)) is not None]
    first = {settings["data"]: values for settings, values in found if settings["stage"] == "first stage"}
    shown = []
    for target in ("scifact", "medquad", "cystic_fibrosis"):
        for source in COLLECTIONS:
            rows = [
                tables.Row(m, [[first[target][m]]], False) for m in ("BM25", "untrained", "pool") if target in first
            ]
            for method in METHODS:
                mine = [
                    (settings, values)
                    for settings, values in found
                    if (settings["stage"], settings["data"], settings["method"]) == ("test", source, method)
                    and target in values
                ]
                note = f"lr {mine[0][0]['train']['learning_rate']:g}" if mine else ""
                rows.append(tables.Row(method, [[values[target]] for _, values in mine], True, note))
            made = tables.comparison(rows, MEASURES, ("pool", "pointwise"))
            if any(row.seeded and row.seeds for row in rows):
                what = "its own queries" if source == target else f"trained on {source}"
                shown.append(f"**{target}, {what}**\n\n{made}")
    return tables.report(
        title="Rerankers: losses, a Set-Encoder, and transfer",
        command="python -m benchmarks rerankers",
        tables=shown,
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in planned.cells),
        waiting=planned.waiting,
    )


EXPERIMENT = Experiment(name=NAME, module="benchmarks.rerankers", prepare=prepare, plan=plan, work=work, table=table)
