"""Hard negatives for training rows: candidates by a dense index, BM25 or both, filtered by their scores, drawn.

    training rows ─► candidates without what is forbidden, ranked ─► window ─► [reranker] ─► margins ─► draw ─► rows

What is forbidden, how ranks are counted and what the rules mean stands in `retrieval.negatives`; how two sources are
joined, in `retrieval.negative_candidates`. One kind of score is used for a row: that of the reranker if there is one,
else that of the dense index, else that of BM25, on which no margin can be set.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import collect_judgements
from retrieval.bm25 import BM25Searcher
from retrieval.embedding_store import EmbeddingStore, text_digests
from retrieval.errors import InputError, did_you_mean
from retrieval.negative_candidates import BM25Source, Candidates, DenseSource, Source, permitted_candidates
from retrieval.negatives import NegativeRules, PermittedDocuments, choose_places
from retrieval.reranking import Reranker
from retrieval.rows import TrainingRow, rows_from_qrels
from retrieval.stored_scores import stored_scores

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.corpus import Corpus
    from retrieval.encoder import Encoder
    from retrieval.trec import Qrels, Run

log = logging.getLogger(__name__)

SourceName = Literal["dense", "bm25"]

DEFAULT_SPLIT = "train"

# The best 100 and a margin of 5 %: NV-Retriever's best rule. Leaving out the first ranks instead, as 10:100 does,
# throws away the negatives that teach most wherever a query's neighbourhood holds few unjudged relevant documents.
DEFAULT_RULES = NegativeRules(relative_margin=0.05)


@dataclass(frozen=True, slots=True)
class Mined:
    """What `mine` found.

    Attributes:
        rows: one for each training row, with its positives; negatives are the mined ones, at most as many as wanted.
        full, fewer, none: rows with as many negatives as wanted, with fewer, with none at all.
        candidates: how many stood in the windows of all rows.
        removed: how many candidates each rule removed: "relevant" and "same_text" above the end of each list,
            "absolute_margin", "relative_margin" and "max_score" in the windows, each the first rule that did.
    """

    rows: list[TrainingRow]
    full: int
    fewer: int
    none: int
    candidates: int
    removed: dict[str, int]


def mine(
    collection: Collection,
    encoder: Encoder | None = None,
    *,
    split: str = DEFAULT_SPLIT,
    rows: Sequence[TrainingRow] | None = None,
    candidates: Sequence[SourceName] = ("dense",),
    rules: NegativeRules | None = None,
    reranker: Reranker | None = None,
    store: EmbeddingStore | None = None,
    further_qrels: Sequence[Qrels] = (),
) -> Mined:
    """Choose hard negatives for every training row.

    Args:
        collection: the documents, and the training split's judgements.
        encoder: for dense candidates; BM25 alone needs none.
        split: the training split. Its judgements say what may not be a negative.
        rows: for these, whose positives stay as they are and whose negatives are replaced; a collection without a
            training split will do then. None: one row for each query of the split.
        candidates: "dense", "bm25", or both.
        rules: which candidates become negatives; None: the best 100, a relative margin of 0.05 unless BM25 alone
            scores, the first 7.
        reranker: scores positives and the candidates in the window again; its scores decide and are written.
        store: where embeddings, searches and the reranker's scores are kept; None: in the user's cache.
        further_qrels: judgements of the same queries beside the split's. They make no positives, but what they call
            relevant is no negative; where judgements differ, the higher grade counts.

    Raises:
        InputError: settings that do not go together, no documents, no such split, no training row.
    """
    check_mining(candidates, rules, has_encoder=encoder is not None, has_reranker=reranker is not None)
    rules = rules or default_rules(candidates, has_reranker=reranker is not None)
    corpus, store = collection.corpus, store or EmbeddingStore()
    if not len(corpus):
        raise InputError("holds no document to mine from", path=corpus.source, kind="empty")
    rows, allowed = _training_rows(collection, split, rows, store, further_qrels)
    sources: list[Source] = []
    if encoder is not None and "dense" in candidates:
        sources.append(DenseSource(encoder, corpus, rows, store))
    if "bm25" in candidates:
        sources.append(BM25Source(BM25Searcher.build(corpus), rows))
    removed: Counter[str] = Counter()
    forbidden = [allowed.forbidden(row) for row in rows]
    found = permitted_candidates(sources, len(corpus), allowed, forbidden, rules.last_rank, removed)
    found = [one.take(np.flatnonzero(one.ranks >= rules.first_rank)) for one in found]
    if reranker is not None:
        found = _rescored(found, rows, reranker, corpus, store)
    mined = [_mined(row, one, rules, allowed, removed) for row, one in zip(rows, found, strict=True)]
    lengths = np.array([len(row.negative_ids) for row in mined])
    result = Mined(
        rows=mined,
        full=int((lengths == rules.num_negatives).sum()),
        fewer=int(((lengths > 0) & (lengths < rules.num_negatives)).sum()),
        none=int((lengths == 0).sum()),
        candidates=sum(len(one.documents) for one in found),
        removed=dict(removed),
    )
    _report(result, rules)
    return result


def check_mining(
    candidates: Sequence[str], rules: NegativeRules | None, *, has_encoder: bool, has_reranker: bool
) -> None:
    """Refuse settings of `mine` that do not go together."""
    known = get_args(SourceName)
    for name in candidates:
        if name not in known:
            raise InputError(f"unknown candidates {name!r}{did_you_mean(name, known)}")
    if not candidates or len(set(candidates)) < len(candidates):
        raise InputError(f"got candidates {', '.join(candidates) or 'from nowhere'}; wanted dense, bm25 or both, once")
    if "dense" in candidates and not has_encoder:
        raise InputError("dense candidates need a model (--model); BM25 alone needs none (--candidates bm25)")
    if rules is not None and rules.has_margin and not has_reranker and "dense" not in candidates:
        message = "a margin compares a model's scores with the positive's, and BM25's are none"
        raise InputError(f"{message}; add dense candidates or a reranker, or leave the margin out")


def default_rules(candidates: Sequence[str], *, has_reranker: bool = False) -> NegativeRules:
    """Return the rules of a mining that names none: no margin where BM25 alone scores."""
    return DEFAULT_RULES if has_reranker or "dense" in candidates else replace(DEFAULT_RULES, relative_margin=None)


def row_lines(rows: Iterable[TrainingRow]) -> Iterator[str]:
    """Yield each row as the JSON line of a file; without a negative, too, it says so."""
    for row in rows:
        ids = {"positive_ids": list(row.positive_ids), "negative_ids": list(row.negative_ids)}
        yield json.dumps({**row.to_dict(), **ids}, ensure_ascii=False, allow_nan=False)


def _training_rows(
    collection: Collection,
    split: str,
    given: Sequence[TrainingRow] | None,
    store: EmbeddingStore,
    further_qrels: Sequence[Qrels],
) -> tuple[Sequence[TrainingRow], PermittedDocuments]:
    """Return the rows to mine for, and what may not be a negative of them by all judgements."""
    rows = rows_from_qrels(collection, split) if given is None else given
    if not rows:
        raise InputError("got no training row to mine for")
    has_split = given is None or split in collection.splits or split != DEFAULT_SPLIT
    qrels = _joined([collection.qrels(split) if has_split else {}, *further_qrels])
    texts = collection.query_texts if has_split or further_qrels else {}
    ours = {row.query for row in rows}
    same_text = [TrainingRow(query_id=q, query=texts[q]) for q in qrels if texts.get(q) in ours]
    known = {row.query_id for row in (*rows, *same_text)}
    for number, judged in enumerate(further_qrels, start=1):
        if not known & judged.keys():
            log.warning("further judgements no. %d say nothing about the %d queries to mine for", number, len(rows))
    judgements = collect_judgements([*rows, *same_text], qrels)
    digests = store.corpus_digests(collection.corpus)
    return rows, PermittedDocuments(collection.corpus, [*rows, *same_text], judgements, digests)


def _joined(several: Sequence[Qrels]) -> Qrels:
    """Return all judgements; where they differ, the higher grade."""
    joined: Qrels = {}
    for qrels in several:
        for query_id, grades in qrels.items():
            known = joined.setdefault(query_id, {})
            known |= {doc_id: max(grade, known.get(doc_id, grade)) for doc_id, grade in grades.items()}
    return joined


def _mined(
    row: TrainingRow, found: Candidates, rules: NegativeRules, permitted: PermittedDocuments, removed: Counter[str]
) -> TrainingRow:
    """Return a row with its negatives drawn; they have labels, of 0, if all of them are judged not relevant."""
    positive = rules.positive_score(found.positive_scores)
    judged = np.isin(found.documents, permitted.judged_irrelevant(row))
    places = choose_places(rules, found.scores, found.ranks, positive, row.query_id, removed, exempt=judged)
    chosen, ids = found.take(places), permitted.corpus.ids
    return replace(
        row,
        positive_scores=tuple(found.positive_scores.tolist()),
        negative_ids=tuple(ids[document] for document in chosen.documents.tolist()),
        negatives=(),
        negative_labels=(0.0,) * len(places) if judged[places].all() else (),
        negative_scores=tuple(chosen.scores.tolist()),
        negative_ranks=tuple(chosen.ranks.tolist()),
    )


def _rescored(
    found: Sequence[Candidates],
    rows: Sequence[TrainingRow],
    reranker: Reranker,
    corpus: Corpus,
    store: EmbeddingStore,
) -> list[Candidates]:
    """Return the candidates with the reranker's scores, best first, ties in the old order, and their old ranks."""
    lists = _Lists(reranker, corpus)
    names = [lists.add(row, one.documents.tolist()) for row, one in zip(rows, found, strict=True)]
    known = store.corpus_digests(corpus)
    digests = {name: lists.digests(name, known) for name in names}
    reads_lists = getattr(reranker, "reads_lists", True)
    scores = stored_scores(store, lists, lists.queries, lists.run, digests, reads_lists=reads_lists)
    rescored = []
    for name, one in zip(names, found, strict=True):
        own, new = np.split(scores[name], [len(scores[name]) - len(one.documents)])
        order = np.argsort(-new, kind="stable")
        rescored.append(replace(one.take(order), scores=new[order], positive_scores=own))
    return rescored


