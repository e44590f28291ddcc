"""Measuring a run against qrels: one ranking for every measure, one denominator, an interval for every mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.measures import DEFAULT_MEASURES, Measure, parse_measures, provider
from retrieval.progress import progress
from retrieval.ranked_lists import Bounds, ranked_lists
from retrieval.statistics import bootstrap, mean
from retrieval.trec import Ties, ranked

log = logging.getLogger(__name__)

Values: TypeAlias = NDArray[np.float64]
QrelsLike: TypeAlias = Mapping[str, Mapping[str, int]]
RunLike: TypeAlias = Mapping[str, Mapping[str, float]]


class Estimate(float):
    """The mean of a measure over queries: a float that also knows how sure it is and what it stands on.

    low, high: bootstrap percentile interval (95 %, over queries).
    per_query: query id → value, in the order of the qrels.
    n: how many queries the mean is over.
    missing: how many queries of the qrels have no document in the run. They count 0, or are left out with
        `only_returned`.
    without_relevant: how many queries of the qrels have no grade ≥ 1. They count 0, or are left out with
        `only_answerable`.
    judged: mean share of judged documents among those that the measure looks at. Where it is low, the value is
        a guess that unjudged documents are worthless.
    gain: of nDCG, "linear" (gain = grade, as in trec_eval) or "exp2" (2^grade − 1); else None.
    optimistic, pessimistic: the mean if equal scores were ordered in the best and in the worst way; None for a
        measure that ir-measures computes.
    tied: share of queries in which the documents on both sides of the cut-off have the same score, so that
        the tie rule decides which of them counts; without a cut-off, in which the order of equal scores changes
        the value. None as above.
    """

    low: float
    high: float
    per_query: dict[str, float]
    n: int
    missing: int
    without_relevant: int
    judged: float
    gain: str | None
    optimistic: float | None
    pessimistic: float | None
    tied: float | None

    def __new__(cls, value: float, **attributes: Any) -> Estimate:
        """Make one from its mean and the attributes above."""
        estimate = super().__new__(cls, value)
        estimate.__dict__.update(attributes)
        return estimate

    def __repr__(self) -> str:
        """Return for example "0.6452 [0.6013, 0.6884]"; `float(estimate)` has all digits."""
        return f"{float(self):.4f} [{self.low:.4f}, {self.high:.4f}]"


def evaluate(
    qrels: QrelsLike,
    run: RunLike,
    measures: Iterable[str] = DEFAULT_MEASURES,
    *,
    only_returned: bool = False,
    only_answerable: bool = False,
    ties: Ties = "trec",
    corpus: Container[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measure a run.

    Every measure sees the same ranking: by falling score as float32, equal scores by falling document id, as
    trec_eval orders them. The mean is over all queries of the qrels; one that the run does not answer, or that
    has no relevant document, counts 0 (trec_eval -c). Queries of the run without qrels are ignored. What is
    ignored or missing is logged as a warning.

    Args:
        qrels: query id → document id → integer grade; ≥ 1 is relevant, below 0 counts as 0.
        run: query id → document id → score, larger is better.
        measures: names as in `retrieval.measures`.
        only_returned: average over the queries that the run answers (trec_eval without -c).
        only_answerable: average over the queries with a relevant document.
        ties: "trec", or "file-rank" to keep equal scores in the order in which the run holds them.
        corpus: where given, documents that it lacks are counted in a warning, with the best value that any
            run over it can reach.
        resamples: bootstrap samples behind each interval.
        seed: of the bootstrap.

    Returns:
        Measure as typed → Estimate, in the order given.

    Raises:
        InputError: an unknown measure; a grade that is not an integer; a score that is not a finite float32
            number; ids that are not strings; no query to average over.
    """
    parsed = parse_measures(measures)
    if ties not in get_args(Ties):
        raise InputError(f"ties must be 'trec' or 'file-rank', got {ties!r}")
    _check_qrels(qrels)
    missing = [query_id for query_id in qrels if not run.get(query_id)]
    unanswerable = [query_id for query_id, grades in qrels.items() if max(grades.values(), default=0) < 1]
    left_out = {*(missing if only_returned else ()), *(unanswerable if only_answerable else ())}
    query_ids = [query_id for query_id in qrels if query_id not in left_out]
    _warn_of_queries(qrels, run, missing, counted=not only_returned)
    if not query_ids:
        raise InputError(
            f"no query is left to average over: of {len(qrels)} in the qrels, {len(missing)} are missing from the "
            f"run and {len(unanswerable)} have no relevant document"
        )
    columns = _measured(query_ids, qrels, run, parsed, ties)
    if corpus is not None:
        _warn_of_unknown_documents(qrels, run, query_ids, parsed, corpus)
    if len(missing) < len(qrels):
        _warn_of_foreign_ids(qrels, run)
    estimates = {}
    for name, column in columns.items():
        # Sums such as NumRet's are a mean times the number of queries.
        scale = len(query_ids) if column.is_sum else 1
        low, high = bootstrap(column.values, resamples=resamples, seed=seed)
        estimates[name] = Estimate(
            scale * mean(column.values),
            low=scale * low,
            high=scale * high,
            per_query=dict(zip(query_ids, column.values.tolist(), strict=True)),
            n=len(query_ids),
            missing=len(missing),
            without_relevant=len(unanswerable),
            judged=mean(column.judged),
            gain=parsed[name].gain,
            optimistic=None if column.bounds is None else mean(column.bounds.optimistic),
            pessimistic=None if column.bounds is None else mean(column.bounds.pessimistic),
            tied=None if column.bounds is None else mean(column.bounds.at_cutoff),
        )
    return estimates


