"""Rerankers: pointwise, pairwise and listwise losses, a Set-Encoder, and what they carry over to other collections.

MiniLM-L6's encoder with a new output layer, trained for one pass over lists of 1 relevant + 7 documents of BM25's top
100, scores the candidate pools of `candidate_pools.py`, each pair once. The learning rate of each kind of loss is
chosen on pydocs' dev queries, a collection of which nothing else here is told, and carried over: trials on SciFact and
MedQuAD themselves would take days. MedQuAD's models also rerank SciFact and Cystic Fibrosis, none of whose queries they
have seen: RankT5's claim is that listwise ones lose less there.

About 8 hours on two cores with bf16.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from benchmarks import candidate_pools, data, quality, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from rankers.set_encoder import SetScorer
from retrieval.collection import Collection
from retrieval.cross_encoder import CrossEncoder
from retrieval.reranker_training import train_reranker
from retrieval.reranking import rerank

NAME = "rerankers"
SOURCES = (
    *quality.TRAINING,
    *candidate_pools.SOURCES,
    "benchmarks/rerankers.py",
    "rankers/first_token.py",
    "rankers/lists.py",
    "rankers/pair_scorer.py",
    "rankers/random_state.py",
    "rankers/set_encoder.py",
    "retrieval/candidate_lists.py",
    "retrieval/cross_encoder.py",
    "retrieval/cross_encoder_models.py",
    "retrieval/list_gradients.py",
    "retrieval/objective.py",
    "retrieval/pair_tokens.py",
    "retrieval/reranker_config.py",
    "retrieval/reranker_training.py",
    "retrieval/reranking.py",
)
MEASURES = ("nDCG@10", "RR@10")
SEEDS = {"scifact": 1, "medquad": 3}
LEARNING_RATES = (2e-5, 5e-5, 1e-4, 2e-4)
HIGHER = {"set-encoder": (4e-4,)}  # one more trial, where the highest rate was the best
AS_IT_IS = "others at full weight"
# method → loss, architecture, and the method whose trials on dev choose its learning rate
METHODS = {
    "pointwise": ("point_ce", "classifier", "pointwise"),
    "bixse": ("bixse", "classifier", "bixse"),  # point_ce that begins at the labels' prior
    "pairwise": ("ranknet", "classifier", "listwise"),
    "listwise": ("softmax_ce", "classifier", "listwise"),
    "poly1": ("poly1", "classifier", "listwise"),
    "set-encoder": ("softmax_ce", "set", "set-encoder"),
}
TRIED = ("pointwise", "listwise", "bixse", "set-encoder")
COLLECTIONS = {"scifact": tuple(METHODS), "medquad": ("pointwise", "listwise", "bixse", "set-encoder")}
TARGETS = {"scifact": ("scifact",), "medquad": ("medquad", "scifact", "cystic_fibrosis")}
TRAINING_QUERIES = {"scifact": 646, "medquad": 1_500, "pydocs": 1_500}
PAIRS = {"scifact": 25_500, "medquad": 25_500, "cystic_fibrosis": 8_000, "pydocs": 8_500}  # of the pools
LENGTH = {"scifact": 192, "medquad": 192, "pydocs": 128}
# Expected speeds on two cores with bf16, pairs/s.
TRAINED_PER_SECOND = {"scifact": 16.0, "medquad": 16.0, "pydocs": 50.0}
SCORED_PER_SECOND = 130.0
NOTES = (
    "Reranked: the union of BM25's top 50 and the untrained MiniLM-L6's top 50, 85 documents of a query in the mean; "
    "`pool` is their reciprocal rank fusion. nDCG counts relevant documents that no first stage found.",
    "Lists of 1 + 7, one pass, 8 lists a step, pairs of 192 tokens; MedQuAD: 1,500 training and 300 test queries, by "
    "hash; SciFact: 646 training queries and all 300 of test. Every loss divides by a temperature of 1.",
    "Learning rates from 2e-5, 5e-5, 1e-4 and 2e-4 by nDCG@10 on 100 dev queries of pydocs, one seed, for each "
    "pointwise loss, the listwise one and the Set-Encoder; pairwise and poly1 take the listwise one's. No dev query of "
    "SciFact or MedQuAD chose one. 2e-5 was added when point_ce was best at 5e-5, then the lowest rate, before any run "
    "for test. bixse was added after runs for test in which point_ce had hardly begun to learn: its new output layer "
    "starts at even odds, that of bixse at the share of relevant documents in its lists.",
    "The Set-Encoder is the second one. The first, without a set_size, was run for test at the listwise rate, MedQuAD "
    "0.051 and SciFact 0.157, and at its own, 4e-4, the best of six: MedQuAD 0.050, 0.082 and 0.076, SciFact 0.278. On "
    "60 dev queries of SciFact a model of it had 0.162 where it read the 85 documents of a pool together, and 0.352 "
    f"where it read them by eight, as in training. '{AS_IT_IS}' scores the present models as the first one did.",
)


def prepare(options: Options) -> str:
    """Make the split folders and return one hash of all that is read."""
    parts = [candidate_pools.small_medquad(options)[1], candidate_pools.carved_scifact(options)[1]]
    parts += [data.data_hash(data.collection(name, options)) for name in ("cystic_fibrosis", "pydocs")]
    return " ".join(part[:8] for part in parts)


def plan(options: Options, results: Results) -> Plan:
    """Name the first stages and, for each kind of loss, its trials on dev and, after them, its runs for test."""
    cells = [_cell("first stage", name, "first stage", None, 0.0, options) for name in TARGETS["medquad"]]
    later = 0.0
    for tried in TRIED:
        cells += trials(tried, options)
        rate = best_rate(tried, options, results)
        final = [
            _cell("test", name, method, seed, rate or LEARNING_RATES[0], options)
            for name, methods in COLLECTIONS.items()
            for seed in range(quality.seeds(SEEDS[name], options))
            for method in methods
            if METHODS[method][2] == tried
        ]
        if rate is None:
            later += sum(cell.seconds for cell in final)
        else:
            cells += final
    return Plan(cells, later=later, waiting="the trials on dev" if later else "")


def trials(method: str, options: Options) -> list[Cell]:
    """Return the cells of a method on pydocs' dev queries."""
    return [_cell("dev", "pydocs", method, 0, rate, options) for rate in _rates(method, options)]


