import json
import math

import pytest
from beir_folder import jsonl, make_collection, write
from hypothesis import given
from hypothesis import strategies as st

from retrieval.collection import Collection
from retrieval.dialects import DIALECTS, recognise
from retrieval.errors import InputError
from retrieval.rows import TrainingRow, read_rows, rows_from_qrels


@pytest.fixture
def zoo(tmp_path) -> Collection:
    return Collection.load(make_collection(tmp_path / "zoo"))


def read(tmp_path, records, collection=None, **options):
    return read_rows(write(tmp_path / "rows.jsonl", jsonl(records)), collection, **options)


def one(tmp_path, record, collection=None) -> tuple[TrainingRow, str]:
    rows, dialect = read(tmp_path, [record], collection)
    assert len(rows) == 1
    return rows[0], dialect


# ------------------------------------------------------------------------------------------------ our own rows


def test_a_full_row_is_read_as_it_is_written(tmp_path, zoo):
    record = {
        "query_id": "q1",
        "query": "why do cats sleep",
        "positive_ids": ["d1"],
        "negative_ids": ["d2", "d3"],
        "positive_labels": [2.0],
        "negative_labels": [0.0, 1.0],
        "positive_scores": [0.9],
        "negative_scores": [0.1, -3.5],
        "negative_ranks": [3, 8],
    }
    row, dialect = one(tmp_path, record, zoo)
    assert dialect == "rankwright"
    assert row.to_dict() == record
    assert row.positive_texts(zoo.corpus) == ["Cats Cats sleep most of the day."]
    assert row.negative_texts(zoo.corpus) == ["Dogs bark at strangers.", "Birds Most birds can fly."]


def test_texts_need_no_collection_and_no_negatives(tmp_path):
    row, _ = one(tmp_path, {"query": "a", "positives": ["b", "c"]})
    assert (row.positive_texts(), row.negative_texts(), row.positive_ids) == (["b", "c"], [], ())


def test_ids_and_texts_together_are_the_same_documents_and_the_text_is_read(tmp_path, zoo):
    row, _ = one(tmp_path, {"query": "a", "positive_ids": ["elsewhere"], "positives": ["b"]}, zoo)
    assert (row.positive_ids, row.positive_texts(zoo.corpus)) == (("elsewhere",), ["b"])


def test_a_query_id_finds_the_query_in_the_collection(tmp_path, zoo):
    row, _ = one(tmp_path, {"query_id": "q2", "positive_ids": ["d2"]}, zoo)
    assert row.query == "what do dogs do"


def test_a_missing_query_id_is_made_from_the_text(tmp_path):
    records = [
        {"query": "a", "positives": ["b"]},
        {"query": "a", "positives": ["c"]},
        {"query": "x", "positives": ["b"]},
    ]
    first, second, third = read(tmp_path, records)[0]
    assert first.query_id == second.query_id != third.query_id
    assert first.query_id.startswith("text:")


def test_keys_of_others_are_ignored(tmp_path):
    row, _ = one(tmp_path, {"query": "a", "positives": ["b"], "source": "web", "_meta": {"x": 1}})
    assert row.positives == ("b",)


