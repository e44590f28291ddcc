import numpy as np
import pytest
from beir_folder import DOCUMENTS, QUERIES, jsonl, make_collection, write
from hypothesis import given
from hypothesis import strategies as st

from retrieval import inspect_data
from retrieval.errors import InputError
from retrieval.inspect_data import Finding, inspect, normalised


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


def kinds(findings):
    return sorted({finding.kind for finding in findings})


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_sound_collection_is_counted(tmp_path, ending):
    report = inspect(make_collection(tmp_path / "zoo", ending=ending))
    assert report.name == "zoo"
    assert (report.defects, report.warnings, report.leaks) == ([], [], [])
    assert (report.documents["count"], report.documents["titled"], report.documents["empty"]) == (4, 2, 0)
    lengths = sorted(
        [
            len(["Cats", "Cats", "sleep", "most", "of", "the", "day."]),
            4,
            len(["Birds", "Most", "birds", "can", "fly."]),
            4,
        ]
    )
    assert report.documents["words"]["100"] == lengths[-1] == 7
    assert report.documents["words"]["50"] == lengths[1]
    assert report.queries["count"] == 4
    assert report.queries["characters"]["100"] == max(map(len, QUERIES.values()))
    assert report.splits["train"] == {
        "queries": 2,
        "judgements": 3,
        "grades": {"0": 1, "1": 1, "2": 1},
        "without_relevant": 0,
        "unknown_documents": 0,
        "recall_bound": 1.0,
    }


def test_a_corpus_alone_is_enough(tmp_path):
    report = inspect(make_collection(tmp_path, queries=None, qrels=None))
    assert (report.defects, report.queries, report.splits) == ([], {}, {})


def test_a_folder_that_is_no_collection_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        inspect(tmp_path / "nowhere")


def test_every_defect_of_every_file_is_listed(tmp_path):
    folder = make_collection(
        tmp_path / "zoo",
        documents=[*DOCUMENTS, "nonsense", {"_id": "d1", "text": "again"}, {"text": "no id"}, {"_id": "d5", "text": 5}],
        queries=[*({"_id": q, "text": t} for q, t in QUERIES.items()), {"_id": "q1", "text": "again"}, "{"],
        qrels={
            "train": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t2\nq2\td2\nq2\td2\thigh\nq9\td1\t1\n",
            "test": "q3 0 d3 1\nq3 d3 1\nq4 0 d4 1.5\n",
        },
    )
    rows = write(
        tmp_path / "rows.jsonl",
        jsonl([{"query": "x", "positive_ids": ["d9"]}, {"query": "x", "positives": ["y"]}, "?"]),
    )
    report = inspect(folder, [rows])
    found = {(finding.path.removeprefix(f"{tmp_path}/"), finding.line) for finding in report.defects}
    assert found == {
        *(("zoo/corpus.jsonl", line) for line in (5, 6, 7, 8)),
        *(("zoo/queries.jsonl", line) for line in (5, 6)),
        *(("zoo/qrels/train.tsv", line) for line in (3, 4, 5, 6)),
        *(("zoo/qrels/test.tsv", line) for line in (2, 3)),
        *(("rows.jsonl", line) for line in (1, 3)),
    }
    assert len(report.defects) == len(found)
    assert report.documents["count"] == 5
    assert report.rows[str(rows)] | {"queries": 0} == {
        "dialect": "rankwright",
        "rows": 1,
        "defective": 2,
        "queries": 0,
        "positives": 1,
        "negatives": 0,
        "without_negatives": 1,
        "with_labels": 0,
        "with_scores": 0,
    }


def test_missing_parts_are_defects_only_where_they_are_needed(tmp_path):
    report = inspect(make_collection(tmp_path, queries=None))
    assert kinds(report.defects) == ["missing file"]
    assert list(report.splits) == ["test", "train"]


def test_damaged_gzip_data_ends_a_file_but_not_the_report(tmp_path):
    folder = make_collection(tmp_path / "zoo", ending=".gz")
    for name in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels/train.tsv.gz"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-3])
    report = inspect(folder)
    assert kinds(report.defects) == ["gzip"]
    assert {finding.path for finding in report.defects} == {
        str(folder / name) for name in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels/train.tsv.gz")
    }
    assert list(report.splits) == ["test"]


def test_what_is_worth_knowing_is_a_warning_with_its_place(tmp_path):
    folder = make_collection(
        tmp_path,
        documents=[
            *DOCUMENTS,
            {"_id": "d 5", "text": ""},
            {"_id": "d6", "title": "Cats", "text": DOCUMENTS[0]["text"]},
        ],
        queries={**QUERIES, "q5": " ", "q\t6": "x"},
        qrels={"test": {"q3": {"d3": 1, "lost": 1}, "q4": {"gone": 2}, "q2": {"d2": 0}}},
    )
    report = inspect(folder)
    assert report.defects == []
    found = {(finding.kind, finding.path.removeprefix(f"{tmp_path}/"), finding.line) for finding in report.warnings}
    assert found == {
        ("empty document", "corpus.jsonl", 5),
        ("unsafe id", "corpus.jsonl", 5),
        ("duplicate text", "corpus.jsonl", 6),
        ("empty query", "queries.jsonl", 5),
        ("unsafe id", "queries.jsonl", 6),
        ("unknown document", "qrels/test.tsv", 3),
        ("unknown document", "qrels/test.tsv", 4),
    }
    assert (report.documents["empty"], report.documents["duplicate_texts"], report.queries["empty"]) == (1, 1, 1)
    split = report.splits["test"]
    assert (split["unknown_documents"], split["without_relevant"]) == (2, 1)
    assert split["recall_bound"] == (1 / 2 + 0 / 1) / 2


