import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.pooled import expected_calibration_error, pooled_auc

# Few distinct scores, so that ties are common.
scores = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=4)
some_queries = st.lists(st.tuples(scores, scores), min_size=1, max_size=5).filter(
    lambda queries: any(good for good, _ in queries) and any(bad for _, bad in queries)
)


def by_pairs(positives, negatives):
    """The definition as a loop."""
    pairs = list(itertools.product(np.concatenate(positives), np.concatenate(negatives)))
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else np.nan


# --- pooled ROC-AUC


def test_auc_by_hand():
    # Pairs: 3 > 1, 3 > 2, 1 = 1, 1 < 2.
    assert pooled_auc([[3.0], [1.0]], [[1.0], [2.0]]) == 2.5 / 4


@given(some_queries)
def test_auc_equals_the_loop_and_scikit_learn(queries):
    theirs = pytest.importorskip("sklearn.metrics", reason="needs the demo extra")
    positives, negatives = zip(*queries, strict=True)
    auc = pooled_auc(positives, negatives, resamples=50)
    assert auc == pytest.approx(by_pairs(positives, negatives))
    good, bad = np.concatenate(positives), np.concatenate(negatives)
    truth = np.repeat([1, 0], [len(good), len(bad)])
    assert auc == pytest.approx(theirs.roc_auc_score(truth, np.concatenate([good, bad])))
    assert (auc.n, auc.positives, auc.negatives) == (len(queries), len(good), len(bad))


def test_auc_sees_offsets_between_queries_that_no_ranking_measure_sees():
    """Each query alone ranks perfectly; together they do not."""
    assert pooled_auc([[2.0], [12.0]], [[1.0], [11.0]]) == 3 / 4
    assert pooled_auc([[2.0], [2.0]], [[1.0], [1.0]]) == 1


def test_auc_interval_is_that_of_whole_queries_by_hand():
    """Two queries: a sample holds the first twice (1/4), both (1/2) or the second twice (1/4)."""
    positives, negatives = [[3.0, 0.0], [2.0]], [[1.0], [2.0, 0.5]]
    first, both, second = 1 / 2, (3 + 0 + 1 + 1.5) / 9, (0.5 + 1) / 2
    assert both == pytest.approx(by_pairs(positives, negatives))
    wide = pooled_auc(positives, negatives)
    assert (wide.low, wide.high) == pytest.approx((first, second))
    middle = pooled_auc(positives, negatives, confidence=0.4)
    assert (middle.low, middle.high) == pytest.approx((both, both))


def test_auc_interval_is_as_wide_as_that_of_queries_not_of_pairs():
    """Repeating each query's pairs adds no knowledge, so it must not narrow the interval."""
    generator = np.random.default_rng(0)
    offsets = generator.normal(0, 2, 30)
    positives = [[offset + 1] for offset in offsets]
    negatives = [[offset] for offset in offsets]
    once = pooled_auc(positives, negatives, resamples=500)
    often = pooled_auc([each * 20 for each in positives], [each * 20 for each in negatives], resamples=500)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert once.low < once < once.high


def test_auc_leaves_out_samples_without_an_answer():
    """Half of the four draws of two queries hold only one of the queries, and so one kind of pairs."""
    auc = pooled_auc([[1.0], []], [[], [0.0]])
    assert (auc, auc.low, auc.high) == (1, 1, 1)


@given(some_queries, st.randoms())
def test_auc_is_blind_to_order_and_to_any_rising_function(queries, random):
    positives, negatives = zip(*queries, strict=True)
    auc = pooled_auc(positives, negatives, resamples=50)
    random.shuffle(queries)
    shuffled_positives, shuffled_negatives = zip(*queries, strict=True)
    assert pooled_auc(shuffled_positives, shuffled_negatives, resamples=50) == auc
    stretched = pooled_auc([np.exp(each) for each in positives], [np.exp(each) for each in negatives], resamples=50)
    assert (stretched, stretched.low, stretched.high) == (auc, auc.low, auc.high)


@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [
        ([[1.0]], [[0.0], [0.0]], "positives are of 1 queries and negatives of 2"),
        ([[]], [[0.0]], "got 0 relevant and 1 non-relevant"),
        ([[1.0]], [[]], "got 1 relevant and 0 non-relevant"),
        ([], [], "got 0 relevant"),
        ([[1.0], [np.nan]], [[0.0], [0.0]], r"positives\[1\]\[0\] is not finite"),
        ([[[1.0]]], [[0.0]], r"positives\[0\] must be a list of numbers"),
    ],
)
def test_auc_refuses(positives, negatives, message):
    with pytest.raises(InputError, match=message):
        pooled_auc(positives, negatives)


