"""LightGBM's LambdaMART: gradient-boosted trees whose gradients are LambdaRank's.

Deterministic: one seed, one answer, on any number of threads. Labels are whole grades. Everything that is tried on dev
is measured by this project's own nDCG@10, so that trees and networks are chosen by the same rule.

Sources: Burges 2010, "From RankNet to LambdaRank to LambdaMART" (MSR-TR-2010-82); Ke et al. 2017, "LightGBM" (NeurIPS).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError, require
from retrieval.feature_evaluation import MEASURE, means, measure_lists
from retrieval.feature_normalisation import Normalisation
from retrieval.ltr_config import LtrConfig
from retrieval.ltr_data import LtrData
from retrieval.svmlight import FeatureLists

_LARGEST_GAIN = 60  # 2^grade - 1 of more than that is not told from 2^grade
_LONGEST_LIST = 10_000  # LightGBM's own limit for a query


class Trees:
    """A forest that scores documents one by one; its file is LightGBM's own text format."""

    def __init__(self, booster: Any) -> None:
        self.booster = booster

    @classmethod
    def load(cls, path: Path) -> Trees:
        """Read `model.txt`.

        Raises:
            InputError: LightGBM is not installed, or cannot read the file.

        """
        lightgbm = require("lightgbm", "ltr")
        try:
            return cls(lightgbm.Booster(model_str=path.read_text(encoding="utf-8")))
        except lightgbm.basic.LightGBMError as error:
            raise InputError(f"is no model of LightGBM: {error}", path=path) from None

    def to_text(self) -> str:
        """Return LightGBM's text of the model."""
        text: str = self.booster.model_to_string()
        return text

    def score(self, lists: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return (docs,) scores for each (docs, features) list, nan where a feature is missing."""
        sizes = [len(own) for own in lists]
        if not sum(sizes):
            return [np.zeros(0, dtype=np.float32) for _ in lists]
        found = np.asarray(self.booster.predict(np.concatenate(lists)), dtype=np.float32)
        return np.split(found, np.cumsum(sizes)[:-1])


def train_trees(
    config: LtrConfig, data: LtrData, normalisation: Normalisation
) -> tuple[Trees, list[dict[str, Any]], int, int]:
    """Grow trees, and keep as many as are best on dev (all of them without dev).

    Returns:
        The trees, a line of metrics for each tree that was grown, how many were grown and how many are kept.

    Raises:
        InputError: lists that do not suit trees, or LightGBM is not installed.

    """
    lightgbm = require("lightgbm", "ltr")
    grades = check_suits_trees(data.train, config)
    gains = [float(g) if config.gain == "linear" else 2.0**g - 1 for g in range(int(grades.max()) + 2)]
    settings = {
        "objective": config.loss,
        "label_gain": gains,
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_fraction": config.feature_fraction,
        "bagging_fraction": config.bagging_fraction,
        "bagging_freq": int(config.bagging_fraction < 1),
        "seed": config.seed % 2**31,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    rows = np.concatenate(apply_all(normalisation, data.train))
    names = [f"f{number}" for number in data.train.numbers]
    # Features that cannot part 20 documents, LightGBM's default of min_data_in_leaf, would otherwise be left out.
    binning = {"verbose": -1, "feature_pre_filter": False}
    dataset = lightgbm.Dataset(rows, label=grades, group=data.train.sizes, feature_name=names, params=binning)
    booster = lightgbm.Booster(settings, dataset)
    dev = None if data.dev is None else (data.dev, np.concatenate(apply_all(normalisation, data.dev)))
    total = np.zeros(0 if dev is None else len(dev[1]))
    metrics: list[dict[str, Any]] = []
    best, best_score = 0, -1.0
    for tree in range(1, config.num_trees + 1):
        is_finished = booster.update()  # no split gains anything any more
        if booster.num_trees() < tree:  # and a tree without a split is taken back, unless it is the first
            break
        line: dict[str, Any] = {"step": tree}
        if dev is not None:
            total = total + booster.predict(dev[1], start_iteration=tree - 1, num_iteration=1)
            line[f"dev_{MEASURE}"] = score = _score(dev[0], total)
            if score > best_score:
                best, best_score = tree, score
        metrics.append(line)
        patience = config.early_stopping_patience
        if is_finished or (dev is not None and patience and tree - best >= patience):
            break
    grown = len(metrics)
    kept = best or grown
    text = booster.model_to_string(num_iteration=kept)
    return Trees(lightgbm.Booster(model_str=text)), metrics, grown, kept


def apply_all(normalisation: Normalisation, lists: FeatureLists) -> list[NDArray[np.float32]]:
    """Return what trees see of each list."""
    return [normalisation.apply(own, keep_missing=True) for own in lists.split_features()]


def _score(lists: FeatureLists, scores: NDArray[np.float64]) -> float:
    singles = scores.astype(np.float32)
    return means(measure_lists(lists, [singles[rows] for rows in lists.slices()], [MEASURE]))[MEASURE]


def check_suits_trees(lists: FeatureLists, config: LtrConfig) -> NDArray[np.int32]:
    """Return the grades of training lists, whole.

    Raises:
        InputError: grades that are not whole or too large for the gain, or a list that LightGBM finds too long.

    """
    grades = lists.labels
    is_fraction = grades != np.floor(grades)
    if is_fraction.any():
        row = int(np.argmax(is_fraction))
        shown = f"{lists.labels[row]} in query {lists.query_of(row)!r}"
        message = f"lambdamart takes whole grades, got {shown}; other scorers take fractions"
        raise InputError(message, path=config.features)
    if grades.max() > _LARGEST_GAIN and config.gain == "exp2":
        message = f"has a grade of {grades.max():g}, too large for a gain of 2^grade - 1; --set loss.gain=linear"
        raise InputError(message, path=config.features)
    if (longest := int(lists.sizes.max())) > _LONGEST_LIST:
        query_id = lists.query_ids[int(lists.sizes.argmax())]
        message = f"query {query_id!r} has {longest:,} documents; lambdamart takes up to {_LONGEST_LIST:,}"
        raise InputError(f"{message}, other scorers take more", path=config.features)
    return grades.astype(np.int32)
