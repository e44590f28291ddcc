"""Index folders and the searcher: exact answers, one order for ties, and the texts."""

import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from beir_folder import make_collection
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_encoder import StubEncoder
from tiny_files import documents, make_tiny_collection

from indexes import FaissIndex
from indexes.storage import open_folder
from retrieval.collection import Collection
from retrieval.embeddings import encode_collection
from retrieval.ids import IdTable
from retrieval.search import Hit, Searcher, build_index

N = len(documents())


@pytest.fixture(scope="session")
def collection(tiny_collection) -> Collection:
    return Collection.load(tiny_collection)


def files(folder: Path) -> Path:
    return open_folder(folder, kind="index").path


def in_memory(vectors, ids) -> Searcher:
    index = FaissIndex(vectors.shape[1])
    index.add(vectors)
    return Searcher(
        Path("memory"), index, IdTable.build(ids), {"model": StubEncoder(dim=vectors.shape[1]).fingerprint()}
    )


def brute_force(vectors, ids, query, k) -> dict[str, float]:
    """trec_eval's order, written out: float32 score falling, then document id falling byte by byte."""
    scores = {doc_id: float(np.float32(vector @ query)) for doc_id, vector in zip(ids, vectors, strict=True)}
    return dict(sorted(scores.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)[:k])


# --- exact, with one order for ties ----------------------------------------------------------------------------------


def test_the_index_is_readable_by_plain_faiss(stub_index, collection):
    plain = faiss.read_index(str(files(stub_index) / "index.faiss"))
    assert (plain.ntotal, plain.d) == (N, 16)
    queries = StubEncoder().encode_query(["an otter in the river", "glacier"])
    scores, rows = plain.search(queries, N)
    ids = (files(stub_index) / "ids.txt").read_text().splitlines()
    assert ids == list(collection.corpus.ids)
    run = Searcher.load(stub_index).run_vectors(["a", "b"], queries, k=N)
    for query_id, found_rows, found_scores in zip("ab", rows.tolist(), scores.tolist(), strict=True):
        assert {ids[row]: score for row, score in zip(found_rows, found_scores, strict=True)} == run[query_id]


def test_a_run_equals_brute_force(stub_index, collection):
    encoder = StubEncoder()
    vectors = encoder.encode_query(collection.corpus.texts(range(N)))
    queries = collection.queries()
    run = Searcher.load(stub_index, encoder=encoder).run(queries, k=10)
    assert list(run) == list(queries)
    for (query_id, found), query in zip(run.items(), encoder.encode_query(queries.values()), strict=True):
        expected = brute_force(vectors, collection.corpus.ids, query, 10)
        assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert len(found) == 10, query_id


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=2)
PAIRS = st.tuples(st.integers(-2, 2), st.integers(-2, 2))


@settings(max_examples=60)
@given(
    rows=st.lists(PAIRS, min_size=1, max_size=60),
    names=st.lists(NAMES, unique=True, min_size=60, max_size=60),
    query=PAIRS,
    k=st.integers(1, 70),
)
def test_ties_are_ordered_as_trec_eval_orders_them(rows, names, query, k):
    """Small whole numbers tie all the time and have exact scores; all that tie at rank k must have been seen."""
    vectors = np.array(rows, dtype=np.float32)
    ids = names[: len(rows)]
    found = in_memory(vectors, ids).run_vectors(["q"], np.array([query], dtype=np.float32), k)["q"]
    expected = brute_force(vectors, ids, np.array(query, dtype=np.float32), k)
    assert list(found.items()) == list(expected.items())


def test_many_duplicates_at_rank_k_are_all_seen():
    vectors = np.zeros((5_000, 4), dtype=np.float32)
    vectors[:, 0] = 1
    ids = [f"d{row:04d}" for row in range(5_000)]
    found = in_memory(vectors, ids).run_vectors(["q"], vectors[:1], k=3)
    assert list(found["q"]) == ["d4999", "d4998", "d4997"]


