"""Fusion of runs: every value by hand, every rule as a property."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.fusion import fuse
from retrieval.trec import ranked

# Ranks: a 1, b 2, c 3; and c 1, a 2, d 3.
FIRST = {"q": {"b": 5.0, "a": 9.0, "c": 1.0}}
SECOND = {"q": {"c": 0.8, "a": 0.6, "d": 0.2}}


def test_reciprocal_ranks_by_hand():
    fused = fuse([FIRST, SECOND])
    expected = {"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62, "d": 1 / 63}
    assert fused == {"q": pytest.approx(expected)}
    assert list(fused["q"]) == ["a", "c", "b", "d"]
    assert fuse([FIRST, SECOND], rank_constant=0)["q"]["c"] == pytest.approx(1 / 3 + 1)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # (5 − 1) / 8; (0.6 − 0.2) / 0.6; the last of a list counts 0
        (None, {"a": 1 + 2 / 3, "b": 0.5, "c": 0 + 1, "d": 0}),
        ("minmax", {"a": 1 + 2 / 3, "b": 0.5, "c": 0 + 1, "d": 0}),
        ("none", {"a": 9.6, "b": 5.0, "c": 1.8, "d": 0.2}),
        (
            "zscore",  # population: means 5 and 8/15, variances 32/3 and 14/225; raised by z(min)
            {
                "a": 8 / math.sqrt(32 / 3) + 0.4 / math.sqrt(14 / 225),
                "b": 4 / math.sqrt(32 / 3),
                "c": 0.6 / math.sqrt(14 / 225),
                "d": 0,
            },
        ),
    ],
)
def test_sums_of_scores_by_hand(norm, expected):
    fused = fuse([FIRST, SECOND], "combsum", norm=norm)["q"]
    assert fused == pytest.approx(expected, abs=1e-6)
    twice = {doc_id: value * (2 if doc_id in "ac" else 1) for doc_id, value in expected.items()}
    assert fuse([FIRST, SECOND], "combmnz", norm=norm)["q"] == pytest.approx(twice, abs=1e-6)


def test_weights_by_hand():
    assert fuse([FIRST, SECOND], weights=[3, 1])["q"]["a"] == pytest.approx(3 / 61 + 1 / 62)
    # 0.3·1 + 0.7·2/3 for a, 0.7 for c: the second run decides
    fused = fuse([FIRST, SECOND], "combsum", weights=[0.3, 0.7])["q"]
    assert fused == pytest.approx({"a": 0.3 + 1.4 / 3, "c": 0.7, "b": 0.15, "d": 0})
    assert next(iter(fuse([FIRST, SECOND], "combsum", weights=[0.1, 0.9])["q"])) == "c"


def test_a_run_of_weight_zero_is_not_there():
    assert fuse([FIRST, SECOND], weights=[1, 0]) == fuse([FIRST, {}], weights=[1, 1])
    assert fuse([FIRST, SECOND], "combmnz", weights=[1, 0])["q"]["a"] == 1.0


@pytest.mark.parametrize("norm", ["minmax", "zscore"])
def test_a_list_of_equal_scores_counts_one_each(norm):
    assert fuse([{"q": {"a": 7.0}}, {"q": {"b": 2.0, "c": 2.0}}], "combsum", norm=norm)["q"] == {
        "c": 1.0,
        "b": 1.0,
        "a": 1.0,
    }


def test_fused_ties_go_to_the_larger_id_and_so_do_the_ranks_of_ties():
    fused = fuse([{"q": {"a": 1.0, "b": 0.0}}, {"q": {"b": 1.0, "a": 0.0}}])["q"]
    assert list(fused) == ["b", "a"]
    tied = fuse([{"q": {"a": 1.0, "z": 1.0}}, {"q": {"z": 1.0}}])["q"]
    assert tied["z"] == pytest.approx(2 / 61)
    assert tied["a"] == pytest.approx(1 / 62)


def test_queries_that_one_run_lacks_are_answered_by_the_other(caplog):
    fused = fuse([{"q": {"a": 1.0}, "r": {}}, {"s": {"b": 1.0}}])
    assert list(fused) == ["q", "r", "s"]
    assert fused["r"] == {}
    assert fused["s"] == {"b": pytest.approx(1 / 61)}
    assert caplog.messages == [
        "run 1 has no document for 2 of 3 queries",
        "run 2 has no document for 2 of 3 queries",
    ]


def test_k_cuts_after_the_fusion():
    assert fuse([FIRST, SECOND], k=2) == {"q": dict(list(fuse([FIRST, SECOND])["q"].items())[:2])}


SCORES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 4).map(float), max_size=8)
RUNS = st.lists(st.fixed_dictionaries({"q": SCORES}), min_size=2, max_size=4)
METHODS = st.sampled_from([("rrf", None), ("combsum", "minmax"), ("combsum", "zscore"), ("combmnz", "none")])


@given(RUNS, METHODS, st.randoms(use_true_random=False))
def test_the_order_of_the_runs_changes_no_bit(runs, method, random):
    shuffled = list(runs)
    random.shuffle(shuffled)
    assert fuse(runs, method[0], norm=method[1]) == fuse(shuffled, method[0], norm=method[1])


@given(RUNS, METHODS)
def test_a_fused_run_has_every_document_in_the_rules_order(runs, method):
    fused = fuse(runs, method[0], norm=method[1])["q"]
    assert set(fused) == {doc_id for run in runs for doc_id in run["q"]}
    assert list(fused.items()) == ranked(fused)


@given(SCORES, METHODS)
def test_a_run_fused_with_itself_keeps_its_order(scores, method):
    fused = fuse([{"q": scores}, {"q": scores}], method[0], norm=method[1])["q"]
    assert list(fused) == [doc_id for doc_id, _ in ranked(scores)]


@given(RUNS, st.floats(0.1, 10), st.floats(-100, 100), st.sampled_from(["minmax", "zscore"]))
def test_scale_and_origin_of_a_run_do_not_matter_after_a_norm(runs, scale, origin, norm):
    moved = [{"q": {doc_id: scale * score + origin for doc_id, score in run["q"].items()}} for run in runs]
    expected = fuse(runs, "combsum", norm=norm)["q"]
    assert fuse(moved, "combsum", norm=norm)["q"] == pytest.approx(expected, abs=1e-3)


@given(RUNS)
def test_zscore_orders_as_the_plain_z_with_the_lowest_for_what_is_missing(runs):
    """Against the textbook's z, in which a document that is not found would be as good as the mean."""
    plain = {doc_id: 0.0 for run in runs for doc_id in run["q"]}
    for run in runs:
        values = np.array(list(run["q"].values()))
        if len(values) and values.std() > 0:
            z = dict(zip(run["q"], (values - values.mean()) / values.std(), strict=True))
            for doc_id in plain:
                plain[doc_id] += z.get(doc_id, min(z.values())) - min(z.values())
        else:
            for doc_id in run["q"]:
                plain[doc_id] += 1
    assert fuse(runs, "combsum", norm="zscore")["q"] == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize(
    ("runs", "settings", "expected"),
    [
        ([FIRST], {}, "got 1 run; wanted two or more to fuse"),
        ([], {}, "got 0 runs; wanted two or more"),
        ([FIRST, SECOND], {"method": "rff"}, "unknown method 'rff'; did you mean 'rrf'?"),
        ([FIRST, SECOND], {"method": "combsum", "norm": "max"}, "unknown norm 'max'; did you mean 'minmax'?"),
        ([FIRST, SECOND], {"norm": "minmax"}, "rrf fuses ranks and takes no norm, got 'minmax'"),
        ([FIRST, SECOND], {"weights": [1]}, "got 1 weights for 2 runs; wanted one each"),
        ([FIRST, SECOND], {"weights": [1, -0.5]}, "weights must be at least 0 and not all 0, got 1, -0.5"),
        ([FIRST, SECOND], {"weights": [0, 0]}, "weights must be at least 0 and not all 0, got 0, 0"),
        ([FIRST, SECOND], {"weights": [1, math.nan]}, "weights must be at least 0 and not all 0, got 1, nan"),
        ([FIRST, SECOND], {"rank_constant": -1}, "rank_constant must be at least 0, got -1"),
        ([FIRST, SECOND], {"k": 0}, "k must be at least 1, got 0"),
        (
            [FIRST, {"q": {"a": -0.5}}],
            {"method": "combmnz", "norm": "none"},
            "combmnz takes no score below 0: query 'q', document 'a' has -0.5; give a norm",
        ),
        ([FIRST, {"q": {"a": math.nan}}], {}, "document 'a': score nan is not a finite float32 number"),
        ([FIRST, {"q": {"a": math.inf}}], {"method": "combsum"}, "score inf is not a finite float32 number"),
    ],
)
def test_what_cannot_be_fused(runs, settings, expected):
    with pytest.raises(InputError) as caught:
        fuse(runs, **settings)
    assert expected in str(caught.value)
