"""How hard a task's negatives are, where a document's title is its topic: in MedQuAD, the disease."""

from __future__ import annotations

import numpy as np

from retrieval.batches import Batcher, LabelRule
from retrieval.collection import Collection
from retrieval.rows import rows_from_qrels
from retrieval.trec import Qrels, Run


def mistakes(collection: Collection, qrels: Qrels, run: Run) -> dict[str, int]:
    """Count the queries whose first document is not relevant, and those of them where it is about the same topic."""
    first = {q: next(iter(run[q])) for q in qrels if run.get(q)}
    wrong = {q: doc_id for q, doc_id in first.items() if qrels[q].get(doc_id, 0) < 1}
    same = sum(
        _topic(collection, doc_id) in {_topic(collection, relevant) for relevant in qrels[q]}
        for q, doc_id in wrong.items()
    )
    return {"queries": len(qrels), "first_is_wrong": len(wrong), "of_the_same_topic": same}


def own_topic_negatives(collection: Collection, batch_size: int, seed: int) -> dict[str, float]:
    """Return, over an epoch's batches, how many in-batch negatives a query has of its own topic.

    The topic of a query is that of its relevant documents, which share one here.
    """
    rows = rows_from_qrels(collection)
    batcher = Batcher(rows, collection.corpus, {}, LabelRule(several=False), batch_size=batch_size, seed=seed)
    topics = np.array([_topic(collection, row.positive_ids[0]) for row in batcher.rows])
    counts = [(topics[batch][:, None] == topics[batch]).sum(axis=1) - 1 for batch in batcher.epoch(0)]
    per_query = np.concatenate(counts)
    return {"mean": round(float(per_query.mean()), 4), "queries_with_one": round(float((per_query > 0).mean()), 4)}


def _topic(collection: Collection, doc_id: str) -> str:
    return collection.corpus.document(collection.corpus.row(doc_id)).title.casefold()
