"""Reranking and training a reranker side by side with sentence-transformers' CrossEncoder, in one process, by turns.

A B A B …: every round runs each system once, so that a slow spell of the machine meets all; what is reported is the
median of the rounds' ratios and their range. Scoring: 5 queries of SciFact with 100 abstracts each, pairs of at most
192 tokens, 7 rounds. Training: 10 steps of 8 lists, one abstract that belongs to the title and 7 that do not, from the
same weights, 5 rounds. The model is MiniLM-L6 with an output layer that has learned nothing: its scores mean nothing,
their cost is that of any. A third cell has our Set-Encoder beside our classifier, on the same lists.

About 20 minutes on two cores with bf16; run it while nothing else runs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values, installed
from benchmarks.quality import MODEL, TRAINING
from benchmarks.side_by_side import BF16, DEFAULT, OURS, OURS_FP32
from indexes.storage import write_lines
from retrieval.collection import Collection

NAME = "reranker_speed"
SOURCES = (
    *(set(TRAINING) - {"benchmarks/quality.py"}),
    "rankers/first_token.py",
    "rankers/pair_scorer.py",
    "rankers/set_encoder.py",
    "retrieval/candidate_lists.py",
    "retrieval/cross_encoder.py",
    "retrieval/cross_encoder_models.py",
    "retrieval/pair_tokens.py",
    "retrieval/reranker_config.py",
    "retrieval/reranker_training.py",
)
CELLS: dict[str, dict[str, Any]] = {
    "score": {"queries": 5, "documents": 100, "length": 192, "batch": 32, "rounds": 7},
    "train": {"steps": 10, "batch": 8, "documents": 8, "length": 192, "rounds": 5},
    "set": {"queries": 2, "documents": 100, "steps": 4, "batch": 8, "list": 8, "length": 192, "rounds": 5},
}
TINY = {"queries": 2, "documents": 4, "length": 24, "batch": 2, "rounds": 2, "steps": 2, "list": 2}
SECONDS = {"score": 420, "train": 780, "set": 240}
UNITS = {"score": "pairs/s", "train": "lists/s"}
AIMS = {"score": {DEFAULT: 3.0, BF16: 1.2}, "train": {}}
NOTES = (
    "Same weights (MiniLM-L6 and one output layer), pairs, lengths; a ratio is ours / theirs of one round, and the "
    "median and the range over the rounds are shown. Every system runs once in every round. Texts come in as strings "
    "and scores go out as numbers: tokenising is included. Theirs scores 32 pairs at a time, its default.",
    "The correlation is Spearman's between a query's scores and those of sentence-transformers by default; the lowest "
    "of the queries.",
    "Training: our softmax_ce, their ListNetLoss with its default mini-batches, the same optimizer and schedule, no "
    "evaluation, no checkpoint. What is timed is the loop, tokenising included; loading and saving are not.",
)


def prepare(options: Options) -> str:
    """Return the hash of the texts."""
    return data.data_hash(data.collection("scifact", options))


def plan(options: Options, results: Results) -> Plan:
    """Name the cells."""
    cells = []
    for method, settings in CELLS.items():
        if options.tiny:
            settings = {name: TINY[name] for name in settings}
        named = {"data": "scifact", "method": method, **settings}
        cells.append(Cell(settings=named, seconds=SECONDS[method], sources=SOURCES))
    return Plan(cells)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run one cell."""
    collection = data.collection("scifact", options)
    return {"score": score, "train": train, "set": sets}[settings["method"]](settings, collection, folder)


