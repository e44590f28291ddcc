"""One optimizer step: its batches, tokenised ahead of their use, and the gradient of their common loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from retrieval.batches import Batch, Batcher, micro_batches
from retrieval.cells import CellTargets
from retrieval.encoder import Encoder, token_batches

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from rankers.engine import RowTargets, Views, Watch
    from rankers.losses import LossSum, RankingLoss


T = TypeVar("T")


class Embedder(Protocol):
    """What a step asks of an encoder."""

    @property
    def model(self) -> SentenceTransformer:
        """Whose device the texts go to."""
        ...

    @property
    def precision(self) -> str:
        """Of the transformer: fp32 or bf16."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass, padding included."""
        ...

    def forward(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return (n, dim) embeddings with their graph."""
        ...


Watching = Callable[[Batch], "Watch"]  # returns what watches the step of one batch


@dataclass(frozen=True, slots=True)
class TokenizedBatch:
    """One batch with its texts tokenised."""

    batch: Batch
    queries: list[list[int]]
    documents: list[list[int]]


def steps_per_epoch(batcher: Batcher, accumulation: int) -> int:
    """Return the optimizer steps of one epoch; the last one may hold fewer batches, and its last batch fewer rows."""
    return math.ceil(math.ceil(len(batcher.rows) / batcher.batch_size) / accumulation)


def steps_ahead(
    batcher: Batcher, encoder: Encoder, *, first: int, total: int, accumulation: int
) -> Generator[list[TokenizedBatch], None, None]:
    """Yield the batches of steps `first` … `total` - 1, each made and tokenised while the one before is computed."""
    return one_ahead(_steps(batcher, encoder, first, total, accumulation))


def one_ahead(steps: Iterator[T]) -> Generator[T, None, None]:
    """Yield what an iterator gives, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, steps, None)
        while (step := waiting.result()) is not None:
            waiting = pool.submit(next, steps, None)
            yield step


