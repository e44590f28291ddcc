"""Settings of a comparison of losses: what is fixed for all of them, and the trials that each of them gets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import TYPE_CHECKING, Any

from retrieval.errors import InputError, did_you_mean
from retrieval.measures import parse_measures

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

MEASURE = "nDCG@10"  # by which trials are compared on dev
HEADS, SIDES = ("linear", "mlp"), ("query", "both")
FACTORS = (1 / 3, 1.0, 3.0)  # of a loss's own temperature: a factor of nine covers the range published for each
# Their own scale is for scores that are log-odds already; cosines need SigLIP's.
COSINE_SCALES = {"point_ce": 10.0, "ordinal": 10.0}

# What differs between training a whole encoder and training a head over its embeddings.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"learning_rates": (2e-5, 5e-5, 1e-4), "per_device_train_batch_size": 32, "num_train_epochs": 1.0},
    "head": {"learning_rates": (1e-3, 3e-3, 1e-2), "per_device_train_batch_size": 128, "num_train_epochs": 20.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """Settings of one comparison; those that training has too are named and mean the same."""

    model: str
    data: str
    out: str
    losses: tuple[str, ...]  # names or sums; the others are compared with the first
    seeds: int = 3  # runs of the frozen settings, from seed 0; trials have seed 0
    trials: int = 9  # settings of each loss that are tried on dev
    heads: str | None = None  # linear | mlp: trained over cached embeddings; None: the whole encoder is trained
    sides: str = "query"  # with heads: query | both
    hidden: int = 128  # units of an mlp head
    learning_rates: tuple[float, ...] = ()  # none: what suits heads or encoders
    temperatures: tuple[float, ...] = ()  # the same for every loss; none: a third, one and three times its own
    loss_settings: Mapping[str, Any] = field(default_factory=dict)  # NAME.SETTING → value, for every trial
    measures: tuple[str, ...] = (MEASURE, "RR@10", "R@100")
    rows: tuple[str, ...] = ()  # JSONL files of training rows; none: rows are made from the training split's qrels
    train_split: str = "train"
    dev_split: str = "dev"  # absent: carved from the training queries by hash
    test_split: str = "test"
    folds: int = 0  # > 1: cross-validation over the queries of the test split, for a collection with no other
    label_noise: float = 0.0  # share of training positives that are exchanged for documents not judged
    per_device_train_batch_size: int = 0  # 0: what suits heads or encoders
    num_train_epochs: float = 0.0  # 0: what suits heads or encoders
    num_positives: int = 1
    num_negatives: int = 7
    evaluations: int = 10  # measurements of dev in a trial, from which its best moment is chosen
    query_max_length: int | None = None
    document_max_length: int | None = None
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value in _DEFAULTS["head" if self.heads else "model"].items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        self._refuse_bad_values()
        self._refuse_what_does_not_go_together()
        parse_measures(self.measures)
        for loss in self.losses:
            self.grid(loss)

    def _refuse_bad_values(self) -> None:
        if not self.losses:
            raise InputError("no loss was given; wanted names such as --losses infonce,bixse,mw")
        if twice := next((name for name in self.losses if self.losses.count(name) > 1), None):
            raise InputError(f"--losses names {twice!r} twice")
        for name, least in (("seeds", 1), ("trials", 1), ("evaluations", 1), ("hidden", 1), ("folds", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.heads is not None and self.heads not in HEADS:
            raise InputError(f"unknown heads {self.heads!r}{did_you_mean(self.heads, HEADS)}")
        if self.sides not in SIDES:
            raise InputError(f"unknown sides {self.sides!r}{did_you_mean(self.sides, SIDES)}")
        for name in ("learning_rates", "temperatures"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, name)):
                raise InputError(f"{name} must be numbers > 0, got {getattr(self, name)}")
        if not 0 <= self.label_noise < 1:
            raise InputError(f"label_noise is a share of the training positives, 0 to 1; got {self.label_noise}")

    def _refuse_what_does_not_go_together(self) -> None:
        if self.folds == 1:
            raise InputError("one fold leaves nothing to train on; folds must be 0 or >= 2")
        if self.label_noise and self.rows:
            raise InputError("label_noise changes judgements, and rows of your own bring theirs; leave one out")
        if self.folds and self.rows:
            raise InputError("folds divide the queries of the collection; rows of your own do not go with them")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()} | {
            "loss_settings": dict(sorted(self.loss_settings.items()))
        }

    def grid(self, loss: str) -> list[Setting]:
        """Return the settings of a loss that are tried: as many for each loss.

        The grid is learning rates × temperatures; fewer trials than it holds are those nearest to its middle.

        Raises:
            InputError: an unknown loss (naming the nearest), a setting that it refuses, more trials than settings.

        """
        own = self._own_settings(loss)
        built = build(loss, own)
        if varied := [name for name in own if name.rpartition(".")[2] in ("temperature", "scale")]:
            raise InputError(f"the trials vary {varied[0]} of {loss}; give --temperatures instead")
        rates = self.learning_rates
        columns = [_absolute(built, t) for t in self.temperatures] or [_relative(built, f) for f in FACTORS]
        if self.trials > len(rates) * len(columns):
            held = f"{len(rates)} learning rates × {len(columns)} temperatures"
            raise InputError(f"trials={self.trials}, but the grid holds {held}; give more --learning-rates")
        places = sorted(
            product(range(len(rates)), range(len(columns))),
            key=lambda place: abs(place[0] - (len(rates) - 1) / 2) + abs(place[1] - (len(columns) - 1) / 2),
        )
        kept = sorted(places[: self.trials])
        settings = [Setting(loss, rates[row], {**own, **columns[column]}) for row, column in kept]
        for setting in settings:
            build(loss, setting.loss_settings)
        return settings

    def _own_settings(self, loss: str) -> dict[str, Any]:
        """Return the given settings that belong to a loss, under the names that `build_expression` takes."""
        terms = {term.name for term in build(loss, {}).terms}
        named = {term.name for other in self.losses for term in build(other, {}).terms}
        found: dict[str, Any] = {}
        for key, value in self.loss_settings.items():
            name, dot, _ = key.partition(".")
            if not dot or name not in named:
                example = f"loss.{self.losses[0]}.{key}"
                raise InputError(
                    f"setting loss.{key} belongs to which loss? write {example}{did_you_mean(name, named)}"
                )
            if name in terms:
                found[key] = value
        return found


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a loss's grid."""

    loss: str
    learning_rate: float
    loss_settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "loss_settings": dict(sorted(self.loss_settings.items())),
        }

    def __str__(self) -> str:
        shown = (f"{name}={_short(value)}" for name, value in self.loss_settings.items())
        return ", ".join([f"lr={self.learning_rate:g}", *(name.removeprefix(f"{self.loss}.") for name in shown)])


