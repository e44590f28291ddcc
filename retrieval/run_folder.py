"""The folder of a training run: settings, metrics, environment, result, and the model's card."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from indexes.storage import check_target, remove_folder, write_json, write_lines, write_text
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.train_config import TrainConfig

_PACKAGES = ("rankwright", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "faiss-cpu")

# Settings that change no weight: a resumed run may have others.
_FREE = {"out", "logging_steps", "save_steps", "save_total_limit", "eval_full", "device"}


class RunFolder:
    """Where a run keeps what it was told and what it found.

    Files: `config.yaml` (resolved settings; `train --config` reloads them to the same run), `data.json` (hashes of
    what is trained on), `environment.json`, `metrics.jsonl`, `result.json` (only of a finished run), `checkpoints/`,
    `model/`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Make the folder ready, or return the result of a run that is already finished.

        Raises:
            InputError: the folder exists and neither `resume` nor `overwrite` is asked for, or the settings of the
                run to resume differ.

        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file; --out takes a folder", path=self.path)
        occupied = self.path.is_dir() and any(self.path.iterdir())
        known = (self.path / "config.yaml").is_file()
        if occupied and resume and known:
            self._check_settings(config)
            if (self.path / "result.json").is_file():
                found: dict[str, Any] = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
                return found
        elif occupied and overwrite and known:
            remove_folder(self.path)
        elif occupied:
            fix = (
                "use --resume or --overwrite, or another --out" if known else "it is no training run; use another --out"
            )
            raise InputError(f"exists already; {fix}", path=self.path)
        check_target(self.path / "config.yaml", overwrite=True)
        text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)
        write_json(self.path / "environment.json", environment())
        return None

    def _check_settings(self, config: TrainConfig) -> None:
        before = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        now = config.to_dict()
        for name in sorted((before.keys() | now.keys()) - _FREE):
            if before.get(name) != now.get(name):
                message = f"{name} was {before.get(name)!r} in the run to resume and is {now.get(name)!r} now"
                raise InputError(f"{message}; a resumed run needs the same settings", path=self.path)

    def check_data(self, data: str, weights: str) -> None:
        """Remember the hashes of data and start model; refuse to resume with others."""
        path, now = self.path / "data.json", {"data": data, "start_model": weights}
        if not path.is_file():
            write_json(path, now)
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in now.items():
            if before.get(name) != value:
                what = name.replace("_", " ")
                message = f"the {what} has changed since the run began ({before.get(name)} then, {value} now)"
                raise InputError(f"{message}; start again with --overwrite", path=self.path)

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Publish metrics.jsonl, one JSON object per line."""
        write_lines(self.path / "metrics.jsonl", (json.dumps(line) for line in lines))

    def write_result(self, **values: Any) -> None:
        """Publish result.json, which marks the run as finished."""
        write_json(self.path / "result.json", values)


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


def settings_hash(config: TrainConfig) -> str:
    """Return a short hash of the settings that decide the weights."""
    values = {name: value for name, value in config.to_dict().items() if name not in _FREE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def model_card(
    config: TrainConfig, encoder: Encoder, loss_settings: Mapping[str, Any], dev: Mapping[str, float]
) -> str:
    """Return the model's README.md: what it was trained on, how, what it reached on dev, and how to use it."""
    settings = ", ".join(f"{name}={value}" for name, value in loss_settings.items())
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in dev.items()) or "| not validated | |"
    data = ", ".join([config.data, *config.rows])
    return f"""---
tags: [sentence-transformers, sentence-similarity, feature-extraction, dense-retrieval]
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# A dual encoder trained with Rankwright

| | |
|---|---|
| start model | `{config.model}` |
| training data | `{data}`, split `{config.train_split}` |
| loss | `{config.loss}` ({settings}) |
| batch | {config.per_device_train_batch_size} queries × {config.gradient_accumulation_steps} |
| learning rate | {config.learning_rate:g}, warm-up {config.warmup_ratio:g} |
| epochs, or steps | {config.num_train_epochs:g} epochs, or {config.max_steps} steps when > 0 |
| seed | {config.seed} |
| lengths (query, document) | {encoder.query.max_length}, {encoder.document.max_length} tokens |
| prompts (query, document) | {encoder.query.prompt!r}, {encoder.document.prompt!r} |
| dimensions | {encoder.dim} |
| settings | {settings_hash(config)} |

Measured on the dev split, from which the model was chosen:

| | |
|---|---|
{rows}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode_query(["…"])
documents = model.encode_document(["title text"])
model.similarity(queries, documents)
```
"""
