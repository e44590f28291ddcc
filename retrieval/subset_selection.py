"""A part of the training rows that stands for all of them: sensitivity sampling over clusters of embeddings.

Rows are clustered by their embeddings; the loss is computed for one row of each cluster, the nearest to its centre, and
a row is drawn the more often the higher its cluster's loss is and the further it lies from the centre:

    p_e = (loss of its cluster + distance_weight * ‖x_e - centre‖^power) / (the sum of this over all rows)

Drawn `size` times with replacement, a row that came up c times has the weight c / (size n p_e). With these weights the
sum over the drawn rows of any quantity is an unbiased estimate of its mean over all n rows, whatever the losses were;
good losses make it a precise one. Without them, harder and rarer rows count more than their share.

Source: Axiotis et al. 2024, "Data-Efficient Learning via Clustering-Based Sensitivity Sampling" (arXiv:2402.17327).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.neighbors import Vectors
from retrieval.errors import InputError

_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class Clustered:
    """Rows in clusters, none of them empty.

    Attributes:
        cluster: (n,) int64, of each row.
        distance: (n,) float64, Euclidean, to the centre of its cluster.
        representatives: (clusters,) int64, the row of each cluster that is nearest to its centre.

    """

    cluster: NDArray[np.int64]
    distance: NDArray[np.float64]
    representatives: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Subset:
    """Rows that were drawn, each once, in rising order.

    Attributes:
        rows: (drawn,) int64.
        counts: (drawn,) int64, how often each came up; their sum is the number of draws.
        weights: (drawn,) float64; sum(weights * f[rows]) estimates the mean of f over all rows.

    """

    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    weights: NDArray[np.float64]


def select_subset(
    vectors: Vectors,
    losses_of: Callable[[NDArray[np.int64]], ArrayLike],
    size: int,
    *,
    clusters: int = 100,
    distance_weight: float | None = None,
    power: float = 2.0,
    seed: int = 0,
) -> Subset:
    """Draw rows that stand for all of them; the loss of one row in each cluster is asked for, and of no other.

    Args:
        vectors: (n, dim) float32, one for each row: what its loss depends on, for a training pair the embeddings of
            query and document one after the other.
        losses_of: takes (clusters,) row numbers and returns their losses, finite and >= 0.
        size: number of draws, with replacement.
        clusters: at most; no more than rows.
        distance_weight, power: see `sampling_probabilities`.
        seed: of clusters and draws.

    Raises:
        InputError: at settings out of range, or losses that are none.
        ValueError: at a bad vector.
    """
    found = cluster_rows(vectors, min(clusters, len(vectors)), seed=seed)
    losses = losses_of(found.representatives)
    p = sampling_probabilities(found, losses, distance_weight=distance_weight, power=power)
    return draw_subset(p, size, seed=seed)


def cluster_rows(vectors: Vectors, clusters: int, *, seed: int = 0) -> Clustered:
    """Cluster (n, dim) float32 embeddings of the rows by k-means; equal rows may leave fewer clusters than asked for.

    Raises:
        ValueError: at a bad vector, or clusters outside 1 … n.
    """
    from indexes.clusters import kmeans

    centroids, nearest = kmeans(vectors, clusters, seed)
    _, cluster = np.unique(nearest, return_inverse=True)
    distance = np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        distance[rows] = np.linalg.norm(vectors[rows].astype(np.float64) - centroids[nearest[rows]], axis=1)
    order = np.lexsort((distance, cluster))
    _, first = np.unique(cluster[order], return_index=True)
    return Clustered(cluster.astype(np.int64), distance, order[first].astype(np.int64))


def sampling_probabilities(
    found: Clustered, losses: ArrayLike, *, distance_weight: float | None = None, power: float = 2.0
) -> NDArray[np.float64]:
    """Return (n,) the probability of each row, from one loss for each cluster.

    Args:
        found: the clusters.
        losses: (clusters,) finite, >= 0: of the representatives.
        distance_weight: lambda, >= 0; how much the loss may rise with the distance to the power `power`. None: such
            that all distances together weigh as much as all losses.
        power: z, > 0.

    Returns:
        Probabilities with the sum 1. They are equal with one cluster and distance_weight=0, and where every loss and
        distance is 0.

    Raises:
        InputError: at another number of losses than clusters, a negative one, or settings out of range.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.shape != found.representatives.shape:
        raise InputError(
            f"got losses of shape {values.shape} for {len(found.representatives)} clusters; wanted one each"
        )
    if len(wrong := np.flatnonzero(~(np.isfinite(values) & (values >= 0)))):
        raise InputError(f"losses[{wrong[0]}] is {values[wrong[0]]:g}; wanted a finite number, at least 0")
    if not power > 0:
        raise InputError(f"power must be above 0, got {power}")
    if distance_weight is not None and not 0 <= distance_weight < np.inf:
        raise InputError(f"distance_weight must be at least 0, got {distance_weight}")
    own, far = values[found.cluster], found.distance**power
    if distance_weight is None:
        distance_weight = float(own.sum() / far.sum()) if far.sum() > 0 else 0.0
    sensitivity = own + distance_weight * far
    total = sensitivity.sum()
    return sensitivity / total if total > 0 else np.full(len(own), 1 / len(own))


def draw_subset(probabilities: NDArray[np.float64], size: int, *, seed: int = 0) -> Subset:
    """Draw `size` times with replacement.

    Args:
        probabilities: (n,) >= 0, of sum 1.
        size: number of draws, >= 1; fewer different rows where some come up again.
        seed: same seed, same rows.

    Raises:
        InputError: size is below 1, or the probabilities are none.
    """
    if size < 1:
        raise InputError(f"size must be at least 1, got {size}")
    if not (probabilities >= 0).all() or not np.isclose(probabilities.sum(), 1):
        raise InputError(f"probabilities must be at least 0 and have the sum 1, got {probabilities.sum():g}")
    counts = np.random.default_rng(seed).multinomial(size, probabilities / probabilities.sum())
    rows = np.flatnonzero(counts)
    weights = counts[rows] / (size * len(probabilities) * probabilities[rows])
    return Subset(rows, counts[rows], weights)
