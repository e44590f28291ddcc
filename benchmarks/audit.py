"""Does `rankwright audit` tell the truth? Estimated against true false negatives among mined documents.

Cystic Fibrosis and Vaswani have many judged documents per query (49 and 22 relevant ones in the mean). A random half of
each query's relevant documents is hidden, from the miner, from the training of the rerankers and from the audit. The
100 best documents of the untrained MiniLM-L6 that are left are the negatives of a query; what share of them is hidden
positives is the truth, and the audit does not see it.

    miner           the miner's own scores, which stand in the rows
    cross-encoder   MiniLM-L6 with a new output layer, trained on the visible half: 4 passes over lists of 1 + 7
    features        a linear ranker of BM25, the miner's score and shares of common words, trained on the visible half
    likeness        the audit's own: TF-IDF cosine to the visible positives, nothing is trained
    near            near duplicates of visible positives

Rerankers are cross-fitted: queries are divided in two, near-equal ones together, and each half is scored by a model
that was trained on the other. Three seeds decide which half is hidden. About 25 minutes on two cores with bf16.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import data, quality, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from retrieval.auditing import BANDS, Audit, audit
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.encoder import Encoder
from retrieval.false_negatives import Share
from retrieval.feature_ranker import FeatureRanker
from retrieval.features import FeatureExtractor, FeatureReranker, feature_lists
from retrieval.ltr_training import train_ltr
from retrieval.mining import mine
from retrieval.negatives import NegativeRules
from retrieval.reranker_training import train_reranker
from retrieval.reranking import ByText, RunReranker, load_reranker
from retrieval.rows import TrainingRow
from retrieval.splits import folds, write_split
from retrieval.svmlight import write_svmlight
from retrieval.trec import Qrels, Run

NAME = "audit"
SOURCES = (
    *quality.TRAINING,
    "benchmarks/audit.py",
    "rankers/feature_scorers.py",
    "rankers/first_token.py",
    "rankers/lists.py",
    "rankers/pair_scorer.py",
    "retrieval/audit_evidence.py",
    "retrieval/auditing.py",
    "retrieval/bm25.py",
    "retrieval/candidate_lists.py",
    "retrieval/cross_encoder.py",
    "retrieval/embedding_store.py",
    "retrieval/false_negatives.py",
    "retrieval/feature*.py",
    "retrieval/ltr_*.py",
    "retrieval/mining.py",
    "retrieval/near_duplicates.py",
    "retrieval/negative*.py",
    "retrieval/objective.py",
    "retrieval/reranker_*.py",
    "retrieval/reranking.py",
    "retrieval/splits.py",
    "retrieval/statistics.py",
    "retrieval/stored_neighbors.py",
    "retrieval/text_likeness.py",
)
SECONDS = {"cystic_fibrosis": 260.0, "vaswani": 240.0}
SEEDS = 3
DEPTH = 100
METHODS = ("likeness", "cross-encoder", "features", "miner", "near")
NOTES = (
    "Truth: the share of the band's mined negatives that are hidden positives, mean of the seeds. Documents that "
    "nobody judged count as irrelevant there, so that a correct estimate may be somewhat above it.",
    "Estimates: mean of the seeds, [mean ends of the 95 % intervals], and for how many seeds the interval holds the "
    "truth. ≤: the audit itself says, for most seeds, that the scores separate too little and the value is a bound.",
    "Hiding is at random, as the estimate assumes; where annotators overlooked what is hard to find, it will be low.",
    "The cross-encoder saw about 370 lists in all: what such a small reranker is worth is part of the result.",
    "The estimator was chosen on pydocs, MedQuAD and simulated scores; of these two collections only dry runs on "
    "scraps of 12 queries were seen before.",
)


def prepare(options: Options) -> str:
    """Return one hash of both collections."""
    return " ".join(data.data_hash(data.collection(name, options))[:8] for name in SECONDS)


def plan(options: Options, results: Results) -> Plan:
    """Name a cell for each collection and seed."""
    training = {"num_train_epochs": 4, "max_length": 128, "learning_rate": 1e-4}
    if options.tiny:
        training |= {"max_steps": 2, "max_length": 32}
    cells = [
        Cell(
            settings={
                "data": name,
                "seed": seed,
                "method": name,
                "depth": DEPTH,
                "bands": list(map(str, BANDS)),
                "search": quality.lengths(64, 128, tiny=options.tiny),
                "reranker": training,
            },
            seconds=SECONDS[name],
            sources=SOURCES,
        )
        for name in SECONDS
        for seed in range(quality.seeds(SEEDS, options))
    ]
    return Plan(cells)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Hide, mine, train, audit, and tell what was found beside what was hidden."""
    source = data.collection(settings["data"], options)
    visible, hidden = hide_half(source.qrels("test"), settings["seed"])
    visible = {query_id: grades for query_id, grades in visible.items() if query_id in source.queries("test")}
    collection = write_split(source, {"train": visible}, folder / "visible")
    rows = mine(
        collection,
        Encoder.load(quality.MODEL, **settings["search"]),
        rules=NegativeRules(last_rank=settings["depth"], num_negatives=settings["depth"]),
        store=EmbeddingStore(options.build / "embeddings"),
    ).rows
    found, seconds = {}, {}
    makers = {"miner": None, "cross-encoder": _cross_encoder, "features": _features}
    halves = folds(visible, collection.queries("train"), n=2)
    fold_of = {query_id: number for number, half in enumerate(halves) for query_id in half["test"]}
    # A half is scored by the model that was trained on the other.
    others = [{**half["train"], **half["dev"]} for half in halves]
    for method, make in makers.items():
        started = time.perf_counter()
        reranker = None
        if make is not None:
            own = [folder / f"{method}-{number}" for number in range(len(halves))]
            made = [make(collection, qrels, rows, settings, one) for qrels, one in zip(others, own, strict=True)]
            reranker = ByFold(made, fold_of)
        trained = time.perf_counter()
        found[method] = audit(rows, collection.corpus, reranker=reranker)
        seconds[method] = [round(trained - started, 1), round(time.perf_counter() - trained, 1)]
    return {"bands": compared(found, rows, hidden), "queries": len(rows), "seconds": seconds}