class _Lists:
    """The positives and candidates of training rows as a run, and a reranker of texts as one of this run."""

    def __init__(self, reranker: Reranker, corpus: Corpus) -> None:
        self.reranker, self.corpus = reranker, corpus
        self.queries: dict[str, str] = {}
        self.run: Run = {}
        self._lists: dict[str, tuple[Sequence[str], list[int]]] = {}  # the row's texts, rows of the corpus

    def add(self, row: TrainingRow, candidates: Sequence[int]) -> str:
        """Add a row's positives and then its candidates, and return the name of the list."""
        name = f"{row.query_id} (row {len(self.run) + 1})"
        ids = [*(row.positive_ids or row.positives), *(self.corpus.ids[document] for document in candidates)]
        self.run[name] = {f"{place}. {doc_id[:80]}": -float(place) for place, doc_id in enumerate(ids)}
        self.queries[name] = row.query
        own = [] if row.positives else map(self.corpus.row, row.positive_ids)
        self._lists[name] = row.positives, [*own, *candidates]
        return name

    def digests(self, name: str, known: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the `text_digests` of a list; `known` are those of the corpus."""
        texts, documents = self._lists[name]
        return np.concatenate([text_digests(texts), known[documents]])

    def score_run(self, queries: Mapping[str, str], candidates: Run) -> list[NDArray[np.float32]]:
        """Return the scores of some documents of some lists."""
        texts = [[self._text(name, document) for document in found] for name, found in candidates.items()]
        return self.reranker.score([queries[name] for name in candidates], texts)

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores beside the texts."""
        return self.reranker.fingerprint()

    def _text(self, name: str, document: str) -> str:
        place = int(document.partition(".")[0])
        texts, documents = self._lists[name]
        return texts[place] if place < len(texts) else self.corpus.text(documents[place - len(texts)])


def _report(mined: Mined, rules: NegativeRules) -> None:
    """Log how many negatives there are, and why there are no more."""
    counts = (len(mined.rows), mined.full, rules.num_negatives, mined.fewer, mined.none)
    log.info("%d rows: %d with %d negatives, %d with fewer, %d with none", *counts)
    forbidden = {name: mined.removed.get(name, 0) for name in ("relevant", "same_text")}
    log.info("left out: %d judged relevant, %d with the same text", *forbidden.values())
    for name, count in mined.removed.items():
        if name not in forbidden:
            share = 100 * count / max(1, mined.candidates)
            log.info(
                "%s: %d of the %d candidates in the windows removed (%.1f %%)", name, count, mined.candidates, share
            )
    if mined.none:
        several = np.mean([len(row.positive_scores) for row in mined.rows]) > 1 and rules.has_margin
        hint = (
            f"; margins are measured from the {rules.margin_from} of several positives (margin_from)" if several else ""
        )
        message = "%d of %d rows have no negative; a wider range or a smaller margin would find some%s"
        log.warning(message, mined.none, len(mined.rows), hint)
