"""Memory and time of one loss and its gradients over embeddings, for batches of 1,024 to 65,536.

    ours                    `rankers.engine.gradients` with the targets that `train` gives it, in blocks of rows
    naive                   plain torch: one matrix of scores, through autograd (`whole_matrix.py`); MW: all pairs
    sentence-transformers   its cached InfoNCE, mini-batches of 256, over a model that returns given embeddings

d = 384, one relevant document per query, float32. Each measurement of memory is a process of its own: the peak while
the loss runs, above what the process holds with the embeddings alive. Ratios of time are ours / naive of one round,
the two in turns (A B A B …).

About 60 minutes on two cores; run it while nothing else runs.
"""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from retrieval.peak_memory import forget_peak, peak_mb

NAME = "large_batches"
SOURCES = (
    "benchmarks/large_batches.py",
    "benchmarks/whole_matrix.py",
    "rankers/engine.py",
    "rankers/losses/*.py",
    "retrieval/cells.py",
    "retrieval/peak_memory.py",
    "retrieval/steps.py",
)
OURS, NAIVE, THEIRS = "ours", "naive", "sentence-transformers"
SIZES = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
TINY_SIZES = (16, 48)
ONE_PASS = ("infonce", "decoupled_softmax", "bixse", "sl_at_k")
TWO_PASSES = ("infonce, symmetric", "mw")
LARGEST = {"infonce, symmetric": 16_384}  # it is here for its second pass; the others show the growth
EXACT_MW = 512  # MW of all pairs, up to this batch
LIMIT_GIB = 12.0
# Matrices of scores that the naive loss holds at its peak, backward included.
MATRICES = {"infonce": 3.2, "infonce, symmetric": 5.2, "decoupled_softmax": 4.5, "bixse": 4.2, "sl_at_k": 3.2}
SECONDS = {"infonce, symmetric": 4.0, "mw": 8.0}  # of ours at B = 8,192, on two cores; the others 2.2
LONG = 60.0  # seconds from which one run is enough
AIMS_MIB = {8_192: 120, 65_536: 2_048}
AIMS_RATIO = {**dict.fromkeys(ONE_PASS, 1.1), **dict.fromkeys(TWO_PASSES, 1.5)}
NOTES = (
    "Loss and gradients of the embeddings, d = 384, float32, one relevant document per query; no model. Memory is the "
    "peak above what the process holds with the embeddings alive, the gradients included (2 · B · d · 4 bytes).",
    "naive: the formula in plain torch on one matrix, without masks, labels or checks; MW of all pairs, B³ of them, up "
    "to a batch of 512. sentence-transformers: its cached InfoNCE, mini-batches of 256 (its default of 32 is slower), "
    "both of its passes over the embeddings included.",
    "Seconds are the median of 3 runs, of 1 where a run takes over a minute; ratios the median and range of rounds.",
)


def prepare(options: Options) -> str:
    """Return what stands for the hash of the data: embeddings are drawn by the seed."""
    return "drawn"


def plan(options: Options, results: Results) -> Plan:
    """Name the cells: memory of each loss, system and size, and time in turns where the naive loss fits."""
    cells = []
    for loss in (*ONE_PASS, *TWO_PASSES):
        for size in sizes(loss, options):
            for system in systems(loss):
                if size <= LARGEST.get(loss, size) and fits(loss, system, size):
                    cells.append(_cell("memory", loss, system, size, options))
            if fits(loss, NAIVE, size) and size <= LARGEST.get(loss, size):
                cells.append(_cell("turns", loss, None, size, options))
    return Plan(sorted(cells, key=lambda cell: int(cell.settings["size"])))  # a short budget gets the small ones of all


def sizes(loss: str, options: Options) -> Sequence[int]:
    """Return the batches of a loss."""
    if options.tiny:
        return TINY_SIZES
    return (EXACT_MW, *SIZES) if loss == "mw" else SIZES


def systems(loss: str) -> tuple[str, ...]:
    """Return who computes a loss."""
    return (OURS, NAIVE, THEIRS) if loss == "infonce" else (OURS, NAIVE)


def fits(loss: str, system: str, size: int) -> bool:
    """Whether a system runs here: the naive one within 12 GiB, and MW of all pairs up to 512."""
    return system != NAIVE or (size <= EXACT_MW if loss == "mw" else naive_gib(loss, size) <= LIMIT_GIB)


def naive_gib(loss: str, size: int) -> float:
    """Return the memory that the naive loss would take."""
    return MATRICES[loss] * 4 * size**2 / 2**30


