"""The demo's settings, chosen on pydocs' dev, and what they give on its test split.

Trials with one seed: 3 learning rates × 2 temperatures × {InfoNCE with the object itself, graded softmax_ce with up to
3 relevant documents (the object 3, its "See Also" 1)}, each of the same fixed work: 3,000 training queries at 64/128
tokens. Then the best is frozen and run with 3 seeds on test, beside BM25 and the untrained model.

About 50 minutes on two cores with bf16: 6 trials of 2.8 minutes, 6 of 4.5 (three documents for a query), 3 runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import data, quality, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values

NAME = "pydocs"
MEASURES = ("nDCG@10", "RR@10")
SEEDS = 3
QUERIES, BATCH, DOCUMENTS = 3_000, 32, 5_900

LEARNING_RATES = (2e-5, 5e-5, 1e-4)
TEMPERATURES = (0.02, 0.05)
POSITIVES = {"infonce": 1, "softmax_ce": 3}
NOTES = (
    "Settings were chosen by nDCG@10 on dev over all documents, one seed; test was read with the frozen ones alone.",
    "Fixed work: 93 steps of 32 training queries, 64/128 tokens.",
)


def prepare(options: Options) -> str:
    """Return the hash of the collection that was built from the installed packages."""
    return data.data_hash(data.collection(NAME, options))


def plan(options: Options, results: Results) -> Plan:
    """Name the trials on dev and, when they are done, the runs for test."""
    cells = trials(options)
    yardsticks = [_cell("test", method, None, None, options) for method in ("BM25", "untrained")]
    chosen = winner(options, results)
    if chosen is None:
        later = sum(cell.seconds for cell in yardsticks) + quality.seeds(SEEDS, options) * cells[-1].seconds
        return Plan(cells, later=later, waiting="the trials on dev")
    seeds = range(quality.seeds(SEEDS, options))
    return Plan([*cells, *yardsticks, *(_cell("test", chosen["loss"], seed, chosen, options) for seed in seeds)])


def trials(options: Options) -> list[Cell]:
    """Return the cells on dev."""
    return [
        _cell("dev", loss, 0, _train(loss, rate, temperature, options), options)
        for loss in POSITIVES
        for rate in LEARNING_RATES[: 1 if options.tiny else None]
        for temperature in TEMPERATURES
    ]


def winner(options: Options, results: Results) -> dict[str, Any] | None:
    """Return the training settings with the best nDCG@10 on dev; None while a trial is missing."""
    found = [(cell.settings["train"], results.values(NAME, cell)) for cell in trials(options)]
    if any(values is None for _, values in found):
        return None
    return max(found, key=lambda pair: pair[1]["mean"]["nDCG@10"])[0]


def _train(loss: str, rate: float, temperature: float, options: Options) -> dict[str, Any]:
    wanted = {
        "loss": loss,
        "learning_rate": rate,
        "loss.temperature": temperature,
        "max_steps": QUERIES // BATCH,
        "num_positives": POSITIVES[loss],
        "per_device_train_batch_size": BATCH,
        "query_max_length": 64,
        "document_max_length": 128,
    }
    return quality.frozen(wanted, tiny=options.tiny)


def _cell(stage: str, method: str, seed: int | None, train: dict[str, Any] | None, options: Options) -> Cell:
    settings: dict[str, Any] = {"stage": stage, "data": NAME, "split": stage, "method": method}
    settings["measures"] = list(MEASURES)
    if method != "BM25":
        settings["search"] = quality.lengths(64, 128, tiny=options.tiny)
    pairs = 0.0
    if train is not None:
        settings |= {"seed": seed, "train": train}
        # Not every object has a "See Also": a query of softmax_ce brings two documents on average.
        pairs = QUERIES * {"infonce": 1.0, "softmax_ce": 1.8}[method]
    expected = quality.seconds(method, documents=DOCUMENTS, length=128, pairs=pairs)
    return Cell(settings=settings, seconds=expected, sources=quality.sources(method))


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run one cell."""
    # In a dry run the scrap; else the name, under which the collection is found and built by users too.
    where = data.collection(NAME, options).path
    return quality.work(settings, folder, where)[0]


def table(options: Options, results: Results) -> str:
    """Return the results on test, the trials on dev, and whether the demo has the winner's settings."""
    planned = plan(options, results)
    cells = planned.cells
    rows = []
    for method in ("BM25", "untrained", *POSITIVES):
        mine = [c for c in cells if c.settings["stage"] == "test" and c.settings["method"] == method]
        found = [values for cell in mine if (values := results.values(NAME, cell)) is not None]
        note = _shown(mine[0]) if mine and "train" in mine[0].settings else ""
        rows.append(tables.Row(method, [[v] for v in found], method in POSITIVES, note))
    return tables.report(
        title="pydocs: what the demo reaches on test",
        command="python -m benchmarks pydocs",
        tables=[tables.comparison(rows, MEASURES, ("BM25", "untrained")), _trials_table(options, results)],
        notes=[*NOTES, *_demo(options, results)],
        missing=sum(results.values(NAME, cell) is None for cell in cells),
        waiting=planned.waiting,
    )


def _shown(cell: Cell) -> str:
    train = cell.settings["train"]
    return f"lr {train['learning_rate']:g}, temperature {train['loss.temperature']:g} ({cell.key[:8]})"


def _trials_table(options: Options, results: Results) -> str:
    scores = {}
    for cell in trials(options):
        if (values := results.values(NAME, cell)) is not None:
            train = cell.settings["train"]
            key = train["loss"], train["loss.temperature"], train["learning_rate"]
            scores[key] = f"{values['mean']['nDCG@10']:.4f}"
    body = [
        [f"{loss}, temperature {t:g}", *(scores.get((loss, t, rate), tables.NOTHING) for rate in LEARNING_RATES)]
        for loss in POSITIVES
        for t in TEMPERATURES
    ]
    return tables.markdown(["", *(f"dev nDCG@10, lr {rate:g}" for rate in LEARNING_RATES)], body) if scores else ""


def _demo(options: Options, results: Results) -> list[str]:
    """Say where the demo's frozen settings are not the winner's."""
    from retrieval.demo import SETTINGS

    chosen = winner(options, results)
    if chosen is None or options.tiny:
        return []
    names = ("loss", "loss.temperature", "learning_rate", "num_positives")
    differ = [f"{n} {SETTINGS.get(n)!r}, not {chosen[n]!r}" for n in names if SETTINGS.get(n, 1) != chosen[n]]
    return [f"**`retrieval/demo.py` has other settings: {'; '.join(differ)}.**"] if differ else []


EXPERIMENT = Experiment(name=NAME, module="benchmarks.pydocs", prepare=prepare, plan=plan, work=work, table=table)
