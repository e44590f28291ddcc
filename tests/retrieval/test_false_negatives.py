"""The estimated share of false negatives: by hand, by simulation, and what must not change it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.false_negatives import Band, ScoredQuery, counted_share, estimated_share, ranks_among

TOP, DEEP = Band(1, 10), Band(31, 100)


def query(positives, negatives, *, positive_ranks=1.0, first=1) -> ScoredQuery:
    positives, negatives = np.array(positives, dtype=np.float64), np.array(negatives, dtype=np.float64)
    ranks = np.broadcast_to(np.array(positive_ranks, dtype=np.float64), positives.shape)[:, None].repeat(2, axis=1)
    return ScoredQuery(positives, ranks, negatives, np.arange(first, first + len(negatives), dtype=np.float64))


def simulated(seed, *, gain, share_hidden=0.5, queries=100, documents=2_000, relevant=12):
    """A miner with noise and a scorer whose relevant documents score `gain` higher; half of these are hidden.

    Returns the queries, and for each band's ranks whether a negative is a hidden positive: (queries, 100).
    """
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(queries):
        is_relevant = np.arange(documents) < 2 + rng.poisson(relevant)
        mined_by = rng.normal(size=documents) + 2 * is_relevant
        scores = 0.6 * mined_by + 0.8 * rng.normal(size=documents) + gain * is_relevant + rng.normal()
        known = is_relevant & (rng.random(documents) >= share_hidden)
        order = np.argsort(-np.where(known, -np.inf, mined_by))[:100]
        ranks = np.arange(1.0, 101.0)
        places = ranks_among(mined_by[known], mined_by[order], ranks)
        found.append(ScoredQuery(scores[known], places, scores[order], ranks))
        truth.append(is_relevant[order])
    return found, np.array(truth)


def normal_scores(seed, shift, share, *, queries=50):
    """100 negatives and 5 known positives a query, unit normal scores; relevant ones score `shift` higher."""
    rng = np.random.default_rng(seed)
    hidden = rng.random((queries, 100)) < share
    scores = rng.normal(size=(queries, 100)) + shift * hidden
    return [query(shift + rng.normal(size=5), row) for row in scores]


def test_a_fifth_of_the_negatives_score_as_positives_do():
    queries = [query([5, 5], [5, 5, *[0] * 8]) for _ in range(10)]
    found = estimated_share(queries, TOP)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert found.separation == pytest.approx(0.8 * 1 + 0.2 * 0.5)  # ties with the fifth count half
    assert (found.positives, found.matched, found.is_bound) == (20, True, False)


def test_the_best_threshold_decides():
    # Of the positives all reach 2 and half reach 5; of ten negatives four reach 2 and one reaches 5.
    queries = [query([2, 5], [5, 2, 2, 2, *[0] * 6]) for _ in range(10)]
    assert estimated_share(queries, TOP).value == pytest.approx(min(0.4 / 1, 0.1 / 0.5))


def test_a_band_is_compared_with_the_positives_that_would_stand_in_it():
    # Relevant documents at deep ranks score 2, at the top 5; a tenth of the deep negatives score 2.
    negatives = [*[2] * 7, *[0] * 63]
    ranks = [1, 1, 50, 50]
    queries = [query([5, 5, 2, 2], negatives, positive_ranks=ranks, first=31) for _ in range(10)]
    found = estimated_share(queries, DEEP)
    assert (found.value, found.positives, found.matched) == (pytest.approx(0.1), 20, True)
    unplaced = [query([5, 5, 2, 2], negatives, positive_ranks=math.nan, first=31) for _ in range(10)]
    found = estimated_share(unplaced, DEEP)
    assert (found.value, found.positives, found.matched) == (0.0, 40, False)  # none of them scores 5


@pytest.mark.parametrize(
    ("band", "columns"), [(TOP, slice(0, 10)), (Band(11, 30), slice(10, 30)), (DEEP, slice(30, 100))]
)
def test_a_good_scorer_finds_the_hidden_half(band, columns):
    errors, held = [], 0
    for seed in range(8):
        queries, truth = simulated(seed, gain=2.5, queries=60, documents=1_000)
        found, share = estimated_share(queries, band), truth[:, columns].mean()
        assert found.matched
        assert not found.is_bound
        errors.append(found.value / share - 1)
        held += found.low <= share <= found.high
    assert np.mean(errors) == pytest.approx(0, abs=0.3)  # of the share itself
    assert held >= 6


def test_clean_negatives_are_found_clean():
    queries, truth = simulated(3, gain=3.0, share_hidden=0.0)
    assert not truth.any()
    assert estimated_share(queries, TOP).value < 0.03


def test_a_scorer_that_knows_nothing_gives_a_bound_and_says_so():
    rng = np.random.default_rng(0)
    queries = [query(rng.normal(size=5), rng.normal(size=10)) for _ in range(50)]
    found = estimated_share(queries, TOP)
    assert found.is_bound
    assert found.value > 0.5
    assert found.separation == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("shift", "separation"), [(1.1, 0.78), (1.5, 0.855)])
@pytest.mark.parametrize("share", [0.02, 0.05])
def test_scores_that_separate_too_little_for_a_clean_tail_give_a_bound(shift, separation, share):
    # Separated by a standard deviation or so, the true share is a fifth to two thirds of the estimates' mean.
    found = [estimated_share(normal_scores(seed, shift, share), Band(1, 100)) for seed in range(10)]
    expected = separation * (1 - share) + share / 2
    assert np.mean([one.separation for one in found]) == pytest.approx(expected, abs=0.02)
    assert np.mean([one.value for one in found]) > 1.4 * share
    assert all(one.is_bound for one in found)


def test_scores_that_separate_well_give_more_than_a_bound_whatever_the_share():
    for seed, share in enumerate([0.02, 0.05, 0.2, 0.3]):
        assert not estimated_share(normal_scores(seed, 3.5, share), Band(1, 100)).is_bound


def test_more_than_a_half_is_a_bound():
    found = [estimated_share([query([5, 5], negatives)] * 10, TOP) for negatives in ([5] * 5 + [0] * 5, [5] * 6 + [0])]
    assert [(one.value, one.is_bound) for one in found] == [(0.5, False), (pytest.approx(6 / 7), True)]


def test_the_interval_knows_that_the_threshold_was_chosen():
    # At the one threshold that was best for all queries, the intervals of 30 of these would hold the truth.
    held, seeds, share = 0, 40, 0.05
    for seed in range(seeds):
        found = estimated_share(normal_scores(seed, 2.0, share, queries=200), Band(1, 100))
        assert found.low <= found.value <= found.high
        held += found.low <= share <= found.high
    assert held >= 35


def test_the_interval_narrows_with_queries():
    few, _ = simulated(4, gain=2.5, queries=20)
    many, _ = simulated(4, gain=2.5, queries=200)
    widths = [found.high - found.low for found in (estimated_share(few, TOP), estimated_share(many, TOP))]
    assert widths[1] < widths[0] / 2


lists = st.lists(st.integers(-4, 4), min_size=5, max_size=12)
positives = st.lists(st.integers(-4, 6), min_size=1, max_size=4)


@given(st.lists(st.tuples(positives, lists), min_size=5, max_size=25), st.randoms(), st.data())
def test_order_and_offsets_of_queries_change_nothing(pairs, random, data):
    shifts = data.draw(st.lists(st.integers(-100, 100), min_size=len(pairs), max_size=len(pairs)))
    plain = estimated_share([query(*pair) for pair in pairs], TOP)
    moved = [
        query([x + shift for x in first], [x + shift for x in second])
        for (first, second), shift in zip(pairs, shifts, strict=True)
    ]
    random.shuffle(moved)
    other = estimated_share(moved, TOP)
    if sum(len(first) for first, _ in pairs) < 20:
        assert plain is None
        assert other is None
        return
    assert 0 <= plain.low <= plain.high <= 1
    assert other.value == pytest.approx(plain.value)
    assert other.separation == pytest.approx(plain.separation)


def test_without_enough_to_go_by_there_is_no_estimate():
    assert estimated_share([], TOP) is None
    assert estimated_share([query([5, 5], [0] * 9) for _ in range(9)], TOP) is None  # 18 positives
    assert estimated_share([query([5] * 10, [0] * 9) for _ in range(4)], TOP) is None  # 4 queries
    assert estimated_share([query([5] * 10, [0] * 9) for _ in range(9)], DEEP) is None  # nothing at these ranks
    assert estimated_share([query([5] * 10, []) for _ in range(9)], TOP) is None


def test_nothing_found_is_not_certainty():
    # None of 90 negatives reaches a threshold that all positives reach: at most 3 of 90 by the rule of three.
    found = estimated_share([query([5, 5], [0] * 9) for _ in range(10)], TOP)
    assert (found.value, found.low, found.high) == (0, 0, pytest.approx(3 / 90))


def test_queries_of_few_negatives_are_compared_as_they_are():
    # The median of one negative is itself, so that taking it off would leave nothing but zeros.
    queries = [query([5, 5], [5 if number < 2 else 0]) for number in range(10)]
    assert estimated_share(queries, TOP).value == pytest.approx(0.2)


def test_a_counted_share_is_of_all_negatives():
    found = counted_share([1, 0, 2], [10, 5, 5])
    assert found.value == pytest.approx(3 / 20)
    assert 0 <= found.low < found.value < found.high <= 0.4
    assert counted_share([0, 0], [0, 0]) is None
    assert (counted_share([0, 0], [20, 10]).value, counted_share([0, 0], [20, 10]).high) == (0, pytest.approx(0.1))
    assert counted_share([0, 3], [0, 3]).low == 1.0  # samples without a negative are left out
    with pytest.raises(InputError, match="got 2 and 1"):
        counted_share([1, 1], [2])


def test_a_document_has_a_rank_after_the_negative_above_it_and_up_to_that_of_the_one_below():
    ranks = ranks_among(np.array([9.0, 6.0, 5.0, 4.0, 1.0]), np.array([8.0, 5.0, 3.0]), np.array([2.0, 3.0, 7.0]))
    assert ranks.tolist() == [[1, 2], [3, 3], [4, 7], [4, 7], [8, math.inf]]  # a tie goes to the negative
    assert ranks_among(np.array([1.0]), np.zeros(0), np.zeros(0)).tolist() == [[1, math.inf]]


def test_positives_above_a_window_that_begins_deep_do_not_stand_in_its_first_band():
    """Mined from rank 11 with the positives on top: what scores 5 there says nothing about ranks 11 to 30."""
    miner = np.arange(0.9, 0.7, -0.01)
    places = ranks_among(np.full(4, 0.95), miner, np.arange(11.0, 31.0))
    queries = [ScoredQuery(np.full(4, 5.0), places, np.array([2.0] * 4 + [0.0] * 16), np.arange(11.0, 31.0))] * 10
    assert not estimated_share(queries, Band(11, 30)).matched
    assert estimated_share(queries, Band(1, 30)).matched  # though in these ranks they do
    assert str(DEEP) == "31-100"
