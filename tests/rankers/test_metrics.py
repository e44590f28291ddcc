import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankers import metrics

# name → function of (labels, pool, k), so that one property runs over all of them.
ALL = {
    "ndcg": lambda labels, pool, k, **o: metrics.ndcg(labels, pool=pool, k=k, **o),
    "ndcg_exp2": lambda labels, pool, k, **o: metrics.ndcg(labels, pool=pool, k=k, gain="exp2", **o),
    "average_precision": lambda labels, pool, k, **o: metrics.average_precision(labels, pool=pool, k=k, **o),
    "reciprocal_rank": lambda labels, pool, k, **o: metrics.reciprocal_rank(labels, k=k, **o),
    "precision": lambda labels, pool, k, **o: metrics.precision(labels, k=k or labels.shape[1], **o),
    "recall": lambda labels, pool, k, **o: metrics.recall(labels, pool=pool, k=k, **o),
    "success": lambda labels, pool, k, **o: metrics.success(labels, k=k, **o),
}
EVERY = pytest.mark.parametrize("measure", ALL.values(), ids=ALL)


def shapes(min_docs=1):
    return st.tuples(st.integers(1, 4), st.integers(min_docs, 9))


def grades(shape):
    return hnp.arrays(np.int64, shape, elements=st.integers(-1, 4))


lists = shapes().flatmap(grades)
cutoffs = st.one_of(st.none(), st.integers(1, 12))


def loop_ndcg(labels, pool, k, gain):
    """The definition, one query, one document at a time."""

    def dcg(grades):
        total = 0.0
        for rank, grade in enumerate(grades[:k], start=1):
            if grade > 0:
                total += gain(grade) / math.log2(rank + 1)
        return total

    best = dcg(sorted(pool, reverse=True))
    return dcg(labels) / best if best else 0.0


@pytest.mark.parametrize(
    ("labels", "pool", "k", "expected"),
    [
        ([3, 2, 0, 1], [3, 2, 1], None, (3 + 2 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 0.5)),
        ([0, 1, 0], [1], 10, 1 / math.log2(3)),
        ([0, 1, 0], [1], 1, 0.0),
        ([0, 0, 2], [2, 2, 1], 3, (2 / 2) / (2 + 2 / math.log2(3) + 1 / 2)),
        ([1, 1], [1, 1, 1], 2, 1.0),  # the ideal list is cut, too
        ([1, 1], [1, 1, 1], None, (1 + 1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / 2)),
        ([-1, 1], [1, -1], None, 1 / math.log2(3)),  # a negative grade gains nothing
        ([0, 0], [0, 0], None, 0.0),
        ([0, 0], [], None, 0.0),
    ],
)
def test_ndcg_by_hand(labels, pool, k, expected):
    value = metrics.ndcg(np.array([labels]), pool=np.array([pool], dtype=int), k=k)
    assert value.tolist() == [pytest.approx(expected, abs=1e-15)]


def test_exponential_gain_by_hand():
    value = metrics.ndcg(np.array([[1, 3]]), k=2, gain="exp2")
    assert value[0] == pytest.approx((1 + 7 / math.log2(3)) / (7 + 1 / math.log2(3)))


@pytest.mark.parametrize(
    ("labels", "n_relevant", "k", "expected"),
    [
        ([1, 0, 1], 2, None, (1 / 1 + 2 / 3) / 2),
        ([1, 0, 1], 4, None, (1 / 1 + 2 / 3) / 4),
        ([1, 0, 1], 2, 2, (1 / 1) / 2),  # divided by all relevant documents, not by k
        ([0, 0, 0], 2, None, 0.0),
        ([0, 0, 0], 0, None, 0.0),
    ],
)
def test_average_precision_by_hand(labels, n_relevant, k, expected):
    pool = np.ones((1, n_relevant), dtype=int)
    assert metrics.average_precision(np.array([labels]), pool=pool, k=k)[0] == pytest.approx(expected)