@dataclass(slots=True)
class _Column:
    """One measure of all queries."""

    values: Values
    judged: Values
    bounds: Bounds | None = None
    is_sum: bool = False


def _measured(
    query_ids: Sequence[str],
    qrels: QrelsLike,
    run: RunLike,
    measures: Mapping[str, Measure],
    ties: Ties,
) -> dict[str, _Column]:
    """Compute every measure of every query."""
    blocks: dict[str, list[tuple[Values, Values, Bounds | None]]] = {name: [] for name in measures}
    bar: Any = progress(total=len(query_ids), unit="queries", label="evaluating")
    with bar:
        for lists in ranked_lists(query_ids, qrels, run, ties):
            for name, measure in measures.items():
                judged = lists.judged_share(measure.k)
                if measure.provided is not None:
                    blocks[name].append((np.zeros(0), judged, None))
                    continue
                values = lists.values(measure)
                blocks[name].append((values, judged, lists.bounds(measure, values)))
            bar.update(len(lists))
    columns = {}
    for name, parts in blocks.items():
        bounds = [block for _, _, block in parts if block is not None]
        columns[name] = _Column(
            values=np.concatenate([values for values, _, _ in parts]),
            judged=np.concatenate([judged for _, judged, _ in parts]),
            bounds=Bounds(*map(np.concatenate, zip(*bounds, strict=True))) if bounds else None,
        )
    for name, values in _provided_values(query_ids, qrels, run, measures, ties).items():
        columns[name].values = values
        columns[name].is_sum = type(measures[name].provided.aggregator()).__name__ == "SumAgg"
    return columns


def _provided_values(
    query_ids: Sequence[str],
    qrels: QrelsLike,
    run: RunLike,
    measures: Mapping[str, Measure],
    ties: Ties,
) -> dict[str, Values]:
    """Compute the measures that ir-measures has to compute.

    It is given the scores n … 1 in our order, so that no provider's own tie rule can matter, and numbers as ids,
    since some providers write files in which not every id survives.
    """
    provided = {name: measure.provided for name, measure in measures.items() if measure.provided is not None}
    if not provided:
        return {}
    numbered_qrels: dict[str, dict[str, int]] = {}
    numbered_run: dict[str, dict[str, float]] = {}
    for row, query_id in enumerate(query_ids, start=1):
        order = [doc_id for doc_id, _ in ranked(run.get(query_id, {}), ties=ties)]
        numbers = {doc_id: str(place) for place, doc_id in enumerate([*order, *qrels[query_id]])}
        numbered_qrels[str(row)] = {numbers[doc_id]: int(g) for doc_id, g in qrels[query_id].items()}
        numbered_run[str(row)] = {numbers[doc_id]: float(len(order) - place) for place, doc_id in enumerate(order)}
    values = {measure: np.full(len(query_ids), float(measure.DEFAULT)) for measure in provided.values()}
    try:
        for metric in provider().iter_calc(list(values), numbered_qrels, numbered_run):
            if math.isfinite(metric.value):  # trec_eval's shares of an empty list are 0 / 0
                values[metric.measure][int(metric.query_id) - 1] = metric.value
    except Exception as error:  # each provider fails in its own way, on data that it does not foresee
        raise InputError(f"ir-measures cannot compute {', '.join(provided)} here: {error}") from error
    return {name: values[measure] for name, measure in provided.items()}


