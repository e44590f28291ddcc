import sys
import types

import pytest
from beir_folder import DOCUMENTS, QRELS, QUERIES, make_collection, qrels_text, write

from retrieval.collection import Collection, read_queries
from retrieval.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_folder_is_a_collection(tmp_path, ending):
    collection = Collection.load(make_collection(tmp_path / "zoo", ending=ending))
    assert collection.name == "zoo"
    assert len(collection.corpus) == len(DOCUMENTS)
    assert collection.splits == ["test", "train"]
    assert collection.queries() == QUERIES
    assert collection.queries("train") == {q: QUERIES[q] for q in ("q1", "q2")}
    assert collection.qrels("train") == QRELS["train"]


def test_qrels_are_read_anew_so_that_a_caller_may_change_them(tmp_path):
    collection = Collection.load(make_collection(tmp_path))
    collection.qrels("train").clear()
    collection.queries().clear()
    assert collection.qrels("train") == QRELS["train"]
    assert collection.queries() == QUERIES


def test_trec_columns_are_read_too(tmp_path):
    folder = make_collection(tmp_path, qrels={"test": "q3 0 d3 1\nq3 0 d1 0\n"})
    assert Collection.load(folder).qrels("test") == QRELS["test"]


def test_a_corpus_alone_is_a_collection(tmp_path):
    collection = Collection.load(make_collection(tmp_path, queries=None, qrels=None))
    assert (len(collection.corpus), collection.splits) == (4, [])
    with pytest.raises(InputError, match=r"has no queries\.jsonl"):
        collection.queries()
    with pytest.raises(InputError, match=r"no split 'test'; it has no qrels/\*\.tsv"):
        collection.qrels("test")


def test_nothing_is_read_before_it_is_used(tmp_path):
    folder = make_collection(tmp_path, documents=["nonsense"], queries=["nonsense"], qrels={"test": "nonsense"})
    assert Collection.load(folder).splits == ["test"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f / "nowhere", r"nowhere: no such folder; wanted a BEIR folder .* irds:ID, or pydocs"),
        (lambda f: f / "corpus.jsonl", "is a file; wanted a BEIR folder"),
        (lambda f: (f / "corpus.jsonl").rename(f / "corpus.json") and f, r"has no corpus\.jsonl .*found corpus\.json"),
        (lambda f: (f / "corpus.jsonl").rename(f / "corpus.jsonl.zst") and f, r"found corpus\.jsonl\.zst"),
        (lambda f: write(f / "corpus.jsonl.gz", "") and f, "both exist; remove one"),
    ],
    ids=["missing", "file", "other name", "zst", "plain and packed"],
)
def test_what_is_no_collection_is_told(tmp_path, spoil, message):
    with pytest.raises(InputError, match=message):
        Collection.load(spoil(make_collection(tmp_path / "zoo")))


def test_an_unknown_split_names_the_nearest(tmp_path):
    collection = Collection.load(make_collection(tmp_path))
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        collection.queries("tset")


def test_two_files_of_one_split_are_refused(tmp_path):
    folder = make_collection(tmp_path)
    write(folder / "qrels" / "test.tsv.gz", qrels_text(QRELS["test"]))
    with pytest.raises(InputError, match=r"test\.tsv and test\.tsv\.gz both exist"):
        Collection.load(folder).qrels("test")


def test_other_files_beside_the_qrels_are_no_splits(tmp_path):
    folder = make_collection(tmp_path)
    for name in ("notes.txt", "old.tsv.bak", ".hidden.tsv", ".tsv"):
        write(folder / "qrels" / name, "x")
    assert Collection.load(folder).splits == ["test", "train"]


def test_a_judged_query_without_text_is_told_with_the_line(tmp_path):
    folder = make_collection(tmp_path, qrels={"test": {"q1": {"d1": 1}, "q8": {"d1": 1}, "q9": {"d1": 1}}})
    message = r"test\.tsv:3: query 'q8' is not in queries\.jsonl \(and 1 more like it\)"
    with pytest.raises(InputError, match=message):
        Collection.load(folder).queries("test")


def test_empty_queries_are_left_out_with_a_warning(tmp_path, caplog):
    folder = make_collection(tmp_path, queries={**QUERIES, "q3": "  "})
    collection = Collection.load(folder)
    assert collection.queries("test") == {}
    assert "1 of 1 queries are empty; they are not used" in caplog.text
    assert "q3" in collection.qrels("test")


def test_queries_may_stand_between_tabs(tmp_path):
    path = write(tmp_path / "topics.tsv.gz", "\ufeffq1\twhy do cats sleep\r\n\nq 2\ta\tb\n")
    assert read_queries(path) == {"q1": "why do cats sleep", "q 2": "a\tb"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "a"}\n', ":2: _id 'q1' stands on line 1"),
        ("q.jsonl", '{"_id": "q1", "text": "a"}\n\n{"_id": "q1", "text": "b"}\n', ":3: .* with another text"),
        ("q.jsonl", '{"_id": "q1", "query": "a"}\n', ':1: there is no "text"; is that "query"?'),
        ("q.jsonl", '{"_id": 1, "text": "a"}\n', ':1: "_id" is the number 1'),
        ("q.jsonl", "q1\twhy\n", ":1: column 1 is not JSON"),
        ("q.tsv", "q1\twhy\nq2 why\n", ":2: wanted a query id, a tab, and the query"),
        ("q.tsv", "\twhy\n", ":1: wanted a query id, a tab"),
    ],
)
def test_defects_of_queries_are_told_with_file_and_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(InputError, match=message) as caught:
        read_queries(path)
    assert str(caught.value).startswith(str(path))


def test_collected_defects_of_queries_leave_the_others(tmp_path):
    text = '{"_id": "q1", "text": "a"}\nnonsense\n{"_id": "q1", "text": "b"}\n{"_id": "q2", "text": "c"}\n'
    defects, seen = [], []
    found = read_queries(write(tmp_path / "q.jsonl", text), defects.append, lambda *query: seen.append(query))
    assert found == {"q1": "a", "q2": "c"}
    assert [defect.line for defect in defects] == [2, 3]
    assert seen == [(1, "q1", "a"), (4, "q2", "c")]


def test_pydocs_is_built_where_its_module_says(tmp_path, monkeypatch):
    folder = make_collection(tmp_path / "built")
    module = types.ModuleType("retrieval.pydocs")
    module.pydocs_folder = lambda: folder
    monkeypatch.setitem(sys.modules, "retrieval.pydocs", module)
    collection = Collection.load("pydocs")
    assert (collection.name, collection.path) == ("pydocs", folder)


def test_scifact_is_what_its_makers_say(shared):
    collection = Collection.load(shared / "data" / "scifact")
    assert len(collection.corpus) == 5183
    assert {split: len(collection.queries(split)) for split in collection.splits} == {"test": 300, "train": 809}
    assert collection.corpus.document(collection.corpus.row("4983")).title.startswith("Microstructural development")
