"""What the log tells of a step beside its loss: spread of scores, share of masked cells, signs of collapse.

A loss alone does not say why it is flat. These numbers come from the matrix of the step's last batch, which is computed
anyway; they are worked out only for the steps that are logged. `rankwright doctor` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import Batch
from retrieval.embedding_health import effective_rank, mean_cosine

if TYPE_CHECKING:
    from torch import Tensor

    from rankers.engine import RowTargets

_CELLS = 1 << 20  # of the matrix that are looked at: the first rows
_DOCUMENTS = 512  # whose embeddings are looked at


class StepLog:
    """Keeps what was last seen of a step, and makes numbers of it when it is asked.

    Args:
        dim: columns of an embedding; what lies beyond them is not looked at.

    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._seen: _Seen | None = None

    def watch(self, batch: Batch) -> _Seen:
        """Return what sees the step of a batch."""
        self._seen = _Seen(batch, self._dim)
        return self._seen

    @property
    def documents(self) -> int:
        """How many documents the numbers about embeddings are of."""
        return 0 if self._seen is None or self._seen.documents is None else len(self._seen.documents)

    def values(self) -> dict[str, float]:
        """Return the numbers of the last batch by name; those that it does not have are left out.

        chance_loss: ln C, C the mean number of comparable documents of a row with a positive; a softmax loss that knows
            nothing.
        positive_score, negative_score: mean scores, before the temperature.
        score_std: standard deviation of the comparable scores of a row, mean over rows.
        negatives_per_query: comparable documents that are not relevant, mean over rows.
        masked_share: share of the cells that are not comparable.
        accuracy: share of the rows whose best positive is above every negative.
        document_cosine, effective_rank: of the batch's documents; see `retrieval.embedding_health`.
        """
        return {} if self._seen is None else self._seen.values()


@dataclass(slots=True)
class _Seen:
    """The first scores and documents of a batch; views of what the step holds, where they are small enough."""

    batch: Batch
    dim: int
    documents: Tensor | None = None
    scores: Tensor | None = None
    targets: RowTargets | None = None

    def embedded(self, queries: Tensor, documents: Tensor) -> None:
        """Keep some documents."""
        self.documents = documents[:_DOCUMENTS, : self.dim]

    def scored(self, start: int, scores: Tensor, targets: RowTargets) -> None:
        """Keep the first block."""
        if start == 0:
            rows = max(1, _CELLS // max(1, scores.shape[1]))
            cut = scores[:rows]
            self.scores = cut if cut.numel() * 4 > scores.numel() else cut.clone()
            self.targets = targets

    def values(self) -> dict[str, float]:
        """Return the numbers."""
        found: dict[str, float] = {}
        if self.scores is not None and self.targets is not None:
            n = len(self.scores)
            where = self.targets.where[:n].cpu().numpy()
            relevant = self.targets.labels[:n].cpu().numpy() > 0
            found |= _of_scores(self.scores.float().cpu().numpy(), *self._kinds(relevant, where), where)
        if self.documents is not None and len(self.documents) > 1:
            vectors = self.documents.float().cpu().numpy()
            if np.isfinite(vectors).all():
                found |= {"document_cosine": mean_cosine(vectors), "effective_rank": effective_rank(vectors)}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _kinds(
        self, relevant: NDArray[np.bool_], where: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which cells are positives and which negatives. A teacher's labels do not say: the rows do."""
        own = np.zeros_like(relevant)
        for row, query in enumerate(self.batch.row_query[: len(own)].tolist()):
            own[row, list(self.batch.positive_columns[query]) if self.batch.positive_columns else []] = True
        taught = not self.batch.targets.is_valid
        positive = own if taught else relevant
        return positive & where, where & ~positive & ~own


def _of_scores(
    scores: NDArray[np.float32],
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_],
    where: NDArray[np.bool_],
) -> dict[str, float]:
    with_positive = positive.any(axis=1)
    both = with_positive & negative.any(axis=1)
    found = {
        "masked_share": 1 - float(where.mean()) if where.size else math.nan,
        "negatives_per_query": float(negative.sum(axis=1).mean()) if len(scores) else math.nan,
    }
    counts = where[with_positive].sum(axis=1)
    if len(counts):
        found["chance_loss"] = math.log(max(1.0, float(counts.mean())))
    spreads = [float(scores[row, where[row]].std()) for row in np.flatnonzero(where.sum(axis=1) > 1)]
    if spreads:
        found["score_std"] = float(np.mean(spreads))
    for name, kind in (("positive_score", positive), ("negative_score", negative)):
        if kind.any():
            found[name] = float(scores[kind].mean())
    if both.any():
        best = np.where(positive, scores, -np.inf)[both].max(axis=1)
        hardest = np.where(negative, scores, -np.inf)[both].max(axis=1)
        found["accuracy"] = float((best > hardest).mean())
    return found