DEFECTS = {
    "not JSON": ('{"query": "a", "positives": ["b"]', "is not JSON"),
    "a number": ("7", "got the number 7, which is no training row"),
    "other keys": ({"text": "a", "label": 1}, "got the keys 'text', 'label', which is no training row"),
    "lone surrogate": (r'{"query": "a", "positives": ["\ud800"]}', "half a surrogate pair"),
    "no query": ({"positives": ["b"]}, 'has no "query", and no collection'),
    "empty query": ({"query": " ", "positives": ["b"]}, '"query" is empty'),
    "query is a list": ({"query": ["a"], "positives": ["b"]}, '"query" is a list of 1; wanted a string'),
    "query id is a number": ({"query_id": 3, "query": "a", "positives": ["b"]}, '"query_id" is the number 3'),
    "no positive": ({"query": "a", "negatives": ["b"]}, "has no relevant document"),
    "empty positives": ({"query": "a", "positives": []}, "has no relevant document"),
    "id without documents": ({"query_id": "q1", "query": "a"}, "has no relevant document"),
    "positives is a string": ({"query": "a", "positives": "b"}, '"positives" is the string "b"; wanted a list'),
    "id is a number": ({"query": "a", "positive_ids": [7]}, "positive_ids[0] is the number 7"),
    "a text is empty": ({"query": "a", "positives": ["b", " "]}, "positives[1] is empty"),
    "same id on both sides": (
        {"query": "a", "positive_ids": ["d1"], "negative_ids": ["d2", "d1"]},
        'the string "d1" is in positive_ids and in negative_ids',
    ),
    "same text on both sides": (
        {"query": "a", "positives": ["b"], "negatives": ["b"]},
        'the string "b" is in positives',
    ),
    "ids and texts differ": (
        {"query": "a", "positive_ids": ["d1", "d2"], "positives": ["b"]},
        "got 2 positive_ids and 1 positives",
    ),
    "too few labels": (
        {"query": "a", "positives": ["b", "c"], "positive_labels": [1]},
        "got 1 positive_labels for 2 documents",
    ),
    "too many scores": (
        {"query": "a", "positives": ["b"], "negatives": ["c"], "negative_scores": [1, 2]},
        "got 2 negative_scores for 1 documents",
    ),
    "a label is text": ({"query": "a", "positives": ["b"], "positive_labels": ["high"]}, 'is the string "high"'),
    "a label is true": ({"query": "a", "positives": ["b"], "positive_labels": [True]}, "is true; wanted a finite"),
    "a score is nan": ('{"query": "a", "positives": ["b"], "positive_scores": [NaN]}', "is the number NaN"),
    "a score is infinite": ('{"query": "a", "positives": ["b"], "positive_scores": [-Infinity]}', "wanted a finite"),
    "a rank is zero": (
        {"query": "a", "positives": ["b"], "negatives": ["c"], "negative_ranks": [0]},
        "negative_ranks[0] is the number 0; wanted a whole number from 1",
    ),
    "labels is a number": ({"query": "a", "positives": ["b"], "positive_labels": 1}, "wanted a list of numbers"),
    "misspelt key": ({"query": "a", "positives": ["b"], "negativs": ["c"]}, "'negativs'; did you mean 'negatives'?"),
    "another tool's row": (
        {"query": "a", "pos": ["b"]},
        "is a row of flagembedding, but the file began with rankwright",
    ),
}
GOOD = {"query": "good", "positives": ["good text"]}


@pytest.mark.parametrize(("record", "message"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_told_with_file_and_line(tmp_path, record, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, [GOOD, "", record, GOOD])
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: ")
    assert message in str(caught.value)


def test_skipping_counts_and_lists_the_defects(tmp_path, caplog):
    rows, dialect = read(tmp_path, [GOOD, *(record for record, _ in DEFECTS.values()), GOOD], on_error="skip")
    assert [row.query for row in rows] == ["good", "good"]
    assert dialect == "rankwright"
    assert f"skipped {len(DEFECTS)} rows, kept 2" in caplog.text
    assert "rows.jsonl:2: column 34 is not JSON" in caplog.text


def test_every_defect_can_be_collected(tmp_path):
    defects = []
    read(tmp_path, [GOOD, *(record for record, _ in DEFECTS.values())], report=defects.append)
    assert [defect.line for defect in defects] == list(range(2, 2 + len(DEFECTS)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "a", "positive_ids": ["d1", "d9"]}, "positive_ids[1] is 'd9', which is not in the corpus"),
        ({"query": "a", "positive_ids": ["d1"], "negative_ids": ["x"]}, "negative_ids[0] is 'x', which is not"),
        ({"query_id": "q9", "positive_ids": ["d1"]}, "query 'q9' is not in the collection"),
    ],
)
def test_ids_that_the_collection_lacks_are_told(tmp_path, zoo, record, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, [{"query": "a", "positive_ids": ["d1"]}, record], zoo)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("records", [[], ["", " "]])
def test_a_file_without_rows_is_refused(tmp_path, records):
    with pytest.raises(InputError, match="holds no training row"):
        read(tmp_path, records)
    with pytest.raises(InputError, match="holds no training row"):
        read(tmp_path, ["nonsense", *records], on_error="skip")


