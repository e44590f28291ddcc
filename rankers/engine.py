"""Any loss at any batch size: embed in chunks without a graph, differentiate scores in row blocks, replay the chunks.

    1  every chunk is embedded without a graph; the random state before it is kept
    2  scores of a block of rows against all documents → the block's share of the loss → gradients of embeddings
    3  every chunk is embedded again from its random state, and takes its embeddings' gradient back

The result is the plain gradient: the chain rule cut at the embeddings (GradCache: Gao et al. 2021, arXiv:2101.06983),
and a sum over rows cut into blocks. No matrix larger than a block of scores is alive at any time, so memory grows with
the embeddings and not with the square of the batch. With a process group every process brings its own rows and
documents, scores its rows against the documents of all, and gets the gradients of one process that held everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from rankers.losses.expression import LossSum
from rankers.losses.module import RankingLoss
from rankers.processes import Alone, Processes
from rankers.random_state import RandomState

BLOCK = 1 << 20  # scores of a block: 4 MiB of float32, and about ten times as much while the loss runs
LEAST_ROWS = 128  # of a block: with 16, a matrix product is a walk through memory and takes half as long again


@dataclass(frozen=True, slots=True)
class RowTargets:
    """What a block of rows is compared with.

    Attributes:
        labels, where: (rows, docs), as every loss takes them.
        at_call: further arguments of the loss at this call, such as `where_columns`.

    """

    labels: Tensor
    where: Tensor
    at_call: Mapping[str, Tensor] = field(default_factory=dict)


class Targets(Protocol):
    """Labels and masks of a batch, made row block by row block so that they are never whole in memory."""

    def __len__(self) -> int:
        """Return the number of rows of the matrix."""
        ...

    def rows(self, start: int, stop: int) -> RowTargets:
        """Return the targets of these rows against all documents of all processes."""
        ...


class Watch(Protocol):
    """Sees what a step computes anyway, and changes nothing of it."""

    def embedded(self, queries: Tensor, documents: Tensor) -> None:
        """Take the embeddings of a batch, without their graph."""
        ...

    def scored(self, start: int, scores: Tensor, targets: RowTargets) -> None:
        """Take the scores of a block of rows, of which `start` is the first, without their graph."""
        ...


@dataclass(frozen=True, slots=True)
class WholeTargets:
    """Targets that are whole in memory, for a batch that is small or already a matrix."""

    labels: Tensor
    where: Tensor | None = None
    at_call: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def rows(self, start: int, stop: int) -> RowTargets:
        """Return a slice."""
        labels = self.labels[start:stop]
        where = torch.ones_like(labels, dtype=torch.bool) if self.where is None else self.where[start:stop]
        return RowTargets(labels, where, {name: value[start:stop] for name, value in self.at_call.items()})


@dataclass(frozen=True, slots=True)
class Gradients:
    """What a step over embeddings gives.

    Attributes:
        loss: of the whole batch, of all processes.
        queries, documents: gradients of this process's embeddings.
        state: of this process's rows, for a loss that has one.

    """

    loss: float
    queries: Tensor
    documents: Tensor
    state: dict[str, Tensor] | None = None


def gradients(
    loss: RankingLoss | LossSum,
    queries: Tensor,
    documents: Tensor,
    targets: Targets,
    *,
    row_query: Tensor | None = None,
    weight: float | Tensor = 1.0,
    tally: Mapping[str, Tensor] | None = None,
    block: int = BLOCK,
    state: Mapping[str, Tensor] | None = None,
    processes: Processes | None = None,
    watch: Watch | None = None,
) -> Gradients:
    """Return loss and gradients of a batch from its embeddings, a block of rows at a time.

    The gradients of learned settings of the loss are added to its parameters; those of a process are its rows' part.

    Args:
        loss: any loss of the table; one that needs the whole matrix gets it in one block.
        queries: (queries, dim) float embeddings, without a graph.
        documents: (docs, dim) the same; of this process.
        targets: of the rows of this process, against the documents of all processes, in the order of processes.
        row_query: (rows,) long, the query of each row of the matrix; None: row i is query i.
        weight: of the batch among those of a step; for a sum of losses, one number or one for each term.
        tally: of the rows of this process, where it is known already.
        block: scores that may be alive together; at least LEAST_ROWS rows are.
        state: name → (rows,) of a loss with state.
        processes: of a group; None: this one alone.
        watch: sees the scores of each block.

    Raises:
        ValueError: when a loss that needs the whole matrix runs in several processes, or the loss refuses its input.

    """
    processes = processes or Alone()
    everywhere = processes.gather_rows(documents)
    rows = len(targets)
    row_query = torch.arange(rows, device=queries.device) if row_query is None else row_query
    size = max(1, rows) if loss.needs == "whole matrix" else _block_rows(loss, block, len(everywhere))
    if loss.needs == "whole matrix" and processes.count > 1:
        raise ValueError(f"{loss.name} with these settings needs the whole matrix; it runs in one process only")
    blocks = [(start, min(rows, start + size)) for start in range(0, rows, size)]

    if tally is None:
        tally = sum_tallies(loss.tally(part.labels, part.where) for part in (targets.rows(*edges) for edges in blocks))
    totals = loss.totals(processes.sum_numbers(tally or loss.tally(*_no_rows(queries, everywhere))))
    seen = _observed(loss, queries, everywhere, targets, row_query, blocks, processes) if loss.observes else None

    by_query, by_document = torch.zeros_like(queries), torch.zeros_like(everywhere)
    value = torch.zeros((), dtype=torch.float64, device=queries.device)
    states: list[dict[str, Tensor]] = []
    for start, stop in blocks:
        part, ours = targets.rows(start, stop), row_query[start:stop]
        own = queries.index_select(0, ours)
        scores = (own @ everywhere.T).requires_grad_()
        at_call: dict[str, Any] = {**part.at_call, **({} if seen is None else {"seen": seen})}
        if state is not None:
            at_call["state"] = {name: values[start:stop] for name, values in state.items()}
        share = loss.share(scores, part.labels, part.where, totals=totals, weight=weight, **at_call)
        if state is not None:
            share, new = share
            states.append(new)
        share.backward()
        value += share.detach()
        if watch is not None:
            watch.scored(start, scores.detach(), part)
        slope = scores.grad
        assert slope is not None
        by_query.index_add_(0, ours, slope @ everywhere)
        by_document.addmm_(slope.T, own)
    mine = processes.sum_rows(by_document, len(documents))
    joined = None if state is None else dict(state)
    if joined is not None and states:
        joined = {name: torch.cat([one[name] for one in states]) for name in joined}
    return Gradients(float(processes.sum(value)), by_query, mine, joined)


@dataclass(frozen=True, slots=True)
class View:
    """Columns of the embeddings that are compared on their own.

    Attributes:
        start, stop: the columns.
        weight: of the loss over them.
        normalize: make what is cut from a unit vector a unit vector again: for cosines.

    """

    start: int
    stop: int
    weight: float = 1.0
    normalize: bool = False

    def of(self, embeddings: Tensor) -> Tensor:
        """Return the columns, (n, stop - start)."""
        if not 0 <= self.start < self.stop <= embeddings.shape[1]:
            got = f"columns {self.start} to {self.stop}"
            raise ValueError(f"{got}: the embeddings have {embeddings.shape[1]}")
        part = embeddings[:, self.start : self.stop]
        return torch.nn.functional.normalize(part, dim=1) if self.normalize else part


@dataclass(frozen=True, slots=True)
class Views:
    """A loss over several views of the same embeddings.

    loss = sum over v of weight_v * L(scores from the columns of view v)

    """

    parts: tuple[View, ...]

    @classmethod
    def matryoshka(cls, dimensions: Mapping[int, float], *, normalize: bool = True) -> Views:
        """Return views of the first d dimensions, d -> weight, so that these serve alone.

        Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv:2205.13147).
        """
        return cls(tuple(View(0, d, weight, normalize=normalize) for d, weight in dimensions.items()))

    def gradients(
        self, loss: RankingLoss | LossSum, queries: Tensor, documents: Tensor, targets: Targets, **arguments: Any
    ) -> Gradients:
        """Return loss and gradients as :func:`gradients` does, whose arguments these are; the first view is watched."""
        if loss.keeps_state:
            raise ValueError(f"{loss.name} keeps one state of each query; it cannot look at several views")
        sides = queries.detach().requires_grad_(), documents.detach().requires_grad_()
        weight, watch, value = arguments.pop("weight", 1.0), arguments.pop("watch", None), 0.0
        for view in self.parts:
            cut = [view.of(side) for side in sides]
            q, d = (one.detach() for one in cut)
            found = gradients(loss, q, d, targets, weight=weight * view.weight, watch=watch, **arguments)
            torch.autograd.backward(cut, [found.queries, found.documents])
            value, watch = value + found.loss, None
        by_query, by_document = (torch.zeros_like(side) if side.grad is None else side.grad for side in sides)
        return Gradients(value, by_query, by_document)


def cached_backward(
    loss: RankingLoss | LossSum,
    query_chunks: Sequence[Callable[[], Tensor]],
    document_chunks: Sequence[Callable[[], Tensor]],
    targets: Targets,
    *,
    query_order: Tensor | None = None,
    document_order: Tensor | None = None,
    device: torch.device | None = None,
    views: Views | None = None,
    watch: Watch | None = None,
    **arguments: Any,
) -> Gradients:
    """Add the gradient of a batch to the parameters behind its chunks, and return loss and embedding gradients.

    Args:
        loss: any loss of the table, or a sum.
        query_chunks, document_chunks: each returns (n, dim) embeddings with their graph when gradients are on, and is
            called twice, with the same random state. Batch normalisation in training mode would see other batches.
        targets: as for :func:`gradients`, whose other arguments these are too.
        query_order, document_order: (n,) long, which query or document of the batch each embedding is, when the
            chunks bring them in another order (texts of one length together).
        device: whose random numbers the chunks draw, beside the CPU's.
        views: compare these columns instead of whole embeddings.
        watch: sees the embeddings and the scores.
        **arguments: of :func:`gradients`.

    """
    q, d = _Chunks(query_chunks, query_order, device), _Chunks(document_chunks, document_order, device)
    embeddings = q.embed(), d.embed()
    after = RandomState.now(device)
    if watch is not None:
        watch.embedded(*embeddings)
    compare = gradients if views is None else views.gradients
    found = compare(loss, *embeddings, targets, watch=watch, **arguments)
    q.replay(found.queries)
    d.replay(found.documents)
    after.restore()  # what follows draws what it would after the plain step
    return found


class _Chunks:
    """One side of a batch: embedded without a graph, then again with it."""

    def __init__(
        self, chunks: Sequence[Callable[[], Tensor]], order: Tensor | None, device: torch.device | None
    ) -> None:
        self._chunks, self._order, self._device = chunks, order, device
        self._before: list[RandomState] = []
        self._sizes: list[int] = []

    def embed(self) -> Tensor:
        """Return all embeddings, in the batch's order."""
        if not self._chunks:
            raise ValueError(
                "got no chunk of queries or of documents; a batch, and each process of it, needs one of both"
            )
        parts: list[Tensor] = []
        with torch.no_grad():
            for chunk in self._chunks:
                self._before.append(RandomState.now(self._device))
                parts.append(chunk())
        self._sizes = [len(part) for part in parts]
        joined = torch.cat(parts)
        if self._order is None:
            return joined
        return torch.empty_like(joined).index_copy_(0, self._order.to(joined.device), joined)

    def replay(self, slope: Tensor) -> None:
        """Embed each chunk again from its random state and send its gradient down."""
        slope = slope if self._order is None else slope.index_select(0, self._order.to(slope.device))
        for chunk, random, part in zip(self._chunks, self._before, torch.split(slope, self._sizes), strict=True):
            random.restore()
            torch.autograd.backward(chunk(), part)


