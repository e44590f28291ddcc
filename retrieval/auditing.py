"""The audit of mined negatives: how many of them are relevant after all, by the ranks that they were mined from.

Four kinds of evidence, each told for each band of ranks:

    scores      an estimate from a reranker's scores, or those in the rows, against those of the known positives
    likeness    the same from the texts alone: the mean TF-IDF cosine to the query's known positives (for a positive:
                to the others, so that a query needs two)
    near        negatives that nearly repeat a positive of the query, word by word: a lower bound
    judged      negatives that some judgements, which mining did not see, call relevant: the truth, as far as they go

The first two are estimates of `retrieval.false_negatives`, which says what they assume. The negatives that look most
like mistakes are listed for a person to label (`retrieval.doubtful_pairs`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.audit_evidence import MinedQuery, by_likeness, by_scores, compare_texts, mined_queries, numbers, score
from retrieval.doubtful_pairs import DoubtfulPair, flattened
from retrieval.errors import InputError
from retrieval.false_negatives import Band, MixtureShare, ScoredQuery, Share, Values, counted_share, estimated_share

if TYPE_CHECKING:
    from retrieval.corpus import Corpus
    from retrieval.reranking import Reranker, RunReranker
    from retrieval.rows import TrainingRow

log = logging.getLogger(__name__)

BANDS = (Band(1, 10), Band(11, 30), Band(31, 100))
NEAR = 0.8  # Jaccard similarity of shingles from which a negative nearly repeats a positive


@dataclass(frozen=True, slots=True, kw_only=True)
class BandAudit:
    """What was found of the negatives of one band.

    Attributes:
        band: the ranks.
        negatives: how many there are.
        scores, likeness: estimates of the share that is relevant; None where there is too little to go by.
        near: the share that nearly repeats a positive.
        judged: how many the judgements mention at all, relevant or not; most are simply unjudged.
        known: the share that they call relevant, of all negatives; None where they mention none.

    """

    band: Band
    negatives: int
    scores: MixtureShare | None
    likeness: MixtureShare | None
    near: Share | None
    judged: int
    known: Share | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What `audit` found.

    Attributes:
        queries, negatives: how many there are.
        outside: negatives at ranks of no band.
        scored_by: "reranker", "rows" (the scores in the rows) or "nothing".
        bands: one for each band asked for.
        doubtful: the negatives that look most like mistakes, those first.

    """

    queries: int
    negatives: int
    outside: int
    scored_by: str
    bands: tuple[BandAudit, ...]
    doubtful: tuple[DoubtfulPair, ...]


def audit(
    rows: Iterable[TrainingRow],
    corpus: Corpus,
    *,
    reranker: Reranker | RunReranker | None = None,
    qrels: Mapping[str, Mapping[str, int]] | None = None,
    bands: Sequence[Band] = BANDS,
    top: int = 200,
    seed: int = 0,
) -> Audit:
    """Estimate how many negatives are relevant, and list the most doubtful ones.

    Args:
        rows: what `mine` wrote: ids on both sides, and ranks (without them, the places in the row).
        corpus: where the ids and the texts are.
        reranker: scores query and document; None: the scores in the rows, which give bounds, since by them the
            negatives were ranked or chosen.
        qrels: judgements that mining did not see; grades of 1 or more are relevant.
        bands: ranks, rising and apart.
        top: how many doubtful negatives are listed.
        seed: of the intervals.

    Raises:
        InputError: a document without an id or that the corpus lacks, bands that overlap, no negative at all, top < 0.
    """
    check_bands(bands)
    if top < 0:
        raise InputError(f"top must be at least 0, got {top}")
    queries = mined_queries(rows, corpus)
    compare_texts(queries, corpus)
    scored_by = score(queries, reranker, corpus)
    scores, likeness = by_scores(queries.values()), by_likeness(queries.values())
    found = [
        BandAudit(
            band=band,
            scores=_by_scores(scores, band, seed, chosen_by_them=scored_by == "rows"),
            likeness=estimated_share(likeness, band, seed=seed),
            **_counts(queries, qrels, band, seed),
        )
        for band in bands
    ]
    if qrels is not None and not any(part.judged for part in found):
        log.warning("the judgements mention none of the negatives; are they about other queries?")
    negatives = sum(len(query.negatives) for query in queries.values())
    return Audit(
        queries=len(queries),
        negatives=negatives,
        outside=negatives - sum(part.negatives for part in found),
        scored_by=scored_by or "nothing",
        bands=tuple(found),
        doubtful=tuple(_doubtful(queries, qrels or {}, corpus, top)),
    )


