"""The two ways in which a comparison trains: a head over cached embeddings, or the whole encoder.

Import this module only where torch is installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from indexes.storage import remove_folder
from retrieval.batches import Batcher, LabelRule
from retrieval.bench_config import MEASURE, BenchConfig, Setting, build
from retrieval.bench_data import Part
from retrieval.bench_scores import Embedded, log_odds, mean_of, scale_of
from retrieval.collection import Collection
from retrieval.encoder import BLOCK, Encoder
from retrieval.errors import InputError
from retrieval.head_training import EmbeddedCollection, HeadBatch, head_batches, make_batcher, train_head
from retrieval.heads import Head, export_head, refuse_cut_models
from retrieval.steps import BlockTargets, steps_per_epoch
from retrieval.train_config import TrainConfig
from retrieval.training import train
from retrieval.training_data import TrainingData, load_training_data

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

_RUNG = 20  # batches whose own bias is averaged
_LEARNED_RATE = 1e-2  # of learned scales and biases: with heads the rate of the weights says nothing about theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained model at its best moment on dev.

    Attributes:
        dev: nDCG@10 of the dev queries over all documents.
        curve: (step, nDCG@10 on dev) during the run; of a whole encoder over a pool of documents.
        best_step, steps: of that moment, and of the run.
        embedded: query ids → their vectors and those of all documents.
        export: (folder, card) publishes the model as `folder/model`; None where the run's own folder holds it.
        log_odds: scale and bias with which its scores are log-odds, where the loss says so.
        scale: what the loss multiplies scores by.

    """

    dev: float
    curve: Sequence[tuple[int, float]]
    best_step: int
    steps: int
    embedded: Callable[[Sequence[str]], Embedded]
    export: Callable[[Path, str], None] | None
    log_odds: tuple[float, float] | None
    scale: float


def train_config(config: BenchConfig, part: Part, setting: Setting, seed: int, out: Path) -> TrainConfig:
    """Return the settings of one run."""
    return TrainConfig.from_dict(
        {
            "model": config.model,
            "data": str(part.folder),
            "out": str(out),
            "rows": list(config.rows),
            "loss": setting.loss,
            "loss_settings": dict(setting.loss_settings),
            "learning_rate": setting.learning_rate,
            "per_device_train_batch_size": config.per_device_train_batch_size,
            "num_train_epochs": config.num_train_epochs,
            "num_positives": config.num_positives,
            "num_negatives": config.num_negatives,
            "query_max_length": config.query_max_length,
            "document_max_length": config.document_max_length,
            "precision": config.precision,
            "device": config.device,
            "seed": seed,
        }
    )


class Mode(Protocol):
    """A way to train."""

    def train(self, part: Part, setting: Setting, seed: int, folder: Path) -> Trained:
        """Train once; `folder` is the run's own and need not be left behind."""
        ...

    def untrained(self, query_ids: Sequence[str]) -> Embedded:
        """Return the vectors of the start model."""
        ...


class Sources:
    """The data of every part, read once."""

    def __init__(self, config: BenchConfig) -> None:
        self.config = config
        self._data: dict[str, TrainingData] = {}

    def data(self, part: Part) -> TrainingData:
        """Return what a part is trained and tried on."""
        if part.name not in self._data:
            any_setting = self.config.grid(self.config.losses[0])[0]
            data = load_training_data(train_config(self.config, part, any_setting, 0, Path(self.config.out)))
            if not data.dev_queries:
                raise InputError(f"{self.config.data} has no dev query with a relevant document to choose by")
            self._data[part.name] = data
        return self._data[part.name]

    def batcher(self, part: Part, setting: Setting) -> Batcher:
        """Return what draws a run's batches, or say in one line why these data do not suit a loss."""
        own = train_config(self.config, part, setting, 0, Path(self.config.out))
        data = self.data(part)
        try:
            return make_batcher(data, data.label_rule(build(setting.loss, setting.loss_settings)), own)
        except InputError as error:
            raise InputError(f"{setting.loss} cannot be trained here: {error}") from None