def test_the_others_by_hand():
    labels = np.array([[0, 2, 0, 1], [0, 0, 0, 0]])
    pool = np.array([[1, 2, 1, 0], [0, 0, 0, 0]])
    assert metrics.reciprocal_rank(labels).tolist() == [1 / 2, 0]
    assert metrics.reciprocal_rank(labels, k=1).tolist() == [0, 0]
    assert metrics.reciprocal_rank(labels, k=2).tolist() == [1 / 2, 0]
    assert metrics.precision(labels, k=4).tolist() == [2 / 4, 0]
    assert metrics.precision(labels, k=10).tolist() == [2 / 10, 0]  # divided by k, not by the list's length
    assert metrics.recall(labels, pool=pool, k=2).tolist() == [1 / 3, 0]
    assert metrics.recall(labels, pool=pool).tolist() == [2 / 3, 0]
    assert metrics.success(labels, k=1).tolist() == [0, 0]
    assert metrics.success(labels, k=2).tolist() == [1, 0]


def test_positive_from_moves_the_border():
    labels = np.array([[1, 2, 3]])
    assert metrics.reciprocal_rank(labels, positive_from=2).tolist() == [1 / 2]
    assert metrics.precision(labels, k=3, positive_from=3).tolist() == [1 / 3]
    assert metrics.recall(labels, k=2, positive_from=2).tolist() == [1 / 2]
    assert metrics.average_precision(labels, positive_from=3).tolist() == [1 / 3]
    assert metrics.success(labels, k=2, positive_from=3).tolist() == [0]
    assert metrics.recall(np.array([[0.5, 0.2]]), k=1, positive_from=0.3).tolist() == [1]


def test_judged_by_hand():
    known = np.array([[True, False, True, False], [True, True, False, False], [False] * 4])
    where = np.array([[True] * 4, [True, True, False, False], [False] * 4])
    assert metrics.judged(known, k=3, where=where).tolist() == [2 / 3, 1, 0]
    assert metrics.judged(known, where=where).tolist() == [1 / 2, 1, 0]
    assert metrics.judged(known, k=2).tolist() == [1 / 2, 1, 0]


@given(lists, cutoffs, st.sampled_from(["linear", "exp2"]))
def test_ndcg_is_its_definition(labels, k, gain):
    gains = {"linear": lambda grade: grade, "exp2": lambda grade: 2**grade - 1}
    expected = [loop_ndcg(row.tolist(), row.tolist(), k, gains[gain]) for row in labels]
    np.testing.assert_allclose(metrics.ndcg(labels, k=k, gain=gain), expected, rtol=1e-12)


@given(lists, cutoffs)
def test_average_precision_is_its_definition(labels, k):
    expected = []
    for row in (labels >= 1).tolist():
        precisions = [sum(row[:i]) / i for i in range(1, len(row[:k]) + 1) if row[i - 1]]
        expected.append(sum(precisions) / sum(row) if any(row) else 0.0)
    np.testing.assert_allclose(metrics.average_precision(labels, k=k), expected, rtol=1e-12)


@EVERY
@given(lists, lists, cutoffs)
def test_values_lie_between_0_and_1(measure, labels, other, k):
    # Documents outside the list are relevant, too: they join the pool.
    pool = np.concatenate([labels, np.resize(other, labels.shape)], axis=1)
    values = measure(labels, pool, k)
    assert values.shape == (len(labels),)
    assert values.dtype == np.float64
    assert ((values >= 0) & (values <= 1)).all()


@EVERY
@given(lists)
def test_the_ideal_ranking_has_exactly_1(measure, labels):
    labels = labels.clip(0)
    labels[:, 0] = 4
    ideal = -np.sort(-labels, axis=1)
    for k in range(1, ideal.shape[1] + 1):
        reachable = measure in (ALL["recall"], ALL["average_precision"], ALL["precision"])
        n_relevant = (ideal > 0).sum(axis=1)
        values = measure(ideal, labels, k)
        if not reachable:
            assert values.tolist() == [1.0] * len(ideal)
        elif measure is ALL["precision"]:
            assert values.tolist() == [min(n, k) / k for n in n_relevant]
        else:
            np.testing.assert_allclose(values, np.minimum(n_relevant, k) / n_relevant, rtol=1e-12)
            assert (values[n_relevant <= k] == 1.0).all()


@EVERY
@given(shapes(min_docs=2).flatmap(grades), cutoffs, st.data())
def test_moving_a_better_document_up_never_hurts(measure, labels, k, data):
    low = data.draw(st.integers(1, labels.shape[1] - 1))
    high = data.draw(st.integers(0, low - 1))
    swapped = labels.copy()
    better = labels[:, low] > labels[:, high]
    swapped[better, high], swapped[better, low] = labels[better, low], labels[better, high]
    assert (measure(swapped, labels, k) >= measure(labels, labels, k) - 1e-15).all()


