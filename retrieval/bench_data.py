"""What a comparison of losses is trained and tried on, kept apart from what it is tested on.

Each part (the collection, or a fold of it) is a folder with the splits train and dev and no other, so that nothing that
trains or tries can read a test judgement: these are read from the collection itself, when `Part.test` is called.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexes.storage import remove_folder
from retrieval.bench_config import BenchConfig
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.splits import carve_dev, fingerprint, folds, write_split
from retrieval.trec import Qrels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """One division of the queries.

    Attributes:
        name: "" for the only part, or "fold1" ….
        folder: a collection with the splits train and dev.
        fingerprint: hash of their judgements.
        test: reads the judgements of the test queries, which nothing else does.

    """

    name: str
    folder: Path
    fingerprint: str
    test: Callable[[], Qrels]


def make_parts(config: BenchConfig, collection: Collection, folder: Path) -> list[Part]:
    """Divide the queries as the settings say, and write each part below `folder` unless it lies there already.

    Raises:
        InputError: a split is missing (naming the nearest), or folds are asked for where there is a training split.

    """
    if not config.folds:
        train, dev = _train_and_dev(config, collection)
        collection.qrels_path(config.test_split)  # raises, with the nearest name, before hours are spent
        return [_part("", config, collection, folder, train, dev, lambda: collection.qrels(config.test_split))]
    if config.train_split in collection.splits:
        raise InputError(f"{collection.name} has a split {config.train_split!r}; folds are for collections without one")
    queries = collection.queries(config.test_split)

    def division(number: int) -> dict[str, Qrels]:
        judged = collection.qrels(config.test_split)
        return folds({q: judged[q] for q in judged if q in queries}, queries, n=config.folds)[number]

    def test_of(number: int) -> Callable[[], Qrels]:
        return lambda: division(number)["test"]

    parts = []
    for number in range(config.folds):
        split = division(number)
        place = folder / f"fold{number + 1}"
        name = place.name
        parts.append(_part(name, config, collection, place, split["train"], split["dev"], test_of(number)))
    return parts


def _train_and_dev(config: BenchConfig, collection: Collection) -> tuple[Qrels, Qrels]:
    if config.train_split not in collection.splits and config.rows and config.dev_split in collection.splits:
        return {}, collection.qrels(config.dev_split)
    if config.train_split not in collection.splits and config.test_split in collection.splits:
        hint = f"; has it no other split than {config.test_split!r}? --folds 5 divides that one"
        raise InputError(f"no split {config.train_split!r}{hint}", path=collection.path, kind="unknown split")
    train = collection.qrels(config.train_split)
    if config.dev_split in collection.splits:
        return train, collection.qrels(config.dev_split)
    kept, dev = carve_dev(train, collection.queries(config.train_split))
    logger.info("no dev split: %d of the %d training queries were carved for it", len(dev), len(train))
    return kept, dev


def _part(
    name: str,
    config: BenchConfig,
    collection: Collection,
    folder: Path,
    train: Qrels,
    dev: Qrels,
    test: Callable[[], Qrels],
) -> Part:
    if config.label_noise:
        train = exchange_positives(train, list(collection.corpus.ids), config.label_noise)
    splits = {split: qrels for split, qrels in (("train", train), ("dev", dev)) if qrels}
    wanted, record = fingerprint(splits), folder / "split.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("fingerprint") != wanted or not (folder / "qrels").is_dir():
        if folder.exists():
            remove_folder(folder)
        write_split(collection, splits, folder)
    return Part(name, folder, wanted, test)


def exchange_positives(qrels: Qrels, doc_ids: Sequence[str], share: float) -> Qrels:
    """Return the judgements with a share of the positives exchanged for documents that nobody judged for the query.

    The rule needs no seed, so that every loss and every run meets the same errors. Of query q a document d with grade
    > 0 is exchanged when

        sha256("q TAB d") / 2²⁵⁶ < share

    and the document that gets its grade is the one at place sha256("d TAB q") mod n of the n documents, or the first
    behind it without a judgement for q. The true positive has no judgement afterwards: it is an ordinary negative, as a
    missed click is. A larger share exchanges all that a smaller one does.

    Args:
        qrels: query id → document id → grade.
        doc_ids: of all documents, in the order of the corpus.
        share: from 0 to 1.

    """
    found: Qrels = {}
    for query_id, grades in qrels.items():
        taken = set(grades)
        found[query_id] = {}
        for doc_id, grade in grades.items():
            kept = doc_id
            if grade > 0 and _hash(f"{query_id}\t{doc_id}") / 2**256 < share and len(taken) < len(doc_ids):
                place = _hash(f"{doc_id}\t{query_id}") % len(doc_ids)
                order = (int(step) for step in (np.arange(len(doc_ids)) + place) % len(doc_ids))
                kept = next(doc_ids[row] for row in order if doc_ids[row] not in taken)
                taken.add(kept)
            found[query_id][kept] = grade
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big")
