"""Small training runs: settings that every test starts from, and what a run left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def settings(model: str, data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Eight steps without validation on the tiny collection; `loss.` keys with two underscores: loss__temperature."""
    base = {
        "model": model,
        "data": str(data),
        "out": str(out),
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "max_steps": 8,
        "logging_steps": 2,
        "eval_strategy": "no",
        "eval_pool_size": 40,
        "precision": "fp32",
        "device": "cpu",
    }
    return base | {name.replace("__", "."): value for name, value in changes.items()}


def flags(values: dict[str, Any]) -> list[str]:
    """The same settings as arguments of `rankwright train`."""
    found: list[str] = []
    for name, value in values.items():
        if "." in name:
            found += ["--set", f"{name}={value}"]
        elif isinstance(value, bool):
            found.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            for item in value if isinstance(value, list) else [value]:
                found += [f"--{name.replace('_', '-')}", str(item)]
    return found


def weights(out: Path) -> bytes:
    """The bytes of a run's published weights."""
    return (Path(out) / "model" / "model.safetensors").read_bytes()


def start(arguments: list[str], **more: Any) -> subprocess.Popen[str]:
    """Start `rankwright` in a process of its own, one thread, signals as in a terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    code = "import sys; from retrieval.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
