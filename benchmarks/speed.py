"""Encoding and training side by side with sentence-transformers, by default and set to bf16, in one run.

A B A B …: every round runs each system once, so that a slow spell of the machine meets all; what is reported is the
median of the rounds' ratios and their range. Encoding: 1,024 abstracts of SciFact at 128 tokens, 7 rounds. Training:
20 steps of 32 (title, abstract) pairs at 64 tokens, from the same weights, 5 rounds. A third cell measures where the
time of our training step goes.

About 25 minutes on two cores with bf16; run it while nothing else runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, side_by_side, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from benchmarks.quality import TRAINING
from benchmarks.side_by_side import BF16, DEFAULT, OURS, PHASES

NAME = "speed"
SOURCES = (*(set(TRAINING) - {"benchmarks/quality.py"}), "benchmarks/side_by_side.py")
CELLS: dict[str, dict[str, Any]] = {
    "encode": {"documents": 1_024, "length": 128, "batch": 32, "rounds": 7},
    "train": {"steps": 20, "length": 64, "batch": 32, "rounds": 5},
    "profile": {"steps": 22, "length": 64, "batch": 32},
}
TINY = {"documents": 8, "length": 16, "batch": 4, "rounds": 2, "steps": 3}
SECONDS = {"encode": 330, "train": 900, "profile": 150}
AIMS = {"encode": {DEFAULT: 3.0, BF16: 1.15}, "train": {DEFAULT: 2.2, BF16: 1.15}}
NOTES = (
    "Same model (MiniLM-L6), texts, lengths, batch of 32 and recipe; a ratio is ours / theirs of one round, and the "
    "median and the range over the rounds are shown. Every system runs once in every round.",
    "Our dropout draws another stream of random numbers and rounds p to 1/65536: the same distribution, not the same "
    "numbers. The rows with the dropout exchanged tell what it is worth; in sentence-transformers that of its fused "
    "attention stays torch's.",
    "What is timed of training is the loop, tokenising included; loading, evaluating and saving are not.",
)


def prepare(options: Options) -> str:
    """Return the hash of the texts."""
    return data.data_hash(data.collection("scifact", options))


def plan(options: Options, results: Results) -> Plan:
    """Name the three cells."""
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
    if settings["method"] == "encode":
        return side_by_side.encode(settings, collection)
    if settings["method"] == "train":
        return side_by_side.training(settings, collection, folder)
    return side_by_side.profile(settings, collection, folder)


def table(options: Options, results: Results) -> str:
    """Return ours against theirs, and the profile."""
    cells = {cell.settings["method"]: cell for cell in plan(options, results).cells}
    found = {method: results.values(NAME, cell) for method, cell in cells.items()}
    shown = []
    for method, unit in (("encode", "documents/s"), ("train", "pairs/s")):
        if (values := found[method]) is not None:
            shown.append(_rates(method, unit, values["rates"], values.get("lowest_cosine", {})))
    if (values := found["profile"]) is not None:
        shown.append(_profile(values["milliseconds"]))
    return tables.report(
        title="Speed: ours against sentence-transformers",
        command="python -m benchmarks speed",
        tables=shown,
        notes=[*NOTES, *_machine(results, list(cells.values()))],
        missing=sum(values is None for values in found.values()),
    )


def _rates(method: str, unit: str, rates: dict[str, list[float]], cosines: dict[str, float]) -> str:
    rows = []
    for name, own in rates.items():
        aim = AIMS[method].get(name)
        rows.append(
            [
                name,
                f"{np.median(own):.1f}",
                tables.NOTHING if name == OURS else tables.ratio(rates[OURS], own),
                tables.NOTHING if aim is None else f"≥ {aim:g}×",
                len(own),
                f"{cosines[name]:.5f}" if name in cosines else "",
            ]
        )
    heads = [method, f"{unit}, median", f"{OURS} is faster by", "aim", "rounds", "lowest cosine to the default's"]
    return tables.markdown(heads, rows)


def _profile(milliseconds: dict[str, dict[str, float]]) -> str:
    totals = {kind: sum(spent.values()) for kind, spent in milliseconds.items()}
    rows = [
        [phase, *(f"{spent[phase]:.0f} ({spent[phase] / totals[kind]:.0%})" for kind, spent in milliseconds.items())]
        for phase in PHASES
    ]
    rows.append(["all", *(f"{total:.0f}" for total in totals.values())])
    return tables.markdown(["ms per step of 32 pairs", *(f"dropout: {kind}" for kind in milliseconds)], rows)


def _machine(results: Results, cells: list[Cell]) -> list[str]:
    records = [record for cell in cells if (record := results.find(NAME, cell)) is not None]
    if not records:
        return []
    machine, versions = records[0]["machine"], records[0]["versions"]
    names = ("torch", "transformers", "sentence-transformers")
    listed = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    busy = max(record["machine"]["load"] for record in records)
    note = f"{machine['cpu']}, {machine['cores']} cores, {'bf16' if machine['bf16'] else 'no bf16'}; {listed}"
    return [f"{note}; load when the cells began: up to {busy:g}."]


EXPERIMENT = Experiment(
    name=NAME, module="benchmarks.speed", prepare=prepare, plan=plan, work=work, table=table, alone=True
)
