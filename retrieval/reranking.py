"""Reranking: the best documents of a run, scored again by something slower and better.

A `Reranker` sees texts alone; a `RunReranker` also sees which documents they are and how the run scored them. The
first k documents of each query are put in the order of the new scores, and the others stay below them in their old
order, so that a reranked run answers at any depth what the old one answered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.known_documents import OnError, known_documents
from retrieval.progress import progress
from retrieval.scored_blocks import ScoredBlocks
from retrieval.trec import Run, ranked

if TYPE_CHECKING:
    from retrieval.corpus import Corpus

log = logging.getLogger(__name__)

PAIRS_PER_BLOCK = 2_048  # scored together, so that texts of like length meet; an interruption loses no more


@runtime_checkable
class Reranker(Protocol):
    """Scores the candidates of queries by their texts; larger is better.

    One that scores each pair on its own may say so by `reads_lists = False`: then `mine` keeps its scores by pair.
    """

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[NDArray[np.float32]]:
        """Return the scores of every query's candidates.

        Args:
            queries: the texts of the queries.
            documents: for each query the texts of its candidates, title + " " + text.

        Returns:
            For each query a (candidates,) float32 array of finite numbers, in the order given.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores, as JSON values."""
        ...


@runtime_checkable
class RunReranker(Protocol):
    """Scores the candidates of queries by more than their texts; larger is better."""

    def score_run(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        """Return the scores of every query's candidates.

        Args:
            queries: query id → text, at least those of `candidates`.
            candidates: query id → document id → score of the first stage, best first; rank 1 is the first.

        Returns:
            For each query of `candidates` a float32 array of finite numbers, in the order of its documents.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores, as JSON values."""
        ...


def load_reranker(
    model: str | Path,
    *,
    precision: str = "auto",
    device: str = "auto",
    query_max_length: int | None = None,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    **tournament: Any,
) -> Reranker:
    """Open a reranker that reads texts: a trained folder, a hub id, or `package:MODULE/SUBPATH`.

    Args:
        model: what `train-reranker` wrote, or a sequence-classification model of Hugging Face.
        precision: auto, fp32 or bf16.
        device: auto, cpu or cuda[:i].
        query_max_length, max_length: tokens of the query and of the pair; None: the model's own.
        batch_tokens: tokens of one forward pass, padding included; None: what suits the device.
        tournament: for a pairwise model alone: strategy, top and budget, as in `PairwiseReranker`.

    Raises:
        InputError: when the model cannot be found or loaded, is an encoder without an output layer or a ranker of
            features, or is not pairwise and got settings of a tournament.
    """
    from retrieval.cross_encoder import CrossEncoder

    if any((place / "CURRENT").is_file() for place in (Path(model), Path(model) / "model")):
        message = "holds no reranker of texts; a ranker of features goes with --features FILE, which `features` wrote"
        raise InputError(message, path=model)
    found = CrossEncoder.load(
        model,
        precision=precision,
        device=device,
        query_max_length=query_max_length,
        max_length=max_length,
        batch_tokens=batch_tokens,
    )
    if found.has_new_output:
        message = "is an encoder without an output layer, whose scores would be chance; wanted a reranker"
        raise InputError(f"{message}: train one with `rankwright train-reranker --model {model}`", path=model)
    if found.model.architecture != "pairwise" and not tournament:
        return found
    from retrieval.pairwise_reranker import PairwiseReranker

    return PairwiseReranker(found, **tournament)


class ByText:
    """A reranker of texts as a reranker of runs: looks the candidates up in a corpus."""

    def __init__(self, reranker: Reranker, corpus: Corpus) -> None:
        self.reranker, self.corpus = reranker, corpus

    def score_run(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        """Return the scores of every query's candidates."""
        texts = [self.corpus.texts(map(self.corpus.row, found)) for found in candidates.values()]
        return self.reranker.score([queries[query_id] for query_id in candidates], texts)

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores: reranker and texts."""
        return {"reranker": self.reranker.fingerprint(), "corpus_sha256": self.corpus.sha256}


def rerank(
    run: Mapping[str, Mapping[str, float]],
    reranker: Reranker | RunReranker,
    queries: Mapping[str, str],
    corpus: Corpus | None = None,
    *,
    k: int = 100,
    on_error: OnError = "fail",
    blocks: ScoredBlocks | None = None,
) -> Run:
    """Score the k best documents of each query again, and keep the others below them in their old order.

    A reranked document has the reranker's score. Where that ties, the old order decides, and the score of the later
    one is one float32 step lower, so that every tool sees this order. The tail is moved down as a whole, by a constant
    of the query, until its scores begin below the lowest new one, with the distance that they had from the last
    reranked document; where that distance is 0, or vanishes in float32, it becomes one step.

    Args:
        run: query id → document id → score. A query without documents stays so.
        reranker: scores texts, or the candidates of a run.
        queries: query id → text, at least those of the run.
        corpus: the documents; a reranker of runs may do without.
        k: documents per query that are scored again.
        on_error: what becomes of documents that the corpus lacks, and of queries without text: "skip" leaves them out
            and counts them in a warning.
        blocks: finished work that is kept on disk, to go on from after an interruption.

    Returns:
        The queries in the order of `run`, each with the documents that it had, best first.

    Raises:
        InputError: k is below 1; an unknown document or query (it is named); no corpus for a reranker of texts;
            a score that is not finite.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if on_error not in get_args(OnError):
        raise InputError(f"on_error must be 'fail' or 'skip', got {on_error!r}")
    if not isinstance(reranker, RunReranker):
        if corpus is None:
            raise InputError("a reranker of texts needs the corpus that they stand in")
        reranker = ByText(reranker, corpus)
    old = {query_id: ranked(found) for query_id, found in _known(run, queries, corpus, on_error).items()}
    candidates = {query_id: dict(found[:k]) for query_id, found in old.items()}
    scored = blocks.begin(reranker.fingerprint(), queries, candidates) if blocks else {}
    todo = {query_id: found for query_id, found in candidates.items() if found and query_id not in scored}
    for part in score_in_blocks(reranker, queries, todo):
        if blocks:
            blocks.write(part)
        scored |= part
    empty = np.zeros(0, dtype=np.float32)
    return {query_id: merged(found, scored.get(query_id, empty), query_id) for query_id, found in old.items()}


