"""Heads trained over embeddings that were computed once: a training run in seconds, with any loss.

Import this module only where torch is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankers.engine import gradients
from rankers.losses import LossSum, RankingLoss
from retrieval.batches import Batcher, LabelRule
from retrieval.bench_scores import Embedded
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.heads import Head
from retrieval.optimizer import learning_rate, make_optimizer
from retrieval.rows import TrainingRow
from retrieval.steps import BlockTargets
from retrieval.train_config import TrainConfig
from retrieval.training_data import TrainingData


class EmbeddedCollection:
    """All documents and queries of a collection as one encoder embeds them, kept in the user's store of embeddings.

    Attributes:
        collection: the collection.
        queries, documents: (n, dim) float32 tensors on the encoder's device.
        query_row: query id → row.

    """

    def __init__(self, encoder: Encoder, collection: Collection) -> None:
        self.collection = collection
        queries, store = collection.queries(), EmbeddingStore()
        fingerprint, texts = encoder.fingerprint(), list(queries.values())
        stored = store.embed(
            encoder, "query", list(queries), lambda some: [texts[i] for i in some], fingerprint=fingerprint
        )
        device = encoder.model.device
        self.queries = torch.from_numpy(stored.rows()).to(device)
        self.documents = torch.from_numpy(store.embed_corpus(encoder, collection.corpus, fingerprint).rows()).to(device)
        self.query_row = {query_id: row for row, query_id in enumerate(queries)}

    def embedded(self, query_ids: Sequence[str], head: Head) -> Embedded:
        """Return queries and documents as a head maps them."""
        with torch.no_grad():
            rows = torch.tensor([self.query_row[query_id] for query_id in query_ids], device=self.queries.device)
            queries, documents = head.queries(self.queries[rows]), head.documents(self.documents)
        return Embedded(query_ids, queries.cpu().numpy(), self.collection.corpus.ids, documents.cpu().numpy())

    def refuse_other_texts(self, rows: Sequence[TrainingRow]) -> None:
        """Refuse training rows that bring texts which are not the collection's: these were not embedded."""
        texts = self.collection.query_texts
        for row in rows:
            if row.positives or row.negatives or texts.get(row.query_id) != row.query:
                raise InputError(
                    f"the row of query {row.query_id!r} brings a text of its own; heads are trained over the "
                    "collection's texts, so give rows with ids of the collection, or leave --heads out"
                )


@dataclass(frozen=True, slots=True)
class HeadBatch:
    """A batch whose texts are rows of the cached embeddings."""

    queries: Tensor
    documents: Tensor
    row_query: Tensor
    query_numbers: Tensor
    targets: Any  # retrieval.cells.CellTargets


def head_batches(
    cached: EmbeddedCollection, data: TrainingData, rule: LabelRule, config: TrainConfig
) -> list[list[HeadBatch]]:
    """Return the batches of every epoch; they depend on the label rule and the seed, and not on the loss."""
    cached.refuse_other_texts(data.rows)
    batcher = make_batcher(data, rule, config)
    corpus = cached.collection.corpus
    device = cached.queries.device
    rows = sorted({corpus.row(d) for row in batcher.rows for d in (*row.positive_ids, *row.negative_ids)})
    row_of_text = dict(zip(corpus.texts(rows), rows, strict=True))

    def prepared(numbers: Sequence[int], epoch: int) -> HeadBatch:
        batch = batcher.make(numbers, epoch)
        return HeadBatch(
            queries=torch.tensor([cached.query_row[query_id] for query_id in batch.query_ids], device=device),
            documents=torch.tensor([row_of_text[text] for text in batch.documents], device=device),
            row_query=torch.from_numpy(batch.row_query).to(device),
            query_numbers=torch.from_numpy(batch.query_numbers).to(device),
            targets=batch.targets,
        )

    epochs = math.ceil(config.num_train_epochs)
    return [[prepared(numbers.tolist(), epoch) for numbers in batcher.epoch(epoch)] for epoch in range(epochs)]


def make_batcher(data: TrainingData, rule: LabelRule, config: TrainConfig) -> Batcher:
    """Return what draws the batches of a run."""
    return Batcher(
        data.rows,
        data.collection.corpus,
        data.judgements,
        rule,
        batch_size=config.per_device_train_batch_size,
        num_positives=config.num_positives,
        num_negatives=config.num_negatives,
        seed=config.seed,
    )


