"""Sensitivity sampling: probabilities by hand, estimates without bias, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retrieval.errors import InputError
from retrieval.subset_selection import Clustered, cluster_rows, draw_subset, sampling_probabilities, select_subset


def by_hand():
    """Two clusters: rows 0, 1, 2 with the representative 1, and rows 3, 4 with 4."""
    cluster = np.array([0, 0, 0, 1, 1])
    return Clustered(cluster, np.array([2.0, 0.0, 1.0, 3.0, 0.0]), np.array([1, 4]))


def test_probabilities_by_hand():
    found = sampling_probabilities(by_hand(), [1.0, 4.0], distance_weight=0.5, power=2)
    np.testing.assert_allclose(found, np.array([1 + 2, 1, 1 + 0.5, 4 + 4.5, 4]) / 18)
    np.testing.assert_allclose(
        sampling_probabilities(by_hand(), [1.0, 4.0], distance_weight=1, power=1),
        np.array([1 + 2, 1, 1 + 1, 4 + 3, 4]) / 17,
    )


def test_by_default_distances_weigh_as_much_as_losses():
    found = sampling_probabilities(by_hand(), [1.0, 4.0])  # losses sum to 11, squared distances to 14
    np.testing.assert_allclose(found, (np.array([1, 1, 1, 4, 4]) / 11 + np.array([4, 0, 1, 9, 0]) / 14) / 2)


def test_one_cluster_without_distances_is_uniform():
    vectors = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    found = sampling_probabilities(cluster_rows(vectors, 1), [2.5], distance_weight=0)
    np.testing.assert_allclose(found, 1 / 40)
    np.testing.assert_allclose(draw_subset(found, 10).weights, draw_subset(found, 10).counts / 10)


def test_losses_of_zero_are_uniform_too():
    found = Clustered(np.zeros(3, np.int64), np.zeros(3), np.array([0]))
    np.testing.assert_allclose(sampling_probabilities(found, [0.0]), 1 / 3)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-3, 3, width=32)),
    st.data(),
)
def test_a_representative_is_the_nearest_row_of_its_cluster(vectors, data):
    found = cluster_rows(vectors, data.draw(st.integers(1, len(vectors))), seed=data.draw(st.integers(0, 9)))
    k = len(found.representatives)
    assert set(found.cluster.tolist()) == set(range(k))  # none is empty
    assert found.cluster[found.representatives].tolist() == list(range(k))
    for number, row in enumerate(found.representatives):
        assert found.distance[row] == found.distance[found.cluster == number].min()


@given(hnp.arrays(np.float64, 6, elements=st.floats(0.1, 5)), hnp.arrays(np.float64, 6, elements=st.floats(-9, 9)))
def test_the_expectation_of_one_draw_is_the_mean_exactly(sensitivity, values):
    p = sensitivity / sensitivity.sum()
    # A draw is row e with probability p_e, and the weight of a single draw is 1 / (n p_e).
    assert (p * values / (len(p) * p)).sum() == pytest.approx(values.mean())


def test_estimates_have_no_bias_over_many_draws():
    random = np.random.default_rng(1)
    values = random.exponential(size=50)
    p = random.exponential(size=50) + 0.2
    p /= p.sum()
    found = []
    for seed in range(2000):
        subset = draw_subset(p, 30, seed=seed)
        assert subset.counts.sum() == 30
        np.testing.assert_allclose(subset.weights, subset.counts / (30 * 50 * p[subset.rows]))
        found.append((subset.weights * values[subset.rows]).sum())
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - values.mean()) < 4 * error


def test_good_losses_make_the_estimate_more_precise_than_uniform_draws():
    random = np.random.default_rng(2)
    centres = np.repeat(np.eye(4, dtype=np.float32) * 8, 100, axis=0)
    vectors = (centres + random.standard_normal((400, 4)) * 0.1).astype(np.float32)
    losses = np.repeat([0.1, 0.1, 0.1, 10.0], 100) * random.uniform(0.9, 1.1, 400)
    found = cluster_rows(vectors, 4)
    p = sampling_probabilities(found, losses[found.representatives], distance_weight=0)

    def spread(probabilities):
        subsets = [draw_subset(probabilities, 20, seed=seed) for seed in range(200)]
        return np.std([(one.weights * losses[one.rows]).sum() for one in subsets])

    assert spread(p) < 0.2 * spread(np.full(400, 1 / 400))


def test_only_one_loss_of_each_cluster_is_asked_for():
    vectors = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    asked = []

    def losses_of(rows):
        asked.append(rows)
        return np.ones(len(rows))

    subset = select_subset(vectors, losses_of, 40, clusters=12, seed=3)
    assert [len(rows) for rows in asked] == [12]
    assert subset.counts.sum() == 40
    found = cluster_rows(vectors, 12, seed=3)
    same = draw_subset(sampling_probabilities(found, np.ones(12)), 40, seed=3)
    assert subset.rows.tolist() == same.rows.tolist()
    assert len(select_subset(vectors[:3], losses_of, 5, seed=0).rows) <= 3  # never more clusters than rows


def test_a_seed_repeats_itself():
    p = np.full(100, 0.01)
    first, again, other = (draw_subset(p, 20, seed=seed).rows.tolist() for seed in (0, 0, 1))
    assert first == again == sorted(set(first))
    assert first != other


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling_probabilities(by_hand(), [1.0]), r"losses of shape \(1,\) for 2 clusters"),
        (lambda: sampling_probabilities(by_hand(), [1.0, -2.0]), r"losses\[1\] is -2; wanted a finite number"),
        (lambda: sampling_probabilities(by_hand(), [np.inf, 1.0]), r"losses\[0\] is inf; wanted a finite number"),
        (lambda: sampling_probabilities(by_hand(), [1.0, 1.0], power=0), "power must be above 0, got 0"),
        (lambda: sampling_probabilities(by_hand(), [1.0, 1.0], distance_weight=-1), "must be at least 0, got -1"),
        (lambda: draw_subset(np.full(4, 0.25), 0), "size must be at least 1, got 0"),
        (lambda: draw_subset(np.full(4, 1.0), 2), "must be at least 0 and have the sum 1, got 4"),
        (lambda: draw_subset(np.array([1.5, -0.5]), 2), "must be at least 0 and have the sum 1"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