def check_bands(bands: Sequence[Band]) -> None:
    """Refuse bands that are empty, overlap or fall."""
    before = 0
    for band in bands:
        if not before < band.first <= band.last:
            shown = ",".join(map(str, bands))
            raise InputError(
                f"bands must be ranks that rise from 1 and do not overlap, such as 1-10,11-30; got {shown}"
            )
        before = band.last
    if not bands:
        raise InputError("got no band of ranks; wanted some, such as 1-10,11-30,31-100")


def _by_scores(scores: list[ScoredQuery], band: Band, seed: int, *, chosen_by_them: bool) -> MixtureShare | None:
    """Return the estimate.

    Of scores by which the negatives were ranked or chosen it is a bound: within a band they are all but equal.
    """
    found = estimated_share(scores, band, seed=seed)
    return replace(found, is_bound=True) if found is not None and chosen_by_them else found


def _counts(
    queries: Mapping[str, MinedQuery], qrels: Mapping[str, Mapping[str, int]] | None, band: Band, seed: int
) -> dict[str, Any]:
    """Return what is counted of a band, not estimated."""
    near, relevant, totals, judged = [], [], [], 0
    for query_id, query in queries.items():
        inside = band.holds(query.ranks)
        grades = [(qrels or {}).get(query_id, {}).get(query.negatives[place]) for place in np.flatnonzero(inside)]
        totals.append(len(grades))
        near.append(int((query.repeats.max(axis=1)[inside] >= NEAR).sum()))
        relevant.append(sum(grade is not None and grade >= 1 for grade in grades))
        judged += sum(grade is not None for grade in grades)
    return {
        "negatives": sum(totals),
        "near": counted_share(near, totals, seed=seed),
        "judged": judged,
        "known": counted_share(relevant, totals, seed=seed) if judged else None,
    }


def _doubtful(
    queries: Mapping[str, MinedQuery], qrels: Mapping[str, Mapping[str, int]], corpus: Corpus, top: int
) -> list[DoubtfulPair]:
    """Return the unjudged negatives that look most like mistakes.

    Near duplicates of a positive come first, then those of the best mean place by score and by likeness, both above
    the median of the query's negatives.
    """
    pairs = [(query_id, place) for query_id, query in queries.items() for place in range(len(query.negatives))]
    if not pairs:
        return []
    evidence = [np.concatenate([_above_median(q.cosines.mean(axis=1)) for q in queries.values()])]
    if all(query.scores for query in queries.values()):
        scores = [numbers(query.scores, query.negatives) for query in queries.values()]
        evidence.append(np.concatenate(list(map(_above_median, scores))))
    repeats = np.concatenate([query.repeats.max(axis=1) for query in queries.values()])
    places = np.mean([np.argsort(np.argsort(-one, kind="stable"), kind="stable") for one in evidence], axis=0)
    order = np.lexsort((places, -np.where(repeats >= NEAR, repeats, 0)))
    found: list[DoubtfulPair] = []
    for number in order.tolist():
        query_id, place = pairs[number]
        if len(found) == top:
            break
        if queries[query_id].negatives[place] not in qrels.get(query_id, {}):
            found.append(_pair(query_id, queries[query_id], place, corpus))
    return found


def _above_median(values: Values) -> Values:
    return values - np.median(values) if len(values) else values


def _pair(query_id: str, query: MinedQuery, place: int, corpus: Corpus) -> DoubtfulPair:
    doc_id = query.negatives[place]
    nearest = query.repeats if query.repeats[place].max() >= NEAR else query.cosines
    best = query.positives[int(nearest[place].argmax())]
    score = query.scores.get(doc_id)
    known = [query.scores[positive] for positive in query.positives] if query.scores else []
    return DoubtfulPair(
        query_id=query_id,
        query=flattened(query.text),
        doc_id=doc_id,
        rank=int(query.ranks[place]),
        score=score,
        margin=None if score is None else score - float(np.mean(known)),
        likeness=float(query.cosines[place].max()),
        repeats=float(query.repeats[place].max()),
        best_positive_id=best,
        best_positive=flattened(corpus.text(corpus.row(best))),
        document=flattened(corpus.text(corpus.row(doc_id))),
    )