def _block_rows(loss: RankingLoss | LossSum, block: int, documents: int) -> int:
    """Return how many rows fit into a block; an n² loss holds a matrix of n × n for each."""
    if any(term.entry.cost == "n²" for term in loss.terms):
        return max(1, block // max(1, documents * documents))
    return max(LEAST_ROWS if block == BLOCK else 1, block // max(1, documents))


def _observed(
    loss: RankingLoss | LossSum,
    queries: Tensor,
    documents: Tensor,
    targets: Targets,
    row_query: Tensor,
    blocks: Sequence[tuple[int, int]],
    processes: Processes,
) -> Any:
    """Return what a first pass over all scores has found."""
    seen = None
    for start, stop in blocks:
        part = targets.rows(start, stop)
        scores = queries.index_select(0, row_query[start:stop]) @ documents.T
        found = loss.observe(scores, part.labels, part.where, **part.at_call)
        seen = found if seen is None else loss.merge(seen, found)
    parts = [part for part in processes.gather(seen) if part is not None]
    return reduce(loss.merge, parts) if parts else None


def sum_tallies(tallies: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tally of a batch from those of its blocks."""
    found: dict[str, Tensor] = {}
    for tally in tallies:
        for name, number in tally.items():
            found[name] = found[name] + number if name in found else number
    return found


def _no_rows(queries: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    empty = queries.new_zeros(0, len(documents))
    return empty, empty.bool()