def test_wrong_use_is_told(tmp_path):
    with pytest.raises(InputError, match="on_error must be 'fail' or 'skip', got 'ignore'"):
        read(tmp_path, [GOOD], on_error="ignore")
    row, _ = one(tmp_path, {"query": "a", "positive_ids": ["d1"]})
    with pytest.raises(InputError, match="text of document 'd1' is not in the row; give the collection"):
        row.positive_texts()


# ------------------------------------------------------------------------------------------- rows of other tools

SENTENCE_TRANSFORMERS = {
    "pair": ({"anchor": "a", "positive": "p"}, {"positives": ["p"]}),
    "pair by other names": ({"question": "a", "answer": "p"}, {"positives": ["p"]}),
    "triplet": ({"anchor": "a", "positive": "p", "negative": "n"}, {"positives": ["p"], "negatives": ["n"]}),
    "n-tuple": (
        {"query": "a", "positive": "p", "negative_1": "n", "negative_2": "m"},
        {"positives": ["p"], "negatives": ["n", "m"]},
    ),
    "array": (["a", "p", "n", "m"], {"positives": ["p"], "negatives": ["n", "m"]}),
    "set": ({"set": ["a", "p"]}, {"positives": ["p"]}),
    "triplet with scores": (
        {"anchor": "a", "positive": "p", "negative": "n", "scores": [0.9, 0.4]},
        {"positives": ["p"], "negatives": ["n"], "positive_scores": [0.9], "negative_scores": [0.4]},
    ),
    "n-tuple with scores": (
        {"anchor": "a", "positive": "p", "negative_1": "n", "negative_2": "m", "label": [3.0, 2.0, -1.0]},
        {"positives": ["p"], "negatives": ["n", "m"], "positive_scores": [3.0], "negative_scores": [2.0, -1.0]},
    ),
    "triplet with a margin": (
        {"query": "a", "positive": "p", "negative": "n", "score": 2.5},
        {"positives": ["p"], "negatives": ["n"], "positive_scores": [0.0], "negative_scores": [-2.5]},
    ),
    "labelled list": (
        {"query": "a", "docs": ["p", "n", "o"], "labels": [1, 0, 2]},
        {"positives": ["p", "o"], "positive_labels": [1.0, 2.0], "negatives": ["n"], "negative_labels": [0.0]},
    ),
    "list with scores": (
        {"query": "a", "positive": ["p", "n"], "scores": [0.7, 0.8]},
        {"positives": ["p"], "positive_scores": [0.7], "negatives": ["n"], "negative_scores": [0.8]},
    ),
    "labelled pair": (
        {"sentence1": "a", "sentence2": "p", "score": 0.8},
        {"positives": ["p"], "positive_labels": [0.8]},
    ),
}


@pytest.mark.parametrize(("record", "expected"), SENTENCE_TRANSFORMERS.values(), ids=SENTENCE_TRANSFORMERS)
def test_rows_of_sentence_transformers(tmp_path, record, expected):
    row, dialect = one(tmp_path, record)
    assert dialect == "sentence-transformers"
    found = row.to_dict()
    assert found.pop("query_id").startswith("text:")
    assert found == {"query": "a", **expected}


def test_labelled_pairs_become_one_row_for_each_query_at_its_first_place(tmp_path):
    records = [
        {"query": "b", "positive": "x", "label": 0},
        {"query": "a", "positive": "p", "label": 1},
        {"query": "b", "positive": "y", "label": 1},
        {"query": "b", "positive": "z", "label": 0},
    ]
    first, second = read(tmp_path, records)[0]
    assert (first.query, first.positives, first.negatives) == ("b", ("y",), ("x", "z"))
    assert (first.positive_labels, first.negative_labels) == ((1.0,), (0.0, 0.0))
    assert (second.query, second.positives, second.negatives) == ("a", ("p",), ())


