"""The gradient of one step of a reranker: some lists, scored in batches, under their common loss.

The sequences of a step are scored in batches of whole lists of like width, each at most `batch_tokens` long. A loss
over rows gets each batch's share of the whole step's loss at once; one that looks at all rows (mw, bixse's own bias)
gets all scores first, computed without a graph, and the batches are computed again for their gradient, with the same
dropout. Either way the gradient is that of the step as one matrix, however it was cut.

Import this module only where torch is installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankers.lists import pad_groups
from rankers.losses import LossSum, RankingLoss
from rankers.random_state import RandomState
from retrieval.candidate_lists import CandidateList
from retrieval.cross_encoder import CrossEncoder, list_batches
from retrieval.pair_tokens import PairTokens


@dataclass(frozen=True, slots=True)
class TokenizedList:
    """A list and its sequences: one for each document, or one for both documents of a duel."""

    made: CandidateList
    sequences: list[PairTokens]

    @property
    def width(self) -> int:
        """The tokens of its longest sequence."""
        return max(map(len, self.sequences))


def backward(reranker: CrossEncoder, loss: RankingLoss | LossSum, lists: Sequence[TokenizedList]) -> float:
    """Add the gradient of the loss of one step to the parameters and return the loss; the loss keeps its new state.

    Where the loss is not finite it returns early, without all of the gradient.

    Args:
        reranker: in training mode, or not: dropout is the model's.
        loss: a loss or a sum.
        lists: of the step, one row of scores each; without any, the loss is 0.

    """
    if not lists:
        return 0.0
    sizes = [len(one.made.labels) for one in lists]
    labels = torch.cat([torch.from_numpy(one.made.labels) for one in lists]).to(reranker.device)
    _, padded, where = pad_groups(torch.zeros_like(labels), labels, sizes)
    queries = torch.tensor([one.made.number for one in lists], device=reranker.device)
    state = loss.recall(queries) if loss.keeps_state else None
    step = _Step(reranker, loss, lists, loss.totals(loss.tally(padded, where)), queries, state)
    counts, widths = [len(one.sequences) for one in lists], [one.width for one in lists]
    groups = list(list_batches(counts, widths, reranker.batch_tokens))
    if loss.needs != "rows" and len(groups) > 1:
        return _replayed(step, groups)
    value = 0.0
    for rows in groups:
        share = step.share(step.scores(rows), rows)
        value += float(share.detach())
        if not math.isfinite(value):
            break
        torch.autograd.backward(share)
    return value


@dataclass(frozen=True, slots=True)
class _Step:
    """The lists of a step, and what is known of them before a sequence is scored."""

    reranker: CrossEncoder
    loss: RankingLoss | LossSum
    lists: Sequence[TokenizedList]
    totals: Mapping[str, Tensor]
    queries: Tensor
    state: Mapping[str, Tensor] | None

    def scores(self, rows: Sequence[int]) -> Tensor:
        """Return the (documents,) scores of some lists, one after the other."""
        lists, device = [self.lists[row] for row in rows], self.reranker.device
        sequences = [one for held in lists for one in held.sequences]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.reranker.precision == "bf16"):
            return self.reranker.forward(sequences, [len(held.sequences) for held in lists]).flatten()

    def share(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the share that some lists have in the loss of the step, and keep their new state."""
        lists = [self.lists[row] for row in rows]
        labels = torch.cat([torch.from_numpy(one.made.labels) for one in lists]).to(scores.device)
        padded = pad_groups(scores, labels, [len(one.made.labels) for one in lists])
        if self.state is None:
            share: Tensor = self.loss.share(*padded, totals=self.totals)
            return share
        state = {name: values[rows] for name, values in self.state.items()}
        share, new = self.loss.share(*padded, totals=self.totals, state=state)
        self.loss.keep(self.queries[rows], new)
        return share


def _replayed(step: _Step, groups: Sequence[Sequence[int]]) -> float:
    """Score all batches without a graph, differentiate the loss of all, then compute each batch again."""
    device = step.reranker.device
    before: list[RandomState] = []
    parts: list[Tensor] = []
    with torch.no_grad():
        for rows in groups:
            before.append(RandomState.now(device))
            parts.append(step.scores(rows))
    leaves = [part.requires_grad_() for part in parts]
    share = step.share(torch.cat(leaves), [row for rows in groups for row in rows])
    value = float(share.detach())
    if not math.isfinite(value):
        return value
    torch.autograd.backward(share)
    for rows, leaf, random in zip(groups, leaves, before, strict=True):
        random.restore()
        torch.autograd.backward(step.scores(rows), leaf.grad)
    return value
