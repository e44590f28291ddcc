"""The folder of a training run: settings, metrics, environment, result."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from indexes.storage import check_target, remove_folder, remove_stale, write_json, write_lines, write_text
from retrieval.errors import InputError
from retrieval.loop_config import LoopConfig
from retrieval.yamlfiles import dump_yaml, read_yaml

logger = logging.getLogger(__name__)

_PACKAGES = (
    "rankwright",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "faiss-cpu",
    "bm25s",
    "PyStemmer",
    "lightgbm",
)

# Settings that change no weight: a resumed run may have others.
_FREE = {"out", "logging_steps", "save_steps", "save_total_limit", "eval_full"}
# What a run writes, in the order in which --overwrite deletes it: half of it gone, the rest is still a run to resume.
_OURS = ("result.json", "model", "checkpoints", "metrics.jsonl", "bad_pairs.tsv", "stopped.json", "data.json")
_HEADER = "# A training run of Rankwright. To repeat it: rankwright {} --config THIS_FILE --out ANOTHER_FOLDER\n"


class RunFolder:
    """Where a run keeps what it was told and what it found.

    Files: `config.yaml` (resolved settings; `train --config` reloads them to the same run), `data.json` (hashes of
    what is trained on), `environment.json`, `metrics.jsonl`, `result.json` (only of a finished run), `stopped.json`
    (only of one that stopped by itself), `checkpoints/`, `model/`. A folder is known as a run by the first line of its
    `config.yaml`; no other one is ever deleted from.
    """

    def __init__(self, path: Path, verb: str = "train") -> None:
        self.path, self._header = path, _HEADER.format(verb)

    def check(self, config: LoopConfig, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Say whether the run may begin here, and return the result of one that is already finished.

        Raises:
            InputError: the folder exists and neither `resume` nor `overwrite` is asked for, it is no training run,
                or the settings of the run to resume differ.

        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file; --out takes a folder", path=self.path)
        if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            if not self._is_run():
                raise InputError("exists already and is no training run; use another --out", path=self.path)
            if resume:
                self._check_settings(config)
                if (self.path / "result.json").is_file():
                    return _finished(self.path / "result.json")
            elif overwrite:
                self._refuse_to_delete(config.reads)
            else:
                raise InputError("exists already; use --resume or --overwrite, or another --out", path=self.path)
        check_target(self.path / "config.yaml", overwrite=True)
        return None

    def begin(
        self, config: LoopConfig, fingerprints: Mapping[str, str], *, resume: bool, overwrite: bool
    ) -> dict[str, Any] | None:
        """Check again, now that nobody else can write here; then clear the folder and write what the run starts from.

        Args:
            config: the settings.
            fingerprints: hashes of what is trained on, by name; a run to resume must have had the same.
            resume: keep what is there.
            overwrite: delete an earlier run.

        Raises:
            InputError: as `check`, or data or start model have changed since the run to resume began.

        """
        finished = self.check(config, resume=resume, overwrite=overwrite)
        if finished is not None:
            return finished
        now = environment()
        if resume:
            self._check_fingerprints(fingerprints)
            self._warn_of_environment(now)
        else:
            for name in _OURS:
                _delete(self.path / name)
        _delete(self.path / "stopped.json")
        for folder in (self.path, self.path / "checkpoints"):
            remove_stale(folder)
        write_text(self.path / "config.yaml", self._header + dump_yaml(config.to_dict()))
        write_json(self.path / "environment.json", now)
        write_json(self.path / "data.json", fingerprints)
        return None

    def _is_run(self) -> bool:
        try:
            with (self.path / "config.yaml").open(encoding="utf-8") as file:
                return file.readline() == self._header
        except (OSError, ValueError):
            return False

    def _check_settings(self, config: LoopConfig) -> None:
        path = self.path / "config.yaml"
        before, now = read_yaml(path), config.to_dict()
        for name in sorted((before.keys() | now.keys()) - _FREE):
            if before.get(name) != now.get(name):
                message = f"{name} was {before.get(name)!r} in the run to resume and is {now.get(name)!r} now"
                raise InputError(f"{message}; a resumed run needs the same settings", path=path)

    def _refuse_to_delete(self, sources: Sequence[str]) -> None:
        out = self.path.resolve()
        for source in sources:
            start = Path(source).expanduser().resolve()
            if start == out or any(start.is_relative_to(out / name) for name in _OURS):
                raise InputError(f"{source} lies in --out, where --overwrite would delete it", path=self.path)

    def _check_fingerprints(self, now: Mapping[str, str]) -> None:
        path = self.path / "data.json"
        before = _read_json(path) if path.is_file() else {}
        for name, value in now.items():
            if before.get(name, value) != value:
                message = f"the {name} has changed since the run began ({before[name]} then, {value} now)"
                raise InputError(f"{message}; start again with --overwrite", path=path)

    def _warn_of_environment(self, now: Mapping[str, Any]) -> None:
        path = self.path / "environment.json"
        before = _flat(_read_json(path)) if path.is_file() else {}
        for name, value in _flat(now).items():
            if before.get(name, value) != value:
                message = (
                    "%s was %s when the run began and is %s now: the weights may differ from an uninterrupted run's"
                )
                logger.warning(message, name, before[name], value)

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Publish metrics.jsonl, one JSON object per line."""
        write_lines(self.path / "metrics.jsonl", (json.dumps(line, allow_nan=False) for line in lines))

    def cleared_model(self) -> Path:
        """Return where the model is to be published, after an older one there is gone."""
        _delete(self.path / "model")
        return self.path / "model"

    def write_result(self, **values: Any) -> None:
        """Publish result.json, which marks the run as finished."""
        write_json(self.path / "result.json", values)

    def write_stop(self, **values: Any) -> None:
        """Publish stopped.json: at which step training stopped by itself, and why."""
        write_json(self.path / "stopped.json", values)


def _delete(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def _finished(path: Path) -> dict[str, Any]:
    result = _read_json(path)
    if missing := {"steps", "best_step", "dev"} - result.keys():
        raise InputError(f"lacks {', '.join(sorted(missing))}; delete it and --resume makes it again", path=path)
    return result


def _read_json(path: Path) -> dict[str, Any]:
    """Read one of the run's own files."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"is damaged ({error}); delete it and --resume makes it again", path=path) from None
    return value if isinstance(value, dict) else {}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    packages: dict[str, Any] = values.get("packages", {})
    return {key: value for key, value in values.items() if not isinstance(value, dict)} | packages


def environment() -> dict[str, Any]:
    """Return what a run depends on besides its settings: versions, processor, threads."""
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def settings_hash(config: LoopConfig) -> str:
    """Return a short hash of the settings that decide the weights."""
    values = {name: value for name, value in config.to_dict().items() if name not in _FREE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
