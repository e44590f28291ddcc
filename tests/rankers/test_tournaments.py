import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankers.bradley_terry import misfit
from rankers.comparisons import from_judgements, from_scores
from rankers.tournaments import STRATEGIES, all_pairs, rank

EVERY = pytest.mark.parametrize("strategy", STRATEGIES)
WHOLE_ORDER = ("max_logits", "max_wins", "bradley_terry", "heap", "sort")
seeds = st.one_of(st.none(), st.integers(0, 2**32 - 1))


def oracle(scores):
    return from_scores(scores, temperature=0)


def circle(first, second):
    """Rock, paper, scissors, or more of them: each beats the next half of the circle of 5."""
    return np.isin((second - first) % 5, (1, 2)).astype(float)


# --- what every strategy keeps ----------------------------------------------------------------------------------------


@EVERY
@given(st.permutations(range(9)), seeds)
def test_an_oracle_without_noise_finds_the_best_and_the_order(strategy, scores, seed):
    ranking = rank(9, oracle(np.array(scores)), strategy=strategy, seed=seed)
    expected = np.argsort(-np.array(scores))
    assert ranking.order[0] == expected[0]
    if strategy in WHOLE_ORDER:
        assert ranking.order.tolist() == expected.tolist()
    assert ranking.complete
    assert ranking.cycles == 0
    assert (np.diff(ranking.scores[ranking.order]) <= 1e-9).all()


