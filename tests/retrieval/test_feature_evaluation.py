"""nDCG of feature lists: by hand in both gains, and ties that the order of the file does not decide."""

import math
from dataclasses import replace

import numpy as np
import pytest

from retrieval.errors import InputError
from retrieval.evaluation import evaluate
from retrieval.feature_evaluation import MEASURES, means, measure_lists
from retrieval.svmlight import FeatureLists


def lists(*labels, ids=True) -> FeatureLists:
    rows = sum(map(len, labels))
    return FeatureLists(
        query_ids=[f"q{number}" for number in range(len(labels))],
        sizes=np.array([len(own) for own in labels]),
        labels=np.concatenate([np.array(own, dtype=np.float32) for own in labels]),
        features=np.zeros((rows, 1), dtype=np.float32),
        doc_ids=[f"d{row}" for row in range(rows)] if ids else None,
        numbers=np.array([1]),
    )


def scores(*rows):
    return [np.array(row, dtype=np.float32) for row in rows]


def test_both_gains_by_hand():
    found = measure_lists(lists([0, 2, 1]), scores([3, 2, 1]))  # ranked 0, 2, 1
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert found["nDCG@10"]["q0"] == pytest.approx((2 * second + third) / (2 + second))
    assert found["nDCG(dcg='exp-log2')@10"]["q0"] == pytest.approx((3 * second + third) / (3 + second))
    assert list(found) == list(MEASURES)


def test_a_query_without_relevant_documents_counts_0_and_the_mean_is_over_all():
    found = measure_lists(lists([0, 0], [1, 0]), scores([1, 2], [2, 1]), ["nDCG@5"])
    assert found == {"nDCG@5": {"q0": 0.0, "q1": 1.0}}
    assert means(found) == {"nDCG@5": 0.5}


def test_fractions_are_grades_too():
    found = measure_lists(lists([0.25, 0.75]), scores([2, 1]), ["nDCG@10"])
    second = 1 / math.log2(3)
    assert found["nDCG@10"]["q0"] == pytest.approx((0.25 + 0.75 * second) / (0.75 + 0.25 * second))


def test_the_same_values_as_a_run_with_qrels():
    random = np.random.default_rng(0)
    labels = [random.integers(0, 4, size) for size in (1, 7, 30)]
    own = [random.integers(0, 5, len(one)).astype(np.float32) for one in labels]  # many ties
    found = lists(*labels)
    qrels = {
        query_id: dict(zip(found.doc_ids[rows], found.labels[rows].astype(int).tolist(), strict=True))
        for query_id, rows in zip(found.query_ids, found.slices(), strict=True)
    }
    run = {
        q: dict(zip(found.doc_ids[s], map(float, one), strict=True))
        for q, s, one in zip(found.query_ids, found.slices(), own, strict=True)
    }
    expected = evaluate(qrels, run, MEASURES, resamples=1)
    assert measure_lists(found, own) == {name: expected[name].per_query for name in MEASURES}


def test_without_ids_ties_do_not_follow_the_file():
    """A file sorted by grade must not make a ranker that knows nothing look good."""
    sorted_lists = [[1] * 10 + [0] * 10 for _ in range(200)]
    forward = means(measure_lists(lists(*sorted_lists, ids=False), scores(*[[0] * 20] * 200), ["nDCG@5"]))
    reverse = [own[::-1] for own in sorted_lists]
    backward = means(measure_lists(lists(*reverse, ids=False), scores(*[[0] * 20] * 200), ["nDCG@5"]))
    assert forward["nDCG@5"] == pytest.approx(0.5, abs=0.05)
    assert backward["nDCG@5"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("measure", ["RR@10", "AP", "nDCG(gains={1: 3})@10"])
def test_other_measures_are_refused(measure):
    with pytest.raises(InputError, match="feature lists are measured by nDCG@k"):
        measure_lists(lists([1, 0]), scores([1, 2]), [measure])


@pytest.mark.parametrize("bad", [[1.0], [1.0, np.nan], [1.0, 2.0, 3.0]])
def test_scores_that_do_not_fit_are_refused(bad):
    with pytest.raises(InputError, match="query 'q0': wanted a finite score for each of its documents"):
        measure_lists(replace(lists([1, 0])), scores(bad))
