"""The kinds of index that the contract is tested on, vectors to fill them, and brute force to judge them."""

import numpy as np

from indexes import FaissIndex, topk

DIM, COUNT = 16, 700

# name → (factory, metric, search parameters, least share of the true ten that must be found)
KINDS = {
    "flat ip": ("Flat", "ip", {}, 1.0),
    "flat l2": ("Flat", "l2", {}, 1.0),
    "ivf ip": ("IVF16,Flat", "ip", {"nprobe": 16}, 1.0),
    "ivf l2": ("IVF16,Flat", "l2", {"nprobe": 16}, 1.0),
    "ivf few probes": ("IVF16,Flat", "ip", {"nprobe": 3}, 0.4),
    "hnsw ip": ("HNSW16", "ip", {"efSearch": 128}, 0.9),
    "hnsw l2": ("HNSW16", "l2", {"efSearch": 128}, 0.9),
    "sq8": ("SQ8", "ip", {}, 0.9),
    "sq8 l2": ("SQ8", "l2", {}, 0.9),
    "ivf sq8": ("IVF16,SQ8", "l2", {"nprobe": 16}, 0.9),
    "pq": ("PQ8x4", "ip", {}, 0.3),
    "refined": ("IVF16,PQ8x4fs,RFlat", "ip", {"nprobe": 16, "k_factor_rf": 8}, 0.9),
    "pca": ("PCA12,Flat", "l2", {}, 0.3),
    "nsg": ("NSG16", "l2", {}, 0.7),
}
EXACT = [name for name, (*_, recall) in KINDS.items() if recall == 1.0]


def normal(count, seed=0, dim=DIM):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def brute(vectors, queries, metric, k):
    """Return the exact answer, in float64 and then rounded."""
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "ip":
        return topk((queries @ vectors.T).astype(np.float32), k)
    return topk((-((queries[:, None] - vectors[None]) ** 2).sum(-1)).astype(np.float32), k)


def built(kind, vectors):
    factory, metric, parameters, _ = KINDS[kind]
    index = FaissIndex(vectors.shape[1], factory, metric, search_parameters=parameters, threads=1)
    index.train_and_add(vectors)
    return index


def same(found, expected):
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