def _cell(stage: str, loss: str, system: str | None, size: int, options: Options) -> Cell:
    settings: dict[str, Any] = {"stage": stage, "data": "drawn", "method": loss, "size": size, "seed": 0}
    settings |= {"dim": 8 if options.tiny else 384}
    once = SECONDS.get(loss, 2.2) * (size / 8_192) ** 2
    if stage == "turns":
        settings["rounds"] = 2 if options.tiny else 5 if size <= 8_192 else 3
        return Cell(settings=settings, seconds=6 + 2 * settings["rounds"] * once, sources=SOURCES)
    runs = 1 if once > LONG else 3
    seconds = 6 + runs * once
    return Cell(settings={**settings, "system": system, "runs": 3}, seconds=seconds, sources=SOURCES)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Measure memory and seconds of one system, or the seconds of two in turns."""
    loss, size = settings["method"], settings["size"]
    if settings["stage"] == "turns":
        inputs = embeddings(size, settings["dim"], settings["seed"])
        ours, naive = runner(loss, OURS), runner(loss, NAIVE)
        values = ours(*inputs)[0], naive(*inputs)[0]  # this also warms up
        rounds = [[_seconds(ours, inputs), _seconds(naive, inputs)] for _ in range(settings["rounds"])]
        return {"seconds": rounds, "loss": values}
    run = runner(loss, settings["system"])
    run(*embeddings(min(256, size), settings["dim"], settings["seed"]))  # libraries and threads are no memory of a loss
    inputs = embeddings(size, settings["dim"], settings["seed"])
    added, seconds = added_peak(lambda: _seconds(run, inputs))
    spent = [seconds]
    while len(spent) < settings["runs"] and seconds <= LONG:
        spent.append(_seconds(run, inputs))
    return {"mib": added, "seconds": spent}


def embeddings(size: int, dim: int, seed: int) -> tuple[Any, Any]:
    """Return queries and documents: unit vectors, each query nearer to its own document than to others."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    queries, noise = torch.randn(size, dim, generator=generator), torch.randn(size, dim, generator=generator)
    unit = torch.nn.functional.normalize
    return unit(queries, dim=1), unit(queries + 2 * noise, dim=1)


def runner(loss: str, system: str) -> Callable[[Any, Any], tuple[Any, ...]]:
    """Return what computes the loss and its gradients from queries and documents."""
    from benchmarks import whole_matrix

    if system == THEIRS:
        return whole_matrix.cached_infonce()
    if system == NAIVE:
        return lambda queries, documents: whole_matrix.gradients(loss, queries, documents)
    from rankers.engine import gradients
    from rankers.losses import build

    name, _, symmetric = loss.partition(", ")
    built = build(name, **({"symmetric": True} if symmetric else {}))

    def run(queries: Any, documents: Any) -> tuple[Any, ...]:
        found = gradients(built, queries, documents, targets(len(queries), symmetric=bool(symmetric)))
        return found.loss, found.queries, found.documents

    return run


def targets(size: int, *, symmetric: bool) -> Any:
    """Return the targets that a trainer gives the engine: row i's relevant document is i."""
    import numpy as np
    import torch

    from retrieval.cells import Cells, CellTargets
    from retrieval.steps import BlockTargets

    rows, none = np.arange(size), np.zeros(0, dtype=np.int64)
    ones = np.ones(size, dtype=np.float32)
    cells = CellTargets((size, size), Cells(rows, rows), ones, Cells(none, none), rows)
    return BlockTargets(cells, torch.device("cpu"), symmetric=symmetric)


def _seconds(run: Callable[..., Any], inputs: tuple[Any, Any]) -> float:
    started = time.perf_counter()
    run(*inputs)
    return round(time.perf_counter() - started, 4)


def added_peak(run: Callable[[], float]) -> tuple[float, float]:
    """Return the MiB that `run` adds at its peak to what the process holds, and what it returns.

    Raises:
        RuntimeError: the system does not tell, or will not forget an earlier and higher peak.

    """
    gc.collect()
    forget_peak()
    before, earlier = _resident_mb(), peak_mb()
    answer = run()
    peak = peak_mb()
    if peak <= earlier and earlier > before + 1:
        raise RuntimeError(f"an earlier peak of {earlier:.0f} MiB hides that of the loss; /proc/self/clear_refs failed")
    return round(max(0.0, peak - before), 1), answer


def _resident_mb() -> float:
    """Return the MiB that this process holds now."""
    path = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", path.read_text(encoding="ascii")) if path.exists() else None
    if found is None:
        raise RuntimeError("there is no /proc/self/status here; this benchmark measures memory on Linux")
    return int(found[1]) / 1024


