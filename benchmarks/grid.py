"""Run a grid: the cells that are not finished, each in a process of its own, some of them side by side."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import cells
from benchmarks.cells import (
    PACKAGES,
    Cell,
    Experiment,
    Options,
    Results,
    code_hash,
    commit,
    installed,
    machine,
)
from indexes.storage import locked, write_json
from retrieval.peak_memory import peak_mb

# Of a cell's process, unless the user has said otherwise.
SURROUNDINGS = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "true"}


def run_grid(
    experiment: Experiment,
    options: Options,
    results: Results,
    *,
    deadline: float = float("inf"),
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> bool:
    """Run the cells that are not finished and return whether none failed.

    A cell that would probably end after `deadline` (of `time.monotonic`) is not begun; a cell that fails is told
    and left out, the others go on. With `jobs`, so many cells run side by side and share the cores.

    Raises:
        StorageError: another process runs this grid.

    """
    name = experiment.name
    folder = options.build / "benchmarks" / name
    jobs = 1 if experiment.alone else jobs
    failed: set[str] = set()
    running: list[_Running] = []
    spent = expected = 1e-9
    with locked(folder):
        results.data[name] = data = experiment.prepare(options)
        try:
            while True:
                plan = experiment.plan(options, results)
                missing = [c for c in plan.cells if c.key not in failed and results.find(name, c) is None]
                busy = {one.cell.key for one in running}
                todo = [cell for cell in missing if cell.key not in busy]
                pace = spent / expected if expected > 1 else 1.0
                left = f"{(sum(cell.seconds for cell in missing) + plan.later) * pace / jobs / 60:.0f} min"
                now = time.monotonic()
                cell = next((c for c in todo if now + c.seconds * pace <= deadline), None)
                if cell is not None and len(running) < jobs:
                    number = len(plan.cells) - len(missing) - len(failed) + len(running) + 1
                    place = f"{name} {number}/{len(plan.cells)}{'+' if plan.later else ''}"
                    say(f"{place}  {cell.label}  (about {left} left)")
                    running.append(_Running(experiment, cell, options, folder / cell.key, data, jobs, place))
                elif running:
                    done = _first_done(running)
                    running.remove(done)
                    record = done.record()
                    if record is None:
                        failed.add(done.cell.key)
                        say(f"{done.place}  FAILED; the error stands above")
                        continue
                    results.add(name, record)
                    spent, expected = spent + record["seconds"], expected + done.cell.seconds
                    say(f"{done.place}  {record['seconds']:.0f} s, {record['peak_mb']:.0f} MB")
                else:
                    if todo:
                        say(f"{name}: out of time; about {left} are left to do")
                    elif plan.waiting and not failed:
                        say(f"{name}: the other cells wait for {plan.waiting}")
                    return not failed
        finally:
            for one in running:
                one.stop()


class _Running:
    """A cell in a process of its own, with its share of the cores."""

    def __init__(
        self, experiment: Experiment, cell: Cell, options: Options, folder: Path, data: str, jobs: int, place: str
    ) -> None:
        self.cell, self.folder, self.place = cell, folder, place
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self._record = {
            "key": cell.key,
            "settings": cell.settings,
            "data": data,
            "code": code_hash(cell.sources),
            "commit": commit(),
            "versions": {"python": platform.python_version(), **installed(PACKAGES)},
            "machine": {**machine(), "threads": threads},
        }
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        paths = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
        specification = {
            "module": experiment.module,
            "settings": cell.settings,
            "options": paths,
            "folder": str(folder),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.grid import child; child()"],
            stdin=subprocess.PIPE,
            stdout=2,  # a library's chatter; standard output is for the tables
            cwd=cells.ROOT,
            env={**SURROUNDINGS, **os.environ, **(_share(threads) if jobs > 1 else {})},
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # a child that died at once is seen by its status
            self.process.stdin.write(json.dumps(specification).encode() + b"\n")
            self.process.stdin.flush()  # left open: when it closes, the child knows that its parent is gone

    def record(self) -> dict[str, Any] | None:
        """Return what the ended process measured, with all that decided it; None when it failed."""
        answer = self.folder / "answer.json"
        try:
            if self.process.returncode != 0 or not answer.is_file():
                return None
            measured = json.loads(answer.read_text(encoding="utf-8"))
            return {**self._record, **measured, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
        finally:
            self.stop()

    def stop(self) -> None:
        """End the process, if it has not ended, and leave nothing of it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _first_done(running: list[_Running]) -> _Running:
    while True:
        for one in running:
            if one.process.poll() is not None:
                return one
        time.sleep(0.05)


def _share(threads: int) -> dict[str, str]:
    """Return what keeps a process to its share of the cores."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}


def child() -> None:
    """Run the cell that stands on standard input, and write what it gave into its folder."""
    specification = json.loads(sys.stdin.buffer.raw.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    places = {k: v if isinstance(v, bool) else Path(v) for k, v in specification["options"].items()}
    experiment: Experiment = import_module(specification["module"]).EXPERIMENT
    folder = Path(specification["folder"])
    started = time.perf_counter()
    try:
        values = experiment.work(specification["settings"], Options(**places), folder)
    except KeyboardInterrupt:  # the parent has it too, and says so
        os._exit(130)
    seconds = round(time.perf_counter() - started, 1)
    write_json(folder / "answer.json", {"values": values, "seconds": seconds, "peak_mb": round(peak_mb())})


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