def test_leaks_between_splits_are_counted_and_placed(tmp_path):
    queries = {"a": "What is X?", "b": "what  is x", "c": "other", "d": "What IS x", "e": "alone"}
    qrels = {
        "train": {"a": {"d1": 1}, "c": {"d2": 1}},
        "test": {"b": {"d1": 1}, "c": {"d3": 1}, "d": {"d4": 1, "d1": 0}, "e": {"d1": 1}},
    }
    report = inspect(make_collection(tmp_path, queries=queries, qrels=qrels))
    assert report.leaks == [
        {
            "between": ["train", "test"],
            "query text": 3,
            "query text with a relevant document": 1,
            "query id": 1,
        }
    ]
    assert [(finding.kind, finding.line) for finding in report.warnings] == [
        ("leak (query text with a relevant document)", 2),
        ("leak (query text)", 3),
        ("leak (query text)", 4),
    ]
    assert report.defects == []


def test_two_views_of_one_split_are_no_leak(tmp_path):
    qrels = {name: {"q1": {"d1": 1}} for name in ("test", "test_sum8", "test-easy")}
    assert inspect(make_collection(tmp_path, qrels=qrels)).leaks == []


def test_training_rows_that_hold_test_queries_are_a_leak(tmp_path):
    rows = write(
        tmp_path / "rows.jsonl",
        jsonl([{"query": "Can birds fly?", "positive_ids": ["d3"]}, {"query": "new", "positive_ids": ["d1"]}]),
    )
    report = inspect(make_collection(tmp_path / "zoo"), [rows])
    assert report.leaks == [{"between": [str(rows), "test"], "query text": 1, "query text with a relevant document": 1}]
    assert inspect(make_collection(tmp_path / "zoo2", qrels={"train": {"q3": {"d3": 1}}}), [rows]).leaks == []


def test_rows_of_every_kind_are_counted(tmp_path):
    rows = write(
        tmp_path / "rows.jsonl",
        jsonl(
            [
                {"query": "a", "pos": ["p", "o"], "neg": ["n"], "pos_scores": [1, 2], "neg_scores": [0]},
                {"query": "b", "pos": ["p"], "neg": []},
            ]
        ),
    )
    values = inspect(make_collection(tmp_path / "zoo"), [rows]).rows[str(rows)]
    assert values == {
        "dialect": "flagembedding",
        "rows": 2,
        "defective": 0,
        "queries": 2,
        "positives": 3,
        "negatives": 1,
        "without_negatives": 1,
        "with_labels": 0,
        "with_scores": 1,
    }


def test_a_file_of_rows_that_cannot_be_used_is_one_defect_more(tmp_path):
    report = inspect(make_collection(tmp_path / "zoo"), [tmp_path / "nowhere", write(tmp_path / "empty", "")])
    assert [finding.message for finding in report.defects] == [
        "no such file",
        "holds no training row that can be used",
    ]


def test_long_documents_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data, "MAX_CHARACTERS", 25)
    assert inspect(make_collection(tmp_path)).documents["longer_than_25_characters"] == 1


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=200))
def test_percentiles_are_observed_values(values):
    found = inspect_data._percentiles(values)
    ordered = sorted(values)
    for percentile, value in found.items():
        # The smallest value that at least this share of all values does not exceed.
        assert value == ordered[max(int(np.ceil(int(percentile) / 100 * len(values) - 1e-9)) - 1, 0)]


@given(st.lists(st.sampled_from(range(6)), max_size=40))
def test_repeated_texts_name_the_first_line_and_each_later_one(digests):
    from array import array

    lines = [3 * place + 1 for place in range(len(digests))]
    expected = [
        (lines[digests.index(digest)], line)
        for digest, line in zip(digests, lines, strict=True)
        if lines[digests.index(digest)] < line
    ]
    assert inspect_data._repeated(array("Q", digests), array("Q", lines)) == expected


def test_normalised_text_ignores_case_blanks_and_punctuation():
    assert normalised("What IS\u00a0x?") == normalised(" what is ｘ!") == "what is x"


def test_a_finding_reads_as_place_and_message():
    assert str(Finding("k", "bad", "f", 3)) == "f:3: bad"
    assert str(Finding("k", "bad", "f")) == "f: bad"


def test_known_leaks_of_scifact(shared):
    report = inspect(shared / "data" / "scifact")
    assert report.defects == []
    assert report.leaks == [{"between": ["train", "test"], "query text": 2, "query text with a relevant document": 2}]
    assert {finding.line for finding in report.warnings} == {214, 315}
