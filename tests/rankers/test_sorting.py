import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankers.comparisons import Comparisons, from_scores
from rankers.knockout import heap
from rankers.sorting import bubble, merge_sort


def oracle(scores):
    return from_scores(np.array(scores, dtype=float), temperature=0)


# --- merge sort -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 30))
def test_the_best_are_sorted_stably(scores, top):
    batches, truth = [], oracle(scores)
    book = Comparisons(len(scores), lambda i, j: (batches.append(len(i)), truth(i, j))[1])
    order, positions = merge_sort(book, np.arange(len(scores)), top)
    expected = sorted(range(len(scores)), key=lambda c: -scores[c])
    assert order.tolist()[:top] == expected[:top]
    assert sorted(order.tolist()) == list(range(len(scores)))
    assert positions[order].tolist() == list(range(len(scores), 0, -1))
    n = len(scores)
    assert book.duels <= n * max(int(np.ceil(np.log2(max(n, 1)))), 0)
    assert len(batches) <= 3 * n


@given(st.permutations(range(13)))
def test_a_heap_that_runs_to_the_end_asks_the_same_duels(scores):
    """Selecting by a tree of winners is merging lazily, where both trees are the same: 8 and 16 leaves."""
    for n in (8, 13):
        sorted_book, heap_book = (Comparisons(n, oracle(scores[:n])) for _ in range(2))
        merge_sort(sorted_book, np.arange(n), n)
        heap(heap_book, np.arange(n), n)
        np.testing.assert_array_equal(sorted_book.wins, heap_book.wins)


def test_merges_of_a_level_are_asked_side_by_side():
    batches = []

    def compare(i, j):
        batches.append(len(i))
        return oracle(range(8))(i, j)

    merge_sort(Comparisons(8, compare), np.arange(8), 8)
    assert batches == [4, 2, 2, 1, 1, 1, 1]  # the second run is the better one: each merge ends when it is used up


def test_a_budget_leaves_sorted_runs():
    book = Comparisons(4, oracle([0, 1, 2, 3]), budget=3)
    order, _ = merge_sort(book, np.arange(4), 4)
    # runs (1, 0) and (3, 2); 3 is merged before 1 and 2, which stand in turns
    assert order.tolist() == [3, 1, 2, 0]
    order, _ = merge_sort(Comparisons(4, oracle([0, 1, 2, 3]), budget=1), np.arange(4), 4)
    assert order.tolist() == [1, 2, 0, 3]  # firsts of their runs: 1, 2; then the seconds 0, 3


@given(st.permutations(range(12)), st.integers(0, 45))
def test_any_budget_gives_a_whole_order_within_it(scores, budget):
    book = Comparisons(12, oracle(scores), budget=budget)
    order, _ = merge_sort(book, np.arange(12), 5)
    assert sorted(order.tolist()) == list(range(12))
    assert book.calls <= budget


# --- one bubble pass --------------------------------------------------------------------------------------------------


@given(st.permutations(range(9)))
def test_bubble_carries_the_best_to_the_front(scores):
    book = Comparisons(9, oracle(scores))
    order, _ = bubble(book, np.arange(9))
    assert scores[order[0]] == 8
    assert book.duels == 8
    expected = list(range(9))
    for place in range(7, -1, -1):
        if scores[expected[place]] < scores[expected[place + 1]]:
            expected[place], expected[place + 1] = expected[place + 1], expected[place]
    assert order.tolist() == expected


def test_bubble_by_hand():
    order, positions = bubble(Comparisons(4, oracle([2, 1, 3, 0])), np.arange(4))
    assert order.tolist() == [2, 0, 1, 3]
    assert positions.tolist() == [3, 2, 4, 1]


def test_bubble_stops_where_the_budget_ends():
    order, _ = bubble(Comparisons(4, oracle([0, 1, 2, 3]), budget=2), np.arange(4))
    assert order.tolist() == [0, 3, 1, 2]
