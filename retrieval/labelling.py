"""A reranker's scores over a run become training rows for a dual encoder: teacher to student.

Three kinds of labels, for three kinds of losses:

    graded   positive_labels, negative_labels: 0, 1, 2, …    softmax_ce, lambdaloss, …
    soft     the same, as probabilities × the highest grade  bixse, …
    margin   positive_scores, negative_scores: as they are   margin_mse, kl_div, …

Positives are the query's documents that are judged relevant in the training split; where there are none, the best
document of the list that is not judged otherwise. Negatives are the rest of the list, never a relevant document.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError, did_you_mean
from retrieval.known_documents import OnError, known_documents
from retrieval.rows import TrainingRow
from retrieval.trec import Qrels, ranked, score_array

if TYPE_CHECKING:
    from retrieval.corpus import Corpus

log = logging.getLogger(__name__)

Kind = Literal["graded", "soft", "margin"]
Probability = Literal["sigmoid", "softmax"]

QUANTILES = (0.5, 0.8, 0.95)


def label(
    run: Mapping[str, Mapping[str, float]],
    kind: Kind,
    qrels: Qrels,
    queries: Mapping[str, str],
    corpus: Corpus,
    *,
    k: int = 100,
    quantiles: Sequence[float] | None = None,
    thresholds: Sequence[float] | None = None,
    probability: Probability = "sigmoid",
    temperature: float = 1.0,
    on_error: OnError = "fail",
) -> list[TrainingRow]:
    """Make one row of every query that the training split judges.

    What a teacher's score s becomes:

        graded   how many of the thresholds are ≤ s; given as they are, or as quantiles of all scores of these lists
        soft     g / (1 + exp(−s / temperature)), or g × the softmax of s / temperature over the list; g is the
                 highest grade of the queries that get a row, by which training divides the labels of a loss over
                 probabilities. A training run that carves dev from these queries may take the highest grade away,
                 and then divides by less
        margin   s

    Judgements win: a relevant document has at least its judged grade, and one that is judged below 1 has label 0. A
    relevant document that the list lacks is a positive by its judgement alone; "margin" needs a score and leaves it
    out.

    Args:
        run: what `rerank` returned; its scores are the teacher's.
        kind: graded, soft or margin.
        qrels: of the training split, whose queries alone get a row.
        queries: query id → text.
        corpus: the documents.
        k: the list is the best k documents. Those below the depth of the reranking have no score of the teacher, so
            this must not be more than its `k`.
        quantiles, thresholds: for "graded", rising, one of the two; None: quantiles of 0.5, 0.8 and 0.95, which makes
            grades 0 to 3. Quantiles that fall on one score count once.
        probability, temperature: for "soft".
        on_error: "skip" leaves documents out that the corpus lacks, and counts them in a warning.

    Returns:
        The rows, in the order of `run`. Queries of which nothing can be learned have none, and are counted in the
        log: without a document; margin with fewer than two; graded with a best positive of grade 0.

    Raises:
        InputError: a setting that is out of range, an unknown document, or no row at all.
    """
    check_labelling(kind, k, quantiles, thresholds, probability, temperature)
    lists = _lists(run, qrels, queries, corpus, k, on_error)
    cuts = _cuts(lists, quantiles, thresholds) if kind == "graded" else np.zeros(0)
    judgements = {q: {doc_id: grade for doc_id, grade in qrels[q].items() if doc_id in corpus} for q in lists}
    chosen = {q: _positives(kind, scores, judgements[q]) for q, scores in lists.items()}
    highest = max([1, *(grade for q, found in chosen.items() if found for grade in qrels[q].values())])
    rows: list[TrainingRow] = []
    without: Counter[str] = Counter()
    for query_id, scores in lists.items():
        judged, positives = judgements[query_id], chosen[query_id]
        values = _labels(kind, score_array(scores, query_id).astype(np.float64), cuts, probability, temperature)
        if kind == "soft":
            values *= highest
        labels = dict(zip(scores, values.tolist(), strict=True))
        if kind != "margin" and scores:
            labels = _corrected(labels, judged)
        negatives = [doc_id for doc_id in scores if doc_id not in positives]
        if reason := _useless(kind, labels, positives, negatives):
            without[reason] += 1
            continue
        ranks = {doc_id: rank for rank, doc_id in enumerate(scores, start=1)}
        what = "scores" if kind == "margin" else "labels"
        rows.append(
            TrainingRow(
                query_id=query_id,
                query=queries[query_id],
                positive_ids=tuple(positives),
                negative_ids=tuple(negatives),
                negative_ranks=tuple(ranks[doc_id] for doc_id in negatives),
                **{
                    f"positive_{what}": tuple(labels[doc_id] for doc_id in positives),
                    f"negative_{what}": tuple(labels[doc_id] for doc_id in negatives),
                },
            )
        )
    for reason, count in without.items():
        log.warning("%d queries %s: they have no row", count, reason)
    if not rows:
        raise InputError(f"none of the {len(run)} queries of the run gives a training row")
    return rows


def check_labelling(
    kind: str,
    k: int,
    quantiles: Sequence[float] | None,
    thresholds: Sequence[float] | None,
    probability: str,
    temperature: float,
) -> None:
    """Refuse settings of `label` that are out of range."""
    for what, value, known in (("kind", kind, get_args(Kind)), ("probability", probability, get_args(Probability))):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}{did_you_mean(value, known)}")
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if quantiles is not None and thresholds is not None:
        raise InputError("got quantiles and thresholds; wanted one of them")
    for what, cuts in (("quantiles", quantiles), ("thresholds", thresholds)):
        if cuts is None:
            continue
        shown = ", ".join(f"{cut:g}" for cut in cuts)
        rise = all(a < b for a, b in pairwise(cuts)) and all(map(math.isfinite, cuts))
        if not cuts or not rise:
            raise InputError(f"{what} must be one or more rising numbers, got {shown or 'none'}")
        if what == "quantiles" and not (cuts[0] > 0 and cuts[-1] < 1):
            raise InputError(f"quantiles must be between 0 and 1, got {shown}")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be above 0, got {temperature}")


def _lists(
    run: Mapping[str, Mapping[str, float]],
    qrels: Qrels,
    queries: Mapping[str, str],
    corpus: Corpus,
    k: int,
    on_error: OnError,
) -> Mapping[str, Mapping[str, float]]:
    """Return the k best known documents of each query of the training split that has a text."""
    chosen = {query_id: run[query_id] for query_id in run if query_id in qrels and query_id in queries}
    if not chosen:
        raise InputError(f"none of the {len(run)} queries of the run is judged in the training split")
    if len(chosen) < len(run):
        log.info("%d of the run's %d queries are not of the training split", len(run) - len(chosen), len(run))
    best = {query_id: dict(ranked(found)[:k]) for query_id, found in chosen.items()}
    return known_documents(best, corpus, on_error)


def _positives(kind: str, scores: Mapping[str, float], judged: Mapping[str, int]) -> list[str]:
    """Return the relevant documents of a list, and but for "margin" those that it lacks; or its best unjudged one."""
    relevant = [doc_id for doc_id, grade in judged.items() if grade >= 1]
    candidates = dict.fromkeys([*scores, *(relevant if scores and kind != "margin" else ())])
    found = [doc_id for doc_id in candidates if judged.get(doc_id, 0) >= 1]
    return found or [doc_id for doc_id in candidates if doc_id not in judged][:1]


def _cuts(
    lists: Mapping[str, Mapping[str, float]],
    quantiles: Sequence[float] | None,
    thresholds: Sequence[float] | None,
) -> NDArray[np.float64]:
    """Return the scores from which each grade begins."""
    if thresholds is not None:
        return np.array(thresholds, dtype=np.float32).astype(np.float64)  # as the scores are
    scores = np.concatenate([score_array(found).astype(np.float64) for found in lists.values()])
    if not len(scores):
        return scores
    cuts: NDArray[np.float64] = np.unique(np.quantile(scores, quantiles or QUANTILES))
    log.info("grades begin at scores of %s", ", ".join(f"{cut:.6g}" for cut in cuts))
    return cuts


def _labels(
    kind: str, scores: NDArray[np.float64], cuts: NDArray[np.float64], probability: str, temperature: float
) -> NDArray[np.float64]:
    """Return what the scores of one list become; see `label`."""
    if kind == "margin" or not len(scores):
        return scores
    if kind == "graded":
        return np.searchsorted(cuts, scores, side="right").astype(np.float64)
    logits = scores / temperature
    if probability == "softmax":
        weights = np.exp(logits - logits.max())
        found: NDArray[np.float64] = weights / weights.sum()
        return found
    return np.exp(-np.logaddexp(0, -logits))


def _corrected(labels: Mapping[str, float], judged: Mapping[str, int]) -> dict[str, float]:
    """Let the judgements win over the teacher, and add the relevant documents that the list lacks."""
    corrected = {doc_id: 0.0 if judged.get(doc_id, 1) < 1 else value for doc_id, value in labels.items()}
    relevant = {doc_id: grade for doc_id, grade in judged.items() if grade >= 1}
    return corrected | {doc_id: max(float(grade), corrected.get(doc_id, 0.0)) for doc_id, grade in relevant.items()}


def _useless(kind: str, labels: Mapping[str, float], positives: Sequence[str], negatives: Sequence[str]) -> str | None:
    """Say why nothing can be learned of a row, or return None."""
    if not positives:
        return "have no document that could be a positive"
    if kind == "margin" and not negatives and len(positives) < 2:
        return "have a score of one document only"
    if max(labels[doc_id] for doc_id in positives) <= 0:
        return "have a best document of grade 0" if kind == "graded" else None
    return None
