import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankers.comparisons import CERTAIN, Comparisons, count_cycles, from_judgements, from_scores
from rankers.tournaments import rank


def indices(*values):
    return np.array(values, dtype=np.int64)


# --- pointwise scorers ------------------------------------------------------------------------------------------------


def test_scores_become_probabilities_by_hand():
    compare = from_scores([0.0, np.log(3), 0.0], temperature=1.0)
    np.testing.assert_allclose(compare(indices(1, 0, 0), indices(0, 1, 2)), [0.75, 0.25, 0.5])
    halved = from_scores([0.0, np.log(3)], temperature=0.5)(indices(1), indices(0))
    np.testing.assert_allclose(halved, [0.9])  # sigmoid(2 log 3)


def test_temperature_zero_is_the_limit():
    assert from_scores([1, 5, 5], temperature=0)(indices(1, 0, 1), indices(0, 1, 2)).tolist() == [1.0, 0.0, 0.5]


def test_a_callable_scorer_is_asked_for_each_candidate_once():
    asked = []

    def scorer(candidates):
        asked.extend(candidates.tolist())
        return -candidates.astype(float)

    assert rank(9, from_scores(scorer), strategy="sort").order.tolist() == list(range(9))
    assert sorted(asked) == list(range(9))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_named(bad):
    with pytest.raises(ValueError, match=f"the score of candidate 1 is {bad}; wanted a finite number"):
        from_scores([0.0, bad])
    with pytest.raises(ValueError, match=f"the score of candidate 2 is {bad}"):
        rank(3, from_scores(lambda c: np.where(c == 2, bad, 0.0)), strategy="max_wins")


def test_scores_of_a_wrong_shape_or_temperature_are_refused():
    with pytest.raises(ValueError, match=r"scores must have the shape \(candidates,\), got \(2, 1\)"):
        from_scores([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"scores must have the shape \(2,\), got \(1,\)"):
        from_scores(lambda candidates: np.zeros(1))(indices(0), indices(1))
    with pytest.raises(ValueError, match="there are scores of 2 candidates, but number 3 was asked about"):
        from_scores([1.0, 2.0])(indices(0, 3), indices(1, 0))
    with pytest.raises(ValueError, match="temperature must be ≥ 0, got -1"):
        from_scores([1.0], temperature=-1)


# --- two judgements at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "odds", "half"),
    [
        (0.8, 0.5, 0.8, 0.65),  # 0.8 · 0.5 / (0.8 · 0.5 + 0.2 · 0.5)
        (0.9, 0.1, 81 / 82, 0.9),
        (0.3, 0.3, 0.5, 0.5),
        (1.0, 1.0, 0.5, 0.5),
        (0.0, 0.0, 0.5, 0.5),
        (1.0, 0.0, 1.0, 1.0),
        (1.0, 0.7, 1.0, 0.65),
    ],
)
def test_two_judgements_by_hand(first, second, odds, half):
    def judge(i, j):
        return np.full(len(i), first), np.full(len(i), second)

    assert from_judgements(judge)(indices(0), indices(1))[0] == pytest.approx(odds)
    assert from_judgements(judge, rule="half")(indices(0), indices(1))[0] == pytest.approx(half)


@given(st.floats(-8, 8), st.floats(-8, 8))
def test_the_odds_of_two_heads_are_their_difference(a, b):
    def judge(i, j):
        return [1 / (1 + np.exp(-a))], [1 / (1 + np.exp(-b))]

    expected = 1 / (1 + np.exp(b - a))
    assert from_judgements(judge)(indices(0), indices(1))[0] == pytest.approx(expected, rel=1e-6)


def test_a_bad_judgement_is_named():
    compare = from_judgements(lambda i, j: (np.full(len(i), 0.5), np.where(i == 4, 1.5, 0.5)))
    with pytest.raises(ValueError, match=r"gave 1.5 for candidates \(4, 2\); wanted P\(second is good\) in \[0, 1\]"):
        compare(indices(1, 4), indices(0, 2))
    with pytest.raises(ValueError, match='rule must be "odds" or "half", got \'mean\''):
        from_judgements(lambda i, j: (i, j), rule="mean")


# --- the book of answers ----------------------------------------------------------------------------------------------


