"""The steps that a self-test compares: the textbook's, and the engine's in blocks, alone or with other processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from rankers.engine import RowTargets, View, Views, cached_backward
from rankers.losses import LossSum, RankingLoss, build_expression
from rankers.processes import Alone, Processes, TorchProcesses
from retrieval.attention import set_attention
from retrieval.encoder import Encoder, Side
from retrieval.fast_dropout import use_fast_dropout
from retrieval.steps import BlockTargets, TokenizedBatch, embedding_chunks


@dataclass(frozen=True, slots=True)
class Case:
    """A loss, a batch, and how it is cut; it travels to other processes, so it names the loss and does not hold it.

    Attributes:
        expression, settings: of the loss.
        tokens: the batch.
        chunk_size: texts embedded at once.
        block: scores of a block of rows.
        views: columns of the embeddings that are compared instead of all of them.
        max_grade: what makes a probability of a grade in a sum.
        queries: of all training data, for a loss that keeps a state of each.
        state: of the loss: learned settings, and what it keeps of the queries.

    """

    expression: str
    settings: Mapping[str, Any]
    tokens: TokenizedBatch
    chunk_size: int
    block: int
    views: Views | None = None
    max_grade: float = 1.0
    queries: int = 0
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def cut(cls, expression: str, settings: Mapping[str, Any], tokens: TokenizedBatch, **rest: Any) -> Case:
        """Cut a batch into three chunks of queries (or the user's, where they are smaller), and blocks of rows."""
        rows, documents = tokens.batch.targets.shape
        third = max(1, len(tokens.queries) // 3)
        chunk_size = min(third, rest.pop("chunk_size", None) or third)
        return cls(expression, settings, tokens, chunk_size, block=max(1, rows // 3) * documents, **rest)

    def loss(self, device: torch.device) -> RankingLoss | LossSum:
        """Build the loss in the state that it has."""
        loss = build_expression(self.expression, self.settings)
        if isinstance(loss, LossSum):
            loss.max_grade = self.max_grade
        loss.remember(self.queries)
        if self.state:
            loss.load_state_dict(dict(self.state))
        return loss.to(device)


@dataclass(frozen=True, slots=True)
class Step:
    """What a step gives: the loss, and the gradient of every parameter by name."""

    loss: float
    gradients: Mapping[str, Tensor]


def part_of_all(payload: bytes) -> list[tuple[float, dict[str, NDArray[np.float32]]]]:
    """Take this process's part of every case; return losses and gradients, summed over processes, on the first."""
    model, batch_tokens, cases = pickle.loads(payload)
    nothing = Side("", None)  # texts are token ids already
    encoder = Encoder(model, source="", query=nothing, document=nothing, batch_tokens=batch_tokens)
    set_attention(encoder.model, training=True)
    processes = TorchProcesses()
    found = []
    for case in cases:
        loss = case.loss(torch.device("cpu"))
        step = take_step(encoder, loss, lambda: in_blocks(encoder, loss, case, processes))  # noqa: B023  (called at once)
        summed = {name: processes.sum(gradient).numpy() for name, gradient in step.gradients.items()}
        found.append((step.loss, summed))
    return found if dist.get_rank() == 0 else []


def textbook(encoder: Encoder, loss: RankingLoss | LossSum, case: Case) -> float:
    """Embed all texts with their graph, in the chunks of the other ways; score all; one backward pass."""
    batch, device = case.tokens.batch, encoder.model.device
    sides = []
    for tokens in (case.tokens.queries, case.tokens.documents):
        chunks, order = embedding_chunks(encoder, tokens, case.chunk_size)
        joined = torch.cat([chunk() for chunk in chunks])
        sides.append(joined[torch.argsort(order.to(joined.device))])
    part = BlockTargets(batch.targets, device, symmetric=loss.is_symmetric).rows(0, len(batch.targets))
    rows = torch.from_numpy(batch.row_query).to(device)
    numbers = torch.from_numpy(batch.query_numbers).to(device)
    state, at_call = loss.recall(numbers[rows]), dict[str, Any](part.at_call)
    total = torch.zeros((), device=device)
    for view in case.views.parts if case.views else (View(0, encoder.dim),):
        queries, documents = (view.of(side) for side in sides)
        scores = queries[rows] @ documents.T
        if state is None:
            value = loss(scores, part.labels, part.where, **at_call)
        else:
            totals = loss.totals(loss.tally(part.labels, part.where))
            value, _ = loss.share(scores, part.labels, part.where, totals=totals, state=state, **at_call)
        total = total + view.weight * value
    torch.autograd.backward(total)
    return float(total.detach())


def in_blocks(encoder: Encoder, loss: RankingLoss | LossSum, case: Case, processes: Processes | None = None) -> float:
    """Take the engine's step in small blocks of rows, of the whole batch or of this process's part of it."""
    batch, device = case.tokens.batch, encoder.model.device
    processes = processes or Alone()
    rank = dist.get_rank() if processes.count > 1 else 0
    queries, documents = (
        np.array_split(np.arange(len(texts)), processes.count)[rank]
        for texts in (case.tokens.queries, case.tokens.documents)
    )
    # rows come in the order of their queries, so that a process's rows are a slice
    first, stop = np.searchsorted(batch.row_query, [queries[0], queries[-1] + 1]).tolist()
    row_query = batch.row_query[first:stop]
    query_chunks, query_order = embedding_chunks(encoder, [case.tokens.queries[i] for i in queries], case.chunk_size)
    document_chunks, document_order = embedding_chunks(
        encoder, [case.tokens.documents[i] for i in documents], case.chunk_size
    )
    found = cached_backward(
        loss,
        query_chunks,
        document_chunks,
        _Slice(BlockTargets(batch.targets, device, symmetric=loss.is_symmetric), first, stop),
        query_order=query_order,
        document_order=document_order,
        device=device,
        views=case.views,
        row_query=torch.from_numpy(row_query - queries[0]).to(device),
        block=case.block,
        state=loss.recall(torch.from_numpy(batch.query_numbers[row_query]).to(device)),
        processes=processes,
    )
    return found.loss


@dataclass(frozen=True, slots=True)
class _Slice:
    """The targets of some rows of a batch."""

    targets: BlockTargets
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def rows(self, start: int, stop: int) -> RowTargets:
        """Return labels and masks of these rows."""
        return self.targets.rows(self.first + start, self.first + stop)


def take_step(
    encoder: Encoder, loss: RankingLoss | LossSum, way: Callable[[], float], *, dropout: bool = False
) -> Step:
    """Take a step one way and return what it gives; no gradient is left behind."""
    model = encoder.model
    named = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    named |= {f"loss.{name}": p for name, p in loss.named_parameters()}
    for parameter in named.values():
        parameter.grad = None
    with _training(encoder, dropout=dropout):
        value = way()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = None
    return Step(value, {name: gradient.detach().cpu() for name, gradient in found.items()})


@contextmanager
def _training(encoder: Encoder, *, dropout: bool) -> Iterator[None]:
    """Let the model be as in training, with its dropout or without; left for search."""
    encoder.model.train(dropout)
    try:
        with use_fast_dropout(encoder.model):
            yield
    finally:
        encoder.model.eval()
