"""What a trained model is measured by: rankings, pooled pairs, and its scores read as probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.bench_config import sharpness
from retrieval.evaluation import evaluate
from retrieval.ids import IdTable
from retrieval.pooled import expected_calibration_error, pooled_auc
from retrieval.search import Searcher
from retrieval.trec import Qrels, Run

if TYPE_CHECKING:
    from rankers.engine import Targets
    from rankers.losses import LossSum, RankingLoss

POOL = 500  # best non-relevant documents of a query, by the MW paper's protocol
BINS = 15
_BLOCK = 256  # queries whose scores are alive together

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Some queries and all documents as a model embeds them.

    Attributes:
        query_ids, queries: ids and (queries, dim) float32.
        doc_ids, documents: ids and (docs, dim) float32.

    """

    query_ids: Sequence[str]
    queries: Vectors
    doc_ids: IdTable
    documents: Vectors

    def run(self, k: int) -> Run:
        """Return the k best documents of every query."""
        from indexes import FaissIndex

        index = FaissIndex(self.documents.shape[1], "Flat")
        index.add(self.documents)
        return Searcher(Path(), index, self.doc_ids, {}).run_vectors(self.query_ids, self.queries, k)

    def measure(self, qrels: Qrels, measures: Sequence[str], k: int) -> dict[str, dict[str, float]]:
        """Return measure → query → value."""
        found = evaluate(qrels, self.run(k), measures, resamples=1)
        return {name: estimate.per_query for name, estimate in found.items()}

    def pairs(self, qrels: Qrels) -> Pairs:
        """Return the scores of every query's relevant documents and of its `POOL` best others."""
        positives: list[Floats] = []
        negatives: list[Floats] = []
        for start in range(0, len(self.query_ids), _BLOCK):
            scores = (self.queries[start : start + _BLOCK] @ self.documents.T).astype(np.float64)
            for query_id, row in zip(self.query_ids[start : start + _BLOCK], scores, strict=True):
                judged = qrels.get(query_id, {})
                found = [self.doc_ids.find(doc_id) for doc_id, grade in judged.items() if grade >= 1]
                relevant = [place for place in found if place is not None]
                others = np.delete(row, relevant)
                positives.append(row[relevant])
                negatives.append(others if len(others) <= POOL else _largest(others, POOL))
        return Pairs(positives, negatives)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Scores of the pooled pairs, query by query."""

    positives: list[Floats]
    negatives: list[Floats]

    def flat(self) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return the score, the label and the query of every pair."""
        groups = [*self.positives, *self.negatives]
        n = len(self.positives)
        scores = np.concatenate(groups)
        labels = np.concatenate([np.full(len(group), float(place < n)) for place, group in enumerate(groups)])
        queries = np.concatenate([np.full(len(group), place % n, dtype=np.int64) for place, group in enumerate(groups)])
        return scores, labels, queries

    def auc(self) -> dict[str, float]:
        """Return the pooled ROC-AUC and its interval."""
        found = pooled_auc(self.positives, self.negatives)
        return {"value": float(found), "low": found.low, "high": found.high}

    def calibration_error(self, scale: float, bias: float) -> dict[str, Any]:
        """Return the calibration error of sigmoid(scale · score + bias) and its interval."""
        scores, labels, queries = self.flat()
        found = expected_calibration_error(_sigmoid(scale * scores + bias), labels, BINS, queries=queries)
        return {"value": float(found), "low": found.low, "high": found.high, "bins": found.bins}

    def fitted_bias(self, scale: float) -> float:
        """Return the bias at which sigmoid(scale · score + bias) is right on average: Platt's fit of one parameter.

        It is the maximum of the likelihood over the bias: there the mean probability is the mean label.
        """
        scores, labels, _ = self.flat()
        low, high = -scale * float(np.abs(scores).max()) - 40, scale * float(np.abs(scores).max()) + 40
        for _ in range(100):
            middle = (low + high) / 2
            if _sigmoid(scale * scores + middle).mean() < labels.mean():
                low = middle
            else:
                high = middle
        return (low + high) / 2


def log_odds(loss: RankingLoss | LossSum, batches: Iterable[Targets]) -> tuple[float, float] | None:
    """Return the scale and the bias at which a trained loss reads a score as log-odds; None for one that does not.

    A bias of "auto" is the mean of the batches' own.
    """
    (term, *others) = loss.terms
    if others or not ("bias" in term.entry.settings or term.kind == "probability"):
        return None
    scale = scale_of(loss)
    bias = term.settings.get("bias", 0.0) if "bias" in term.entry.settings else 0.0
    if "bias" in term.entry.settings and not isinstance(bias, int | float):
        totals = []
        for targets in batches:
            part = targets.rows(0, len(targets))
            totals.append(float(loss.totals(loss.tally(part.labels, part.where))["bias"].detach()))
        bias = float(np.mean(totals))
    return scale, float(bias)


def scale_of(loss: RankingLoss | LossSum) -> float:
    """Return what a loss multiplies scores by, learned or set; that of the first loss of a sum."""
    (term, *_) = loss.terms
    if "log_scale" in term.learned:
        return float(term.learned["log_scale"].detach().exp())
    name, value = sharpness(term) or ("scale", 1.0)
    return value if name == "scale" else 1 / value


def _largest(values: Floats, k: int) -> Floats:
    found: Floats = np.partition(values, len(values) - k)[len(values) - k :]
    return found


def _sigmoid(values: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
    return found


def mean_of(values: Mapping[str, float]) -> float:
    """Return the mean over queries."""
    return float(np.mean(list(values.values())))
