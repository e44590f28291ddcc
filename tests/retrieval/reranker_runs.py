"""Small training runs of rerankers: settings that every test starts from, and what a run left."""

from pathlib import Path
from typing import Any

from tiny_files import read_jsonl
from training_runs import Crash


def settings(model: str | Path, data: Path, out: Path, /, **changes: Any) -> dict[str, Any]:
    """Six steps without validation on the tiny collection, five of them an epoch; `loss__scale` is `loss.scale`."""
    base = {
        "model": str(model),
        "data": str(data),
        "out": str(out),
        "per_device_train_batch_size": 8,
        "num_negatives": 4,
        "learning_rate": 2e-3,
        "max_steps": 6,
        "logging_steps": 2,
        "eval_strategy": "no",
        "batch_tokens": 400,
        "precision": "fp32",
        "device": "cpu",
    }
    return base | {name.replace("__", "."): value for name, value in changes.items()}


def lines(out: Path) -> list[dict]:
    """The metrics without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if not k.endswith("_per_second") and k != "seconds"}
        for line in read_jsonl(out / "metrics.jsonl")
    ]


def crash_in_step(monkeypatch, step: int, *, halfway: bool = False) -> None:
    """Let a run end in its `step`-th step (from 1), before any gradient or after that of half of its lists."""
    from retrieval import reranker_training

    backward, taken = reranker_training.backward, []

    def failing(reranker, loss, lists):
        taken.append(1)
        if len(taken) == step:
            if halfway:
                backward(reranker, loss, lists[: len(lists) // 2])
            raise Crash
        return backward(reranker, loss, lists)

    monkeypatch.setattr(reranker_training, "backward", failing)
