"""Ours and sentence-transformers on the same texts in one process, turn by turn: encoding, training, and a profile.

Both have the same model, texts, lengths and batch of 32; training has the same recipe: AdamW (fused), linear warm-up
and decay, clipping at 1, in-batch negatives at temperature 0.05, dropout as the model says, no evaluation, no
checkpoint. What is timed of training is its loop alone, tokenising included.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.cells import Settings, Values, installed
from benchmarks.quality import MODEL
from indexes.storage import write_lines
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.fast_dropout import use_fast_dropout
from retrieval.models import resolve_model
from retrieval.training import train

OURS = "ours (auto)"
OURS_FP32 = "ours, fp32"
OURS_TORCH_DROPOUT = "ours, torch's dropout"
DEFAULT = "sentence-transformers"
BF16 = "sentence-transformers, bf16"
BF16_OUR_DROPOUT = "sentence-transformers, bf16, our dropout"


def encode(settings: Settings, collection: Collection) -> Values:
    """Time encoding in turns and return documents/s of every round, and how far the vectors are apart."""
    from sentence_transformers import SentenceTransformer

    texts = collection.corpus.texts(range(min(settings["documents"], len(collection.corpus))))
    length, batch = settings["length"], settings["batch"]

    def ours(precision: str) -> Callable[[], Any]:
        encoder = Encoder.load(MODEL, document_max_length=length, precision=precision)
        return lambda: encoder.encode_document(texts)

    def theirs(*, low: bool) -> Callable[[], Any]:
        model = SentenceTransformer(resolve_model(MODEL))
        model.max_seq_length = length
        model = model.bfloat16() if low else model
        return lambda: model.encode(texts, batch_size=batch, show_progress_bar=False)

    systems = {OURS: ours("auto"), DEFAULT: theirs(low=False), BF16: theirs(low=True), OURS_FP32: ours("fp32")}
    vectors = {name: np.asarray(run(), dtype=np.float32) for name, run in systems.items()}  # this also warms up
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(settings["rounds"]):
        for name, run in systems.items():
            started = time.perf_counter()
            run()
            rates[name].append(round(len(texts) / (time.perf_counter() - started), 2))
    reference = vectors[DEFAULT]
    cosines = {name: float(_cosines(found, reference).min()) for name, found in vectors.items()}
    return {"rates": rates, "lowest_cosine": {name: round(value, 6) for name, value in cosines.items()}}


def _cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def training(settings: Settings, collection: Collection, folder: Path) -> Values:
    """Time training in turns, each round from the same weights, and return pairs/s of every round."""
    rows = write_pairs(collection, folder / "rows.jsonl")
    systems: dict[str, Callable[[int], float]] = {
        OURS: lambda seed: _ours(settings, collection, folder, rows, seed),
        DEFAULT: lambda seed: _theirs(settings, collection, folder, seed, low=False),
        BF16: lambda seed: _theirs(settings, collection, folder, seed, low=True),
        OURS_TORCH_DROPOUT: lambda seed: _with_torch_dropout(lambda: _ours(settings, collection, folder, rows, seed)),
        BF16_OUR_DROPOUT: lambda seed: _theirs(settings, collection, folder, seed, low=True, our_dropout=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for seed in range(-1, settings["rounds"]):  # the first round warms up
        for name, run in systems.items():
            rate = run(max(seed, 0))
            if seed >= 0:
                rates[name].append(round(rate, 2))
    return {"rates": rates, "datasets": installed(("datasets",))}


def write_pairs(collection: Collection, path: Path) -> Path:
    """Write every document with title and text as a training row: the title asks for the text."""
    pairs = ((f"t{d.doc_id}", d.title, d.text) for d in collection.corpus if d.title and d.text)
    write_lines(path, (json.dumps({"query_id": q, "query": title, "positives": [text]}) for q, title, text in pairs))
    return path


def _recipe(settings: Settings, collection: Collection, folder: Path, rows: Path, seed: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "data": str(collection.path),
        "rows": [str(rows)],
        "out": str(folder / "run"),
        "loss": "infonce",
        "loss.temperature": 0.05,
        "learning_rate": 2e-5,
        "warmup_ratio": 0.1,
        "max_steps": settings["steps"],
        "per_device_train_batch_size": settings["batch"],
        "query_max_length": settings["length"],
        "document_max_length": settings["length"],
        "eval_strategy": "no",
        "logging_steps": settings["steps"],
        "save_steps": 1_000_000,
        "seed": seed,
    }


def _ours(settings: Settings, collection: Collection, folder: Path, rows: Path, seed: int) -> float:
    train(**_recipe(settings, collection, folder, rows, seed), overwrite=True)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["pairs_per_second"])


def _theirs(
    settings: Settings, collection: Collection, folder: Path, seed: int, *, low: bool, our_dropout: bool = False
) -> float:
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended = time.perf_counter()

    model = SentenceTransformer(resolve_model(MODEL))
    model.max_seq_length = settings["length"]
    documents = [d for d in collection.corpus if d.title and d.text]
    pairs = Dataset.from_dict({"anchor": [d.title for d in documents], "positive": [d.text for d in documents]})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "theirs"),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch"],
        learning_rate=2e-5,
        warmup_steps=-(-settings["steps"] // 10),
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=low,
        use_cpu=not torch.cuda.is_available(),  # without it bf16 is refused on a CPU
        seed=seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = Clock()
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss, callbacks=[clock])
    with use_fast_dropout(model) if our_dropout else nullcontext():
        trainer.train()
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    return float(settings["steps"] * settings["batch"] / (clock.ended - clock.started))


def _with_torch_dropout(run: Callable[[], float]) -> float:
    with torch_dropout():
        return run()


@contextmanager
def torch_dropout() -> Iterator[None]:
    """Let our training use torch's dropout."""
    from torch.nn.functional import dropout

    plain = patch("retrieval.attention.fast_dropout", dropout)
    layers = patch("retrieval.training.use_fast_dropout", lambda model: nullcontext())
    with plain, layers:
        yield


