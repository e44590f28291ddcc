"""One optimizer step: its batches, tokenised ahead of their use, and the gradient of their common loss."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval.batches import Batch, Batcher, micro_batches
from retrieval.encoder import Encoder, token_batches

if TYPE_CHECKING:
    import torch

    from rankers.losses import RankingLoss


@dataclass(frozen=True, slots=True)
class TokenizedBatch:
    """One batch with its texts tokenised."""

    batch: Batch
    queries: list[list[int]]
    documents: list[list[int]]


def steps_per_epoch(batcher: Batcher, accumulation: int) -> int:
    """Return the optimizer steps of one epoch; the last one may hold fewer batches, and its last batch fewer rows."""
    return math.ceil(len(batcher.epoch(0)) / accumulation)


def steps_ahead(
    batcher: Batcher, encoder: Encoder, *, first: int, total: int, accumulation: int
) -> Generator[list[TokenizedBatch], None, None]:
    """Yield the batches of steps `first` … `total` - 1, each made and tokenised while the one before is computed."""
    steps = _steps(batcher, encoder, first, total, accumulation)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, steps, None)
        while (batches := waiting.result()) is not None:
            waiting = pool.submit(next, steps, None)
            yield batches


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


def backward(encoder: Encoder, loss: RankingLoss, batches: Sequence[TokenizedBatch]) -> float:
    """Add the gradient of one step to the parameters and return the step's loss.

        loss = Σ_b count_b · loss_b / Σ_b count_b

    over the step's batches, where count is what the loss divides by (rows with a positive, or pairs), so that a short
    batch weighs what it holds. Each batch is a matrix of its own: its documents are no negatives of another's queries,
    and a statistic of the batch (bixse's bias="auto") is each batch's own. For a loss over rows this is the loss of one
    matrix of all rows, masked between the batches.

    Returns early, without the gradient of that batch, when a loss is not finite.
    """
    import torch

    device = encoder.model.device
    targets = [tuple(torch.from_numpy(a).to(device) for a in (b.batch.labels, b.batch.where)) for b in batches]
    counts = [int(loss.count(labels, where)) for labels, where in targets]
    value = 0.0
    for tokens, (labels, where), count in zip(batches, targets, counts, strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
            queries = embed(encoder, tokens.queries)
            documents = embed(encoder, tokens.documents)
        # index_select and not [rows]: the gradient of the latter is summed in any order
        rows = torch.from_numpy(tokens.batch.row_query).to(device)
        scores = queries.index_select(0, rows) @ documents.T
        at_call = {}
        if loss.settings.get("symmetric"):
            at_call["where_columns"] = torch.from_numpy(tokens.batch.where_columns).to(device)
        share = loss(scores, labels, where, **at_call) * (count / max(1, sum(counts)))
        value += float(share.detach())
        if not math.isfinite(value):
            break
        share.backward()
    return value


def embed(encoder: Encoder, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
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
