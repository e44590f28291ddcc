"""Validation during training: nDCG@10 of the dev queries over a pool of hard documents, and over the full corpus."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes import topk
from retrieval.bm25 import BM25Searcher
from retrieval.corpus import Corpus
from retrieval.encoder import BLOCK, Encoder
from retrieval.evaluation import evaluate
from retrieval.trec import Qrels, Run

logger = logging.getLogger(__name__)

MEASURE = "nDCG@10"
_BM25_DEPTH = 50
_KEPT = 100  # documents ranked per query; nDCG@10 needs ten, ties a few more


@dataclass(frozen=True, slots=True)
class DevSet:
    """Dev queries and the documents that they are validated on.

    Attributes:
        queries: query_id → text.
        qrels: their judgements, documents outside the pool included.
        rows: corpus rows of the pool, ascending.

    """

    queries: dict[str, str]
    qrels: Qrels
    rows: NDArray[np.int64]

    def score(self, encoder: Encoder, corpus: Corpus) -> float:
        """Return nDCG@10 over the pool."""
        return _ndcg(encoder, corpus, self.rows, self.queries, self.qrels)


def make_dev_set(queries: Mapping[str, str], qrels: Qrels, corpus: Corpus, *, pool_size: int, seed: int) -> DevSet:
    """Fill a pool with judged and BM25's top 50 documents, dev query after dev query in hash order.

    Queries are taken until the next one would exceed `pool_size` documents (the first is always taken); what is left
    of the pool is filled with documents drawn by the seed. The hash order makes the choice blind to the ids' order.
    """
    bm25 = BM25Searcher.build(corpus)
    chosen: dict[str, str] = {}
    rows: set[int] = set()
    for query_id in sorted(queries, key=lambda q: hashlib.sha256(q.encode()).hexdigest()):
        if not any(grade > 0 for grade in qrels.get(query_id, {}).values()):
            continue
        top = next(iter(bm25.run({query_id: queries[query_id]}, _BM25_DEPTH).values()), {})
        judged = {corpus.row(d) for d in qrels[query_id] if d in corpus}
        wanted = rows | judged | {corpus.row(d) for d in top}
        if chosen and len(wanted) > pool_size:
            break
        rows, chosen[query_id] = wanted, queries[query_id]
    others = np.setdiff1d(np.arange(len(corpus)), np.fromiter(rows, dtype=np.int64, count=len(rows)))
    room = min(max(0, pool_size - len(rows)), len(others))
    filling = np.random.default_rng([seed, 2]).choice(others, size=room, replace=False)
    pool = np.sort(np.concatenate([np.fromiter(rows, dtype=np.int64, count=len(rows)), filling]))
    logger.info("validation: %d of %d dev queries over %d documents", len(chosen), len(queries), len(pool))
    return DevSet(chosen, {q: qrels[q] for q in chosen}, pool)


def full_score(encoder: Encoder, corpus: Corpus, queries: Mapping[str, str], qrels: Qrels) -> float:
    """Return nDCG@10 of `queries` over the whole corpus."""
    return _ndcg(encoder, corpus, np.arange(len(corpus)), queries, qrels)


def _ndcg(encoder: Encoder, corpus: Corpus, rows: NDArray[np.int64], queries: Mapping[str, str], qrels: Qrels) -> float:
    vectors = encoder.encode_query(list(queries.values()))
    best = np.empty((len(vectors), 0), dtype=np.float32)
    best_rows = np.empty((len(vectors), 0), dtype=np.int64)
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    texts = (corpus.texts(block.tolist()) for block in blocks)
    for block, documents in zip(blocks, encoder.encode_blocks(texts, encoder.document, total=len(rows)), strict=True):
        scores = np.concatenate([best, vectors @ documents.T], axis=1)
        candidates = np.concatenate([best_rows, np.broadcast_to(block, (len(vectors), len(block)))], axis=1)
        found = topk(scores, min(_KEPT, scores.shape[1]))
        best, best_rows = found.scores, np.take_along_axis(candidates, found.rows, axis=1)
    run: Run = {
        query_id: {corpus.ids[int(row)]: float(score) for row, score in zip(best_rows[i], best[i], strict=True)}
        for i, query_id in enumerate(queries)
    }
    return float(evaluate(qrels, run, [MEASURE], resamples=1)[MEASURE])
