import copy
import json
import logging
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.evaluation import Estimate, evaluate
from retrieval.statistics import bootstrap

QRELS = {"q1": {"a": 1, "b": 0, "c": 2}, "q2": {"a": 1}, "q3": {"x": 0}}
RUN = {"q1": {"c": 3.0, "z": 2.0, "a": 1.0}, "q2": {"b": 1.0}, "q3": {"x": 1.0}}

qrels_of = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3), min_size=1),
    min_size=1,
)
runs = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q5"]),
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([0.0, 0.5, 1.0, 2.0])),
)
MEASURES = ["nDCG@3", "RR", "AP", "R@2", "P@2", "Success@1", "Judged@3", "Rprec"]


def test_values_by_hand():
    found = evaluate(QRELS, RUN, ["nDCG@10", "RR@10", "AP", "R@1", "P@2", "Success@1", "Judged@2"])
    assert list(found) == ["nDCG@10", "RR@10", "AP", "R@1", "P@2", "Success@1", "Judged@2"]
    first = {name: estimate.per_query["q1"] for name, estimate in found.items()}
    assert first == pytest.approx(
        {
            "nDCG@10": (2 + 1 / 2) / (2 + 1 / math.log2(3)),
            "RR@10": 1,
            "AP": (1 + 2 / 3) / 2,
            "R@1": 1 / 2,
            "P@2": 1 / 2,
            "Success@1": 1,
            "Judged@2": 1 / 2,
        }
    )
    assert found["RR@10"] == pytest.approx(1 / 3)  # q2 has no hit, q3 no relevant document: both count 0
    assert found["RR@10"].per_query == {"q1": 1.0, "q2": 0.0, "q3": 0.0}
    assert found["Judged@2"].per_query == {"q1": 0.5, "q2": 0.0, "q3": 1.0}


def test_an_estimate_is_a_float_that_knows_what_it_stands_on():
    estimate = evaluate(QRELS, {"q1": RUN["q1"], "other": {"a": 1.0}}, ["nDCG@1"])["nDCG@1"]
    assert isinstance(estimate, float)
    assert estimate == pytest.approx(1 / 3)
    assert (estimate.n, estimate.missing, estimate.without_relevant) == (3, 2, 1)
    assert (estimate.low, estimate.high) == bootstrap([1.0, 0.0, 0.0])
    assert estimate.judged == pytest.approx(1 / 3)
    assert estimate.gain == "linear"
    assert repr(estimate) == f"0.3333 [{estimate.low:.4f}, {estimate.high:.4f}]"
    assert f"{estimate:.2f}" == "0.33"
    assert json.dumps(estimate) == repr(1 / 3)
    for twin in (pickle.loads(pickle.dumps(estimate)), copy.deepcopy(estimate)):
        assert (twin, twin.low, twin.per_query) == (estimate, estimate.low, estimate.per_query)
        assert isinstance(twin, Estimate)


def test_the_gain_is_named():
    found = evaluate(QRELS, RUN, ["nDCG@2", "nDCG(dcg='exp-log2')@2", "AP"])
    assert [estimate.gain for estimate in found.values()] == ["linear", "exp2", None]
    ratio = (2**2 - 1) / (3 + 1 / math.log2(3))
    assert found["nDCG(dcg='exp-log2')@2"].per_query["q1"] == pytest.approx(ratio)


def test_one_ranking_for_every_measure():
    """RELIABILITY B1: ir-measures scores two rankings in one call; here nDCG, RR and RR@10 agree on c, b, a."""
    run = {"q": dict.fromkeys("abc", 1.0)}
    for relevant, rank in (("c", 1), ("b", 2), ("a", 3)):
        found = evaluate({"q": {relevant: 1}}, run, ["nDCG@10", "RR@10", "RR", "AP", "P@1", "Judged@1", "Rprec"])
        assert found["nDCG@10"] == 1 / math.log2(rank + 1)
        assert found["RR@10"] == found["RR"] == found["AP"] == 1 / rank
        assert found["P@1"] == found["Judged@1"] == found["Rprec"] == (rank == 1)