def test_a_query_whose_pairs_are_all_negative_is_told_at_its_first_line(tmp_path):
    records = [{"query": q, "positive": "x", "label": label} for q, label in (("a", 1), ("b", 0), ("b", 0))]
    with pytest.raises(InputError, match=r"rows\.jsonl:2: has no relevant document"):
        read(tmp_path, records)


PASSAGES = {
    "query_id": "q7",
    "query": "a",
    "answers": ["ignored"],
    "positive_passages": [{"docid": "d1", "title": "T", "text": "p"}],
    "negative_passages": [{"docid": "d2", "title": "", "text": "n"}, {"docid": "d3", "text": "m"}],
}


def test_rows_of_tevatron(tmp_path):
    row, dialect = one(tmp_path, PASSAGES)
    assert dialect == "tevatron"
    assert row.to_dict() == {
        "query_id": "q7",
        "query": "a",
        "positive_ids": ["d1"],
        "positives": ["T p"],
        "negative_ids": ["d2", "d3"],
        "negatives": ["n", "m"],
    }


def test_rows_of_tevatron_without_ids_are_texts(tmp_path):
    row, _ = one(tmp_path, {"query": "a", "positive_passages": [{"text": "p"}], "negative_passages": []})
    assert (row.positive_ids, row.positives, row.negatives) == ((), ("p",), ())


def test_newer_rows_of_tevatron_name_documents_of_the_corpus(tmp_path, zoo):
    record = {"query_id": "x", "query_text": "a", "query_image": None}
    record |= {"positive_document_ids": ["d1"], "negative_document_ids": ["d2", "d3"]}
    row, dialect = one(tmp_path, record, zoo)
    assert (dialect, row.query, row.positive_ids, row.negative_ids) == ("tevatron", "a", ("d1",), ("d2", "d3"))
    with pytest.raises(InputError, match="'d9', which is not in the corpus"):
        one(tmp_path, record | {"negative_document_ids": ["d9"]}, zoo)


def test_rows_of_flagembedding(tmp_path):
    record = {"query": "a", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [0.9], "neg_scores": [0.2, 0.1]}
    row, dialect = one(tmp_path, record | {"prompt": "Represent this:", "type": "normal"})
    assert dialect == "flagembedding"
    assert (row.positives, row.negatives) == (("p",), ("n", "m"))
    assert (row.positive_scores, row.negative_scores) == ((0.9,), (0.2, 0.1))
    with_ids, _ = one(tmp_path, {"query": "a", "pos": ["p"], "neg": [], "pos_id": ["7"], "neg_id": []})
    assert (with_ids.positive_ids, with_ids.negatives) == (("7",), ())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["a"], "wanted an array of strings [anchor, positive, negative, …]"),
        (["a", 7], "wanted an array of strings"),
        ({"anchor": 7, "positive": "p"}, "the query is the number 7"),
        ({"anchor": "a", "positive": ["p", "q"]}, "2 documents need as many labels or scores, got none"),
        ({"query": "a", "docs": ["p", "q"], "labels": [1]}, "2 documents need as many labels or scores, got 1"),
        ({"query": "a", "docs": ["p"], "labels": ["yes"]}, 'a label or score is the string "yes"'),
        ({"anchor": "a", "positive": "p", "label": True}, "a label or score is true; wanted a number"),
        ({"anchor": "a", "positive": "p", "negative": "n", "scores": [1, 2, 3]}, "got 3 scores for 1 positive and 1"),
        ({"anchor": "a", "positive": "p", "negtive": "n"}, "did you mean 'negative'"),
        ({"query": "a", "positive_passages": ["p"]}, 'positive_passages[0] must be an object with a string "text"'),
        ({"query": "a", "positive_passages": {"text": "p"}}, '"positive_passages" must be a list'),
        ({"query": "a", "positive_passages": []}, "has no relevant document"),
        ({"query": "a", "pos": "p", "neg": []}, '"positives" is the string "p"'),
        ({"query": "a", "pos": ["p"], "neg": ["n"], "pos_scores": [1, 2]}, "got 2 positive_scores for 1 documents"),
        ({"query": "a", "neg": ["n"]}, "has no relevant document"),
    ],
)
def test_defects_in_rows_of_other_tools_are_told(tmp_path, record, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, ["", record])
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    assert message in str(caught.value)


