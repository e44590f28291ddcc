"""Whatever a file holds, reading it gives records or an InputError with its place, and never another exception."""

import json
import random

import pytest
from beir_folder import DOCUMENTS, HEADER, jsonl, make_collection, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexes import disk
from retrieval.cache import cache_folder, unpacked
from retrieval.collection import Collection, read_queries
from retrieval.convert import convert, recognised
from retrieval.corpus import Corpus
from retrieval.dialects import DIALECTS, recognise
from retrieval.errors import InputError
from retrieval.inspect_data import inspect
from retrieval.rows import read_rows

FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab é\ud800\n\t", max_size=3)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
PASSAGES = st.lists(
    st.dictionaries(st.sampled_from(["docid", "title", "text", "x"]), VALUES, max_size=3) | VALUES, max_size=3
)
KEYS = sorted({key for dialect in DIALECTS.values() for key in dialect.keys} | {"negative_1", "prompt", "x", ""})
ROW_LIKE = st.dictionaries(st.sampled_from(KEYS), VALUES | PASSAGES, max_size=6)


def dumped(value) -> str:
    return json.dumps(value, ensure_ascii=True)  # half a surrogate pair becomes an escape, as in files from the wild


@FUZZ
@given(st.lists(ROW_LIKE | VALUES, min_size=1, max_size=3))
def test_any_json_is_a_row_or_a_defect_with_its_line(tmp_path, values):
    path = write(tmp_path / "rows.jsonl", "\n".join(map(dumped, values)))
    defects, message = [], ""
    try:
        rows, dialect = read_rows(path, report=defects.append)
    except InputError as error:
        rows, dialect, message = [], "", str(error)
    assert rows or message == f"{path}: holds no training row that can be used"
    assert all(defect.line and 1 <= defect.line <= len(values) for defect in defects)
    assert len(rows) + len(defects) <= len(values)
    assert rows or defects
    for row in rows:
        assert dialect in DIALECTS
        assert row.query.strip()
        assert row.positive_ids or row.positives
        for side in ("positive", "negative"):
            ids, texts = getattr(row, f"{side}_ids"), getattr(row, f"{side}s")
            size = len(ids) or len(texts)
            assert not ids or not texts or len(ids) == len(texts)
            assert len(getattr(row, f"{side}_labels")) in (0, size)
            assert len(getattr(row, f"{side}_scores")) in (0, size)
        assert not set(row.positives) & set(row.negatives)
        json.dumps(row.to_dict(), allow_nan=False).encode()


@FUZZ
@given(ROW_LIKE | VALUES)
def test_recognising_names_a_dialect_or_says_what_was_got(value):
    try:
        found = recognise(value)
    except InputError as error:
        found = str(error)
    assert found in DIALECTS or "which is no training row" in found


@FUZZ
@given(
    st.lists(st.dictionaries(st.sampled_from(["_id", "text", "title", "id"]), VALUES, max_size=4) | VALUES, max_size=4)
)
def test_any_json_is_a_document_or_a_defect_with_its_line(tmp_path, values):
    path = write(tmp_path / "corpus.jsonl", "\n".join(map(dumped, values)))
    for read in (lambda report: Corpus.load(path, report=report), lambda report: read_queries(path, report)):
        defects = []
        found = read(defects.append)
        duplicates = sum(defect.kind == "duplicate id" for defect in defects)
        assert len(values) <= len(found) + len(defects) <= len(values) + duplicates
        assert all(defect.path == path and 1 <= defect.line <= len(values) for defect in defects)
    corpus = Corpus.load(path, report=defects.append)
    assert [document.doc_id for document in corpus] == list(corpus.ids)


