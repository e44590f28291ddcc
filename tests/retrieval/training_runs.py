"""Small training runs: settings that every test starts from, and what a run left."""

from pathlib import Path
from typing import Any

from tiny_files import read_jsonl


def settings(model: str | Path, data: Path, out: Path, /, **changes: Any) -> dict[str, Any]:
    """Eight steps without validation on the tiny collection; `loss.` keys with two underscores: loss__temperature."""
    base = {
        "model": str(model),
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


def lines(out: Path) -> list[dict]:
    """The metrics without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if k not in ("pairs_per_second", "seconds", "pause_seconds")}
        for line in read_jsonl(out / "metrics.jsonl")
    ]


class Crash(BaseException):
    """A process that ends here."""


def crash_in_step(monkeypatch, step: int, *, halfway: bool = False, error: type[BaseException] = Crash) -> None:
    """Let a run end in its `step`-th step (from 1), before any gradient or between two batches of it."""
    from retrieval import objective

    backward, taken = objective.backward, []

    def failing(encoder, loss, batches, **how):
        taken.append(1)
        if len(taken) == step:
            if halfway:
                backward(encoder, loss, batches[:1], **how)
            raise error
        return backward(encoder, loss, batches, **how)

    monkeypatch.setattr(objective, "backward", failing)


def scripted(monkeypatch, scores: list[float]) -> list[int]:
    """Let validations give these scores in turn, the last one from then on."""
    from retrieval import training

    calls: list[int] = []

    def score(self, encoder, corpus):
        calls.append(1)
        return scores[min(len(calls), len(scores)) - 1]

    monkeypatch.setattr(training.DevSet, "score", score)
    return calls


EACH = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 8, "save_total_limit": 1, "save_steps": 100}
