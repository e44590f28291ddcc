"""k-means: what it finds, that it repeats itself, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes import clusters
from indexes.clusters import kmeans


def heaps(k=5, each=30, dim=8, seed=0):
    """Return k heaps of vectors of length 1, far apart, and which heap each is of; mixed."""
    random = np.random.default_rng(seed)
    centres = np.eye(dim)[:k]
    heap = random.permutation(np.repeat(np.arange(k), each))
    vectors = centres[heap] + 0.05 * random.standard_normal((len(heap), dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), heap


@pytest.mark.parametrize("spherical", [False, True])
def test_heaps_are_found(spherical):
    vectors, heap = heaps()
    centroids, found = kmeans(vectors, 5, seed=0, spherical=spherical)
    assert centroids.shape == (5, 8)
    pairs = set(zip(heap.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 5  # each heap is one cluster and each cluster one heap
    if spherical:
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)


@given(st.integers(1, 12), st.integers(0, 1000), st.booleans())
def test_every_vector_is_with_its_nearest_centroid_and_a_seed_repeats(k, seed, spherical):
    vectors, _ = heaps(k=3, each=4, seed=seed)
    centroids, found = kmeans(vectors, k, seed, spherical=spherical)
    again = kmeans(vectors, k, seed, spherical=spherical)
    np.testing.assert_array_equal(centroids, again[0])
    np.testing.assert_array_equal(found, again[1])
    distances = -vectors @ centroids.T if spherical else ((vectors[:, None] - centroids[None]) ** 2).sum(-1)
    own = np.take_along_axis(distances, found[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(own, distances.min(axis=1), atol=1e-5)


def test_one_cluster_is_the_mean():
    vectors, _ = heaps()
    centroids, found = kmeans(vectors, 1, seed=0)
    np.testing.assert_allclose(centroids[0], vectors.mean(axis=0), atol=1e-5)
    assert set(found.tolist()) == {0}


def test_another_seed_may_begin_elsewhere():
    vectors = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    assert not np.array_equal(kmeans(vectors, 7, seed=0)[0], kmeans(vectors, 7, seed=1)[0])


def test_many_vectors_are_sampled_and_all_assigned(monkeypatch):
    monkeypatch.setattr(clusters, "_SAMPLE", 4)
    vectors, heap = heaps(k=3, each=100)
    _, found = kmeans(vectors, 3, seed=0)
    assert found.shape == heap.shape
    assert set(found.tolist()) <= {0, 1, 2}


def test_equal_vectors_can_leave_centroids_empty(capfd):
    _, found = kmeans(np.ones((6, 3), dtype=np.float32), 4, seed=0)
    assert len(found) == 6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("vectors", "k", "message"),
    [
        (np.ones((3, 2), np.float32), 4, "k must be from 1 to the number of vectors, 3, got 4"),
        (np.ones((3, 2), np.float32), 0, "got 0"),
        (np.ones(3, np.float32), 1, r"must have shape \(n, dim\), got \(3,\)"),
        (np.ones((0, 2), np.float32), 1, r"must have shape \(n, dim\), got \(0, 2\)"),
        (np.ones((3, 2)), 1, "must be a float32 array, got float64"),
        (np.array([[1, 2], [np.nan, 0]], np.float32), 1, "vector 1: component 0 is nan"),
    ],
)
def test_bad_input_is_refused(vectors, k, message):
    with pytest.raises(ValueError, match=message):
        kmeans(vectors, k, seed=0)


def test_no_iterations_is_refused():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        kmeans(np.ones((3, 2), np.float32), 1, seed=0, iterations=0)
