"""What a trained model is measured by: pairs by hand, Platt's bias, and scores read as log-odds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.engine import WholeTargets
from rankers.losses import build, build_expression
from retrieval import bench_scores
from retrieval.bench_scores import Embedded, Pairs, log_odds, scale_of
from retrieval.ids import IdTable

# scores: q1 → 0.9 0.1 0.5 0.3, q2 → 0.2 0.8 0.4 0.6
SCORES = np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.4, 0.6]], dtype=np.float32)
QRELS = {"q1": {"a": 1, "c": 0}, "q2": {"d": 2, "c": 1, "gone": 1}}


def embedded() -> Embedded:
    return Embedded(["q1", "q2"], np.eye(2, dtype=np.float32), IdTable.build("abcd"), np.ascontiguousarray(SCORES.T))


def test_the_best_documents_of_each_query():
    run = embedded().run(2)
    assert {query: list(found) for query, found in run.items()} == {"q1": ["a", "c"], "q2": ["b", "d"]}


def test_measures_by_hand():
    found = embedded().measure(QRELS, ["RR@10", "P@2"], 10)
    assert found == {"RR@10": {"q1": 1.0, "q2": 0.5}, "P@2": {"q1": 0.5, "q2": 0.5}}


def test_a_query_without_vectors_counts_nothing():
    assert embedded().measure({**QRELS, "q3": {"a": 1}}, ["RR@10"], 10)["RR@10"]["q3"] == 0


def test_pairs_by_hand():
    """A document judged 0 is an ordinary negative; one that the corpus lacks is no pair."""
    pairs = embedded().pairs(QRELS)
    assert [sorted(one.tolist()) for one in pairs.positives] == [
        pytest.approx([0.9], abs=1e-6),
        pytest.approx([0.4, 0.6], abs=1e-6),
    ]
    assert [sorted(one.tolist()) for one in pairs.negatives] == [
        pytest.approx([0.1, 0.3, 0.5], abs=1e-6),
        pytest.approx([0.2, 0.8], abs=1e-6),
    ]
    # of 3 × 5 comparisons: 0.9 wins 5, 0.6 wins 4 (all but 0.8), 0.4 wins 3
    assert pairs.auc()["value"] == pytest.approx(12 / 15)


def test_only_the_best_others_are_pooled(monkeypatch):
    monkeypatch.setattr(bench_scores, "POOL", 2)
    pairs = embedded().pairs(QRELS)
    assert sorted(pairs.negatives[0].tolist()) == pytest.approx([0.3, 0.5])
    assert sorted(pairs.negatives[1].tolist()) == pytest.approx([0.2, 0.8])


def test_blocks_of_queries_change_nothing(monkeypatch):
    whole = embedded().pairs(QRELS)
    monkeypatch.setattr(bench_scores, "_BLOCK", 1)
    parts = embedded().pairs(QRELS)
    for one, other in zip(whole.positives + whole.negatives, parts.positives + parts.negatives, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pairs_lie_flat_with_their_queries():
    pairs = Pairs([np.array([3.0]), np.array([])], [np.array([1.0, 2.0]), np.array([0.0])])
    scores, labels, queries = pairs.flat()
    assert scores.tolist() == [3, 1, 2, 0]
    assert labels.tolist() == [1, 0, 0, 0]
    assert queries.tolist() == [0, 0, 0, 1]


def test_a_calibration_error_by_hand():
    """Each pair is a bin: 4 pairs, |p - y| of each."""
    pairs = Pairs([np.array([math.log(3)])], [np.array([0.0, math.log(1 / 3)])])
    assert pairs.calibration_error(1.0, 0.0)["value"] == pytest.approx((0.25 + 0.5 + 0.25) / 3)


@given(st.floats(0.1, 30), st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(1, 19))
def test_the_fitted_bias_is_right_on_average(scale, values, n_positive):
    n_positive = min(n_positive, len(values) - 1)
    pairs = Pairs([np.array(values[:n_positive])], [np.array(values[n_positive:])])
    scores, labels, _ = pairs.flat()
    p = 1 / (1 + np.exp(-(scale * scores + pairs.fitted_bias(scale))))
    assert p.mean() == pytest.approx(labels.mean(), abs=1e-6)


def batches():
    labels = torch.zeros(2, 4)
    labels[:, 0] = 1
    return [WholeTargets(labels), WholeTargets(labels[:, :2])]


def test_an_automatic_bias_is_the_mean_of_the_batches():
    """The prior of one relevant document among 4, and among 2."""
    scale, bias = log_odds(build("bixse", scale=12.0), batches())
    assert scale == pytest.approx(12)
    assert bias == pytest.approx((math.log(1 / 3) + 0) / 2, abs=1e-5)


def test_set_and_learned_settings_are_read_as_they_are():
    assert log_odds(build("siglip", scale=7.0, bias=-4.0), batches()) == (7, -4)
    assert log_odds(build("point_ce", scale=10.0), batches()) == (10, 0)
    loss = build("bixse", scale="learned", bias="learned")
    with torch.no_grad():
        loss.learned["log_scale"].fill_(math.log(20))
        loss.learned["bias_offset"].fill_(1.5)
    scale, bias = log_odds(loss, batches())
    assert scale == pytest.approx(20)
    assert bias == pytest.approx(math.log(1 / 3) / 2 + 1.5, abs=1e-5)


@pytest.mark.parametrize("name", ["infonce", "mw", "softmax_ce", "ranknet", "bixse + 0.5*ranknet"])
def test_other_losses_read_no_log_odds(name):
    assert log_odds(build_expression(name), batches()) is None


def test_what_multiplies_the_scores():
    assert scale_of(build("infonce", temperature=0.02)) == pytest.approx(50)
    assert scale_of(build("bixse", scale=30.0)) == pytest.approx(30)
    assert scale_of(build_expression("bixse + 0.5*ranknet", {"bixse.scale": 8.0})) == pytest.approx(8)