def _check_qrels(qrels: QrelsLike) -> None:
    if not qrels:
        raise InputError("the qrels are empty; wanted query id → document id → grade")
    for query_id, grades in qrels.items():
        for names in (grades, (query_id,)):
            if bad := [name for name in names if not isinstance(name, str)]:
                raise InputError(f"qrels: id {bad[0]!r} is no str but {type(bad[0]).__name__}; use str(…)")
        if not all(issubclass(kind, (int, np.integer)) for kind in set(map(type, grades.values()))):
            doc_id, grade = next(
                (doc_id, grade) for doc_id, grade in grades.items() if not isinstance(grade, (int, np.integer))
            )
            raise InputError(
                f"qrels: query {query_id!r}, document {doc_id!r}: grade {grade!r} is not an integer; is this a run? "
                "The qrels come first"
            )


def _warn_of_queries(qrels: QrelsLike, run: RunLike, missing: Sequence[str], *, counted: bool) -> None:
    extra = [query_id for query_id in run if query_id not in qrels]
    if extra:
        log.warning(
            "%s of the run's %s queries are not in the qrels and are ignored, such as %r",
            f"{len(extra):,}",
            f"{len(run):,}",
            extra[0],
        )
    if missing:
        log.warning(
            "%s of the %s queries in the qrels are missing from the run and %s, such as %r",
            f"{len(missing):,}",
            f"{len(qrels):,}",
            "count 0" if counted else "are left out",
            missing[0],
        )


def _warn_of_foreign_ids(qrels: QrelsLike, run: RunLike) -> None:
    """Say so if the run holds not one judged document, which is rarely meant."""
    if any(not grades.keys().isdisjoint(run.get(query_id, ())) for query_id, grades in qrels.items()):
        return
    ours = next((doc_id for grades in qrels.values() for doc_id in grades), None)
    theirs = next((doc_id for query_id in qrels for doc_id in run.get(query_id, ())), None)
    log.warning(
        "no document of the run has a judgement (the run has ids like %r, the qrels like %r); "
        "are both about the same collection?",
        theirs,
        ours,
    )


def _warn_of_unknown_documents(
    qrels: QrelsLike,
    run: RunLike,
    query_ids: Sequence[str],
    measures: Mapping[str, Measure],
    corpus: Container[str],
) -> None:
    """Count the documents that the corpus lacks: all of the qrels', and the first ten of each list of the run."""
    known = {query_id: [doc_id for doc_id in qrels[query_id] if doc_id in corpus] for query_id in query_ids}
    n_judged = sum(len(qrels[query_id]) for query_id in query_ids)
    n_unknown = n_judged - sum(map(len, known.values()))
    if n_unknown:
        # The best run that the corpus allows: its judged documents by grade.
        ideal = {
            query_id: {doc_id: float(qrels[query_id][doc_id]) for doc_id in ids} for query_id, ids in known.items()
        }
        native = {name: measure for name, measure in measures.items() if measure.provided is None}
        best = _measured(query_ids, qrels, ideal, native, "trec")
        log.warning(
            "%s of %s judged documents are not in the corpus; no run can do better than %s",
            f"{n_unknown:,}",
            f"{n_judged:,}",
            ", ".join(f"{name} {mean(column.values):.4f}" for name, column in best.items()) or "without them",
        )
    top = {doc_id for query_id in query_ids for doc_id in islice(run.get(query_id, ()), 10)}
    unknown = sorted(doc_id for doc_id in top if doc_id not in corpus)
    if unknown:
        log.warning(
            "%s of the %s documents that the run's lists begin with are not in the corpus, such as %r",
            f"{len(unknown):,}",
            f"{len(top):,}",
            unknown[0],
        )