PHASES = ("tokenise", "forward", "loss", "backward", "clip", "optimizer")


def profile(settings: Settings, collection: Collection, folder: Path) -> Values:
    """Return the milliseconds of each part of our training step, for three kinds of dropout, taken in turns."""
    rows = write_pairs(collection, folder / "rows.jsonl")
    steps = {kind: _steps(kind, settings, collection, folder, rows) for kind in ("ours", "torch's", "none")}
    found: dict[str, list[list[float]]] = {kind: [] for kind in steps}
    for number in range(settings["steps"]):
        for kind, run in steps.items():
            spent = run(number)
            if number >= 2:  # the first ones warm up
                found[kind].append(spent)
    medians = {kind: np.median(spent, axis=0) for kind, spent in found.items()}
    return {
        "milliseconds": {k: dict(zip(PHASES, np.round(1e3 * m, 1).tolist(), strict=True)) for k, m in medians.items()}
    }


def _steps(
    dropout: str, settings: Settings, collection: Collection, folder: Path, rows_path: Path
) -> Callable[[int], list[float]]:
    """Return a function that takes one training step and returns the seconds of each phase."""
    import torch

    from retrieval.attention import set_attention
    from retrieval.batches import Batcher, LabelRule, collect_judgements
    from retrieval.optimizer import make_optimizer
    from retrieval.rows import read_rows
    from retrieval.steps import embed
    from retrieval.train_config import TrainConfig
    from retrieval.training import build_loss

    config = TrainConfig.from_dict(_recipe(settings, collection, folder, rows_path, 0))
    encoder = Encoder.load(MODEL, query_max_length=settings["length"], document_max_length=settings["length"])
    rows, _ = read_rows(rows_path, collection)
    judgements = collect_judgements(rows, {})
    batcher = Batcher(rows, collection.corpus, judgements, LabelRule(several=False), batch_size=settings["batch"])
    loss = build_loss(config)
    optimizer = make_optimizer(encoder.model, loss, config)
    parameters = list(encoder.model.parameters())
    for layer in encoder.model.modules():
        if isinstance(layer, torch.nn.Dropout) and dropout == "none":
            layer.p = 0.0
    encoder.model.train()
    set_attention(encoder.model, training=True)
    order = batcher.epoch(0)

    def step(number: int) -> list[float]:
        marks = [time.perf_counter()]
        batch = batcher.make(order[number % len(order)].tolist(), 0)
        tokens = [
            encoder.tokenize(batch.queries, encoder.query),
            encoder.tokenize(batch.documents, encoder.document),
        ]
        marks.append(time.perf_counter())
        with torch.autocast(encoder.model.device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
            queries, documents = (embed(encoder, side) for side in tokens)
        marks.append(time.perf_counter())
        device = queries.device
        scores = queries[torch.from_numpy(batch.row_query).to(device)] @ documents.T
        value = loss(scores, torch.from_numpy(batch.labels).to(device), torch.from_numpy(batch.where).to(device))
        marks.append(time.perf_counter())
        value.backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
        return np.diff(marks).tolist()

    kinds = {"ours": lambda: use_fast_dropout(encoder.model), "torch's": torch_dropout, "none": nullcontext}

    def with_dropout(number: int) -> list[float]:
        with kinds[dropout]():
            return step(number)

    return with_dropout
