"""k-means, by FAISS: the same vectors and seed give the same clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexes.faiss_index import FaissIndex, _explaining, _faiss
from indexes.neighbors import Vectors, check_vectors

_SAMPLE = 256  # vectors per centroid that the centroids are learned from; FAISS's own default


def kmeans(
    vectors: Vectors, k: int, seed: int, *, spherical: bool = False, iterations: int = 20
) -> tuple[Vectors, NDArray[np.int64]]:
    """Cluster vectors around k centroids; every vector then belongs to the nearest one.

    Of more than 256 k vectors, as many are drawn by the seed to learn the centroids from; all are assigned, which
    compares each with every centroid. A centroid can be without vectors where vectors are equal.

    Args:
        vectors: (n, dim) float32, finite.
        k: from 1 to n.
        seed: of the draw and of the first centroids.
        spherical: nearness is the inner product and centroids have length 1, for vectors of length 1; else it is the
            Euclidean distance, and centroids are means.
        iterations: of learning, >= 1.

    Returns:
        Centroids, (k, dim) float32, and the centroid of each vector, (n,) int64; ties go to the lower one.

    Raises:
        ValueError: at vectors that an index would refuse, or k outside 1 … n; both numbers are named.
    """
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"vectors must have shape (n, dim), got {getattr(vectors, 'shape', type(vectors).__name__)}")
    vectors = check_vectors(vectors, vectors.shape[1])
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k must be from 1 to the number of vectors, {len(vectors)}, got {k}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    n, dim = vectors.shape
    with _explaining(f"k-means of {n} vectors with k={k}"):
        learner = _faiss().Kmeans(
            dim,
            int(k),
            niter=iterations,
            seed=seed % (2**31 - 1),  # an int32 there
            spherical=spherical,
            min_points_per_centroid=1,  # fewer than 39 would only be warned of
            max_points_per_centroid=_SAMPLE,
        )
        learner.train(vectors)
    centroids = np.ascontiguousarray(learner.centroids, dtype=np.float32)
    index = FaissIndex(dim, metric="ip" if spherical else "l2")
    index.add(centroids)
    assignment = np.empty(n, dtype=np.int64)
    for start in range(0, n, 1 << 16):
        assignment[start : start + (1 << 16)] = index.search(vectors[start : start + (1 << 16)], 1).rows[:, 0]
    return centroids, assignment