def test_natural_language_inference_is_not_taken_for_relevance():
    # Its classes count entailment as 0, which would turn every positive into a negative.
    with pytest.raises(InputError, match="which is no training row"):
        recognise({"premise": "a", "hypothesis": "b", "label": 0})


NUMBERS = st.floats(-1e6, 1e6).map(float)
SIDE = st.lists(st.text("abcdef", min_size=1, max_size=4), max_size=4, unique=True)


@given(SIDE.filter(bool), SIDE, st.data())
def test_rows_survive_writing_and_reading(tmp_path_factory, positives, negatives, data):
    negatives = [text for text in negatives if text not in positives]
    aligned = {}
    for side, texts in (("positive", positives), ("negative", negatives)):
        for what in ("labels", "scores"):
            if data.draw(st.booleans()):
                aligned[f"{side}_{what}"] = tuple(
                    data.draw(st.lists(NUMBERS, min_size=len(texts), max_size=len(texts)))
                )
    row = TrainingRow(query_id="q", query="é 漢", positives=tuple(positives), negatives=tuple(negatives), **aligned)
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl.gz", json.dumps(row.to_dict()))
    assert read_rows(path) == ([row], "rankwright")


def test_every_dialect_says_what_its_rows_have():
    assert set(DIALECTS) == {"rankwright", "sentence-transformers", "tevatron", "flagembedding"}
    assert all(dialect.summary and dialect.keys for dialect in DIALECTS.values())


# ---------------------------------------------------------------------------------------------- rows from qrels


def test_judgements_become_rows_with_grades(zoo):
    first, second = rows_from_qrels(zoo)
    assert first.to_dict() == {
        "query_id": "q1",
        "query": "why do cats sleep",
        "positive_ids": ["d1"],
        "positive_labels": [2.0],
        "negative_ids": ["d2"],
        "negative_labels": [0.0],
    }
    assert (second.positive_ids, second.negative_ids) == (("d2",), ())


def test_a_higher_threshold_makes_lower_grades_negatives(tmp_path):
    qrels = {"train": {"q1": {"d1": 3, "d2": 1, "d3": -2}, "q2": {"d1": 1}}}
    collection = Collection.load(make_collection(tmp_path, qrels=qrels))
    (row,) = rows_from_qrels(collection, positive_from=2)
    assert (row.positive_ids, row.negative_ids) == (("d1",), ("d2", "d3"))
    assert row.negative_labels == (1.0, 0.0)
    assert all(math.isfinite(label) for label in row.negative_labels)


def test_what_cannot_be_trained_on_is_left_out_and_counted(tmp_path, caplog):
    qrels = {"train": {"q1": {"d1": 1, "lost": 1, "gone": 0}, "q2": {"d2": 0}, "q3": {"lost": 1}}}
    rows = rows_from_qrels(Collection.load(make_collection(tmp_path, qrels=qrels)))
    assert [row.query_id for row in rows] == ["q1"]
    assert "3 judgements name documents that are not in the corpus" in caplog.text
    assert "2 queries have no relevant document" in caplog.text


def test_judgements_without_any_positive_are_refused(tmp_path):
    collection = Collection.load(make_collection(tmp_path, qrels={"train": {"q1": {"d1": 1}}}))
    with pytest.raises(InputError, match=r"train\.tsv: no query has a document of grade 2 or more"):
        rows_from_qrels(collection, positive_from=2)
