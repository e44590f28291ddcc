"""Fusion: several runs of the same queries become one, by the ranks of their documents or by their scores.

Ranks are those of `retrieval.trec`'s rule, and so is the order of the fused run. A query that a run lacks is an empty
list of that run; a document that a run lacks adds nothing for it. Normalised scores are never below 0, which is what
the last document of a list counts, so that to be found last is never worse than not to be found.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError, did_you_mean
from retrieval.trec import Run, ranked, score_array

log = logging.getLogger(__name__)

Method = Literal["rrf", "combsum", "combmnz"]
Norm = Literal["minmax", "zscore", "none"]

RANK_CONSTANT = 60


def fuse(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    method: Method = "rrf",
    *,
    weights: Sequence[float] | None = None,
    norm: Norm | None = None,
    rank_constant: float = RANK_CONSTANT,
    k: int | None = None,
) -> Run:
    """Fuse runs.

    Over the runs r that have document d for the query, with weights w_r,

        rrf      Σ_r w_r / (rank_constant + rank_r(d)), ranks from 1
        combsum  Σ_r w_r · norm(s_r(d)); with "minmax" this is the normalised weighted sum of hybrid search
        combmnz  combsum times the number of runs that have d

    and, of one query's scores in one run,

        minmax   (s − min) / (max − min)
        zscore   (s − mean) / std, raised by a constant so that the lowest is 0; std is the population's
        none     s

    Where all scores of a list are equal, minmax and zscore give each of its documents 1.

    Args:
        runs: two or more, query id → document id → score.
        method: rrf, combsum or combmnz.
        weights: one for each run, not negative; None: all 1. A run of weight 0 is as if it were not there.
        norm: for combsum and combmnz; None: minmax. rrf sees no scores and takes none.
        rank_constant: of rrf, at least 0.
        k: keep the best k documents of each query; None: all.

    Returns:
        Every query that some run has, in order of first appearance; best document first.

    Raises:
        InputError: fewer than two runs, an unknown method or norm, weights that do not fit, a score that is not a
            finite float32 number, or, for combmnz without a norm, a score below 0, which the product would turn round.

    Source: Cormack, Clarke and Büttcher 2009 (reciprocal rank fusion, k = 60); Fox and Shaw 1994 (CombSUM, CombMNZ).
    """
    shares = check_fusion(len(runs), method, weights, norm, rank_constant, k)
    query_ids = list(dict.fromkeys(query_id for run in runs for query_id in run))
    fused: Run = {}
    for query_id in query_ids:
        found: dict[str, list[float]] = {}  # document → what each run that has it adds
        for run, share in zip(runs, shares, strict=True):
            scores = run.get(query_id, {}) if share else {}
            values = _reciprocal_ranks(scores, rank_constant) if method == "rrf" else _normalised(scores, norm)
            for doc_id, value in values.items():
                if method == "combmnz" and value < 0:
                    message = f"combmnz takes no score below 0: query {query_id!r}, document {doc_id!r} has {value:g}"
                    raise InputError(f"{message}; give a norm (minmax or zscore)")
                found.setdefault(doc_id, []).append(share * value)
        # fsum: the order of the runs changes no bit.
        sums = {doc_id: math.fsum(parts) for doc_id, parts in found.items()}
        if method == "combmnz":
            sums = {doc_id: len(found[doc_id]) * total for doc_id, total in sums.items()}
        fused[query_id] = dict(ranked(sums)[:k])
    _report_gaps(runs, query_ids)
    return fused


def check_fusion(
    n_runs: int, method: str, weights: Sequence[float] | None, norm: str | None, rank_constant: float, k: int | None
) -> list[float]:
    """Return the weight of each run, or refuse with an InputError what cannot be fused; see `fuse`."""
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}{did_you_mean(method, get_args(Method))}")
    if norm is not None and norm not in get_args(Norm):
        raise InputError(f"unknown norm {norm!r}{did_you_mean(norm, get_args(Norm))}")
    if method == "rrf" and norm is not None:
        raise InputError(f"rrf fuses ranks and takes no norm, got {norm!r}; for scores use combsum or combmnz")
    if not 0 <= rank_constant < math.inf:
        raise InputError(f"rank_constant must be at least 0, got {rank_constant}")
    if n_runs < 2:
        raise InputError(f"got {n_runs} run{'' if n_runs == 1 else 's'}; wanted two or more to fuse")
    if k is not None and k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    shares = [1.0] * n_runs if weights is None else list(weights)
    if len(shares) != n_runs:
        raise InputError(f"got {len(shares)} weights for {n_runs} runs; wanted one each")
    if not all(0 <= share < math.inf for share in shares) or not any(shares):
        raise InputError(f"weights must be at least 0 and not all 0, got {', '.join(f'{w:g}' for w in shares)}")
    return shares


def _reciprocal_ranks(scores: Mapping[str, float], rank_constant: float) -> dict[str, float]:
    return {doc_id: 1 / (rank_constant + rank) for rank, (doc_id, _) in enumerate(ranked(scores), start=1)}


def _normalised(scores: Mapping[str, float], norm: str | None) -> dict[str, float]:
    values: NDArray[np.float64] = score_array(scores).astype(np.float64)
    if norm != "none" and len(values):
        values = values - values.min()
        spread = values.std() if norm == "zscore" else values.max()
        values = values / spread if values.any() else np.ones_like(values)
    return dict(zip(scores, values.tolist(), strict=True))


def _report_gaps(runs: Sequence[Mapping[str, Mapping[str, float]]], query_ids: Sequence[str]) -> None:
    for number, run in enumerate(runs, start=1):
        n_missing = sum(not run.get(query_id) for query_id in query_ids)
        if n_missing:
            log.warning("run %d has no document for %d of %d queries", number, n_missing, len(query_ids))
