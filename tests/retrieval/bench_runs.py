"""Small comparisons of losses: settings that every test starts from, and what a comparison left."""

import json
from pathlib import Path
from typing import Any

from tiny_files import read_jsonl

from retrieval.bench_config import BenchConfig

CLOCK = ("seconds", "peak_mb")


def config(model: str | Path, data: str | Path, out: str | Path, /, **changes: Any) -> BenchConfig:
    """Two losses, two trials each, two seeds: a linear head on the query side, 6 steps a run."""
    base = {
        "model": str(model),
        "data": str(data),
        "out": str(out),
        "losses": ("infonce", "bixse"),
        "heads": "linear",
        "trials": 2,
        "seeds": 2,
        "learning_rates": (1e-2,),
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": 16,
        "evaluations": 2,
        "precision": "fp32",
        "device": "cpu",
    }
    return BenchConfig(**(base | changes))


def flags(values: BenchConfig) -> list[str]:
    """The same settings as arguments of `rankwright bench-losses`."""
    found = ["bench-losses"]
    for name, value in values.to_dict().items():
        if name == "loss_settings":
            found += [part for key, one in value.items() for part in ("--set", f"loss.{key}={one}")]
        elif value not in (None, []):
            found += [
                f"--{name.replace('_', '-')}",
                ",".join(map(str, value)) if isinstance(value, list) else str(value),
            ]
    return found


def records(out: str | Path, name: str = "trials.jsonl") -> list[dict]:
    """Records without what depends on the clock."""
    lines = read_jsonl(Path(out) / name)
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def untimed(path: Path) -> str:
    """A file of records as text, without what depends on the clock."""
    return "\n".join(json.dumps(record) for record in records(path.parent, path.name))
