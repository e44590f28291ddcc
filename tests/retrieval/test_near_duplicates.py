import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.near_duplicates import BANDS, ROWS, Groups, jaccard, near_duplicate_groups, shingles

WORDS = [f"w{number}" for number in range(60)]


def numbered(*changes):
    """60 different words, with those at `changes` replaced."""
    return " ".join("other" if place in changes else word for place, word in enumerate(WORDS))


def components(texts, threshold, size):
    """The definition, over all pairs."""
    sets = [shingles(text, size) for text in texts]
    group = list(range(len(texts)))
    for first, second in itertools.combinations(range(len(texts)), 2):
        if sets[first] and jaccard(sets[first], sets[second]) >= threshold:
            low, high = sorted((group[first], group[second]))
            group = [low if g == high else g for g in group]
    return group


def test_shingles_by_hand():
    assert shingles("The cat, the CAT!", 2) == {("the", "cat"), ("cat", "the")}
    assert shingles("Too short", 3) == {("too", "short")}
    assert shingles("a b c", 3) == {("a", "b", "c")}
    assert shingles(" …", 3) == set()


def test_jaccard_by_hand():
    first, second = shingles("a b c d", 1), shingles("c d e", 1)
    assert jaccard(first, second) == 2 / 5
    assert jaccard(first, first) == 1
    assert jaccard(set(), set()) == 0


def test_the_threshold_is_exact():
    # 58 trigrams each. A changed word in the middle changes 3 of them: 55 / 61; three such: 49 / 67 < 0.8.
    texts = [numbered(), numbered(10), numbered(10, 20, 30)]
    assert near_duplicate_groups(texts[:2], threshold=55 / 61) == [0, 0]
    assert near_duplicate_groups(texts[:2], threshold=55 / 61 + 1e-9) == [0, 1]
    assert near_duplicate_groups([texts[0], texts[2]]) == [0, 1]


def test_groups_are_closed_over_chains():
    # Neighbours share 55 of 61 trigrams; the ends 49 of 67.
    chain = [numbered(), numbered(10), numbered(10, 20), numbered(10, 20, 30)]
    assert near_duplicate_groups(chain) == [0, 0, 0, 0]
    assert near_duplicate_groups([chain[0], chain[3]]) == [0, 1]


def test_case_and_punctuation_do_not_part_texts():
    assert near_duplicate_groups(["Sum of the array, along x.", "sum OF the array along X"]) == [0, 0]


def test_short_and_empty_texts():
    assert near_duplicate_groups([]) == []
    assert near_duplicate_groups(["", "…", "", "one", "One!", "one two"]) == [0, 1, 2, 3, 3, 5]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c"]), max_size=8).map(" ".join),
        max_size=12,
    ),
    st.sampled_from([0.75, 0.8, 0.9, 1.0]),
    st.integers(1, 3),
)
def test_equals_the_definition_over_all_pairs(texts, threshold, size):
    assert near_duplicate_groups(texts, threshold=threshold, shingle=size) == components(texts, threshold, size)


@given(st.permutations(range(6)))
def test_the_order_of_the_texts_does_not_matter(order):
    texts = [numbered(), numbered(10), numbered(10, 20), "sum of all", "Sum of all.", "product of all"]

    def partition(places):
        groups = near_duplicate_groups([texts[place] for place in places])
        return {frozenset(p for p, g in zip(places, groups, strict=True) if g == group) for group in groups}

    assert partition(order) == partition(range(6))


def test_a_group_is_named_by_its_lowest_row():
    groups = near_duplicate_groups(["x y z", "sum of all", "x y z", "sum of all"])
    assert groups == [0, 1, 0, 1]


def test_the_bands_miss_next_to_nothing_at_the_default_threshold():
    # A pair with similarity s shares a band of r rows with probability s^r.
    assert (1 - 0.8**ROWS) ** BANDS < 1 / 20_000_000
    assert math.isclose((1 - 0.8**4) ** 32, (1 - 0.4096) ** 32)


def test_many_random_near_duplicates_are_all_found():
    texts = [numbered(place) for place in range(2, 58)]  # each pair shares at least 52 of 64 trigrams
    assert set(near_duplicate_groups(texts)) == {0}


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, math.nan])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold must be in"):
        near_duplicate_groups(["a"], threshold=threshold)


def test_bad_shingle():
    with pytest.raises(ValueError, match="at least 1 word, got 0"):
        near_duplicate_groups(["a"], shingle=0)


def test_missing_datasketch_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(InputError, match=r"datasketch is not installed; run: pip install 'rankwright\[demo\]'"):
        near_duplicate_groups(["a"])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_disjoint_sets_equal_a_plain_relabelling(joins):
    groups = Groups(10)
    plain = list(range(10))
    for first, second in joins:
        groups.join(first, second)
        low, high = sorted((plain[first], plain[second]))
        plain = [low if label == high else label for label in plain]
    assert [groups.find(row) for row in range(10)] == plain