def hide_half(qrels: Qrels, seed: int) -> tuple[Qrels, dict[str, set[str]]]:
    """Divide each query's relevant documents at random: judgements that stay, and ids that are hidden, half of them.

    Of an odd number the larger part stays, so that no query is left without; what is judged irrelevant is dropped.
    """
    visible: Qrels = {}
    hidden: dict[str, set[str]] = {}
    for query_id, grades in qrels.items():
        relevant = sorted(doc_id for doc_id, grade in grades.items() if grade >= 1)
        number = int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, number]).permutation(len(relevant)).tolist()
        hidden[query_id] = {relevant[place] for place in order[: len(relevant) // 2]}
        if kept := {doc_id: grades[doc_id] for doc_id in relevant if doc_id not in hidden[query_id]}:
            visible[query_id] = kept
    return visible, hidden


class ByFold:
    """Rerankers that each score the queries of their fold."""

    def __init__(self, rerankers: Sequence[RunReranker], fold_of: Mapping[str, int]) -> None:
        self.rerankers, self.fold_of = rerankers, fold_of

    def score_run(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        """Return the scores of every query's candidates."""
        found: dict[str, NDArray[np.float32]] = {}
        for fold, reranker in enumerate(self.rerankers):
            own = {query_id: docs for query_id, docs in candidates.items() if self.fold_of[query_id] == fold}
            found |= dict(zip(own, reranker.score_run(queries, own), strict=True)) if own else {}
        return [found[query_id] for query_id in candidates]

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores."""
        return {"folds": [reranker.fingerprint() for reranker in self.rerankers]}


def _cross_encoder(
    collection: Collection, qrels: Qrels, rows: Sequence[TrainingRow], settings: Settings, folder: Path
) -> RunReranker:
    """Train on lists of a visible positive and unjudged documents of BM25's top 100."""
    write_split(collection, {"train": qrels}, folder / "data")
    train_reranker(
        model=quality.MODEL,
        data=str(folder / "data"),
        out=str(folder / "run"),
        per_device_train_batch_size=8,
        eval_strategy="no",
        save_steps=1_000_000,
        seed=settings["seed"],
        **settings["reranker"],
    )
    return ByText(load_reranker(folder / "run"), collection.corpus)


def _features(
    collection: Collection, qrels: Qrels, rows: Sequence[TrainingRow], settings: Settings, folder: Path
) -> RunReranker:
    """Train on the mined lists, the visible positives among them."""
    run = {
        row.query_id: dict(
            zip((*row.positive_ids, *row.negative_ids), (*row.positive_scores, *row.negative_scores), strict=True)
        )
        for row in rows
        if row.query_id in qrels
    }
    extractor = FeatureExtractor(collection.corpus)
    lists = feature_lists(run, extractor, collection.queries("train"), qrels, k=max(map(len, run.values())))
    write_svmlight(folder / "lists.svm", lists)
    train_ltr(
        features=str(folder / "lists.svm"),
        out=str(folder / "run"),
        scorer="linear",
        learning_rate=1e-2,
        num_train_epochs=100,
        per_device_train_batch_size=8,
        eval_strategy="no",
        save_steps=1_000_000,
        seed=settings["seed"],
    )
    return FeatureReranker(FeatureRanker.load(folder / "run"), extractor)


def compared(
    found: Mapping[str, Audit], rows: Sequence[TrainingRow], hidden: Mapping[str, set[str]]
) -> list[dict[str, Any]]:
    """Return for each band the truth and what every method estimates."""
    result = []
    for number, band in enumerate(BANDS):
        inside = [
            (row.query_id, doc_id)
            for row in rows
            for doc_id, rank in zip(row.negative_ids, row.negative_ranks, strict=True)
            if band.first <= rank <= band.last
        ]
        n_hidden = sum(doc_id in hidden[query_id] for query_id, doc_id in inside)
        shares: dict[str, Share | None] = {method: one.bands[number].scores for method, one in found.items()}
        some = found["miner"].bands[number]
        shares |= {"likeness": some.likeness, "near": some.near}
        result.append(
            {
                "band": str(band),
                "negatives": len(inside),
                "truth": round(n_hidden / max(1, len(inside)), 6),
                "estimates": {method: None if share is None else _values(share) for method, share in shares.items()},
            }
        )
    return result


def _values(share: Share) -> dict[str, Any]:
    names = ("value", "low", "high", "separation", "positives", "matched", "is_bound")
    values = {name: getattr(share, name, None) for name in names}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def table(options: Options, results: Results) -> str:
    """Return the truth beside the estimates, and how far off each method is."""
    cells = plan(options, results).cells
    known = [(cell.settings, values) for cell in cells if (values := results.values(NAME, cell)) is not None]
    shown = []
    for name in SECONDS:
        seeds = [values for settings, values in known if settings["data"] == name]
        if seeds:
            body = [_line(str(band), [one["bands"][place] for one in seeds]) for place, band in enumerate(BANDS)]
            shown.append(tables.markdown([f"{name}: ranks", "negatives", "truth", *METHODS], body))
    if known:
        every = [band for _, values in known for band in values["bands"]]
        shown.append(tables.markdown(["over both", *METHODS], _errors(every)))
    return tables.report(
        title="The audit: estimated and true shares of false negatives",
        command="python -m benchmarks audit",
        tables=shown,
        notes=NOTES,
        missing=len(cells) - len(known),
    )


def _line(band: str, seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    truths = [one["truth"] for one in seeds]
    cells = [band, f"{seeds[0]['negatives']:,}", f"{100 * np.mean(truths):.1f} %"]
    for method in METHODS:
        pairs = [(one["estimates"][method], one["truth"]) for one in seeds if one["estimates"][method] is not None]
        if not pairs:
            cells.append(tables.NOTHING)
            continue
        value, low, high = (100 * np.mean([estimate[end] for estimate, _ in pairs]) for end in ("value", "low", "high"))
        held = sum(estimate["low"] <= truth <= estimate["high"] for estimate, truth in pairs)
        bound = "≤ " if 2 * sum(bool(estimate["is_bound"]) for estimate, _ in pairs) > len(pairs) else ""
        cells.append(f"{bound}{value:.1f} % [{low:.1f}, {high:.1f}], {held}/{len(seeds)}")
    return cells


def _errors(bands: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the mean distance from the truth, of all estimates and of those that are no mere bound.

    Near duplicates are a lower bound by what they are, and counted among all only.
    """
    rows = [["mean absolute error, points"], ["the same without bounds"], ["estimates that are no bound"]]
    for method in METHODS:
        pairs = [(band["estimates"][method], band["truth"]) for band in bands if band["estimates"][method] is not None]
        errors = [100 * abs(estimate["value"] - truth) for estimate, truth in pairs]
        firm = [error for error, (estimate, _) in zip(errors, pairs, strict=True) if not estimate["is_bound"]]
        rows[0].append(f"{np.mean(errors):.1f}" if errors else tables.NOTHING)
        if method == "near":
            rows[1].append(tables.NOTHING)
            rows[2].append(tables.NOTHING)
            continue
        rows[1].append(f"{np.mean(firm):.1f}" if firm else tables.NOTHING)
        rows[2].append(f"{len(firm)} of {len(bands)}")
    return rows


EXPERIMENT = Experiment(name=NAME, module="benchmarks.audit", prepare=prepare, plan=plan, work=work, table=table)