@EVERY
@given(st.integers(0, 7), st.integers(0, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_no_budget_is_exceeded_and_every_candidate_is_ranked_once(strategy, n, budget, seed, both_orders):
    generator = np.random.default_rng(seed)

    def compare(first, second):
        return generator.choice([0.0, 0.2, 0.5, 1.0], size=len(first))

    ranking = rank(n, compare, strategy=strategy, budget=budget, seed=seed, both_orders=both_orders)
    assert ranking.calls <= budget
    assert ranking.calls == ranking.duels * (2 if both_orders else 1)
    assert ranking.wins.sum() == pytest.approx(ranking.calls)
    assert sorted(ranking.order.tolist()) == list(range(n))
    assert (np.diff(ranking.scores[ranking.order]) <= 1e-9).all()
    assert 0 <= ranking.cycles <= ranking.triples
    assert ranking.confidence.shape == (n,)
    assert ((ranking.confidence > 0) & (ranking.confidence < 1)).all()
    free = rank(n, compare, strategy=strategy, seed=seed, both_orders=both_orders)
    assert free.complete
    assert ranking.complete or ranking.calls + (2 if both_orders else 1) > budget


@EVERY
@pytest.mark.parametrize("n", [0, 1])
def test_nobody_and_one_ask_nothing(strategy, n):
    def compare(first, second):
        raise AssertionError("nothing is to be compared")

    ranking = rank(n, compare, strategy=strategy)
    assert ranking.order.tolist() == list(range(n))
    assert ranking.confidence.tolist() == [0.5] * n
    assert (ranking.calls, ranking.cycles, ranking.complete) == (0, 0, True)
    assert ranking.fit.strengths.tolist() == [0.0] * n


@EVERY
def test_a_budget_of_nothing_keeps_the_given_order(strategy):
    ranking = rank(6, oracle(np.arange(6)), strategy=strategy, budget=0)
    assert ranking.order.tolist() == list(range(6))
    assert ranking.scores.tolist() == [0] * 6
    assert not ranking.complete


@EVERY
@given(st.permutations(range(8)), st.floats(-3, 3))
def test_asking_both_orders_cancels_a_preference_for_a_place(strategy, scores, bias):
    """The two ways to ask, (i, j) and (j, i), are exchanged: nothing changes."""
    values = np.array(scores, dtype=float)

    def biased(first, second):
        return 1 / (1 + np.exp(values[second] - values[first] - bias))

    def exchanged(first, second):
        return 1 - biased(second, first)

    ranking, other = (rank(8, f, strategy=strategy, both_orders=True) for f in (biased, exchanged))
    assert ranking.order.tolist() == other.order.tolist()
    np.testing.assert_allclose(ranking.scores, other.scores, atol=1e-9)
    assert ranking.order[0] == np.argmax(values)


@EVERY
def test_circles_do_not_crash_and_are_counted(strategy):
    ranking = rank(5, circle, strategy=strategy)
    assert sorted(ranking.order.tolist()) == list(range(5))
    if strategy.startswith("max") or strategy == "bradley_terry":
        assert (ranking.cycles, ranking.triples) == (5, 10)
        assert ranking.order.tolist() == list(range(5))  # all are equal: as given
    assert ranking.cycles <= ranking.triples


@EVERY
def test_ties_keep_the_given_order(strategy):
    ranking = rank(7, lambda i, j: np.full(len(i), 0.5), strategy=strategy, seed=None)
    assert ranking.order[0] == 0
    if strategy != "knockout":  # which ranks by rounds survived
        assert ranking.order.tolist() == list(range(7))
    assert ranking.cycles == 0


@EVERY
def test_the_seed_decides(strategy):
    def compare(first, second):  # an opinion on each pair, at odds with any order
        return ((first * 7 + second * 3) * (first + second) % 11 / 10.0 + 0.05).clip(0, 1)

    for seed in (None, 3):
        one, two = (rank(12, compare, strategy=strategy, seed=seed, budget=20) for _ in range(2))
        assert one.order.tolist() == two.order.tolist()
        np.testing.assert_array_equal(one.wins, two.wins)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_duels_of_each_strategy():
    duels = {strategy: rank(16, oracle(np.arange(16)), strategy=strategy).duels for strategy in STRATEGIES}
    assert duels["max_logits"] == duels["max_wins"] == duels["bradley_terry"] == 120
    assert duels["knockout"] == duels["bubble"] == 15
    assert duels["sort"] <= 64
    assert rank(16, oracle(np.arange(16)), strategy="heap", top=3).duels <= 15 + 2 * 3


@given(st.integers(0, 14), st.integers(0, 2**32 - 1))
def test_all_pairs_once_and_every_beginning_is_fair(n, seed):
    first, second = all_pairs(n, np.random.default_rng(seed))
    assert len({frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}) == n * (n - 1) // 2
    assert (first != second).all()
    for end in range(0, len(first), max(n // 2, 1)):
        met = np.bincount(np.concatenate([first[:end], second[:end]]), minlength=n)
        assert np.ptp(met) <= 1


def test_neither_place_is_asked_about_more_often():
    first, second = all_pairs(60, np.random.default_rng(0))
    assert 0.45 < np.mean(first < second) < 0.55


# --- aggregates by hand -----------------------------------------------------------------------------------------------

OPINIONS = {(0, 1): 0.6, (0, 2): 0.6, (1, 2): 0.99}


def opinions(first, second):
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return [OPINIONS[pair] if pair in OPINIONS else 1 - OPINIONS[pair[::-1]] for pair in pairs]


def test_logits_weigh_how_clear_a_win_was_and_wins_do_not():
    by_wins, by_logits = (rank(3, opinions, strategy=strategy) for strategy in ("max_wins", "max_logits"))
    assert by_wins.order.tolist() == [0, 1, 2]
    np.testing.assert_allclose(by_wins.scores, [1, 0.5, 0])
    assert by_logits.order.tolist() == [1, 0, 2]
    clear, slight = np.log(99), np.log(1.5)
    np.testing.assert_allclose(by_logits.scores, [slight, (clear - slight) / 2, -(clear + slight) / 2])


def test_confidence_by_hand():
    ranking = rank(3, opinions, strategy="max_wins")
    np.testing.assert_allclose(ranking.confidence, [(0.6 + 0.6 + 1) / 4, (0.99 + 1) / 3, 0.5])


def test_confidence_grows_with_answers_and_shrinks_with_noise():
    generator = np.random.default_rng(0)

    def noisy(p):
        return lambda i, j: np.where(generator.random(len(i)) < p, i < j, i > j).astype(float)

    once, often = (rank(10, oracle(-np.arange(10)), strategy="sort", repeats=r).confidence[0] for r in (1, 20))
    assert once < often < 1
    sure, unsure = (rank(10, noisy(p), strategy="bradley_terry", repeats=20).confidence[:5].mean() for p in (0.95, 0.6))
    assert sure > unsure > 0.5


def test_bradley_terry_finds_the_scores_behind_soft_answers_from_a_part_of_the_pairs():
    scores = np.random.default_rng(1).normal(size=20)
    ranking = rank(20, from_scores(scores), strategy="bradley_terry", budget=60)
    np.testing.assert_allclose(ranking.scores, scores - scores.mean(), atol=1e-8)
    assert ranking.calls == 60
    assert not ranking.complete


def test_a_judge_of_both_candidates_ranks():
    good = np.array([0.1, 0.9, 0.5, 0.7])
    ranking = rank(4, from_judgements(lambda i, j: (good[i], good[j])), strategy="sort")
    assert ranking.order.tolist() == [1, 3, 2, 0]


def test_wins_of_a_ranking_go_into_the_test_of_misfit():
    generator = np.random.default_rng(4)

    def noisy_circle(first, second):
        return np.where(generator.random(len(first)) < 0.9, circle(first, second), circle(second, first))

    ranking = rank(5, noisy_circle, strategy="bradley_terry", repeats=15)
    assert misfit(ranking.wins, resamples=99).fits is False
    assert misfit(rank(5, circle, strategy="max_wins").wins).fits is None


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "knock_out"}, "unknown strategy 'knock_out'; did you mean 'knockout'?"),
        ({"strategy": "elo"}, "unknown strategy 'elo'; there are max_logits, max_wins, bradley_terry"),
        ({"strategy": "heap", "top": 0}, "top must be a whole number ≥ 1, got 0"),
        ({"strategy": "heap", "budget": -1}, "budget must be a whole number ≥ 0, got -1"),
        ({"strategy": "heap", "repeats": 0}, "repeats must be a whole number ≥ 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        rank(3, oracle([1, 2, 3]), **settings)


@EVERY
@pytest.mark.parametrize("bad", [np.nan, 2.0, -0.5])
def test_a_bad_answer_names_its_pair(strategy, bad):
    with pytest.raises(ValueError, match=rf"the comparator gave {bad} for candidates \((0, 1|1, 0)\)"):
        rank(2, lambda i, j: np.full(len(i), bad), strategy=strategy)