def test_file_rank_orders_ties_as_inserted():
    run = {"q": dict.fromkeys("bac", 1.0)}
    assert evaluate({"q": {"b": 1}}, run, ["RR@10"], ties="file-rank")["RR@10"] == 1
    assert evaluate({"q": {"b": 1}}, run, ["RR@10"])["RR@10"] == 1 / 2


def test_float32_decides_what_ties():
    run = {"q": {"a": 30.0000001, "b": 30.0}}
    found = evaluate({"q": {"a": 1}}, run, ["nDCG@10", "RR@10"])
    assert found == {"nDCG@10": pytest.approx(0.6309297535714575), "RR@10": 0.5}


def test_bounds_and_ties_are_told():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    run = {"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.5}}
    found = evaluate(qrels, run, ["RR@1", "RR@3", "RR", "Rprec"])
    assert (found["RR@1"].optimistic, found["RR@1"].pessimistic, found["RR@1"].tied) == (1.0, 0.5, 0.5)
    assert (found["RR@3"].optimistic, found["RR@3"].pessimistic, found["RR@3"].tied) == (1.0, (1 + 1 / 3) / 2, 0.0)
    assert (found["RR"].optimistic, found["RR"].pessimistic, found["RR"].tied) == (1.0, (1 + 1 / 3) / 2, 0.5)
    assert (found["Rprec"].optimistic, found["Rprec"].pessimistic, found["Rprec"].tied) == (None, None, None)


# --- which queries count


def test_missing_queries_count_0_unless_left_out():
    run = {"q1": RUN["q1"]}
    assert evaluate(QRELS, run, ["RR"])["RR"] == pytest.approx(1 / 3)
    found = evaluate(QRELS, run, ["RR"], only_returned=True)["RR"]
    assert (found, found.n, found.missing, list(found.per_query)) == (1.0, 1, 2, ["q1"])


def test_a_query_with_an_empty_list_is_missing():
    found = evaluate({"q1": {"a": 1}, "q2": {"a": 1}}, {"q1": {"a": 1.0}, "q2": {}}, ["RR"], only_returned=True)
    assert (found["RR"], found["RR"].n, found["RR"].missing) == (1.0, 1, 1)


def test_unanswerable_queries_count_0_unless_left_out():
    found = evaluate(QRELS, RUN, ["RR"], only_answerable=True)["RR"]
    assert (found, found.n, found.without_relevant) == (1 / 2, 2, 1)
    both = evaluate(QRELS, {"q2": {"a": 1.0}}, ["RR"], only_answerable=True, only_returned=True)["RR"]
    assert (both, both.n, both.missing, both.without_relevant) == (1.0, 1, 2, 1)


def test_an_empty_run_scores_0():
    found = evaluate(QRELS, {}, ["nDCG@10", "Bpref", "SetP", "ERR@5"])
    for estimate in found.values():
        assert (float(estimate), estimate.low, estimate.high, estimate.n, estimate.missing) == (0, 0, 0, 3, 3)


def test_nothing_left_to_average_is_an_error():
    with pytest.raises(InputError, match="of 3 in the qrels, 3 are missing from the run and 1 have no relevant"):
        evaluate(QRELS, {"q9": {"a": 1.0}}, only_returned=True)


def test_counts_add_up_over_queries():
    found = evaluate(QRELS, RUN, ["NumRet", "NumRelRet", "NumRel", "NumQ"])
    assert {name: float(e) for name, e in found.items()} == {"NumRet": 5, "NumRelRet": 2, "NumRel": 3, "NumQ": 3}
    assert found["NumRet"].per_query == {"q1": 3, "q2": 1, "q3": 1}


# --- warnings


def warnings_of(caplog, *arguments, **options):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        evaluate(*arguments, **options)
    return [record.getMessage() for record in caplog.records]


def test_a_complete_run_warns_of_nothing(caplog):
    assert warnings_of(caplog, QRELS, RUN) == []


def test_extra_and_missing_queries_are_warned_of(caplog):
    found = warnings_of(caplog, QRELS, {"q1": RUN["q1"], "q8": {"a": 1.0}, "q9": {}})
    assert found == [
        "2 of the run's 3 queries are not in the qrels and are ignored, such as 'q8'",
        "2 of the 3 queries in the qrels are missing from the run and count 0, such as 'q2'",
    ]
    left_out = warnings_of(caplog, QRELS, {"q1": RUN["q1"]}, only_returned=True)
    assert left_out == ["2 of the 3 queries in the qrels are missing from the run and are left out, such as 'q2'"]


def test_ids_of_another_collection_are_warned_of(caplog):
    found = warnings_of(caplog, {"1": {"301": 1}}, {"1": {"doc301": 1.0}})
    assert len(found) == 1
    assert "no document of the run has a judgement (the run has ids like 'doc301', the qrels like '301')" in found[0]
    # Judged below the cut-off is judged all the same.
    assert warnings_of(caplog, {"1": {"b": 1}}, {"1": {"a": 2.0, "b": 1.0}}, ["P@1"]) == []


def test_documents_that_the_corpus_lacks_are_counted_with_the_upper_bound(caplog):
    qrels = {"q1": {"a": 1, "gone": 1}, "q2": {"a": 1}}
    run = {"q1": {"a": 2.0, "nowhere": 1.0}, "q2": {"a": 1.0}}
    found = warnings_of(caplog, qrels, run, ["R@10", "RR", "Bpref"], corpus={"a", "b"})
    assert found == [
        "1 of 3 judged documents are not in the corpus; no run can do better than R@10 0.7500, RR 1.0000",
        "1 of the 2 documents that the run's lists begin with are not in the corpus, such as 'nowhere'",
    ]
    assert warnings_of(caplog, qrels, {"q1": {"a": 2.0}, "q2": {"a": 1.0}}, corpus={"a", "gone"}) == []


# --- bad input


@pytest.mark.parametrize(
    ("qrels", "run", "message"),
    [
        ({}, RUN, "the qrels are empty"),
        ({"q": {"a": 1.0}}, RUN, "query 'q', document 'a': grade 1.0 is not an integer; is this a run"),
        ({"q": {"a": "1"}}, RUN, "grade '1' is not an integer"),
        ({"q": {5: 1}}, RUN, "id 5 is no str but int"),
        ({7: {"a": 1}}, RUN, "id 7 is no str but int"),
        ({"q": {"a": 1}}, {"q": {5: 1.0}}, "query 'q', document 5: ids must be str, got int"),
        ({"q": {"a": 1}}, {"q": {"a": float("nan")}}, "query 'q', document 'a': score nan is not a finite"),
        ({"q": {"a": 1}}, {"q": {"a": float("inf")}}, "query 'q', document 'a': score inf is not a finite"),
        ({"q": {"a": 1}}, {"q": {"a": "high"}}, "query 'q', document 'a': score 'high' is not a number"),
    ],
)
def test_bad_input_is_told_with_query_and_document(qrels, run, message):
    with pytest.raises(InputError, match=message):
        evaluate(qrels, run)


def test_bad_settings_are_told():
    with pytest.raises(InputError, match="unknown measure 'nDCQ@10'; did you mean 'nDCG'"):
        evaluate(QRELS, RUN, ["nDCQ@10"])
    with pytest.raises(InputError, match="ties must be 'trec' or 'file-rank', got 'random'"):
        evaluate(QRELS, RUN, ties="random")
    with pytest.raises(InputError, match="no measure was asked for"):
        evaluate(QRELS, RUN, [])
    with pytest.raises(ValueError, match="the exp2 gain needs grades up to 500, got 900"):
        evaluate({"q": {"a": 900}}, {"q": {"a": 1.0}}, ["nDCG(dcg='exp-log2')@10"])


def test_a_provider_that_fails_is_one_line(monkeypatch):
    class Broken:
        def iter_calc(self, *_):
            raise AssertionError("no float please")

    monkeypatch.setattr("retrieval.evaluation.provider", Broken)
    with pytest.raises(InputError, match="ir-measures cannot compute Bpref here: no float please"):
        evaluate(QRELS, RUN, ["Bpref"])


def test_numpy_numbers_are_numbers():
    found = evaluate({"q": {"a": np.int64(1)}}, {"q": {"a": np.float32(0.5), "b": np.float64(1)}}, ["RR", "Rprec"])
    assert found == {"RR": 0.5, "Rprec": 0.0}


def test_ids_shared_by_queries_and_documents_are_left_alone():
    """RELIABILITY B2: BEIR's evaluator drops a hit whose id is the query's."""
    run = {"1": {"1": 2.0, "2": 1.0}}
    before = copy.deepcopy(run)
    assert evaluate({"1": {"1": 1}}, run, ["RR"])["RR"] == 1.0
    assert run == before


# --- properties


@given(qrels_of, runs)
def test_nothing_is_changed_and_everything_repeats(qrels, run):
    before = copy.deepcopy((qrels, run))
    found = evaluate(qrels, run, MEASURES, resamples=50)
    assert (qrels, run) == before
    again = evaluate(qrels, run, MEASURES, resamples=50)
    assert {name: vars(e) for name, e in found.items()} == {name: vars(e) for name, e in again.items()}
    for estimate in found.values():
        assert 0 <= estimate.low <= estimate + 1e-12
        assert estimate - 1e-12 <= estimate.high <= 1
        assert 0 <= estimate.judged <= 1
        assert list(estimate.per_query) == list(qrels)
        assert estimate.n == len(qrels)
        if estimate.optimistic is not None:
            assert estimate.pessimistic <= estimate <= estimate.optimistic


@given(qrels_of, runs, st.randoms(use_true_random=False))
def test_the_order_of_queries_and_documents_never_matters(qrels, run, random):
    def shuffled(table):
        keys = list(table)
        random.shuffle(keys)
        return {key: shuffled(table[key]) if isinstance(table[key], dict) else table[key] for key in keys}

    found = evaluate(qrels, run, MEASURES, resamples=10)
    other = evaluate(shuffled(qrels), shuffled(run), MEASURES, resamples=10)
    assert {n: float(e) for n, e in found.items()} == {n: float(e) for n, e in other.items()}
    assert {n: e.per_query for n, e in found.items()} == {n: e.per_query for n, e in other.items()}


@given(qrels_of, runs, st.sampled_from([0.5, 2.0, 1024.0]))
def test_only_the_order_of_scores_matters(qrels, run, factor):
    scaled = {query: {doc: factor * score for doc, score in scores.items()} for query, scores in run.items()}
    found, other = (evaluate(qrels, scores, MEASURES, resamples=10) for scores in (run, scaled))
    assert {n: e.per_query for n, e in found.items()} == {n: e.per_query for n, e in other.items()}


# --- the package


def test_the_function_is_found_in_the_package_whatever_was_imported_before():
    code = (
        "import retrieval.evaluation, retrieval.cli.evaluate; from retrieval import evaluate; print(callable(evaluate))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


def test_evaluation_works_without_torch_and_loads_little():
    code = """
import sys
sys.modules["torch"] = None  # any import of it fails
from retrieval import evaluate
print(evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}})["nDCG@10"] == 1.0)
print([m for m in ("scipy", "ir_measures", "faiss", "bm25s", "transformers") if m in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["True", "[]"]