def score_in_blocks(
    reranker: RunReranker, queries: Mapping[str, str], candidates: Run
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the scores of some queries' candidates at a time, until all are scored.

    Raises:
        InputError: a score that is not finite, or another number of scores than of candidates.
    """
    with progress(total=len(candidates), unit="lists", label="reranking") as bar:
        for query_ids in _blocks(list(candidates), candidates):
            block = {query_id: candidates[query_id] for query_id in query_ids}
            yield dict(zip(block, _checked_scores(reranker, queries, block), strict=True))
            bar.update(len(block))


def merged(
    old: Sequence[tuple[str, float]], scores: NDArray[np.float32], query_id: str | None = None
) -> dict[str, float]:
    """Return one query's documents in their new order, with scores that fall strictly as float32; see `rerank`.

    Args:
        old: (document id, score) pairs, best first.
        scores: (k,) new scores of the first k of them.
        query_id: for messages.

    Raises:
        InputError: no float32 number is left below a score.
    """
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    values = scores[order].astype(np.float64)
    if n:
        before = np.array([score for _, score in old[n - 1 :]], dtype=np.float64)
        values = np.concatenate([values, values[-1] - (before[0] - before[1:])])
    else:
        values = np.array([score for _, score in old], dtype=np.float64)
    falling: list[float] = []
    below = np.float32(np.inf)
    with np.errstate(over="ignore"):
        for value in values.astype(np.float32):
            below = min(value, np.nextafter(below, np.float32(-np.inf)))
            falling.append(float(below))
    if falling and not np.isfinite(falling[-1]):
        where = "" if query_id is None else f"query {query_id!r}: "
        raise InputError(f"{where}scores reach the end of float32; there is no room below {scores.min():g}")
    doc_ids = [old[place][0] for place in order.tolist()] + [doc_id for doc_id, _ in old[n:]]
    return dict(zip(doc_ids, falling, strict=True))


def _known(
    run: Mapping[str, Mapping[str, float]], queries: Mapping[str, str], corpus: Corpus | None, on_error: OnError
) -> Mapping[str, Mapping[str, float]]:
    """Return the run without what has no text, or raise for the first such thing."""
    unknown = [query_id for query_id in run if query_id not in queries]
    if unknown and on_error == "fail":
        more = f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
        raise InputError(f"query {unknown[0]!r} of the run{more} has no text; does the run belong to this collection?")
    kept: dict[str, Mapping[str, float]] = {query_id: run[query_id] for query_id in run if query_id in queries}
    if unknown:
        log.warning("%d queries of the run have no text and are left out (first: %s)", len(unknown), unknown[0])
    return kept if corpus is None else known_documents(kept, corpus, on_error)


def _blocks(query_ids: Sequence[str], candidates: Run) -> Iterator[list[str]]:
    """Yield the queries in blocks of about `PAIRS_PER_BLOCK` candidates, at least one query each."""
    block: list[str] = []
    size = 0
    for query_id in query_ids:
        if block and size + len(candidates[query_id]) > PAIRS_PER_BLOCK:
            yield block
            block, size = [], 0
        block.append(query_id)
        size += len(candidates[query_id])
    if block:
        yield block


def _checked_scores(reranker: RunReranker, queries: Mapping[str, str], block: Run) -> list[NDArray[np.float32]]:
    """Return the scores of a block, one finite number for each candidate."""
    found = reranker.score_run(queries, block)
    if len(found) != len(block):
        raise InputError(f"the reranker gave scores of {len(found)} queries for {len(block)}")
    checked: list[NDArray[np.float32]] = []
    for (query_id, candidates), given in zip(block.items(), found, strict=True):
        scores = np.asarray(given, dtype=np.float32)
        if scores.shape != (len(candidates),):
            got, wanted = tuple(scores.shape), (len(candidates),)
            raise InputError(f"query {query_id!r}: the reranker gave scores of shape {got}; wanted {wanted}")
        if not np.isfinite(scores).all():
            bad = list(candidates)[int(np.argmin(np.isfinite(scores)))]
            raise InputError(f"query {query_id!r}, document {bad!r}: the reranker's score is not a finite number")
        checked.append(scores)
    return checked