def test_more_queries_than_a_block():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((50, 8)).astype(np.float32)
    queries = random.standard_normal((2_100, 8)).astype(np.float32)
    ids = [f"d{row}" for row in range(50)]
    run = in_memory(vectors, ids).run_vectors([f"q{row}" for row in range(2_100)], queries, k=2)
    best = (queries @ vectors.T).argmax(axis=1)
    assert [next(iter(found)) for found in run.values()] == [f"d{row}" for row in best]


def test_k_beyond_the_corpus(stub_index, collection):
    hits = Searcher.load(stub_index, encoder=StubEncoder()).search("an otter", k=10_000)
    assert {hit.doc_id for hit in hits} == set(collection.corpus.ids)
    assert len(hits) == N


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat"])
def test_an_empty_corpus_finds_nothing(tmp_path, factory):
    collection = Collection.load(make_collection(tmp_path / "c", [], {}, {}))
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection, factory=factory)
    searcher = Searcher.load(tmp_path / "i", encoder=StubEncoder())
    assert searcher.search("anything", k=5) == []
    assert searcher.run({"q": "anything"}, k=5) == {"q": {}}
    assert searcher.run({}, k=5) == {}


@pytest.mark.parametrize("store_text", [False, True])
def test_a_corpus_of_one_document(tmp_path, store_text):
    collection = Collection.load(make_collection(tmp_path / "c", documents()[:1], {}, {}))
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection, store_text=store_text)
    (hit,) = Searcher.load(tmp_path / "i", encoder=StubEncoder()).search("otter", k=5)
    assert (hit.doc_id, hit.title, hit.text) == ("otter-0", "otter", documents()[0]["text"])


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("Flat", {}),
        ("IVF4,Flat", {"nprobe": 4}),
        ("HNSW16", {"efSearch": 200}),
        ("SQ8", {}),
        ("PCA8,Flat", {}),
        ("IVF2,PQ8x4fs,RFlat", {"nprobe": 2, "k_factor_rf": 60}),
        ("IVF2,SQ4", {"nprobe": 2}),
    ],
)
def test_any_factory_string(tmp_path, collection, factory, parameters):
    encoder = StubEncoder()
    build_index(tmp_path / "i", encoder=encoder, collection=collection, factory=factory, search_parameters=parameters)
    searcher = Searcher.load(tmp_path / "i", encoder=encoder)
    manifest = searcher.manifest["index"]
    assert (manifest["factory"], manifest["search_parameters"]) == (factory, parameters)
    run = searcher.run(collection.queries("test"), k=5)
    assert all(len(found) == 5 for found in run.values())
    assert run == Searcher.load(tmp_path / "i", encoder=encoder).run(collection.queries("test"), k=5)
    exact = Searcher.load(tmp_path / "i", encoder=encoder).index
    if factory in ("Flat", "IVF4,Flat", "IVF2,PQ8x4fs,RFlat", "HNSW16"):  # those that search and keep everything
        vectors = encoder.encode_query(collection.corpus.texts(range(N)))
        found = exact.search(vectors, 1)
        assert found.scores[:, 0] == pytest.approx((vectors * vectors).sum(axis=1), abs=1e-5)


def test_the_same_from_embeddings_and_from_a_model(stub_index, tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    build_index(tmp_path / "i", embeddings=tmp_path / "d", collection=collection)
    assert (files(tmp_path / "i") / "index.faiss").read_bytes() == (files(stub_index) / "index.faiss").read_bytes()
    ours, theirs = (Searcher.load(folder, encoder=StubEncoder()) for folder in (tmp_path / "i", stub_index))
    assert ours.search("an otter", k=7) == theirs.search("an otter", k=7)
    assert ours.manifest["model"] == theirs.manifest["model"]


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path) -> Path:
    """A collection that a test may change."""
    return make_tiny_collection(tmp_path / "own")


