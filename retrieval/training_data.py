"""What a run is trained and validated on: rows, judgements of the training split alone, dev queries."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.batches import ANY_GRADE, Judgements, LabelRule, collect_judgements
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.reranker_config import RerankerConfig
from retrieval.rows import TrainingRow, read_rows, rows_from_qrels
from retrieval.splits import carve_dev
from retrieval.train_config import TrainConfig
from retrieval.trec import Qrels

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything that a run reads.

    Attributes:
        collection: the collection.
        rows: training rows; none of a dev query.
        judgements: of the training split and the rows; test judgements are never read.
        dev_queries, dev_qrels: the dev split, or what was carved from the training queries; empty without validation.
        max_grade: the highest grade of a training judgement, which maps grades to probabilities.

    """

    collection: Collection
    rows: list[TrainingRow]
    judgements: Judgements
    dev_queries: dict[str, str]
    dev_qrels: Qrels
    max_grade: float

    def label_rule(self, loss: RankingLoss | LossSum) -> LabelRule:
        """Return how grades become the labels that a loss accepts."""
        binary = [term.settings for term in loss.terms if term.kind == "binary"]
        is_binary = len(binary) == len(loss.terms)
        return LabelRule(
            several=all(term.entry.several_positives for term in loss.terms),
            positive_from=min(float(one.get("positive_from", 1.0)) for one in binary) if is_binary else ANY_GRADE,
            scale=self.max_grade if loss.kind == "probability" else 1.0,
            teacher=loss.kind == "teacher",
        )

    def fingerprint(self) -> str:
        """Return one hash of corpus, rows, judgements and dev queries."""
        digest = hashlib.sha256(self.collection.corpus.sha256.encode())
        for row in self.rows:
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
        digest.update(repr(sorted((q, sorted(map(repr, d.items()))) for q, d in self.judgements.items())).encode())
        digest.update(json.dumps([self.dev_queries, self.dev_qrels], sort_keys=True).encode())
        return digest.hexdigest()


def load_training_data(config: TrainConfig | RerankerConfig) -> TrainingData:
    """Read collection, rows and dev split as the settings say.

    A collection without the dev split gets one carved from its training queries (a fifth, by the hash of the query
    id, texts that are near-equal together); with eval_strategy=no every training query is trained on.

    Raises:
        InputError: when a split that is named is missing, or a row is bad (with file and line).

    """
    collection = Collection.load(config.data)
    # Splits named by the user must exist; those of the defaults need not, where rows or carving stand in for them.
    train_split = _known(collection, config.train_split, needed=not config.rows or _is_named(config, "train_split"))
    qrels = collection.qrels(train_split) if train_split else {}
    rows = _rows(config, collection)
    dev_qrels: Qrels = {}
    if config.eval_strategy != "no":
        if dev_split := _known(collection, config.dev_split, needed=_is_named(config, "dev_split")):
            dev_qrels = collection.qrels(dev_split)
        elif train_split:
            qrels, dev_qrels = _carve(qrels, collection.queries(train_split))
        else:
            logger.warning("no split %r and no training qrels to carve it from: nothing is validated", config.dev_split)
    queries = collection.queries() if dev_qrels else {}
    dev_queries = {q: queries[q] for q in dev_qrels if q in queries}
    if dev_qrels and not any(grade > 0 for q in dev_queries for grade in dev_qrels[q].values()):
        logger.warning("no dev query has a relevant document: nothing is validated")
        dev_queries = {}
    kept = _without_dev(_named(rows, collection.queries(train_split) if train_split else {}), dev_queries)
    if not kept:
        where = ", ".join(config.rows) or config.data
        raise InputError(
            f"no training rows in {where} beside those of dev queries; is the dev split the training split?"
        )
    judgements = collect_judgements(kept, qrels)
    return TrainingData(
        collection=collection,
        rows=kept,
        judgements=judgements,
        dev_queries=dev_queries,
        dev_qrels={q: dev_qrels[q] for q in dev_queries},
        max_grade=max([1.0, *(grade for judged in judgements.values() for grade in judged.values())]),
    )


def _is_named(config: TrainConfig | RerankerConfig, setting: str) -> bool:
    """Whether a setting differs from its default."""
    return any(f.name == setting and f.default != getattr(config, setting) for f in fields(config))


def _known(collection: Collection, split: str, *, needed: bool) -> str | None:
    """Return the split, or None if it does not exist and is not needed."""
    if split in collection.splits:
        return split
    if needed:
        collection.qrels_path(split)  # raises, with the nearest name
    return None


def _carve(qrels: Qrels, queries: Mapping[str, str]) -> tuple[Qrels, Qrels]:
    try:
        kept, carved = carve_dev(qrels, queries)
    except InputError as error:
        raise InputError(f"{error}; turn validation off with --eval-strategy no") from None
    logger.info("no dev split: %d of the %d training queries were carved for it", len(carved), len(qrels))
    return kept, carved


def _rows(config: TrainConfig | RerankerConfig, collection: Collection) -> list[TrainingRow]:
    if not config.rows:
        return rows_from_qrels(collection, split=config.train_split)
    rows: list[TrainingRow] = []
    for path in config.rows:
        found, dialect = read_rows(Path(path), collection)
        logger.info("%s: %d rows (%s)", path, len(found), dialect)
        rows += found
    return rows


def _named(rows: list[TrainingRow], queries: Mapping[str, str]) -> list[TrainingRow]:
    """Give rows that brought a text alone the id of the training query with that text, and so its judgements."""
    ids = {text: query_id for query_id, text in queries.items()}
    return [
        replace(row, query_id=ids.get(row.query, row.query_id)) if row.query_id.startswith("text:") else row
        for row in rows
    ]


def _without_dev(rows: list[TrainingRow], dev_queries: Mapping[str, str]) -> list[TrainingRow]:
    """Leave out rows of dev queries, known by id or by text."""
    texts = set(dev_queries.values())
    kept = [row for row in rows if row.query_id not in dev_queries and row.query not in texts]
    if len(kept) < len(rows):
        logger.info("%d training rows of dev queries are left out", len(rows) - len(kept))
    return kept