def _steps(
    batcher: Batcher, encoder: Encoder, first: int, total: int, accumulation: int
) -> Iterator[list[TokenizedBatch]]:
    in_epoch = steps_per_epoch(batcher, accumulation)
    for epoch in range(first // in_epoch, math.ceil(total / in_epoch)):
        for step, groups in enumerate(micro_batches(batcher, epoch, accumulation), start=epoch * in_epoch):
            if first <= step < total:
                yield [_tokenized(batcher.make(rows.tolist(), epoch), encoder) for rows in groups]


def _tokenized(batch: Batch, encoder: Encoder) -> TokenizedBatch:
    return TokenizedBatch(
        batch,
        encoder.tokenize(batch.queries, encoder.query),
        encoder.tokenize(batch.documents, encoder.document),
    )


def backward(
    encoder: Embedder,
    loss: RankingLoss | LossSum,
    batches: Sequence[TokenizedBatch],
    *,
    chunk_size: int | None = None,
    views: Views | None = None,
    keep_state: bool = True,
    watching: Watching | None = None,
) -> float:
    """Add the gradient of one step to the parameters and return the step's loss.

        loss = Σ_b count_b · loss_b / Σ_b count_b

    over the step's batches, where count is what the loss divides by (rows with a positive, or pairs), so that a short
    batch weighs what it holds. Each batch is a matrix of its own: its documents are no negatives of another's queries,
    and a statistic of the batch (bixse's bias="auto") is each batch's own. For a loss over rows this is the loss of one
    matrix of all rows, masked between the batches.

    Returns early, without the gradient of that batch, when a loss is not finite.

    Args:
        encoder: in training mode, or not: dropout is the model's.
        loss: a loss or a sum.
        batches: of the step.
        chunk_size: texts that are embedded with their graph at once, at most; the gradient is the same, the memory that
            of a chunk, the time that of one more forward pass. None: all texts of a batch.
        views: compare these columns of the embeddings instead of all.
        keep_state: let a loss with state go on from here.
        watching: returns what sees the embeddings and scores of a batch; those of the first view.

    """
    import torch

    device = encoder.model.device
    tallies = [_tally(loss, b.batch.targets, device) for b in batches]
    counts = torch.stack([loss.divisor(tally) for tally in tallies])
    weights = counts.double() / counts.sum(0).clamp_min(1)
    value = 0.0
    for tokens, tally, weight in zip(batches, tallies, weights, strict=True):
        rows = torch.from_numpy(tokens.batch.row_query).to(device)
        asked = torch.from_numpy(tokens.batch.query_numbers).to(device)[rows] if loss.keeps_state else None
        state = None if asked is None else loss.recall(asked)
        part = _Part(encoder, loss, tokens, rows, tally, weight, views, state, watching and watching(tokens.batch))
        found, new = _whole(part) if chunk_size is None else _chunked(part, chunk_size)
        value += found
        if not math.isfinite(value):
            break
        if keep_state and asked is not None and new is not None:
            loss.keep(asked, new)
    return value


State = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch of a step, with what is known of it before a text is embedded."""

    encoder: Embedder
    loss: RankingLoss | LossSum
    tokens: TokenizedBatch
    rows: torch.Tensor
    tally: Mapping[str, torch.Tensor]
    weight: torch.Tensor
    views: Views | None
    state: State | None
    watch: Watch | None

    @property
    def targets(self) -> BlockTargets:
        """Its labels and masks."""
        return BlockTargets(self.tokens.batch.targets, self.encoder.model.device, symmetric=self.loss.is_symmetric)


def _whole(part: _Part) -> tuple[float, State | None]:
    """Take the plain step: all texts with their graph, one matrix of scores."""
    import torch

    from rankers.engine import View

    encoder, loss, state, watch = part.encoder, part.loss, part.state, part.watch
    device, targets = encoder.model.device, part.targets
    with torch.autocast(device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
        queries = embed(encoder, part.tokens.queries)
        documents = embed(encoder, part.tokens.documents)
    if watch is not None:
        watch.embedded(queries.detach(), documents.detach())
    whole = targets.rows(0, len(targets))
    totals = loss.totals(part.tally)
    at_call = dict(whole.at_call) if state is None else {**whole.at_call, "state": state}
    new: State | None = None
    value = torch.zeros((), device=device)
    for view in part.views.parts if part.views else (View(0, queries.shape[1]),):
        # index_select and not [rows]: the gradient of the latter is summed in any order
        scores = view.of(queries).index_select(0, part.rows) @ view.of(documents).T
        weight = part.weight * view.weight
        share = loss.share(scores, whole.labels, whole.where, totals=totals, weight=weight, **at_call)
        if watch is not None:
            watch.scored(0, scores.detach(), whole)
            watch = None
        if state is not None:
            share, new = share
        value = value + share
    if math.isfinite(float(value.detach())):
        torch.autograd.backward(value)
    return float(value.detach()), new


def _chunked(part: _Part, chunk_size: int) -> tuple[float, State | None]:
    """Take the step of a large batch: texts in chunks, scores in blocks of rows."""
    from rankers.engine import cached_backward

    query_chunks, query_order = embedding_chunks(part.encoder, part.tokens.queries, chunk_size)
    document_chunks, document_order = embedding_chunks(part.encoder, part.tokens.documents, chunk_size)
    found = cached_backward(
        part.loss,
        query_chunks,
        document_chunks,
        part.targets,
        query_order=query_order,
        document_order=document_order,
        device=part.encoder.model.device,
        views=part.views,
        watch=part.watch,
        row_query=part.rows,
        tally=part.tally,
        weight=part.weight,
        state=part.state,
    )
    return found.loss, found.state


def embedding_chunks(
    encoder: Embedder, tokens: Sequence[Sequence[int]], chunk_size: int | None
) -> tuple[list[Callable[[], torch.Tensor]], torch.Tensor]:
    """Return what embeds each chunk of texts of similar length, and which texts they are."""
    import torch

    def forward(positions: Sequence[int]) -> torch.Tensor:
        with torch.autocast(encoder.model.device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
            return encoder.forward([tokens[position] for position in positions])

    groups = [
        positions[start : start + (chunk_size or len(positions))]
        for positions in token_batches([len(ids) for ids in tokens], encoder.batch_tokens)
        for start in range(0, len(positions), chunk_size or len(positions))
    ]
    return [partial(forward, group) for group in groups], torch.tensor([p for group in groups for p in group])


class BlockTargets:
    """A batch's targets as tensors, a block of rows at a time."""

    def __init__(self, targets: CellTargets, device: torch.device, *, symmetric: bool) -> None:
        self._targets, self._device, self._symmetric = targets, device, symmetric

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._targets)

    def rows(self, start: int, stop: int) -> RowTargets:
        """Return labels and masks of these rows."""
        import torch

        from rankers.engine import RowTargets

        labels, where = (torch.from_numpy(a).to(self._device) for a in self._targets.rows(start, stop))
        if not self._symmetric or not self._targets.repeats_queries:
            return RowTargets(labels, where)
        columns = torch.from_numpy(self._targets.where_columns(start, stop)).to(self._device)
        return RowTargets(labels, where, {"where_columns": columns})


def _tally(loss: RankingLoss | LossSum, targets: CellTargets, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the tally of a batch, from blocks of its rows."""
    from rankers.engine import BLOCK, sum_tallies

    step = max(1, BLOCK // max(1, targets.shape[1]))
    blocks = BlockTargets(targets, device, symmetric=False)
    parts = (blocks.rows(start, min(len(blocks), start + step)) for start in range(0, len(blocks), step))
    return sum_tallies(loss.tally(part.labels, part.where) for part in parts)


def embed(encoder: Embedder, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the (n, dim) embeddings with their graph, computed in batches of similar length, in the given order."""
    import torch

    order: list[int] = []
    parts: list[torch.Tensor] = []
    for positions in token_batches([len(ids) for ids in tokens], encoder.batch_tokens):
        order += positions
        parts.append(encoder.forward([tokens[position] for position in positions]))
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts).index_select(0, inverse.to(parts[0].device))
