"""What an epoch by global proxies costs at a million groups: time and memory, over made-up proxies.

Unit vectors around centres, 200 to a centre; one row a group, batches of 64. Measured apart, each over the whole
epoch: adding a batch's proxies to the bank (15,625 times), closing the epoch, drawing the next one, and working out for
the log how alike its batches are. Then, once, what a checkpoint adds. Aims: at most 60 s and 1 GiB on two cores.

About 8 minutes on two cores.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from benchmarks import tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from retrieval.batch_order import ProxyOrder, RandomOrder, batch_likeness, by_decile
from retrieval.peak_memory import peak_mb
from retrieval.proxies import ProxyBank

NAME = "proxy_cost"
SOURCES = (
    "benchmarks/proxy_cost.py",
    "indexes/faiss_index.py",
    "retrieval/batch_order.py",
    "retrieval/proxies.py",
)
GROUPS, DIMENSIONS, BATCH, ROUNDS = 1_000_000, (64, 128), 64, 3
PER_CENTRE, NOISE = 200, 0.7
NOTES = (
    "1,000,000 groups of one row, batches of 64, hardness 1; unit vectors around 5,000 centres, noise 0.7. Memory is "
    "the process's peak during the epochs, pages of mapped files included; before is what it was with the libraries.",
    "Adding: 15,625 batches' proxies into the bank; the branch's own forward and backward pass is not in it, since it "
    "is part of every training step (see hard_batches).",
)


def prepare(options: Options) -> str:
    """Nothing is read."""
    return "made up"


def plan(options: Options, results: Results) -> Plan:
    """Name a cell for each number of dimensions."""
    groups, rounds = (2_000, 1) if options.tiny else (GROUPS, ROUNDS)
    return Plan(
        [
            Cell(
                settings={
                    "method": f"{dim} dimensions",
                    "groups": groups,
                    "dim": dim,
                    "batch": BATCH,
                    "rounds": rounds,
                },
                seconds=240,
                sources=SOURCES,
            )
            for dim in DIMENSIONS
        ]
    )


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Fill the bank, close the epoch, draw the next one, some rounds."""
    groups, dim, size = settings["groups"], settings["dim"], settings["batch"]
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(2, groups // PER_CENTRE), dim)).astype(np.float32)
    bank, numbers = ProxyBank(groups, dim, folder / "bank"), np.arange(groups)
    order = ProxyOrder(numbers, bank.proxies, size, lambda epoch: 1.0, 0)
    seconds: dict[str, list[float]] = {"adding": [], "closing": [], "drawing": [], "telling": []}
    before = peak_mb()
    batches = RandomOrder(groups, size, 0).batches(0)
    for epoch in range(1, settings["rounds"] + 1):
        added = 0.0
        for batch in batches:
            vectors = centres[batch % len(centres)] + NOISE * random.standard_normal(
                (len(batch), dim), dtype=np.float32
            )
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            started = time.perf_counter()
            bank.add(batch, vectors)
            added += time.perf_counter() - started
        started = time.perf_counter()
        bank.close_epoch()
        closed = time.perf_counter()
        batches = order.batches(epoch)
        drawn = time.perf_counter()
        likeness = by_decile(batch_likeness(order.drawn(epoch), numbers, bank.proxies()))
        chance = batch_likeness(RandomOrder(groups, size, 0).batches(epoch), numbers, bank.proxies())
        told = time.perf_counter()
        for name, value in zip(seconds, (added, closed - started, drawn - closed, told - drawn), strict=True):
            seconds[name].append(round(value, 2))
    peak, started = peak_mb(), time.perf_counter()
    save_file(bank.arrays(), folder / "arrays.safetensors")
    return {
        "seconds": seconds,
        "before_mb": round(before),
        "bank_peak_mb": round(peak),
        "likeness": [round(value, 4) for value in likeness],
        "random": round(float(np.nanmean(chance)), 4),
        "checkpoint_seconds": round(time.perf_counter() - started, 1),
        "checkpoint_mb": round((folder / "arrays.safetensors").stat().st_size / 2**20),
    }


def table(options: Options, results: Results) -> str:
    """Return seconds of an epoch, memory, and how alike the rows of a batch are."""
    planned = plan(options, results)
    found = [(cell.settings, values) for cell in planned.cells if (values := results.values(NAME, cell)) is not None]
    body, alike = [], []
    for settings, values in found:
        parts = values["seconds"]
        epoch = [sum(times) for times in zip(*parts.values(), strict=True)]
        body.append(
            [
                str(settings["dim"]),
                *(f"{median(times):.1f}" for times in parts.values()),
                f"{median(epoch):.1f} [{min(epoch):.1f}, {max(epoch):.1f}]",
                str(values["bank_peak_mb"]),
                str(values["before_mb"]),
                f"{values['checkpoint_mb']} MB, {values['checkpoint_seconds']:.1f} s",
            ]
        )
        alike.append([str(settings["dim"]), *(f"{v:.3f}" for v in values["likeness"]), f"{values['random']:.3f}"])
    heads = ["dimensions", "adding, s", "closing, s", "drawing, s", "telling, s", "an epoch, s [range]"]
    heads += ["peak, MB", "before, MB", "a checkpoint more"]
    tenths = ["likeness by tenths of the drawing", *map(str, range(1, 11)), "random"]
    return tables.report(
        title="Global proxies at a million groups: the cost of an epoch",
        command="python -m benchmarks proxy_cost",
        tables=[tables.markdown(heads, body), tables.markdown(tenths, alike)] if body else [],
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in planned.cells),
        waiting=planned.waiting,
    )


EXPERIMENT = Experiment(
    name=NAME, module="benchmarks.proxy_cost", prepare=prepare, plan=plan, work=work, table=table, alone=True
)