def table(options: Options, results: Results) -> str:
    """Return memory, seconds and ratios by size, and the aims."""
    cells = plan(options, results).cells
    found = [(cell.settings, values) for cell in cells if (values := results.values(NAME, cell)) is not None]
    memory = {(s["method"], s["system"], s["size"]): v for s, v in found if s["stage"] == "memory"}
    turns = {(s["method"], s["size"]): v["seconds"] for s, v in found if s["stage"] == "turns"}
    shown = []
    if memory:
        mib = {key: f"{v['mib']:,.0f}" for key, v in memory.items()}
        seconds = {key: f"{statistics.median(v['seconds']):.3g}" for key, v in memory.items()}
        shown += [_by_size("MiB over the embeddings", mib, options), _by_size("seconds", seconds, options)]
    if turns:
        shown.append(_ratios(turns, options))
    if found:
        shown.append(_aims({key: v["mib"] for key, v in memory.items()}, turns))
    return tables.report(
        title="Large batches: memory and time of a loss and its gradients",
        command="python -m benchmarks large_batches",
        tables=shown,
        notes=NOTES,
        missing=len(cells) - len(found),
    )


def _by_size(head: str, values: dict[tuple[str, str, int], str], options: Options) -> str:
    columns = TINY_SIZES if options.tiny else (EXACT_MW, *SIZES)
    body = []
    for loss in (*ONE_PASS, *TWO_PASSES):
        for system in systems(loss):
            row = []
            for size in columns:
                known = values.get((loss, system, size), tables.NOTHING)
                is_asked = size in sizes(loss, options) and size <= LARGEST.get(loss, size)
                if is_asked and not fits(loss, system, size):
                    known = f"B³: {size**2 * (size - 1):.0e} pairs" if loss == "mw" else _too_much(loss, size)
                row.append(known)
            body.append([f"{loss}: {system}", *row])
    return tables.markdown([head, *(f"B = {size:,}" for size in columns)], body)


def _too_much(loss: str, size: int) -> str:
    return f"not run: about {naive_gib(loss, size):.0f} GiB"


def _ratios(turns: dict[tuple[str, int], list[list[float]]], options: Options) -> str:
    columns = TINY_SIZES if options.tiny else (EXACT_MW, *SIZES)
    body = [
        [
            f"{loss} (aim: ≤ {AIMS_RATIO[loss]:g}×)",
            *(_ratio(turns[loss, size]) if (loss, size) in turns else tables.NOTHING for size in columns),
        ]
        for loss in AIMS_RATIO
    ]
    return tables.markdown(["time, ours / naive", *(f"B = {size:,}" for size in columns)], body)


def _ratio(rounds: list[list[float]]) -> str:
    ratios = sorted(ours / naive for ours, naive in rounds)
    return f"{statistics.median(ratios):.2f}× [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


def _aims(mib: dict[tuple[str, str, int], float], turns: dict[tuple[str, int], list[list[float]]]) -> str:
    """Return each aim beside the worst that was measured of it."""
    body = []
    for size, aim in AIMS_MIB.items():
        ours = {loss: value for (loss, system, n), value in mib.items() if system == OURS and n == size}
        if ours:
            worst = max(ours, key=ours.__getitem__)
            body.append([f"B = {size:,}: ≤ {aim:,} MiB", f"{ours[worst]:,.0f} MiB ({worst})", _met(ours[worst], aim)])
    grown = {loss: mib[loss, OURS, 65_536] / mib[loss, OURS, 8_192] for loss in AIMS_RATIO if _has_both(mib, loss)}
    if grown:
        worst = max(grown, key=grown.__getitem__)
        body.append(["8 × the batch: ≤ 8 × the memory", f"{grown[worst]:.1f}× ({worst})", _met(grown[worst], 8)])
    for losses, aim in ((ONE_PASS, 1.1), (TWO_PASSES, 1.5)):
        medians = {
            (loss, size): statistics.median(ours / naive for ours, naive in rounds)
            for (loss, size), rounds in turns.items()
            if loss in losses
        }
        if medians:
            worst_at = max(medians, key=medians.__getitem__)
            kind = "one pass" if losses is ONE_PASS else "two passes"
            place = f"{worst_at[0]}, B = {worst_at[1]:,}"
            met = _met(medians[worst_at], aim)
            body.append([f"{kind}: ≤ {aim:g} × the time of naive", f"{medians[worst_at]:.2f}× ({place})", met])
    return tables.markdown(["aim", "worst measured", "met"], body) if body else ""


def _has_both(mib: dict[tuple[str, str, int], float], loss: str) -> bool:
    return all((loss, OURS, size) in mib for size in (8_192, 65_536))


def _met(value: float, aim: float) -> str:
    return "yes" if value <= aim else "**no**"


EXPERIMENT = Experiment(
    name=NAME, module="benchmarks.large_batches", prepare=prepare, plan=plan, work=work, table=table, alone=True
)
