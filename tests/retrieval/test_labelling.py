"""A teacher's scores as training rows: labels by hand, judgements that win, and a student trained on them."""

import json
import math
from pathlib import Path

import pytest
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st

from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.labelling import label
from retrieval.rows import read_rows

DOCUMENTS = [{"_id": f"d{number}", "text": f"text {number}"} for number in range(8)]
QUERIES = {name: f"query {name}" for name in ("a", "b", "c", "test")}
QRELS = {"train": {"a": {"d1": 2, "d7": 1, "d2": 0}, "b": {"d5": -1}, "c": {"d0": 1}}, "test": {"test": {"d3": 1}}}
RUN = {
    "a": {"d0": 3.0, "d1": 2.0, "d2": 1.0, "d3": -1.0},
    "b": {"d5": 4.0, "d4": 0.5, "d6": 0.0},
    "test": {"d3": 9.0, "d4": 8.0},
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return Collection.load(make_collection(tmp_path_factory.mktemp("few") / "c", DOCUMENTS, QUERIES, QRELS))


@pytest.fixture
def labelled(collection):
    def go(kind, run=RUN, qrels=QRELS["train"], **settings):
        rows = label(run, kind, qrels, QUERIES, collection.corpus, **settings)
        return {row.query_id: row for row in rows}

    return go


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_grades_by_thresholds(labelled):
    rows = labelled("graded", thresholds=[0, 2, 3])
    assert list(rows) == ["a", "b"]  # test is not of the training split
    # d0 reaches 3 thresholds; d1 reaches 2, as its judgement says; d2 is judged 0; d7 is judged 1 and not in the list
    assert (rows["a"].positive_ids, rows["a"].positive_labels) == (("d1", "d7"), (2.0, 1.0))
    assert (rows["a"].negative_ids, rows["a"].negative_labels) == (("d0", "d2", "d3"), (3.0, 0.0, 0.0))
    assert rows["a"].negative_ranks == (1, 3, 4)
    # b has no relevant document, and its best one is judged below 1: the next is the positive
    assert (rows["b"].positive_ids, rows["b"].positive_labels) == (("d4",), (1.0,))
    assert (rows["b"].negative_ids, rows["b"].negative_labels) == (("d5", "d6"), (0.0, 1.0))
    assert not rows["a"].positive_scores


def test_a_score_that_equals_a_threshold_reaches_it(labelled):
    """Scores are float32, in which 0.7 is a little less than it is as a Python number."""
    rows = labelled("graded", run={"a": {"d3": 0.7, "d5": 0.3}}, thresholds=[0.3, 0.7])
    assert dict(zip(rows["a"].negative_ids, rows["a"].negative_labels, strict=True)) == {"d3": 2.0, "d5": 1.0}


def test_a_judgement_lifts_a_grade_and_never_lowers_it(labelled):
    rows = labelled("graded", run={"a": {"d1": 9.0, "d7": -9.0}}, thresholds=[0, 1, 2, 3])
    assert rows["a"].positive_labels == (4.0, 1.0)


def test_grades_by_quantiles_of_all_lists(labelled, caplog):
    # scores −1, 0, 0.5, 1, 2, 3, 4: the median is 1
    with caplog.at_level("INFO"):
        rows = labelled("graded", quantiles=[0.5])
    assert rows["a"].negative_labels == (1.0, 0.0, 0.0)
    assert "grades begin at scores of 1" in caplog.messages
    assert labelled("graded", thresholds=[1.0]) == rows
    assert "b" not in rows  # its best possible positive, d4, has grade 0
    assert "1 queries have a best document of grade 0: they have no row" in caplog.messages


def test_probabilities_by_sigmoid(labelled):
    rows = labelled("soft", temperature=2.0)
    # probabilities × 2, the highest grade; d1 is judged 2, d7 1, d2 0
    assert rows["a"].positive_labels == (2.0, 1.0)
    assert rows["a"].negative_labels == pytest.approx((2 * sigmoid(1.5), 0.0, 2 * sigmoid(-0.5)))
    assert rows["b"].positive_labels == pytest.approx((2 * sigmoid(0.25),))


def test_the_highest_grade_is_that_of_the_queries_with_a_row(labelled):
    """Training divides by the highest grade that its rows' queries have; another query's 2 is not known there."""
    rows = labelled("soft", run={"b": RUN["b"], "c": {"d0": 1.0, "d1": 0.5}})
    assert rows["c"].positive_labels == (1.0,)
    assert rows["c"].negative_labels == pytest.approx((sigmoid(0.5),))
    qrels = QRELS["train"] | {"b": {"d5": 3, "d4": 0, "d6": 0}, "c": {"d0": 1, "gone": 2}}
    rows = labelled("soft", run={"b": {}, "c": {"d0": 1.0, "d1": 0.5}}, qrels=qrels)
    assert rows["c"].negative_labels == pytest.approx((2 * sigmoid(0.5),))


def test_probabilities_by_softmax_over_the_list(labelled):
    rows = labelled("soft", run={"b": {"d4": 2.0, "d6": 1.0, "d0": 1.0}}, probability="softmax")
    total = math.e + 1 + 1
    assert rows["b"].positive_labels == pytest.approx((math.e / total,))
    assert rows["b"].negative_labels == pytest.approx((1 / total, 1 / total))


def test_scores_as_they_are(labelled):
    rows = labelled("margin")
    assert (rows["a"].positive_ids, rows["a"].positive_scores) == (("d1",), (2.0,))  # d7 has no score
    assert (rows["a"].negative_ids, rows["a"].negative_scores) == (("d0", "d2", "d3"), (3.0, 1.0, -1.0))
    assert not rows["a"].positive_labels


def test_k_leaves_out_what_was_not_reranked(labelled):
    assert labelled("margin", k=2)["a"].negative_ids == ("d0",)


def test_queries_of_which_nothing_can_be_learned(labelled, caplog):
    run = {"a": {"d1": 1.0}, "b": {}, "c": {"d0": 1.0, "d1": 0.0}}
    assert set(labelled("margin", run=run)) == {"c"}
    assert caplog.messages == [
        "1 queries have a score of one document only: they have no row",
        "1 queries have no document that could be a positive: they have no row",
    ]
    assert set(labelled("soft", run=run)) == {"a", "c"}


SCORES = st.dictionaries(st.sampled_from([d["_id"] for d in DOCUMENTS]), st.floats(-50, 50, width=32), max_size=8)


@given(st.fixed_dictionaries({"a": SCORES, "c": SCORES.filter(bool)}), st.sampled_from(["graded", "soft", "margin"]))
def test_a_relevant_document_is_never_a_negative_and_labels_are_in_range(collection, run, kind):
    run = run | {"b": {"d4": 1.0, "d6": 0.0}}
    cuts = [-60, 0, 10] if kind == "graded" else None
    rows = label(run, kind, QRELS["train"], QUERIES, collection.corpus, thresholds=cuts)
    assert "b" in {row.query_id for row in rows}
    for row in rows:
        relevant = {doc_id for doc_id, grade in QRELS["train"][row.query_id].items() if grade >= 1}
        assert not relevant & set(row.negative_ids)
        assert not set(row.positive_ids) & set(row.negative_ids)
        values = row.positive_labels + row.negative_labels
        if kind == "soft":
            assert all(0 <= value <= 2 for value in values)
        if kind == "graded":
            assert set(values) <= {0.0, 1.0, 2.0, 3.0}
        if kind == "margin":
            taught = dict(
                zip(row.positive_ids + row.negative_ids, row.positive_scores + row.negative_scores, strict=True)
            )
            assert taught == run[row.query_id] or not set(row.positive_ids) & relevant


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "sotf"}, "unknown kind 'sotf'; did you mean 'soft'?"),
        ({"probability": "softmx"}, "unknown probability 'softmx'; did you mean 'softmax'?"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"quantiles": [0.5], "thresholds": [1]}, "got quantiles and thresholds; wanted one of them"),
        ({"quantiles": []}, "quantiles must be one or more rising numbers, got none"),
        ({"quantiles": [0.9, 0.5]}, "quantiles must be one or more rising numbers, got 0.9, 0.5"),
        ({"quantiles": [0.5, 1.0]}, "quantiles must be between 0 and 1, got 0.5, 1"),
        ({"thresholds": [1, math.nan]}, "thresholds must be one or more rising numbers, got 1, nan"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"run": {"nobody": {"d1": 1.0}}}, "none of the 1 queries of the run is judged in the training split"),
        ({"run": {"a": {"d9": 1.0}}}, "query 'a' of the run has document 'd9', which is not in the corpus"),
        ({"run": {"a": {}, "b": {}}, "kind": "margin"}, "none of the 2 queries of the run gives a training row"),
        ({"run": {"a": {"d1": math.inf}}}, "document 'd1': score inf is not a finite float32 number"),
    ],
)
def test_what_cannot_be_labelled(labelled, settings, expected):
    with pytest.raises(InputError) as caught:
        labelled(settings.pop("kind", "graded"), **settings)
    assert expected in str(caught.value)


def test_unknown_documents_may_be_skipped(labelled, caplog):
    rows = labelled("margin", run={"a": {"d9": 5.0, "d1": 1.0, "d0": 0.0}}, on_error="skip")
    assert (rows["a"].positive_ids, rows["a"].negative_ids) == (("d1",), ("d0",))
    assert "1 documents of the run are not in the corpus and are left out" in caplog.messages


@pytest.mark.parametrize(
    ("kind", "loss"), [("graded", "softmax_ce"), ("soft", "bixse"), ("margin", "margin_mse"), ("margin", "kl_div")]
)
def test_a_student_trains_on_the_rows(run, tiny_collection, tmp_path, kind, loss):
    """From a lexical teacher's scores to a file, and through `train --rows`."""
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    from retrieval.bm25 import BM25Searcher

    collection = Collection.load(tiny_collection)
    queries = collection.queries("train")
    taught = BM25Searcher.build(collection.corpus).run(queries, k=10)
    rows = label(taught, kind, collection.qrels("train"), queries, collection.corpus)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    assert read_rows(path, collection) == (rows, "rankwright")
    run("student", rows=[str(path)], loss=loss, num_negatives=3, max_steps=2)
    assert (Path(tmp_path) / "student" / "model").is_dir()