def score(settings: Settings, collection: Collection, folder: Path) -> Values:
    """Time scoring in turns and return pairs/s of every round, and how far the rankings are apart."""
    from scipy.stats import spearmanr
    from sentence_transformers import CrossEncoder as Theirs

    from retrieval.cross_encoder import CrossEncoder

    count, length = settings["documents"], settings["length"]
    queries, lists = _to_score(settings, collection)
    pairs = [(query, text) for query, texts in zip(queries, lists, strict=True) for text in texts]
    CrossEncoder.load(MODEL, max_length=length).save(folder / "model")

    def ours(precision: str) -> Callable[[], Any]:
        reranker = CrossEncoder.load(folder / "model", precision=precision)
        return lambda: np.concatenate(reranker.score(queries, lists))

    def theirs(*, low: bool) -> Callable[[], Any]:
        model = Theirs(str(folder / "model"))
        model = model.bfloat16() if low else model
        return lambda: model.predict(pairs, batch_size=settings["batch"], show_progress_bar=False)

    systems = {OURS: ours("auto"), DEFAULT: theirs(low=False), BF16: theirs(low=True), OURS_FP32: ours("fp32")}
    scores = {name: np.asarray(run()).reshape(len(queries), count) for name, run in systems.items()}  # warms up
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(settings["rounds"]):
        for name, run in systems.items():
            started = time.perf_counter()
            run()
            rates[name].append(round(len(pairs) / (time.perf_counter() - started), 2))
    lowest = {
        name: min(float(spearmanr(*two).statistic) for two in zip(found, scores[DEFAULT], strict=True))
        for name, found in scores.items()
    }
    return {"rates": rates, "lowest_correlation": {name: round(value, 5) for name, value in lowest.items()}}


def _to_score(settings: Settings, collection: Collection) -> tuple[list[str], list[list[str]]]:
    """Return queries, and texts of documents for each."""
    count, queries = settings["documents"], list(collection.queries("test").values())[: settings["queries"]]
    texts = collection.corpus.texts(range(min(count * len(queries), len(collection.corpus))))
    return queries, [[texts[(number * count + i) % len(texts)] for i in range(count)] for number in range(len(queries))]


def sets(settings: Settings, collection: Collection, folder: Path) -> Values:
    """Time our Set-Encoder and our classifier in turns, scoring and training; return lists/s of every round."""
    from retrieval.cross_encoder import CrossEncoder

    CrossEncoder.load(MODEL, max_length=settings["length"]).save(folder / "model")
    queries, lists = _to_score(settings, collection)
    _write_rows(lists_of(collection, settings["list"]), folder)
    trained = {**settings, "documents": settings["list"]}
    rates: dict[str, dict[str, list[float]]] = {"score": {}, "train": {}}
    for seed in range(-1, settings["rounds"]):  # the first round warms up
        for architecture in ("classifier", "set"):
            reranker = CrossEncoder.load(folder / "model", architecture=architecture)
            reranker.score(queries[:1], lists[:1])
            started = time.perf_counter()
            reranker.score(queries, lists)
            scored = len(queries) / (time.perf_counter() - started)
            rate = _ours(trained, collection, folder, max(seed, 0), architecture)
            if seed >= 0:
                rates["score"].setdefault(architecture, []).append(round(scored, 4))
                rates["train"].setdefault(architecture, []).append(round(rate, 4))
    return {"rates": rates}