class HeadMode:
    """Heads over embeddings that are computed once."""

    def __init__(self, config: BenchConfig, collection: Collection, encoder: Encoder, sources: Sources) -> None:
        refuse_cut_models(encoder)
        self.config, self.encoder, self.sources = config, encoder, sources
        self.cached = EmbeddedCollection(encoder, collection)
        self._batches: dict[tuple[str, LabelRule, int], list[list[HeadBatch]]] = {}

    def _batches_of(self, part: Part, rule: LabelRule, own: TrainConfig) -> list[list[HeadBatch]]:
        """Return the batches of a run; those of one part and seed are kept, since the other losses get the same."""
        key = (part.name, rule, own.seed)
        if key not in self._batches:
            if any(known[0] != part.name or known[2] != own.seed for known in self._batches):
                self._batches.clear()
            self._batches[key] = head_batches(self.cached, self.sources.data(part), rule, own)
        return self._batches[key]

    def head(self, seed: int = 0) -> Head:
        """Return a head that changes nothing yet."""
        c, unit = self.config, self.encoder.model.similarity_fn_name == "cosine"
        head = Head(self.encoder.dim, c.heads or "linear", sides=c.sides, hidden=c.hidden, unit=unit, seed=seed)  # type: ignore[arg-type]
        return head.to(self.encoder.model.device)

    def train(self, part: Part, setting: Setting, seed: int, folder: Path) -> Trained:
        """Train a head."""
        base = train_config(self.config, part, setting, seed, folder).to_dict()
        own = TrainConfig.from_dict(base | {"weight_decay": 0.0, "loss_learning_rate": _LEARNED_RATE})
        data, loss = self.sources.data(part), build(setting.loss, setting.loss_settings)
        batches = self._batches_of(part, data.label_rule(loss), own)
        run = train_head(
            self.head(seed),
            loss,
            self.cached,
            batches,
            own,
            lambda head: _dev_score(self.cached.embedded(list(data.dev_queries), head), data),
            evaluations=self.config.evaluations,
            max_grade=data.max_grade,
        )
        first = [BlockTargets(b.targets, self.encoder.model.device, symmetric=False) for b in batches[0][:_RUNG]]
        return Trained(
            dev=dict(run.curve)[run.best_step],
            curve=run.curve,
            best_step=run.best_step,
            steps=run.steps,
            embedded=lambda query_ids: self.cached.embedded(query_ids, run.head),
            export=lambda place, card: export_head(self.encoder, run.head, place, card=card),
            log_odds=log_odds(loss, first),
            scale=scale_of(loss),
        )

    def untrained(self, query_ids: Sequence[str]) -> Embedded:
        """Return the cached vectors."""
        return self.cached.embedded(query_ids, self.head())


class ModelMode:
    """The whole encoder, by the training loop of `rankwright train`."""

    def __init__(self, config: BenchConfig, collection: Collection, sources: Sources) -> None:
        self.config, self.collection, self.sources = config, collection, sources

    def train(self, part: Part, setting: Setting, seed: int, folder: Path) -> Trained:
        """Train a run folder, going on with what an interrupted bench left of it."""
        loss, batcher = build(setting.loss, setting.loss_settings), self.sources.batcher(part, setting)
        own = train_config(self.config, part, setting, seed, folder)
        total = max(1, math.ceil(own.num_train_epochs * steps_per_epoch(batcher, 1)))
        due = max(1, total // self.config.evaluations)
        own = TrainConfig.from_dict(
            own.to_dict() | {"eval_strategy": "steps", "eval_steps": due, "save_total_limit": 1}
        )
        result = train(own, resume=folder.exists())
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        pool = f"dev_pool_{MEASURE}"
        _recall(loss, metrics, result.best_step)
        epoch = [batcher.make(numbers.tolist(), 0) for numbers in batcher.epoch(0)[:_RUNG]]
        return Trained(
            dev=result.dev[f"best_full_{MEASURE}"],
            curve=[(line["step"], line[pool]) for line in metrics if pool in line],
            best_step=result.best_step,
            steps=result.steps,
            embedded=lambda query_ids: self._embedded(str(folder), query_ids),
            export=None,
            log_odds=log_odds(loss, [BlockTargets(b.targets, torch.device("cpu"), symmetric=False) for b in epoch]),
            scale=scale_of(loss),
        )

    def untrained(self, query_ids: Sequence[str]) -> Embedded:
        """Return the vectors of the start model."""
        return self._embedded(self.config.model, query_ids)

    def _embedded(self, model: str, query_ids: Sequence[str]) -> Embedded:
        c, corpus = self.config, self.collection.corpus
        encoder = Encoder.load(
            model,
            precision=c.precision,
            device=c.device,
            query_max_length=c.query_max_length,
            document_max_length=c.document_max_length,
        )
        starts = range(0, len(corpus), BLOCK)
        texts = (corpus.texts(range(start, min(start + BLOCK, len(corpus)))) for start in starts)
        documents = np.concatenate(list(encoder.encode_blocks(texts, encoder.document, total=len(corpus))))
        queries = encoder.encode_query([self.collection.query_texts[query_id] for query_id in query_ids])
        return Embedded(query_ids, queries, corpus.ids, documents)


def discard(folder: Path) -> None:
    """Delete a run that has been measured."""
    if folder.exists():
        remove_folder(folder)


def _dev_score(embedded: Embedded, data: TrainingData) -> float:
    return mean_of(embedded.measure(data.dev_qrels, [MEASURE], 10)[MEASURE])


def _recall(loss: RankingLoss | LossSum, metrics: Sequence[Mapping[str, Any]], step: int) -> None:
    """Give a loss the learned settings that a run's metrics show for a step, or for the last one before it."""
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            found = [line[f"loss.{name}"] for line in metrics if f"loss.{name}" in line and line["step"] <= step]
            if found:
                parameter.fill_(found[-1])
