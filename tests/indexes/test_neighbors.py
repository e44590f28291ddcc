import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from indexes.neighbors import Neighbors, check_vectors, topk

# Few distinct values, so that ties are the rule.
scores = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(0, 12)),
    elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1.0, 2.0, 8e37]),
)


def by_hand(row, k):
    """Sort (score, column) pairs the way a reader would."""
    real = [(-float(score), column) for column, score in enumerate(row) if score > -np.inf]
    best = sorted(real)[:k]
    rows = [column for _, column in best]
    return rows + [-1] * (k - len(rows)), [-score for score, _ in best] + [-np.inf] * (k - len(rows))


@given(scores, st.integers(1, 15))
def test_topk_is_a_sort_by_score_then_column(matrix, k):
    found = topk(matrix, k)
    assert found.rows.shape == found.scores.shape == (len(matrix), k)
    assert (found.rows.dtype, found.scores.dtype) == (np.int64, np.float32)
    for row, rows, best in zip(matrix, found.rows, found.scores, strict=True):
        expected_rows, expected_scores = by_hand(row, k)
        assert rows.tolist() == expected_rows
        assert best.tolist() == expected_scores


@given(scores, st.integers(1, 6), st.integers(1, 6))
def test_a_smaller_k_is_a_prefix(matrix, first, second):
    small, large = sorted((first, second))
    np.testing.assert_array_equal(topk(matrix, small).rows, topk(matrix, large).rows[:, :small])


@given(scores, st.integers(1, 6), st.sampled_from([0.5, 2.0, 4.0]))
def test_scaling_by_a_power_of_two_changes_no_row(matrix, k, factor):
    np.testing.assert_array_equal(topk(matrix, k).rows, topk(matrix * np.float32(factor), k).rows)


def test_topk_by_hand():
    found = topk(np.array([[1.0, 3.0, 3.0, 2.0], [-np.inf, 0.0, -np.inf, 0.0]], dtype=np.float32), 3)
    assert found.rows.tolist() == [[1, 2, 3], [1, 3, -1]]
    assert found.scores.tolist() == [[3.0, 3.0, 2.0], [0.0, 0.0, -np.inf]]


def test_topk_does_not_touch_its_input():
    matrix = np.array([[1.0, 2.0]], dtype=np.float32)
    matrix.flags.writeable = False
    assert topk(matrix, 1).rows.tolist() == [[1]]


@pytest.mark.parametrize("k", [0, -1, 1.0, True, None, "3"])
def test_topk_names_a_bad_k(k):
    with pytest.raises(ValueError, match=r"k must be a whole number >= 1, got "):
        topk(np.zeros((1, 3), np.float32), k)


def test_topk_accepts_numpy_integers():
    assert topk(np.zeros((1, 3), np.float32), np.int64(2)).rows.tolist() == [[0, 1]]


def test_topk_refuses_nan_and_vectors():
    with pytest.raises(ValueError, match="scores hold NaN"):
        topk(np.array([[0.0, np.nan]], np.float32), 1)
    with pytest.raises(ValueError, match=r"shape \(queries, columns\), got \(3,\)"):
        topk(np.zeros(3, np.float32), 1)


def test_neighbors_are_frozen():
    found = Neighbors(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))
    with pytest.raises(AttributeError):
        found.rows = None


GOOD = np.arange(12, dtype=np.float32).reshape(4, 3)


def with_value(value, row=2, column=1):
    vectors = GOOD.copy()
    vectors[row, column] = value
    return vectors


def test_good_vectors_pass_as_they_are():
    assert check_vectors(GOOD, 3) is GOOD
    assert check_vectors(np.empty((0, 3), np.float32), 3, allow_zero=False).shape == (0, 3)
    assert check_vectors(with_value(9.9e14), 3).max() > 1e14


@pytest.mark.parametrize("make", [np.asfortranarray, lambda v: np.repeat(v, 2, axis=0)[::2], lambda v: v[::-1][::-1]])
def test_any_memory_layout_becomes_c_order(make):
    checked = check_vectors(make(GOOD), 3)
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, GOOD)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e15, -1e15, 3e38])
def test_the_bad_vector_is_named_with_component_and_value(value):
    with pytest.raises(ValueError, match=r"^vector 2: component 1 is (nan|-?inf|-?1e\+15|3e\+38); wanted finite"):
        check_vectors(with_value(value), 3)
    with pytest.raises(ValueError, match=r"^vector 2 \(doc-c\): component 1"):
        check_vectors(with_value(value), 3, ["doc-a", "doc-b", "doc-c", "doc-d"])
    with pytest.raises(ValueError, match=r"^query 2 \(q2\): component 1"):
        check_vectors(with_value(value), 3, lambda row: f"q{row}", what="query")


def test_the_first_bad_vector_is_named():
    vectors = with_value(np.inf, row=3)
    vectors[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^vector 1: component 2 is nan"):
        check_vectors(vectors, 3)


def test_zero_vectors_are_a_matter_of_policy():
    zero = GOOD.copy()
    zero[3] = 0
    assert check_vectors(zero, 3) is zero
    with pytest.raises(ValueError, match=r"^vector 3 \(d\): all 3 components are 0; is its text empty"):
        check_vectors(zero, 3, "abcd", allow_zero=False)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 5), np.float32), r"vectors have 5 dimensions, the index 3"),
        (np.zeros(3, np.float32), r"shape \(n, 3\), got \(3,\); one vector is x\[None\]"),
        (np.zeros((1, 3, 1), np.float32), r"shape \(n, 3\), got \(1, 3, 1\)"),
        (np.zeros((2, 3)), r"float32 array, got float64; convert"),
        (np.zeros((2, 3), np.float16), r"float32 array, got float16"),
        (np.zeros((2, 3), np.int64), r"float32 array, got int64"),
        (np.zeros((2, 3), object), r"float32 array, got object"),
        (np.zeros((2, 3), ">f4"), r"float32 array, got >f4"),
        ([[0.0, 0.0, 0.0]], r"float32 array, got list"),
        (None, r"float32 array, got NoneType"),
    ],
)
def test_shape_and_dtype_are_named(vectors, message):
    with pytest.raises(ValueError, match=message):
        check_vectors(vectors, 3)


@given(hnp.arrays(np.float32, (5, 2), elements=st.floats(width=32)))
def test_what_passes_has_finite_squares_and_what_fails_has_not_all_small(vectors):
    try:
        checked = check_vectors(vectors, 2)
    except ValueError:
        assert not (np.abs(vectors) < 1e15).all()
    else:
        assert np.isfinite((checked**2).sum(axis=1)).all()