def mutated(data: bytes, seed: int) -> bytes:
    """Change a few bytes, cut a piece out, or put one in twice."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(damaged))
        action = rng.randrange(4)
        if action == 0:
            damaged[place] = rng.randrange(256)
        elif action == 1:
            damaged[place] ^= 1 << rng.randrange(8)
        elif action == 2:
            del damaged[place : place + rng.randint(1, 30)]
        else:
            damaged[place:place] = damaged[place : place + rng.randint(1, 30)]
        if not damaged:
            return b"\n"
    return bytes(damaged)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "rows.jsonl"])
def test_damaged_files_give_a_report_and_never_another_exception(tmp_path, name):
    folder = make_collection(tmp_path / "zoo")
    rows = write(folder / "rows.jsonl", jsonl([{"query": "a", "positive_ids": ["d1"], "positive_scores": [0.5]}] * 3))
    whole = (folder / name).read_bytes()
    for seed in range(120):
        (folder / name).write_bytes(mutated(whole, seed))
        report = inspect(folder, [rows])
        for finding in (*report.defects, *report.warnings):
            assert finding.path.startswith(str(folder))
        json.dumps(report.documents)


SOURCES = {
    "beir": HEADER + "q1\td1\t1\nq2\td2\t0\n",
    "trec qrels": "q1 0 d1 1\nq2 0 d2 0\n",
    "trec run": "q1 Q0 d1 1 0.5 t\nq1 Q0 d2 2 0.25 t\n",
    "json run": json.dumps({"q1": {"d1": 0.5, "d2": 0.25}}),
    "msmarco": "q1\td1\t1\nq1\td2\t2\n",
    "tevatron": jsonl(
        [{"query": "a", "positive_passages": [{"docid": "1", "text": "b" * 300}], "negative_passages": []}]
    ),
    "pairs": jsonl([{"query": "a", "positive": "b", "label": 1}, {"query": "a", "positive": "c", "label": 0}]),
}


@pytest.mark.parametrize("text", SOURCES.values(), ids=SOURCES)
def test_damaged_files_are_converted_or_refused_whole(tmp_path, text):
    path, target = tmp_path / "source", tmp_path / "target"
    done = 0
    for seed in range(60):
        path.write_bytes(mutated(text.encode(), seed))
        message = ""
        try:
            kind, _ = recognised(path)[0]
            convert(path, target, {"qrels": "trec", "run": "json", "rows": "flagembedding"}[kind])
        except InputError as error:
            message = str(error)
        assert target.exists() == (not message)
        assert not message or str(path) in message or "cannot carry" in message
        done += target.exists()
        target.unlink(missing_ok=True)
    assert done


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_disk_that_fails_while_unpacking_leaves_no_copy(tmp_path, monkeypatch, call):
    path = write(tmp_path / "corpus.jsonl.gz", jsonl(DOCUMENTS))

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    failing = disk.System()
    setattr(failing, call, fail)
    with monkeypatch.context() as patched:
        patched.setattr(disk, "system", failing)
        with pytest.raises(OSError, match="No space left"):
            unpacked(path)
    assert not [found for found in cache_folder().rglob("*.jsonl") if not found.name.startswith(".")]
    assert unpacked(path).read_text() == jsonl(DOCUMENTS)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=5),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_unicode_ids_pass_through_every_file_of_a_collection(tmp_path_factory, ids):
    # NFC beside NFD, right to left, emoji of four bytes: an id is the bytes that the user wrote.
    folder = tmp_path_factory.mktemp("unicode")
    make_collection(
        folder,
        documents=[{"_id": doc_id, "text": f"text of {doc_id}"} for doc_id in ids],
        queries={f"q{doc_id}": f"about {doc_id}" for doc_id in ids},
        qrels={"test": {f"q{doc_id}": {doc_id: 1} for doc_id in ids}},
    )
    collection = Collection.load(folder)
    assert list(collection.corpus.ids) == ids
    assert set(collection.queries("test")) == {f"q{doc_id}" for doc_id in ids}
    for query_id, grades in collection.qrels("test").items():
        (doc_id,) = grades
        assert query_id == f"q{doc_id}"
        assert collection.corpus.text(collection.corpus.row(doc_id)) == f"text of {doc_id}"


def test_queries_and_documents_may_share_ids(tmp_path):
    documents = [{"_id": str(n), "text": f"document {n}"} for n in range(3)]
    folder = make_collection(tmp_path, documents, {"1": "query one"}, {"test": {"1": {"1": 1, "2": 0}}})
    report = inspect(folder)
    assert (report.defects, report.warnings) == ([], [])
    assert Collection.load(folder).qrels("test") == {"1": {"1": 1, "2": 0}}


def test_quotes_are_letters_like_any_other(tmp_path):
    folder = make_collection(
        tmp_path, [{"_id": '"d1"', "text": "x"}], {'"q1"': 'say "hi"'}, {"test": {'"q1"': {'"d1"': 1}}}
    )
    collection = Collection.load(folder)
    assert collection.qrels("test") == {'"q1"': {'"d1"': 1}}
    assert collection.queries("test") == {'"q1"': 'say "hi"'}
    tsv = write(tmp_path / "topics.tsv", '"q1"\t"unbalanced\n')
    assert read_queries(tsv) == {'"q1"': '"unbalanced'}