@EVERY
@given(lists, st.integers(1, 5), cutoffs, st.integers(-5, 5))
def test_padding_never_changes_a_value(measure, labels, width, k, junk):
    k = k or labels.shape[1]
    padded = np.concatenate([labels, np.full((len(labels), width), junk)], axis=1)
    where = np.zeros(padded.shape, dtype=bool)
    where[:, : labels.shape[1]] = True
    pool = np.concatenate([labels, np.zeros((len(labels), width), dtype=int)], axis=1)
    # To the last bit: what a query scores must not depend on its neighbours' lengths.
    assert measure(padded, pool, k, where=where).tolist() == measure(labels, labels, k).tolist()


@EVERY
@given(lists, cutoffs, st.randoms(use_true_random=False))
def test_queries_do_not_influence_each_other(measure, labels, k, random):
    order = list(range(len(labels)))
    random.shuffle(order)
    assert measure(labels[order], labels[order], k).tolist() == measure(labels, labels, k)[order].tolist()
    alone = [measure(row[None], row[None], k)[0] for row in labels]
    assert measure(labels, labels, k).tolist() == alone


@given(lists, cutoffs, st.randoms(use_true_random=False))
def test_the_order_of_the_pool_never_matters(labels, k, random):
    columns = list(range(labels.shape[1]))
    random.shuffle(columns)
    for measure in ALL.values():
        assert measure(labels, labels[:, columns], k).tolist() == measure(labels, labels, k).tolist()


@given(lists)
def test_relations_between_measures(labels):
    n = labels.shape[1]
    hit = metrics.success(labels, k=n)
    assert ((metrics.reciprocal_rank(labels) > 0) == (hit == 1)).all()
    assert (metrics.average_precision(labels) <= metrics.recall(labels) + 1e-15).all()
    n_relevant = (labels >= 1).sum(axis=1)
    np.testing.assert_allclose(metrics.precision(labels, k=n) * n, n_relevant)
    binary = (labels >= 1).astype(int)
    # For grades 0 and 1 both gains are the grade.
    assert metrics.ndcg(binary).tolist() == metrics.ndcg(binary, gain="exp2").tolist()


@EVERY
def test_empty_lists_and_no_queries_have_values(measure):
    nothing = np.zeros((2, 0), dtype=int)
    assert measure(nothing, np.array([[1], [0]]), 5).tolist() == [0, 0]
    assert measure(nothing[:0], nothing[:0], 5).tolist() == []


def test_judged_of_empty_lists():
    assert metrics.judged(np.zeros((2, 0), dtype=bool), k=5).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ndcg(np.array([1, 2])), r"shape \(queries, docs\), got int64 \(2,\)"),
        (lambda: metrics.ndcg(np.array([["a"]])), r"must be numbers"),
        (lambda: metrics.ndcg(np.ones((2, 3)), where=np.ones((2, 2), bool)), r"where must be bool \(2, 3\), got bool"),
        (lambda: metrics.ndcg(np.ones((2, 3)), where=np.ones((2, 3))), r"got float64 \(2, 3\)"),
        (lambda: metrics.ndcg(np.ones((2, 3)), pool=np.ones((3, 3))), r"\(2 queries, judged\), got float64 \(3, 3\)"),
        (lambda: metrics.ndcg(np.ones((2, 3)), k=0), r"k must be at least 1, got 0"),
        (lambda: metrics.precision(np.ones((2, 3)), k=0), r"k must be at least 1, got 0"),
        (lambda: metrics.judged(np.ones((2, 3), bool), k=-1), r"k must be at least 1, got -1"),
        (lambda: metrics.judged(np.ones((2, 3))), r"is_judged must be bool, got float64"),
        (lambda: metrics.ndcg(np.ones((2, 3)), gain="cubic"), r"'linear' or 'exp2', got 'cubic'"),
        (lambda: metrics.ndcg(np.array([[600]]), gain="exp2"), r"grades up to 500, got 600"),
        (lambda: metrics.recall(np.ones((2, 3)), positive_from=0), r"positive_from must be > 0, got 0"),
        (lambda: metrics.ndcg(np.array([[np.nan, 1.0]])), r"labels must be finite"),
    ],
)
def test_bad_arguments_are_told_with_both_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_metrics_need_only_numpy():
    import subprocess
    import sys

    code = "import sys, rankers.metrics; print(sorted(m for m in sys.modules if m in ('torch', 'scipy', 'retrieval')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