def _rates(method: str, options: Options) -> tuple[float, ...]:
    return LEARNING_RATES[:1] if options.tiny else LEARNING_RATES + HIGHER.get(method, ())


def best_rate(method: str, options: Options, results: Results) -> float | None:
    """Return the learning rate with the best nDCG@10 on dev, of equals the lower; None while a trial is missing."""
    best = -1.0, 0.0
    for cell in trials(method, options):
        values = results.values(NAME, cell)
        if values is None:
            return None
        best = max(best, (values["pydocs"]["mean"][MEASURES[0]], -cell.settings["train"]["learning_rate"]))
    return -best[1]


def _cell(stage: str, name: str, method: str, seed: int | None, rate: float, options: Options) -> Cell:
    settings: dict[str, Any] = {"stage": stage, "data": name, "method": method, "pool": candidate_pools.DEPTH}
    if seed is None:
        return Cell(settings=settings, seconds=90, sources=SOURCES)
    targets = TARGETS[name] if stage == "test" else (name,)
    settings |= {"seed": seed, "targets": list(targets), "train": train_settings(method, rate, name, options)}
    trained = 8 * TRAINING_QUERIES[name] / TRAINED_PER_SECOND[name]
    seconds = 20 + trained + sum(60 + PAIRS[target] / SCORED_PER_SECOND for target in targets)
    return Cell(settings=settings, seconds=seconds, sources=SOURCES)