def build(loss: str, settings: Mapping[str, Any]) -> RankingLoss | LossSum:
    """Build a loss or a sum, or say in one line what is wrong."""
    from rankers.losses import build_expression

    try:
        return build_expression(loss, settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"losses: {error}") from error


def short_hash(value: Any) -> str:
    """Return a hash of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def sharpness(loss: RankingLoss | LossSum) -> tuple[str, float] | None:
    """Return the name and the value of what scores are divided or multiplied by; None for a sum of several losses."""
    if len(loss.terms) > 1:
        return None
    settings = loss.terms[0].settings
    name = "scale" if settings.get("scale") is not None else "temperature"
    return name, float(settings[name])


def _relative(loss: RankingLoss | LossSum, factor: float) -> dict[str, Any]:
    """Return the settings that make every term's scores `factor` times as warm as its defaults do."""
    found: dict[str, Any] = {}
    for term in loss.terms:
        if "scale" in term.entry.defaults:
            centre = COSINE_SCALES.get(term.name, term.entry.defaults["scale"])
            found[f"{term.name}.scale"] = float(f"{centre / factor:.4g}")
        else:
            found[f"{term.name}.temperature"] = float(f"{term.entry.defaults['temperature'] * factor:.4g}")
    return found


def _absolute(loss: RankingLoss | LossSum, temperature: float) -> dict[str, Any]:
    """Return the settings that divide every term's scores by `temperature`."""
    return {
        f"{term.name}.scale" if "scale" in term.entry.defaults else f"{term.name}.temperature": (
            float(f"{1 / temperature:.4g}") if "scale" in term.entry.defaults else temperature
        )
        for term in loss.terms
    }


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
