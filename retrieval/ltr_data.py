"""The feature lists of a run: training and dev, and the checks that test shares no query with them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexes.storage import sha256_file
from retrieval.errors import InputError
from retrieval.feature_evaluation import LARGEST_GRADE
from retrieval.ltr_config import LtrConfig
from retrieval.splits import carve_dev
from retrieval.svmlight import FeatureLists, read_svmlight

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LtrData:
    """What a run learns from; both with the training lists' features as columns.

    Attributes:
        train: lists that are trained on.
        dev: lists that are validated on; None where nothing is.
        fingerprint: hash of the files, test included.

    """

    train: FeatureLists
    dev: FeatureLists | None
    fingerprint: str


def load_ltr_data(config: LtrConfig) -> LtrData:
    """Read the files that the settings name.

    Test lists are read here only so that their defects show before hours are spent.
    Without a file for dev, a fifth of the training queries is carved by the hash of their ids; with eval_strategy=no
    all of them are trained on. Features that training does not know are left out of dev and test, and counted; one that
    two files name differently is refused.

    Raises:
        InputError: a bad line (with file and line), a query in two files, a file that is given twice, a feature of two
            names, no relevant document to learn from.

    """
    files = {name: path for name in ("features", "valid", "test") if (path := getattr(config, name)) is not None}
    lists = {name: _read(path) for name, path in files.items()}
    hashes = {name: sha256_file(path) for name, path in files.items()}
    if config.ids_restart:
        _refuse_equal_files([(files[name], digest) for name, digest in hashes.items()])
    else:
        refuse_shared_queries([(files[name], found) for name, found in lists.items()])
    train, dev = lists["features"], lists.get("valid")
    for name, found in lists.items():
        found.check_names(train.numbers, train.names, path=files[name], trained_on=config.features)
    if dev is None and config.eval_strategy != "no":
        train, dev = carve_lists(train)
        message = (
            "no --valid: %d of the %d queries were carved for it, by their ids alone; where queries are near-equal, "
            "`rankwright features --dev-out` keeps them together"
        )
        logger.info(message, len(dev), len(train) + len(dev))
    if dev is not None and not (dev.labels > 0).any():
        logger.warning("no dev document has a grade > 0: nothing is validated")
        dev = None
    if "test" in lists and not (lists["test"].labels > 0).any():
        logger.warning("no test document has a grade > 0: its measures are 0 and say nothing")
    if not (train.labels > 0).any():
        raise InputError("no training document has a grade > 0; there is nothing to learn", path=config.features)
    train = without_unseen_features(train)
    _tell_of(train)
    for name, found in lists.items():
        if name != "features":
            _tell_of_features(found, train, files[name])
    digest = hashlib.sha256("\n".join(hashes.values()).encode()).hexdigest()
    return LtrData(train, None if dev is None else dev.align(train.numbers), digest)


def carve_lists(lists: FeatureLists) -> tuple[FeatureLists, FeatureLists]:
    """Divide lists into training and dev: a fifth of the queries, by the hash of their ids (`retrieval.splits`).

    A feature file has no texts of queries, so near-equal ones may fall on both sides.

    Raises:
        InputError: there is one query only.

    """
    try:
        kept, _ = carve_dev({query_id: {} for query_id in lists.query_ids}, {})
    except InputError as error:
        raise InputError(f"{error}; give --valid, or turn validation off with --eval-strategy no") from None
    is_kept = [query_id in kept for query_id in lists.query_ids]
    train, dev = ([place for place, kept in enumerate(is_kept) if kept is side] for side in (True, False))
    return lists.select(train), lists.select(dev)


def refuse_shared_queries(splits: Sequence[tuple[str, FeatureLists]]) -> None:
    """Refuse a query id that two files have: what is trained on must not be measured.

    Args:
        splits: (path, lists) of each file.

    Raises:
        InputError: with the file, the query and the other file.

    """
    seen: dict[str, str] = {}
    for path, found in splits:
        for query_id in found.query_ids:
            if query_id in seen:
                message = f"query {query_id!r} is in {seen[query_id]} too; a query belongs to one split"
                raise InputError(f"{message} (--ids-restart if the files number their queries anew)", path=path)
        seen |= dict.fromkeys(found.query_ids, path)


def _refuse_equal_files(files: Sequence[tuple[str, str]]) -> None:
    """Refuse two (path, hash) with one hash: whose ids begin anew cannot be told apart by ids."""
    seen: dict[str, str] = {}
    for path, digest in files:
        if digest in seen:
            raise InputError(f"holds what {seen[digest]} holds; what is trained on must not be measured", path=path)
        seen[digest] = path


def without_unseen_features(train: FeatureLists) -> FeatureLists:
    """Leave out the columns that no training document has, as carving dev may leave some."""
    seen = ~np.isnan(train.features).all(axis=0)
    if not seen.any():
        raise InputError("no training document has a feature; there is nothing to learn from")
    return train if seen.all() else train.align(train.numbers[seen])


def _read(path: str) -> FeatureLists:
    lists = read_svmlight(path)
    if (most := float(lists.labels.max())) > LARGEST_GRADE:
        raise InputError(f"has a grade of {most:g}; nDCG(dcg='exp-log2') takes grades up to {LARGEST_GRADE}", path=path)
    return lists


def _tell_of_features(lists: FeatureLists, train: FeatureLists, path: str) -> None:
    """Say what dev or test lists have more or less than training."""
    extra = np.setdiff1d(lists.numbers, train.numbers)
    lacking = np.setdiff1d(train.numbers, lists.numbers)
    if len(extra):
        logger.warning(
            "%s: features that training does not know are ignored: %d, such as %d", path, len(extra), extra[0]
        )
    if len(lacking):
        logger.info("%s: features that are missing everywhere: %d, such as %d", path, len(lacking), lacking[0])


def _tell_of(train: FeatureLists) -> None:
    """Count what teaches nothing."""
    grades = train.split_labels()
    alone = sum(len(own) == 1 for own in grades)
    same = sum(len(own) > 1 and bool((own == own[0]).all()) for own in grades)
    constant = int((np.nanmax(train.features, axis=0) == np.nanmin(train.features, axis=0)).sum())
    logger.info(
        "training: %d queries, %d documents, %d features, of which %d are constant",
        len(train),
        len(train.labels),
        len(train.numbers),
        constant,
    )
    if alone or same:
        message = "lists from which a loss that compares documents learns nothing: %d of one document, %d of one grade"
        logger.info(message, alone, same)
