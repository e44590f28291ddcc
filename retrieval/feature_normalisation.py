"""Bringing features to one scale, by what the training lists show alone.

    standard   (x - mean) / deviation of the training documents
    query      (x - least) / (most - least) of the feature in its own list: 0 to 1; nothing is fitted
    none       as in the file

A feature that a document lacks becomes 0 afterwards, which under "standard" is the mean; with missing="zero" it is 0
beforehand, as sparse files mean it. A feature that is constant where it is fitted becomes 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError, did_you_mean

KINDS = ("standard", "query", "none")
MISSING = ("mean", "zero")
_FARTHEST = 1e6  # deviations from the mean: what lies farther must not become infinite in a network


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What `fit` found, and how it is applied.

    Attributes:
        kind: standard, query or none.
        missing: mean or zero.
        mean: (features,) float64 over the training documents.
        scale: (features,) float64, 1 / deviation; 0 of a feature that has one value, or none, in all of them.

    """

    kind: str
    missing: str
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, features: NDArray[np.float32], *, kind: str = "standard", missing: str = "mean") -> Self:
        """Look at the training documents, (rows, features) with nan where a feature is missing.

        Raises:
            InputError: an unknown kind, or an unknown way with missing features.

        """
        for name, value, known in (("normalisation", kind, KINDS), ("missing", missing, MISSING)):
            if value not in known:
                raise InputError(f"unknown {name} {value!r}{did_you_mean(value, known)}")
        width = features.shape[1]
        mean, scale = np.zeros(width), np.zeros(width)
        for column in range(width):  # one after the other: in float64 all of them may not fit in memory
            values = _filled(features[:, column].astype(np.float64), missing)
            values = values[~np.isnan(values)]
            if len(values) and values.min() < values.max():
                mean[column], scale[column] = values.mean(), 1 / values.std()
            elif len(values):
                mean[column] = values[0]
        return cls(kind, missing, mean, scale)

    def apply(self, features: NDArray[np.float32], *, keep_missing: bool = False) -> NDArray[np.float32]:
        """Normalise the documents of one list.

        Args:
            features: (docs, features), nan where a feature is missing.
            keep_missing: leave them nan, for a model that knows what to do with them.

        Returns:
            (docs, features) float32, finite but for what is kept missing.

        """
        values = _filled(features.astype(np.float64), self.missing)
        if self.kind == "standard":
            values = np.clip((values - self.mean) * self.scale, -_FARTHEST, _FARTHEST)
        elif self.kind == "query" and len(values):
            there = ~np.isnan(values)
            least = np.where(there, values, np.inf).min(axis=0)
            most = np.where(there, values, -np.inf).max(axis=0)
            varies = most > least
            width = np.subtract(most, least, out=np.ones_like(most), where=varies)
            values = np.where(there, (values - np.where(varies, least, 0)) / width, np.nan)
            values[:, ~varies] *= 0  # keeps nan
        found = values.astype(np.float32)
        return found if keep_missing else np.where(np.isnan(found), np.float32(0), found)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that `from_dict` reads back bit for bit."""
        return {
            "kind": self.kind,
            "missing": self.missing,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave."""
        mean, scale = (np.array(values[name], dtype=np.float64) for name in ("mean", "scale"))
        return cls(values["kind"], values["missing"], mean, scale)


def _filled(values: NDArray[np.float64], missing: str) -> NDArray[np.float64]:
    return np.nan_to_num(values, nan=0.0) if missing == "zero" else values
