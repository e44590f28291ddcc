"""Doubtful negatives as a TSV: written for a person, read back as judgements or as a mask."""

import csv
from dataclasses import replace

import pytest

from retrieval.doubtful_pairs import (
    COLUMNS,
    DoubtfulPair,
    flattened,
    masked_rows,
    read_labels,
    write_doubtful,
    write_label_qrels,
)
from retrieval.errors import InputError
from retrieval.rows import TrainingRow
from retrieval.trec import read_qrels

PAIR = DoubtfulPair(
    query_id="q1",
    query='who said "to be"',
    doc_id="d2",
    rank=3,
    score=0.5,
    margin=-0.25,
    likeness=0.75,
    repeats=0.0,
    best_positive_id="d1",
    best_positive="=1+1 is a formula",
    document='"To be", he said.',
)
ROWS = [
    TrainingRow(
        query_id="q1",
        query="a",
        positive_ids=("d1",),
        negative_ids=("d2", "d3", "d4"),
        negative_scores=(0.3, 0.2, 0.1),
        negative_ranks=(1, 2, 5),
    ),
    TrainingRow(query_id="q2", query="b", positive_ids=("d1",), negative_ids=("d2",)),
]
HEAD = "query_id\tdoc_id\tlabel\n"


def test_what_is_written_is_what_a_spreadsheet_reads(tmp_path):
    path = tmp_path / "doubtful.tsv"
    write_doubtful(path, [PAIR, replace(PAIR, query_id="q2", score=None, margin=None)])
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, dialect="excel-tab"))
    assert tuple(lines[0]) == COLUMNS
    assert lines[0] | {"label": ""} == lines[0]
    assert {name: lines[0][name] for name in ("query", "document", "rank", "margin")} == {
        "query": PAIR.query,
        "document": PAIR.document,
        "rank": "3",
        "margin": "-0.25",
    }
    assert (lines[1]["score"], lines[1]["margin"]) == ("", "")


def test_labels_come_back_from_a_file_that_a_spreadsheet_rearranged(tmp_path):
    path = tmp_path / "labelled.tsv"
    lines = ["\ufeffLabel\tnote\tdoc_id\tquery_id", ' 1 \t"a ""quoted"" note"\td2\tq1', "\t\td3\tq1", "0\t\td4\tq1"]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    assert read_labels(path, ROWS) == {"q1": {"d2": 1, "d4": 0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "q1\td2\tyes\n", ":2: label 'yes' is no grade; wanted 0 (not relevant), 1, 2, … or nothing"),
        (HEAD + "q1\td2\t-1\n", ":2: label '-1' is no grade"),
        (HEAD + "q1\td2\t1_0\n", ":2: label '1_0' is no grade"),
        (HEAD + "q1\td2\t1.5\n", ":2: label '1.5' is no grade"),
        (HEAD + "\nq1\td9\t1\n", ":3: query 'q1' has no negative 'd9' in the rows"),
        (HEAD + "q9\td2\t1\n", ":2: query 'q9' is not in the rows; give the rows that were audited"),
        (HEAD + "q1\td2\t1\nq2\td2\t1\nq1\td2\t0\n", ":4: query 'q1', document 'd2': label 0, but 1 on line 2; keep"),
        (HEAD + "q1\td2\n", ":2: got 2 columns between tabs, wanted 3 as in the first line"),
        ("query_id\tdoc_id\tlabels\n", ":1: has no column \"label\"; did you mean 'labels'?"),
        (HEAD + "q1\td2\t\n", 'has no label; write 0, 1, 2, … into the column "label"'),
        ("", "has no label"),
    ],
)
def test_bad_labels_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "labels.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_labels(path, ROWS)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_labels_are_not_lost_to_another_audit(tmp_path):
    path = tmp_path / "doubtful.tsv"
    write_doubtful(path, [PAIR])
    write_doubtful(path, [PAIR])  # nobody has labelled anything yet
    path.write_text(HEAD + "q1\td2\t0\nq1\td3\t\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds 1 labels, which would be lost; move it away first"):
        write_doubtful(path, [PAIR])
    assert path.read_text(encoding="utf-8").startswith(HEAD)


def test_labels_become_qrels(tmp_path):
    labels = {"q1": {"d2": 1, "d with blanks": 0}}
    write_label_qrels(tmp_path / "labels.tsv", labels)
    assert read_qrels(tmp_path / "labels.tsv") == labels
    with pytest.raises(InputError, match="holds a tab or a line end"):
        write_label_qrels(tmp_path / "other.tsv", {"q\t1": {"d2": 1}})
    assert not (tmp_path / "other.tsv").exists()


def test_a_mask_takes_out_what_is_relevant_and_keeps_the_rest_aligned():
    first, second = masked_rows(ROWS, {"q1": {"d3": 2, "d2": 0}})
    assert first == replace(ROWS[0], negative_ids=("d2", "d4"), negative_scores=(0.3, 0.1), negative_ranks=(1, 5))
    assert second is ROWS[1]
    assert next(masked_rows(ROWS[1:], {"q2": {"d2": 1}})).negative_ids == ()


def test_a_text_is_shown_on_one_line():
    assert flattened("a\tb\n\n c\u2028d ") == "a b c d"
    assert flattened("x" * 3_000) == "x" * 2_000 + "…"
