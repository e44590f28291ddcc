"""How long a comparison of losses will take, from counts alone: what --dry-run tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retrieval.bench_config import BenchConfig
from retrieval.collection import Collection

# On two cores with bf16, MiniLM-L6 at 128 tokens; what benchmarks/README.md measured.
DOCUMENTS_PER_SECOND, PAIRS_PER_SECOND, TOKENS = 235.0, 22.0, 128
DIMENSIONS = 384
FLOPS = 2e10  # of small matrix products there
STEP = 3e-3  # seconds of a step that go to anything but these


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts and expected seconds.

    Attributes:
        documents, training, dev: how many there are; dev and training as a carved split would have them.
        trials, tests: runs of both stages.
        steps: of one run.
        seconds: of everything.

    """

    documents: int
    training: int
    dev: int
    trials: int
    tests: int
    steps: int
    seconds: float


def cost(config: BenchConfig, collection: Collection) -> Cost:
    """Count, and estimate the seconds; judgements of test are read for folds alone, which are made of them."""
    documents = len(collection.corpus)
    if config.folds:
        rest = len(collection.qrels(config.test_split)) * (config.folds - 1) / config.folds
        training, dev = 0.8 * rest, 0.2 * rest
    elif config.train_split in collection.splits:
        training, dev = float(len(collection.qrels(config.train_split))), 0.0
        if config.dev_split in collection.splits:
            dev = len(collection.qrels(config.dev_split))
        else:
            training, dev = 0.8 * training, 0.2 * training
    else:  # rows alone: as many as their lines
        training = sum(_lines(path) for path in config.rows)
        dev = len(collection.qrels(config.dev_split))
    parts = max(1, config.folds)
    trials, tests = len(config.losses) * config.trials * parts, (len(config.losses) * config.seeds + 1) * parts
    steps = math.ceil(config.num_train_epochs * math.ceil(training / config.per_device_train_batch_size))
    encoding = documents / DOCUMENTS_PER_SECOND * (config.document_max_length or 2 * TOKENS) / TOKENS
    if config.heads is None:
        run = (
            config.num_train_epochs * training / PAIRS_PER_SECOND * (config.document_max_length or 2 * TOKENS) / TOKENS
        )
        pool = min(1.0, 3_000 / max(1, documents))
        run += encoding * (1 + pool * config.evaluations)
        seconds = run * trials + (run + encoding) * tests
    else:
        seconds = encoding + _head_seconds(config, steps, documents, dev) * (trials + tests)
    return Cost(documents, round(training), round(dev), trials, tests, steps, seconds)


def _head_seconds(config: BenchConfig, steps: int, documents: int, dev: float) -> float:
    """Return the seconds of one head: products forward and backward, and a ranking of all documents for each look."""
    batch = config.per_device_train_batch_size
    columns = batch * (config.num_positives + config.num_negatives)
    mapped = batch + (columns if config.sides == "both" else 0)
    step = 6 * DIMENSIONS * (mapped * DIMENSIONS + batch * columns)
    look = 2 * DIMENSIONS * dev * documents + (2 * DIMENSIONS**2 * documents if config.sides == "both" else 0)
    return steps * (STEP + step / FLOPS) + (1 + config.evaluations) * (0.1 + look / FLOPS)


def _lines(path: str) -> int:
    from pathlib import Path

    from retrieval.textfiles import open_bytes

    with open_bytes(Path(path)) as file:
        return sum(1 for _ in file)
