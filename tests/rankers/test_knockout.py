import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankers.comparisons import Comparisons, from_scores
from rankers.knockout import duels_to_win, heap, knockout
from rankers.tournaments import rank


def oracle(scores):
    return from_scores(scores, temperature=0)


class Noisy:
    """Right with probability p about candidates whose number is their rank; every question is a new draw."""

    def __init__(self, p, seed):
        self.p, self.generator = p, np.random.default_rng(seed)

    def __call__(self, first, second):
        right = self.generator.random(len(first)) < self.p
        return np.where(right, first < second, first > second).astype(float)


# --- knockout ---------------------------------------------------------------------------------------------------------


@given(st.permutations(range(11)), st.integers(1, 11))
def test_the_best_wins_in_n_minus_one_duels_and_log_n_batches(numbers, n):
    scores, batches = np.array(numbers[:n], dtype=float), []

    def compare(i, j):
        batches.append(len(i))
        return oracle(scores)(i, j)

    book = Comparisons(n, compare)
    order, rounds = knockout(book, np.arange(n))
    assert order[0] == scores.argmax()
    assert sorted(order.tolist()) == list(range(n))
    assert book.duels == n - 1
    assert len(batches) == rounds[order[0]] == np.ceil(np.log2(n))
    assert (np.diff(rounds[order]) <= 0).all()


def test_a_bracket_of_five_by_hand():
    """0 rests, (1, 2) (3, 4) → (0, 2), 4 rests → (2, 4)."""
    asked = []

    def compare(i, j):
        asked.append(list(zip(i.tolist(), j.tolist(), strict=True)))
        return oracle([1, 2, 3, 0, 9])(i, j)

    order, rounds = knockout(Comparisons(5, compare), np.arange(5))
    assert asked == [[(1, 2), (3, 4)], [(0, 2)], [(2, 4)]]
    assert rounds.tolist() == [1, 0, 2, 0, 3]
    assert order.tolist() == [4, 2, 0, 3, 1]  # 3 lost to 4, which stands above 2, who beat 1


def test_a_tie_goes_to_the_first_in_the_bracket():
    order, _ = knockout(Comparisons(4, lambda i, j: np.full(len(i), 0.5)), np.array([2, 0, 3, 1]))
    assert order[0] == 2


def test_a_budget_that_ends_in_a_round_ranks_its_winners_first():
    book = Comparisons(6, oracle([0, 1, 2, 3, 4, 5]), budget=2)
    order, rounds = knockout(book, np.arange(6))
    assert order.tolist() == [1, 3, 4, 5, 0, 2]  # 4 and 5 are still in; 0 lost to 1, 2 to 3
    assert rounds.tolist() == [0, 1, 0, 1, 0, 0]


# --- knockout under noise ---------------------------------------------------------------------------------------------


def test_duels_to_win_by_hand():
    assert duels_to_win(0).tolist() == []
    assert duels_to_win(1).tolist() == [0]
    assert duels_to_win(2).tolist() == [1, 1]
    assert duels_to_win(5).tolist() == [2, 3, 3, 2, 2]
    assert duels_to_win(8).tolist() == [3] * 8


@given(st.integers(1, 40))
def test_duels_to_win_are_those_of_the_tournament(n):
    """The best candidate is put on every place in turn."""
    for place, expected in enumerate(duels_to_win(n)):
        book = Comparisons(n, oracle(np.arange(n) == place))
        knockout(book, np.arange(n))
        assert book.games[place].sum() == expected


@pytest.mark.parametrize("p", [0.6, 0.75, 0.9])
@pytest.mark.parametrize(("n", "both_orders"), [(16, False), (16, True), (11, False)])
def test_its_error_over_a_thousand_tournaments_is_binomial(n, p, both_orders):
    """Both orders and a coin at a tie: p² + 2 p (1 - p) / 2 = p."""
    predicted = np.mean(p ** duels_to_win(n))
    if n == 16:
        assert predicted == pytest.approx(p**4)
    compare = Noisy(p, seed=n)
    won = sum(
        rank(n, compare, strategy="knockout", seed=seed, both_orders=both_orders).order[0] == 0 for seed in range(1_000)
    )
    deviation = (won / 1_000 - predicted) / np.sqrt(predicted * (1 - predicted) / 1_000)
    assert abs(deviation) < 3


def test_repeats_raise_the_accuracy_of_a_duel():
    """The majority of 3: p³ + 3 p² (1 - p)."""
    p = 0.75
    majority = p**3 + 3 * p**2 * (1 - p)
    compare = Noisy(p, seed=0)
    won = sum(rank(8, compare, strategy="knockout", seed=seed, repeats=3).order[0] == 0 for seed in range(1_000))
    predicted = majority**3
    assert abs(won / 1_000 - predicted) < 3 * np.sqrt(predicted * (1 - predicted) / 1_000)


# --- heap -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 20))
def test_the_best_are_selected_in_order_and_cheaply(scores, top):
    n, top = len(scores), min(top, len(scores))
    batches, truth = [], oracle(np.array(scores, dtype=float))
    book = Comparisons(n, lambda i, j: (batches.append(len(i)), truth(i, j))[1])
    order, positions = heap(book, np.arange(n), top)
    assert [scores[c] for c in order[:top]] == sorted(scores, reverse=True)[:top]
    assert sorted(order.tolist()) == list(range(n))
    assert positions[order].tolist() == list(range(n, 0, -1))
    assert book.duels <= n - 1 + (top - 1) * max(int(np.ceil(np.log2(n))) - 1, 0)
    assert len(batches) <= top * np.ceil(np.log2(n))


def test_the_second_best_costs_at_most_log_n_minus_one_more():
    """Knuth's example: n - 1 + ⌈log2 n⌉ - 1 duels for the best two of 16."""
    book = Comparisons(16, oracle(np.random.default_rng(0).permutation(16)))
    heap(book, np.arange(16), 2)
    assert book.duels <= 15 + 3


def test_behind_the_selected_stand_those_that_beat_most():
    book = Comparisons(4, oracle([1, 0, 2, 3]))
    order, _ = heap(book, np.arange(4), 1)
    assert order.tolist() == [3, 0, 1, 2]  # (0, 1), (2, 3), (0, 3): 0 beat one; 1 and 2 none, as given