def train(settings: Settings, collection: Collection, folder: Path) -> Values:
    """Time training in turns, each round from the same weights, and return lists/s of every round."""
    from retrieval.cross_encoder import CrossEncoder

    CrossEncoder.load(MODEL, max_length=settings["length"]).save(folder / "model")
    made = lists_of(collection, settings["documents"])
    _write_rows(made, folder)
    systems: dict[str, Callable[[int], float]] = {
        OURS: lambda seed: _ours(settings, collection, folder, seed),
        DEFAULT: lambda seed: _theirs(settings, made, folder, seed, low=False),
        BF16: lambda seed: _theirs(settings, made, folder, seed, low=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for seed in range(-1, settings["rounds"]):  # the first round warms up
        for name, run in systems.items():
            rate = run(max(seed, 0))
            if seed >= 0:
                rates[name].append(round(rate, 3))
    return {"rates": rates, "datasets": installed(("datasets",))}


def _write_rows(made: list[tuple[str, list[str]]], folder: Path) -> None:
    rows = (
        {"query_id": f"t{i}", "query": query, "positives": texts[:1], "negatives": texts[1:]}
        for i, (query, texts) in enumerate(made)
    )
    write_lines(folder / "rows.jsonl", map(json.dumps, rows))


def lists_of(collection: Collection, size: int) -> list[tuple[str, list[str]]]:
    """Return for every document with a title: the title, and its text before those of the size - 1 documents after."""
    documents = [d for d in collection.corpus if d.title and d.text]
    return [
        (document.title, [documents[(i + offset) % len(documents)].text for offset in range(size)])
        for i, document in enumerate(documents)
    ]


def _ours(
    settings: Settings, collection: Collection, folder: Path, seed: int, architecture: str = "classifier"
) -> float:
    from retrieval.reranker_training import train_reranker

    train_reranker(
        model=str(folder / "model"),
        data=str(collection.path),
        rows=[str(folder / "rows.jsonl")],
        out=str(folder / "run"),
        loss="softmax_ce",
        architecture=architecture,
        num_negatives=settings["documents"] - 1,
        per_device_train_batch_size=settings["batch"],
        max_steps=settings["steps"],
        max_length=settings["length"],
        learning_rate=2e-5,
        eval_strategy="no",
        logging_steps=settings["steps"],
        save_steps=1_000_000,
        seed=seed,
        overwrite=True,
    )
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["lists_per_second"])


def _theirs(settings: Settings, made: list[tuple[str, list[str]]], folder: Path, seed: int, *, low: bool) -> float:
    import torch
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended = time.perf_counter()

    labels = [1] + [0] * (settings["documents"] - 1)
    lists = Dataset.from_dict(
        {"query": [query for query, _ in made], "docs": [texts for _, texts in made], "labels": [labels] * len(made)}
    )
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder / "theirs"),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch"],
        learning_rate=2e-5,
        warmup_steps=-(-settings["steps"] // 10),
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=low,
        use_cpu=not torch.cuda.is_available(),  # without it bf16 is refused on a CPU
        seed=seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model, clock = CrossEncoder(str(folder / "model")), Clock()
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=lists, loss=ListNetLoss(model), callbacks=[clock]
    )
    trainer.train()
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    return float(settings["steps"] * settings["batch"] / (clock.ended - clock.started))


def table(options: Options, results: Results) -> str:
    """Return ours against theirs, scoring and training."""
    cells = plan(options, results).cells
    found = {cell.settings["method"]: results.find(NAME, cell) for cell in cells}
    return tables.report(
        title="Speed of rerankers: ours against sentence-transformers' CrossEncoder",
        command=f"python -m benchmarks {NAME}",
        tables=[_rates(method, record["values"]) for method, record in found.items() if record is not None],
        notes=[*NOTES, *_machine([record for record in found.values() if record is not None])],
        missing=sum(record is None for record in found.values()),
    )


def _rates(method: str, values: Values) -> str:
    if method == "set":
        return _set_rates(values)
    rows = []
    correlations = values.get("lowest_correlation", {})
    for name, own in values["rates"].items():
        aim = AIMS[method].get(name)
        rows.append(
            [
                name,
                f"{np.median(own):.1f}",
                tables.NOTHING if name == OURS else tables.ratio(values["rates"][OURS], own),
                tables.NOTHING if aim is None else f"≥ {aim:g}×",
                len(own),
                f"{correlations[name]:.4f}" if name in correlations else "",
            ]
        )
    heads = [method, f"{UNITS[method]}, median", f"{OURS} is faster by", "aim", "rounds", "lowest correlation"]
    return tables.markdown(heads, rows)


def _set_rates(values: Values) -> str:
    rows = []
    for what, rates in values["rates"].items():
        medians = [f"{np.median(rates[name]):.2f}" for name in ("classifier", "set")]
        rows.append([what, *medians, tables.ratio(rates["classifier"], rates["set"]), str(len(rates["set"]))])
    heads = ["lists of 100 scored, of 8 trained on", "classifier, lists/s", "Set-Encoder, lists/s"]
    return tables.markdown([*heads, "the Set-Encoder takes", "rounds"], rows)


def _machine(records: list[dict[str, Any]]) -> list[str]:
    if not records:
        return []
    machine, versions = records[0]["machine"], records[0]["versions"]
    names = ("torch", "transformers", "sentence-transformers")
    listed = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    busy = max(record["machine"]["load"] for record in records)
    note = f"{machine['cpu']}, {machine['cores']} cores, {'bf16' if machine['bf16'] else 'no bf16'}; {listed}"
    return [f"{note}; load when the cells began: up to {busy:g}."]


EXPERIMENT = Experiment(
    name=NAME, module="benchmarks.reranker_speed", prepare=prepare, plan=plan, work=work, table=table, alone=True
)