def test_auc_prints_its_interval():
    assert repr(pooled_auc([[1.0]], [[0.0]])) == "1.0000 [1.0000, 1.0000]"


# --- expected calibration error


def test_error_by_hand():
    # Bins of two: |0.15 − 0.5| and |0.85 − 1|, each of half of the pairs.
    error = expected_calibration_error([0.8, 0.1, 0.9, 0.2], [1, 0, 1, 1], bins=2)
    assert error == pytest.approx((0.35 + 0.15) / 2)
    assert (error.bins, error.pairs, error.low, error.high) == (2, 4, None, None)


def test_error_of_more_bins_than_pairs_takes_each_pair_alone():
    error = expected_calibration_error([0.8, 0.1, 0.6], [1, 0, 0])
    assert error == pytest.approx((0.2 + 0.1 + 0.6) / 3)
    assert error.bins == 3


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=60, unique_by=lambda pair: pair[0]))
def test_error_equals_a_loop_over_slices_of_the_sorted_pairs(pairs):
    ordered = sorted(pairs)
    edges = [round(i * len(pairs) / 15) for i in range(16)]  # of 15 bins, each within one pair of the others
    if len(pairs) % 15 == 0:
        cut = [np.array(ordered[a:b]) for a, b in itertools.pairwise(edges)]
        expected = sum(len(each) * abs((each[:, 0] - each[:, 1]).mean()) for each in cut) / len(pairs)
        assert expected_calibration_error(*zip(*pairs, strict=True)) == pytest.approx(expected, abs=1e-12)
    assert 0 <= expected_calibration_error(*zip(*pairs, strict=True)) <= 1


def test_bins_have_equal_mass():
    """45 pairs crowded near 0 still fill 15 bins of 3 pairs each."""
    p = np.linspace(0, 1, 45) ** 6
    y = (np.arange(45) % 2).astype(float)
    expected = np.abs((p - y).reshape(15, 3).mean(axis=1)).mean()
    error = expected_calibration_error(p, y)
    assert error == pytest.approx(expected)
    assert error.bins == 15


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.integers(0, 1)), min_size=1), st.randoms())
def test_equal_probabilities_share_a_bin_whatever_their_order(pairs, random):
    before = expected_calibration_error(*zip(*pairs, strict=True))
    random.shuffle(pairs)
    assert expected_calibration_error(*zip(*pairs, strict=True)) == pytest.approx(before)
    assert before.bins <= len({p for p, _ in pairs})


def test_a_constant_probability_is_wrong_by_its_distance_to_the_mean():
    error = expected_calibration_error([0.3] * 10, [1] * 4 + [0] * 6)
    assert error == pytest.approx(0.1)
    assert error.bins == 1


def test_error_of_calibrated_probabilities_is_small_and_of_overconfident_ones_is_not():
    generator = np.random.default_rng(0)
    p = generator.uniform(size=20_000)
    y = generator.uniform(size=20_000) < p
    assert expected_calibration_error(p, y) < 0.02
    assert expected_calibration_error(np.where(p > 0.5, 1.0, 0.0), y) == pytest.approx(0.25, abs=0.01)


def test_error_interval_draws_whole_queries():
    """Two queries, wrong by 0.1 and 0.5 in the same direction: samples hold both, or one of them twice."""
    p, y, queries = [0.1, 0.1, 0.5, 0.5], [0, 0, 0, 0], [7, 7, 3, 3]
    error = expected_calibration_error(p, y, bins=1, queries=queries)
    assert error == pytest.approx(0.3)
    assert (error.low, error.high) == pytest.approx((0.1, 0.5))
    middle = expected_calibration_error(p, y, bins=1, queries=queries, confidence=0.4)
    assert (middle.low, middle.high) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], [1, 0]), "got 1 probabilities and 2 labels"),
        (([], []), "got 0 probabilities"),
        (([1.5, 0.5], [1, 0]), r"probabilities must lie in \[0, 1\], got 0.5 to 1.5; pass scores through a sigmoid"),
        (([0.5], [2]), r"labels must lie in \[0, 1\]"),
        (([0.5], [1], 0), "wanted bins ≥ 1, got 0"),
        (([np.inf], [1]), r"probabilities\[0\] is not finite"),
        (([[0.5]], [1]), "probabilities must be a list"),
    ],
)
def test_error_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        expected_calibration_error(*arguments)


def test_error_refuses_queries_of_another_length():
    with pytest.raises(InputError, match="wanted the query of each of 2 pairs, got 1"):
        expected_calibration_error([0.5, 0.5], [1, 0], queries=[0])


def test_error_prints_its_bins():
    assert repr(expected_calibration_error([0.25], [0])) == "0.2500 in 1 bins"
