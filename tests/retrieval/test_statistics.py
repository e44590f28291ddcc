import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.statistics import bootstrap, bootstrap_counts, holm, mean, paired, paired_bootstrap, randomisation_test

values = st.lists(st.floats(0, 1), min_size=1, max_size=12)
pairs = st.integers(1, 10).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([0, 0.25, 0.5, 1.0]), min_size=n, max_size=n)] * 2)
)
p_values = st.lists(st.floats(0, 1), max_size=8)


# --- bootstrap


def test_bootstrap_of_two_values_by_hand():
    # Means of two draws from {0, 1}: 0 with 1/4, 1/2 with 1/2, 1 with 1/4.
    assert bootstrap([0, 1]) == (0.0, 1.0)
    assert bootstrap([0, 1], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_of_three_values_equals_the_full_enumeration():
    sample = [0.1, 0.5, 0.9]
    means = sorted(np.mean(draw) for draw in itertools.product(sample, repeat=3))
    low, high = np.quantile(means, [0.1, 0.9])
    np.testing.assert_allclose(bootstrap(sample, confidence=0.8), (low, high), atol=1e-12)


@pytest.mark.parametrize("n", [8, 60, 400])
def test_bootstrap_agrees_with_scipy(n):
    sample = np.random.default_rng(n).beta(0.5, 1.0, size=n)
    theirs = scipy.stats.bootstrap((sample,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    expected = theirs.confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose(bootstrap(sample), (expected.low, expected.high), atol=0.03 * width)


@pytest.mark.parametrize(("n", "least"), [(10, 0.88), (30, 0.91), (100, 0.93)])
def test_coverage_of_the_true_mean(n, least):
    """What the docstring says: too narrow for few queries, right for many."""
    generator = np.random.default_rng(0)
    covered = 0
    trials = 2000
    for trial in range(trials):
        low, high = bootstrap(generator.normal(0.4, 0.2, size=n), resamples=800, seed=trial)
        covered += low <= 0.4 <= high
    assert least <= covered / trials <= 0.975


@given(values, st.integers(0, 3))
def test_bootstrap_encloses_the_mean_and_stays_within_the_values(sample, seed):
    low, high = bootstrap(sample, resamples=400, seed=seed)
    assert min(sample) <= low <= mean(sample) + 1e-12
    assert mean(sample) - 1e-12 <= high <= max(sample)
    assert bootstrap(sample, resamples=400, seed=seed) == (low, high)


@given(st.floats(-10, 10), st.integers(1, 9))
def test_equal_values_leave_no_doubt(value, n):
    assert bootstrap([value] * n, resamples=50) == (value, value)


def test_more_confidence_is_wider_and_chunks_do_not_show(monkeypatch):
    sample = np.random.default_rng(3).random(50)
    narrow, wide = bootstrap(sample, confidence=0.8), bootstrap(sample, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    monkeypatch.setattr("retrieval.statistics._CHUNK", 999)
    chunked = bootstrap(sample)
    monkeypatch.undo()
    assert chunked == bootstrap(sample)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, r"at least one number, got shape \(0,\)"),
        ([[1.0, 2.0]], {}, r"got shape \(1, 2\)"),
        ([0.5, float("nan")], {}, r"values\[1\] is not finite"),
        ([0.5], {"resamples": 0}, "got 0 and 0.95"),
        ([0.5], {"confidence": 1.0}, "got 10000 and 1.0"),
    ],
)
def test_bootstrap_refuses(arguments, settings, message):
    with pytest.raises(InputError, match=message):
        bootstrap(arguments, **settings)


# --- bootstrap of counts


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=8), st.integers(0, 3))
def test_counts_of_the_mean_give_the_bootstrap_of_the_mean(sample, seed):
    found = bootstrap_counts(lambda counts: counts @ sample / len(sample), len(sample), resamples=200, seed=seed)
    np.testing.assert_allclose(found, bootstrap(sample, resamples=200, seed=seed), atol=1e-12)


def test_every_sample_draws_n_of_the_n_queries(monkeypatch):
    monkeypatch.setattr("retrieval.statistics._CHUNK", 70)
    seen = []
    bootstrap_counts(lambda counts: seen.append(counts) or counts[:, 0], 7, resamples=25)
    counts = np.concatenate(seen)
    assert counts.shape == (25, 7)
    assert len(seen) > 1
    assert (counts.sum(axis=1) == 7).all()


def test_samples_without_a_value_are_left_out():
    """Of two queries, a value only where the first was drawn once: always the same."""
    only = bootstrap_counts(lambda counts: np.where(counts[:, 0] == 1, 0.5, np.nan), 2)
    assert only == (0.5, 0.5)
    with pytest.raises(InputError, match="none of 10 samples of the 2 queries has a value"):
        bootstrap_counts(lambda counts: np.full(len(counts), np.nan), 2, resamples=10)


@pytest.mark.parametrize(
    ("n", "settings", "message"), [(0, {}, "at least one query"), (2, {"resamples": 0}, "got 0 and 0.95")]
)
def test_bootstrap_of_counts_refuses(n, settings, message):
    with pytest.raises(InputError, match=message):
        bootstrap_counts(lambda counts: counts[:, 0], n, **settings)


# --- pairs


@given(pairs)
def test_paired_bootstrap_is_the_bootstrap_of_the_differences(pair):
    a, b = map(np.array, pair)
    found = paired_bootstrap(a, b, resamples=300)
    assert found.value == pytest.approx((a - b).mean())
    assert (found.low, found.high) == bootstrap(a - b, resamples=300)
    turned = paired_bootstrap(b, a, resamples=300)
    np.testing.assert_allclose((turned.low, turned.high), (-found.high, -found.low), atol=1e-12)