def test_answers_are_kept_counted_and_never_paid_twice():
    batches = []

    def compare(i, j):
        batches.append(list(zip(i.tolist(), j.tolist(), strict=True)))
        return np.full(len(i), 0.8)

    book = Comparisons(4, compare)
    np.testing.assert_allclose(book.ask([0, 2], [1, 3]), [0.8, 0.8])
    np.testing.assert_allclose(book.ask([1, 0], [0, 2]), [0.2, 0.8])  # (1, 0) is known from (0, 1)
    assert batches == [[(0, 1), (2, 3)], [(0, 2)]]
    assert (book.calls, book.duels, book.exhausted) == (3, 3, False)
    assert book.wins[0, 1] == pytest.approx(0.8)
    assert book.wins[1, 0] == pytest.approx(0.2)
    assert book.margins[0, 1] == pytest.approx(np.log(4))
    assert book.games.sum() == pytest.approx(6)
    assert book.beaten.tolist() == [2, 0, 1, 0]


def test_both_orders_and_repeats_are_one_call_of_the_function_and_four_calls_of_the_budget():
    batches = []

    def compare(i, j):
        batches.append(list(zip(i.tolist(), j.tolist(), strict=True)))
        return np.where(i < j, 0.9, 0.6)  # it likes the first place

    book = Comparisons(2, compare, both_orders=True, repeats=2)
    np.testing.assert_allclose(book.ask(0, 1), [(0.9 + 0.4) / 2])
    assert batches == [[(0, 1), (1, 0), (0, 1), (1, 0)]]
    assert (book.calls, book.duels) == (4, 1)
    np.testing.assert_allclose(book.margins[0, 1], 2 * (np.log(9) - np.log(1.5)))


def test_a_budget_covers_the_first_pairs_and_never_half_a_duel():
    book = Comparisons(6, lambda i, j: np.ones(len(i)), both_orders=True, budget=5)
    np.testing.assert_array_equal(book.ask([0, 1, 2], [3, 4, 5]), [0.5, 0.5, np.nan])
    assert (book.calls, book.duels, book.exhausted) == (4, 2, True)


def test_a_certain_answer_has_a_finite_margin():
    book = Comparisons(2, lambda i, j: np.ones(len(i)))
    book.ask(0, 1)
    assert book.margins.tolist() == [[0, CERTAIN], [-CERTAIN, 0]]


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, np.inf])
def test_an_answer_that_is_no_probability_is_refused_with_its_pair(bad):
    book = Comparisons(5, lambda i, j: np.where(i == 3, bad, 0.5))
    with pytest.raises(
        ValueError, match=rf"gave {bad} for candidates \(3, 1\); wanted P\(first is better\) in \[0, 1\]"
    ):
        book.ask([0, 3], [2, 1])
    assert book.calls == 0


@pytest.mark.parametrize("answer", [0.5, [0.5], np.full((2, 1), 0.5)])
def test_an_answer_of_another_shape_is_refused(answer):
    with pytest.raises(ValueError, match=r"must give one P\(first is better\) for each of 2 pairs, got \("):
        Comparisons(3, lambda i, j: answer).ask([0, 1], [1, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": -1}, "n must be a whole number ≥ 0, got -1"),
        ({"n": True}, "n must be a whole number ≥ 0, got True"),
        ({"n": 2.5}, "n must be a whole number ≥ 0, got 2.5"),
        ({"n": 2, "repeats": 0}, "repeats must be a whole number ≥ 1, got 0"),
        ({"n": 2, "budget": -3}, "budget must be a whole number ≥ 0, got -3"),
    ],
)
def test_bad_numbers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Comparisons(comparator=lambda i, j: 0.5, **settings)


# --- cycles -----------------------------------------------------------------------------------------------------------


def test_cycles_by_hand():
    circle = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert count_cycles(circle) == (1, 1)
    assert count_cycles(np.triu(np.ones((5, 5)), 1)) == (0, 10)
    assert count_cycles(np.array([[0, 1, 0.5], [0, 0, 1], [0.5, 0, 0]])) == (0, 1)  # a tie breaks the circle
    assert count_cycles(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])) == (0, 0)  # one pair is missing
    assert count_cycles(np.zeros((0, 0))) == (0, 0)


@given(st.integers(3, 9), st.integers(0, 2**32 - 1))
def test_cycles_are_those_of_a_loop_over_triples(n, seed):
    generator = np.random.default_rng(seed)
    answers = generator.choice([0.0, 0.3, 0.5, 1.0], size=(n, n))
    asked = np.triu(generator.random((n, n)) < 0.8, 1)
    wins = np.where(asked, answers, 0) + np.where(asked, 1 - answers, 0).T
    cycles = triples = 0
    for triple in itertools.combinations(range(n), 3):
        pairs = list(itertools.combinations(triple, 2))
        if all(asked[i, j] for i, j in pairs):
            triples += 1
            beaten = [sum(wins[i, j] > wins[j, i] for j in triple) for i in triple]
            cycles += beaten == [1, 1, 1]
    assert count_cycles(wins) == (cycles, triples)