def text_of(folder, caplog=None) -> tuple[str | None, list[str]]:
    """The best hit's text, after three searches, and what was warned of meanwhile."""
    searcher = Searcher.load(folder, encoder=StubEncoder())
    if caplog is None:
        return searcher.search("the otter needs fish", k=1)[0].text, []
    with caplog.at_level("WARNING"):
        hits = [hit for _ in range(3) for hit in searcher.search("the otter needs fish", k=2)]
    assert len({hit.text is None for hit in hits}) == 1
    return hits[0].text, [record.getMessage() for record in caplog.records]


def test_texts_are_read_from_the_corpus(stub_index, collection):
    hits = Searcher.load(stub_index, encoder=StubEncoder()).search("the otter needs fish crabs and mussels", k=3)
    assert all(isinstance(hit, Hit) for hit in hits)
    for hit in hits:
        document = collection.corpus.document(collection.corpus.row(hit.doc_id))
        assert (hit.title, hit.text) == (document.title, document.text)
    assert sorted(os.listdir(files(stub_index))) == ["ids.txt", "index.faiss", "manifest.json", "offsets.npy"]


def test_a_moved_corpus_gives_no_text_and_one_warning(own, tmp_path, caplog):
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=Collection.load(own))
    own.rename(tmp_path / "elsewhere")
    text, warnings = text_of(tmp_path / "i", caplog)
    assert text is None
    assert len(warnings) == 1
    assert warnings[0].endswith("corpus.jsonl is gone (--store-text keeps texts in the index): results have no text")


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("otter", "utter", 1), lambda text: text + text[:9], lambda text: text[:-9]]
)
def test_an_altered_corpus_gives_no_text_and_one_warning(own, tmp_path, caplog, change):
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=Collection.load(own))
    (own / "corpus.jsonl").write_text(change((own / "corpus.jsonl").read_text()))
    text, warnings = text_of(tmp_path / "i", caplog)
    assert text is None
    assert len(warnings) == 1
    assert warnings[0].endswith("corpus.jsonl has changed since the index was built: results have no text")


def test_stored_texts_need_no_corpus(own, tmp_path, caplog):
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=Collection.load(own), store_text=True)
    shutil.rmtree(own)
    (tmp_path / "i").rename(tmp_path / "moved")
    text, warnings = text_of(tmp_path / "moved", caplog)
    assert "otter" in text
    assert warnings == []


def test_stored_texts_are_exact(tmp_path):
    texts = ["plain", 'quo"te', "line\nfeed", "🤗 é \u2028", "", "x" * 9_000, "\x00"]
    records = [{"_id": f"d{row}", "title": text, "text": text} for row, text in enumerate(texts)]
    collection = Collection.load(make_collection(tmp_path / "c", records, {}, {}))
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection, store_text=True)
    shutil.rmtree(tmp_path / "c")
    hits = Searcher.load(tmp_path / "i", encoder=StubEncoder()).search("plain", k=99)
    assert {hit.doc_id: (hit.title, hit.text) for hit in hits} == {f"d{row}": (t, t) for row, t in enumerate(texts)}


def test_an_index_of_embeddings_alone_has_no_text_and_one_warning(tmp_path, collection, caplog):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    build_index(tmp_path / "i", embeddings=tmp_path / "d")
    text, warnings = text_of(tmp_path / "i", caplog)
    assert (text, warnings) == (None, ["the index was built without --data: results have no text"])


def test_texts_of_a_compressed_corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    collection = Collection.load(make_collection(tmp_path / "c", documents(), ending=".gz"))
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection)
    assert "otter" in text_of(tmp_path / "i")[0]


def test_an_open_searcher_outlives_the_index_that_replaces_its_own(own, tmp_path):
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=Collection.load(own), store_text=True)
    searcher = Searcher.load(tmp_path / "i", encoder=StubEncoder())
    smaller = Collection.load(make_collection(tmp_path / "c", documents()[:3], {}, {}))
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=smaller, overwrite=True)
    hits = searcher.search("the glacier is a slow river", k=N)
    assert len(hits) == N
    assert all(hit.text for hit in hits)
    assert len(Searcher.load(tmp_path / "i", encoder=StubEncoder()).ids) == 3