@dataclass(frozen=True, slots=True)
class HeadRun:
    """What training a head gave.

    Attributes:
        head: as it was when dev was best.
        curve: (step, value on dev) from step 0.
        best_step, steps: of it, and of the run.

    """

    head: Head
    curve: list[tuple[int, float]]
    best_step: int
    steps: int


class NotFiniteError(RuntimeError):
    """The loss of a batch, or a vector, is not finite; nothing can be learned from there on."""


def train_head(
    head: Head,
    loss: RankingLoss | LossSum,
    cached: EmbeddedCollection,
    batches: Sequence[Sequence[HeadBatch]],
    config: TrainConfig,
    score: Callable[[Head], float],
    *,
    evaluations: int,
    max_grade: float = 1.0,
) -> HeadRun:
    """Train a head in place and return it as it was when `score` was best.

    Args:
        head: changed in place; afterwards its weights are the best ones.
        loss: any loss or sum.
        cached: the embeddings.
        batches: of every epoch.
        config: learning rate, warm-up, epochs, clipping.
        score: measures the head on dev, larger is better.
        evaluations: how often it does, beside step 0: evenly over the run.
        max_grade: the highest grade of a training judgement, for sums of grades and probabilities.

    Raises:
        NotFiniteError: the loss of a batch is not finite.

    """
    with _one_thread(cached.queries.device):
        return _train(head, loss, cached, batches, config, score, evaluations, max_grade)


def _train(
    head: Head,
    loss: RankingLoss | LossSum,
    cached: EmbeddedCollection,
    batches: Sequence[Sequence[HeadBatch]],
    config: TrainConfig,
    score: Callable[[Head], float],
    evaluations: int,
    max_grade: float,
) -> HeadRun:
    device = cached.queries.device
    head.to(device)
    loss.to(device)
    if isinstance(loss, LossSum):
        loss.max_grade = max_grade
    loss.remember(1 + max(int(batch.query_numbers.max()) for epoch in batches for batch in epoch))
    per_epoch = len(batches[0])
    total = max(1, min(per_epoch * len(batches), math.ceil(config.num_train_epochs * per_epoch)))
    due = {math.ceil(total * (part + 1) / evaluations) for part in range(evaluations)}
    optimizer = make_optimizer(head, loss, config)
    parameters = [*head.parameters(), *loss.parameters()]
    curve = [(0, score(head))]
    best, kept, learned = 0, _copy(head), _copy(loss)
    for step in range(total):
        batch = batches[step // per_epoch][step % per_epoch]
        _add_gradient(head, loss, cached, batch, step + 1)
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        rate = learning_rate(step, total, config)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step + 1 in due:
            curve.append((step + 1, score(head)))
            if curve[-1][1] > max(value for _, value in curve[:-1]):
                best, kept, learned = step + 1, _copy(head), _copy(loss)
    head.load_state_dict(kept)
    loss.load_state_dict(learned)
    return HeadRun(head, curve, best, total)


def _add_gradient(
    head: Head, loss: RankingLoss | LossSum, cached: EmbeddedCollection, batch: HeadBatch, step: int
) -> None:
    """Add the gradient of one batch to the parameters of head and loss."""
    queries, documents = head.queries(cached.queries[batch.queries]), head.documents(cached.documents[batch.documents])
    asked = batch.query_numbers[batch.row_query]
    found = gradients(
        loss,
        queries.detach(),
        documents.detach(),
        BlockTargets(batch.targets, queries.device, symmetric=loss.is_symmetric),
        row_query=batch.row_query,
        state=loss.recall(asked),
    )
    if not math.isfinite(found.loss):
        raise NotFiniteError(f"the loss is {found.loss} at step {step}")
    if found.state is not None:
        loss.keep(asked, found.state)
    sides = [(queries, found.queries), (documents, found.documents)]
    with_graph = [(side, slope) for side, slope in sides if side.requires_grad]
    torch.autograd.backward([side for side, _ in with_graph], [slope for _, slope in with_graph])


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Compute on one thread of a CPU: products this small are not worth two, which on a busy machine wait by spinning.

    A trial on SciFact then took 1.3 s of processor time instead of 19.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _copy(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