def train_settings(method: str, rate: float, name: str, options: Options) -> dict[str, Any]:
    """Return the settings of a run."""
    loss, architecture, _ = METHODS[method]
    wanted: dict[str, Any] = {
        "loss": loss,
        "architecture": architecture,
        "learning_rate": rate,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "num_positives": 1,
        "num_negatives": 7,
        "max_length": LENGTH[name],
        "eval_strategy": "no",
        "logging_steps": 5,
        "save_steps": 1_000_000,
    }
    if architecture == "set":
        wanted["set_size"] = 8
    if name == "pydocs":  # as many lists as MedQuAD's
        wanted["max_steps"] = TRAINING_QUERIES[name] // 8
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
        found = candidate_pools.pools(source, source.queries("test"), folder / "index", options)
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
        if split == "dev":
            queries = dict(sorted(queries.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())[:100])
        pool = candidate_pools.pools(source, queries, folder / f"index-{target}", options)["pool"]
        run = rerank(pool, model, queries, source.corpus, k=2 * candidate_pools.DEPTH)
        qrels = source.qrels(split)
        values[target] = quality.measured({query_id: qrels[query_id] for query_id in queries}, run, MEASURES)
        if isinstance(model.model, SetScorer) and split == "test" and target == name:
            plain = CrossEncoder.load(folder / "run")
            plain.model.set_size = None
            run = rerank(pool, plain, queries, source.corpus, k=2 * candidate_pools.DEPTH)
            values[AS_IT_IS] = quality.measured(qrels, run, MEASURES)
    return values


def table(options: Options, results: Results) -> str:
    """Return a table for each pair of a collection that was trained on and one that is reranked."""
    planned = plan(options, results)
    found = [(cell.settings, values) for cell in planned.cells if (values := results.values(NAME, cell)) is not None]
    first = {settings["data"]: values for settings, values in found if settings["stage"] == "first stage"}
    shown = []
    for target in TARGETS["medquad"]:
        for source in COLLECTIONS:
            rows = [
                tables.Row(m, [[first[target][m]]], False) for m in ("BM25", "untrained", "pool") if target in first
            ]
            for method in COLLECTIONS[source]:
                mine = [
                    (settings, values)
                    for settings, values in found
                    if (settings["stage"], settings["data"], settings["method"]) == ("test", source, method)
                    and target in values
                ]
                note = f"lr {mine[0][0]['train']['learning_rate']:g}" if mine else ""
                rows.append(tables.Row(method, [[values[target]] for _, values in mine], True, note))
                if source == target and any(AS_IT_IS in values for _, values in mine):
                    runs = [[values[AS_IT_IS]] for _, values in mine if AS_IT_IS in values]
                    rows.append(tables.Row(f"{method}, {AS_IT_IS}", runs, True, note))
            made = tables.comparison(rows, MEASURES, ("pool", "pointwise"))
            if any(row.seeded and row.seeds for row in rows):
                what = "its own queries" if source == target else f"trained on {source}"
                shown.append(f"**{target}, {what}**\n\n{made}")
    return tables.report(
        title="Rerankers: losses, a Set-Encoder, and transfer",
        command="python -m benchmarks rerankers",
        tables=[*shown, _trials_table(options, results)],
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in planned.cells),
        waiting=planned.waiting,
    )


def _trials_table(options: Options, results: Results) -> str:
    body = []
    for method in TRIED:
        found = [results.values(NAME, cell) for cell in trials(method, options)]
        if any(found):
            shown = [tables.NOTHING if v is None else f"{v['pydocs']['mean'][MEASURES[0]]:.4f}" for v in found]
            body.append([method, *shown])
    if not body:
        return ""
    rates = max((_rates(method, options) for method in TRIED), key=len)
    body = [row + [tables.NOTHING] * (1 + len(rates) - len(row)) for row in body]
    return tables.markdown(["pydocs, dev nDCG@10", *(f"lr {rate:g}" for rate in rates)], body)


EXPERIMENT = Experiment(name=NAME, module="benchmarks.rerankers", prepare=prepare, plan=plan, work=work, table=table)