def test_pairing_is_narrower_where_queries_differ_more_than_systems():
    generator = np.random.default_rng(0)
    difficulty = generator.random(200)
    a, b = difficulty + 0.05, difficulty + generator.normal(0, 0.01, 200)
    found = paired_bootstrap(a, b)
    alone = bootstrap(a)
    assert found.high - found.low < 0.1 * (alone.high - alone.low)
    assert found.low > 0


def test_paired_lines_up_two_mappings():
    a, b = paired({"q1": 1.0, "q2": 0.5}, {"q2": 0.25, "q1": 0.75})
    assert (a.tolist(), b.tolist()) == ([1.0, 0.5], [0.75, 0.25])
    with pytest.raises(InputError, match="cannot pair 2 with 1 queries: 1 are on one side only, such as 'q2'"):
        paired({"q1": 1.0, "q2": 0.5}, {"q1": 1.0})


@pytest.mark.parametrize("compare", [paired_bootstrap, randomisation_test])
def test_unequal_lengths_are_refused(compare):
    with pytest.raises(InputError, match="got 2 and 3 values"):
        compare([1, 2], [1, 2, 3])


# --- randomisation


def exact_p(a, b):
    """All 2^n assignments of signs."""
    d = np.subtract(a, b)
    sums = [abs(np.dot(signs, d)) for signs in itertools.product([1, -1], repeat=len(d))]
    return np.mean([total >= abs(d.sum()) - 1e-12 for total in sums])


@given(pairs)
def test_randomisation_approaches_the_enumeration_of_all_signs(pair):
    a, b = pair
    exact = exact_p(a, b)
    spread = (exact * (1 - exact) / 4000) ** 0.5
    assert abs(randomisation_test(a, b, n=4000) - exact) <= 5 * spread + 1 / 4001


def test_randomisation_agrees_with_scipy():
    generator = np.random.default_rng(4)
    a, b = generator.random(40), generator.random(40) - 0.1
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert randomisation_test(a, b, n=20_000) == pytest.approx(theirs.pvalue, abs=0.015)


def test_identical_runs_have_p_1_and_p_is_never_0():
    assert randomisation_test([0.1, 0.7], [0.1, 0.7]) == 1.0
    # Only all-plus and all-minus reach the observed sum: 2 of 2^60 assignments, so c = 0 and p = 1 / (n + 1).
    assert randomisation_test([1.0] * 60, [0.0] * 60, n=999) == 1 / 1000


def test_equal_sums_count_although_they_round_differently():
    # 0.1 + 0.2 != 0.3 in binary: every assignment of signs has |sum| 0.6 or 0; exact p is 1/2 or 1.
    a = [0.1, 0.2, 0.3]
    assert randomisation_test(a, [0, 0, 0], n=20_000) == pytest.approx(exact_p(a, [0, 0, 0]), abs=0.02)


@given(pairs, st.integers(0, 5))
def test_randomisation_is_symmetric_and_repeatable(pair, seed):
    a, b = pair
    p = randomisation_test(a, b, n=200, seed=seed)
    assert 0 < p <= 1
    assert p == randomisation_test(a, b, n=200, seed=seed) == randomisation_test(b, a, n=200, seed=seed)


def test_false_positives_are_as_rare_as_promised():
    generator = np.random.default_rng(1)
    rejected = sum(
        randomisation_test(generator.random(15), generator.random(15), n=400, seed=trial) <= 0.05
        for trial in range(400)
    )
    assert 0.02 <= rejected / 400 <= 0.085


def test_too_few_randomisations_are_refused():
    with pytest.raises(InputError, match="wanted n ≥ 1 randomisations, got 0"):
        randomisation_test([1], [2], n=0)


# --- Holm


def test_holm_by_hand():
    # Sorted: .01·4, .02·3, .03·2, .04·1 → .04, .06, .06, .06 (never falling).
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.05]).tolist() == [0.05]
    assert holm([]).tolist() == []


@given(p_values, st.randoms(use_true_random=False))
def test_holm_properties(p, random):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-15).all()  # at most Bonferroni
    assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm([p[i] for i in order]).tolist() == [adjusted[i] for i in order]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_stepwise_rule_rejects(p, alpha):
    """FORMULAS: compare p(i) with α / (m − i + 1), stop at the first failure."""
    rejected, m = set(), len(p)
    for step, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (m - step) > alpha:  # written as holm() rounds it
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(holm(p) <= alpha).tolist()) == rejected


def test_holm_keeps_the_family_at_alpha():
    generator = np.random.default_rng(2)
    families = generator.random((4000, 10))  # ten true null hypotheses each
    uncorrected = (families <= 0.05).any(axis=1).mean()
    corrected = np.mean([(holm(family) <= 0.05).any() for family in families])
    assert 0.36 < uncorrected < 0.44  # 1 − .95¹⁰ = .40
    assert corrected < 0.06


@pytest.mark.parametrize("bad", [[0.5, 1.5], [-0.1], [float("nan")], [[0.1]]])
def test_holm_refuses_what_is_no_probability(bad):
    with pytest.raises(InputError, match="numbers from 0 to 1"):
        holm(bad)


# --- mean


@given(values, st.randoms(use_true_random=False))
def test_the_mean_does_not_depend_on_the_order(sample, random):
    shuffled = list(sample)
    random.shuffle(shuffled)
    assert mean(sample) == mean(shuffled) == pytest.approx(np.mean(sample))
