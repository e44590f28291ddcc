"""Feature files: what is read, what is refused with file and line, and the way back."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.svmlight import FeatureLists, read_svmlight, write_svmlight

GOOD = "2 qid:a 1:0.5 3:-2 # d1\n0 qid:a 3:1e-3 # d2\n\n# a remark\n1 qid:b 1:7 # d1\n"


def same(one: FeatureLists, other: FeatureLists) -> bool:
    arrays = all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("sizes", "labels", "features", "numbers")
    )
    return arrays and (one.query_ids, one.doc_ids, one.names) == (other.query_ids, other.doc_ids, other.names)


def made(**changes) -> FeatureLists:
    values = {
        "query_ids": ["a", "b"],
        "sizes": np.array([2, 1]),
        "labels": np.array([2, 0, 0.5], dtype=np.float32),
        "features": np.array([[0.1, np.nan], [np.nan, np.nan], [-3e-30, 4]], dtype=np.float32),
        "doc_ids": ["d 1", "d2", "d2"],
        "numbers": np.array([2, 9]),
    }
    return FeatureLists(**{**values, **changes})


def test_a_file_as_it_is_meant(tmp_path):
    path = tmp_path / "good.txt"
    path.write_text(GOOD)
    lists = read_svmlight(path)
    assert lists.query_ids == ["a", "b"]
    assert lists.sizes.tolist() == [2, 1]
    assert lists.labels.tolist() == [2, 0, 1]
    assert lists.numbers.tolist() == [1, 3]
    assert lists.doc_ids == ["d1", "d2", "d1"]  # the same document may be another query's too
    assert lists.names is None
    nan = np.nan
    np.testing.assert_array_equal(lists.features, np.array([[0.5, -2], [nan, 1e-3], [7, nan]], dtype=np.float32))


def test_gzip_byte_order_mark_and_crlf_change_nothing(tmp_path):
    (tmp_path / "plain.txt").write_text(GOOD)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()))
    assert same(read_svmlight(tmp_path / "plain.txt"), read_svmlight(tmp_path / "packed.txt.gz"))


def test_letor_comments_give_the_document_id(tmp_path):
    path = tmp_path / "letor.txt"
    path.write_text("0 qid:10032 1:0.05 2:0.1 #docid = GX029-35-5894638 inc = 0.0119 prob = 0.139842\n")
    assert read_svmlight(path).doc_ids == ["GX029-35-5894638"]


@pytest.mark.parametrize("last", ["0 qid:a 1:1\n", "0 qid:a 1:1 # d1\n", "0 qid:a 1:1 #\n"])
def test_comments_that_are_no_ids_are_none(tmp_path, last, caplog):
    path = tmp_path / "some.txt"
    path.write_text(f"1 qid:a 1:2 # d1\n{last}1 qid:b 1:2 # d1\n")
    assert read_svmlight(path).doc_ids is None
    assert f"{path}:2: " in caplog.text


def test_named_features_are_there_even_where_no_line_has_them(tmp_path):
    path = tmp_path / "named.txt"
    path.write_text("# feature 2: bm25 of the title\n# feature 7: length\n1 qid:a 1:3 7:1\n")
    lists = read_svmlight(path)
    assert lists.numbers.tolist() == [1, 2, 7]
    assert lists.names == ["", "bm25 of the title", "length"]
    assert np.isnan(lists.features[0, 1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 1:2", "got '1:2' behind the grade, where qid:ID must stand"),
        ("1", "got 'nothing' behind the grade"),
        ("1 qid: 1:2", "where qid:ID must stand"),
        ("one qid:a 1:2", "grade 'one' is not a finite number"),
        ("inf qid:a 1:2", "grade 'inf' is not a finite number"),
        ("-1 qid:a 1:2", "grade '-1' is negative"),
        ("1 qid:a 1:x", "the value of feature '1:x' is no number"),
        ("1 qid:a 1:1_0", "the value of feature '1:1_0' is no number"),
        ("1 qid:a 1:nan", "the value of feature '1:nan' is not finite; leave the feature out"),
        ("1 qid:a 1:-inf", "the value of feature '1:-inf' is not finite"),
        ("1 qid:a 1:1e39", "is not finite; wanted a float32"),
        ("1 qid:a 0:1", "feature number 0 must be 1 to"),
        ("1 qid:a -3:1", "feature number '-3' is no whole number >= 1"),
        ("1 qid:a 1.5:1", "feature number '1.5' is no whole number >= 1"),
        ("1 qid:a 99999999999:1", "feature number 99999999999 must be 1 to 2147483647"),
        pytest.param(
            f"1 qid:a {'9' * 5000}:1", f"feature number {'9' * 40}… must be 1 to 2147483647", id="thousands of digits"
        ),
        pytest.param(
            f"1 qid:a {'9' * 200}:1", f"feature number {'9' * 40}… must be 1 to 2147483647", id="hundreds of digits"
        ),
        pytest.param(
            f"# feature {'9' * 5000}: bm25",
            f"feature number {'9' * 40}… must be 1 to 2147483647",
            id="thousands of digits of a named one",
        ),
        ("1 qid:a 2:1 1:1", "feature 1 stands behind 2; feature numbers must ascend"),
        ("1 qid:a 2:1 2:1", "feature 2 stands twice"),
        ("1 qid:a 2", "'2' is no feature; wanted number:value"),
        ("1 qid:a 2:", "'2:' is no feature"),
        ("1 qid:a 1:1 qid:b", "'qid:b' is a second query id"),
        ("1 qid:x 1:1", "query 'x' comes back; its other lines begin at line 1; put the lines together"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "bad.txt"
    path.write_text(f"0 qid:x 1:1\n0 qid:y 1:1\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_svmlight(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"1 qid:a 1:1 # caf\xe9\n")
    with pytest.raises(InputError, match=rf"{path}:1: byte 18 of the line is not UTF-8"):
        read_svmlight(path)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a remark\n"])
def test_a_file_without_documents_is_refused(tmp_path, text):
    path = tmp_path / "empty.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no document; wanted 'grade qid:ID"):
        read_svmlight(path)


def test_a_column_that_is_nan_everywhere_is_read_back_by_its_name_alone(tmp_path):
    lists = replace(made(), features=np.full((3, 2), np.nan, dtype=np.float32))
    write_svmlight(tmp_path / "some.txt", lists, ["", "a name"])
    assert read_svmlight(tmp_path / "some.txt").names == ["a name"]


def test_what_is_written_is_read_back(tmp_path):
    for name in ("some.txt", "some.txt.gz"):
        write_svmlight(tmp_path / name, made(), ["", "a name"])
        assert same(read_svmlight(tmp_path / name), made(names=["", "a name"]))


values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), values, values | st.none()), min_size=1), min_size=1))
def test_any_lists_are_read_back(tmp_path_factory, given_lists):
    rows = [row for own in given_lists for row in own]
    lists = FeatureLists(
        query_ids=[f"q{place}" for place in range(len(given_lists))],
        sizes=np.array([len(own) for own in given_lists]),
        labels=np.array([grade for grade, _, _ in rows], dtype=np.float32),
        features=np.array([[a, np.nan if b is None else b] for _, a, b in rows], dtype=np.float32),
        doc_ids=None,
        numbers=np.array([3, 4]),
        names=["always", "sometimes"],
    )
    path = tmp_path_factory.mktemp("lists") / "lists.txt"
    write_svmlight(path, lists)
    assert same(read_svmlight(path), lists)


def test_blocks_of_documents_are_joined(tmp_path, monkeypatch):
    path = tmp_path / "some.txt"
    write_svmlight(path, made())
    whole = read_svmlight(path)
    monkeypatch.setattr("retrieval.svmlight._BLOCK", 2)
    assert same(read_svmlight(path), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_ids": ["a b", "c"]}, "query id 'a b' holds a blank"),
        ({"query_ids": ["a#", "c"]}, "query id 'a#'"),
        ({"doc_ids": ["d", "", "e"]}, "document id '' cannot be a comment"),
        ({"doc_ids": ["d", "x\ny", "e"]}, "cannot be a comment"),
        ({"labels": np.array([1, -1, 0], dtype=np.float32)}, "a grade is not a finite number >= 0"),
        ({"features": np.full((3, 2), np.inf, dtype=np.float32)}, "a feature is infinite"),
        ({"names": ["one"]}, "got 1 names for 2 features"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        write_svmlight(tmp_path / "lists.txt", replace(made(), **changes))
    assert not (tmp_path / "lists.txt").exists()


def test_selecting_and_aligning():
    lists = made(names=["x", "y"])
    second = lists.select([1])
    assert (second.query_ids, second.labels.tolist(), second.doc_ids) == (["b"], [0.5], ["d2"])
    assert [own.tolist() for own in lists.split_labels()] == [[2, 0], [0.5]]
    aligned = lists.align(np.array([1, 9, 10]))
    assert aligned.names == ["", "y", ""]
    nan = np.nan
    np.testing.assert_array_equal(aligned.features, np.array([[nan, nan, nan], [nan, nan, nan], [nan, 4, nan]]))
    assert lists.select([]).features.shape == (0, 2)


@pytest.mark.parametrize(
    ("path", "queries", "rows", "features"),
    [("ltr_lambdarank/train.txt", 201, 3005, 218), ("ltr_trecnews/trec_news_2018.train", 45, 782, 5)],
)
def test_public_files(shared, path, queries, rows, features):
    lists = read_svmlight(shared / "data" / path)
    assert (len(lists), lists.features.shape) == (queries, (rows, features))
    assert lists.sizes.sum() == rows
