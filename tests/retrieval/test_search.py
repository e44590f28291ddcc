"""Index folders and the searcher: exact answers, one order for ties, texts, and no answer from the wrong folder."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from beir_folder import jsonl, make_collection
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_encoder import StubEncoder
from tiny_files import documents, make_tiny_collection

from indexes import FaissIndex, StorageError
from indexes.storage import open_folder, publishing
from retrieval.collection import Collection
from retrieval.embeddings import encode_collection
from retrieval.errors import InputError
from retrieval.ids import IdTable
from retrieval.search import Hit, Searcher, build_index

N = len(documents())


@pytest.fixture(scope="session")
def collection(tiny_collection) -> Collection:
    return Collection.load(tiny_collection)


@pytest.fixture(scope="session")
def built(tmp_path_factory, collection) -> Path:
    """An index folder that no test changes."""
    folder = tmp_path_factory.mktemp("index") / "built"
    build_index(folder, encoder=StubEncoder(), collection=collection)
    return folder


@pytest.fixture
def index(tmp_path, built) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(built, tmp_path / "index"))


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


def test_the_index_is_readable_by_plain_faiss(built, collection):
    plain = faiss.read_index(str(files(built) / "index.faiss"))
    assert (plain.ntotal, plain.d) == (N, 16)
    queries = StubEncoder().encode_query(["an otter in the river", "glacier"])
    scores, rows = plain.search(queries, N)
    ids = (files(built) / "ids.txt").read_text().splitlines()
    assert ids == list(collection.corpus.ids)
    run = Searcher.load(built).run_vectors(["a", "b"], queries, k=N)
    for query_id, found_rows, found_scores in zip("ab", rows.tolist(), scores.tolist(), strict=True):
        assert {ids[row]: score for row, score in zip(found_rows, found_scores, strict=True)} == run[query_id]


def test_a_run_equals_brute_force(built, collection):
    encoder = StubEncoder()
    vectors = encoder.encode_query(collection.corpus.texts(range(N)))
    queries = collection.queries()
    run = Searcher.load(built, encoder=encoder).run(queries, k=10)
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


def test_k_beyond_the_corpus(built, collection):
    hits = Searcher.load(built, encoder=StubEncoder()).search("an otter", k=10_000)
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


def test_the_same_from_embeddings_and_from_a_model(built, tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    build_index(tmp_path / "i", embeddings=tmp_path / "d", collection=collection)
    assert (files(tmp_path / "i") / "index.faiss").read_bytes() == (files(built) / "index.faiss").read_bytes()
    ours, theirs = (Searcher.load(folder, encoder=StubEncoder()) for folder in (tmp_path / "i", built))
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


def test_texts_are_read_from_the_corpus(built, collection):
    hits = Searcher.load(built, encoder=StubEncoder()).search("the otter needs fish crabs and mussels", k=3)
    assert all(isinstance(hit, Hit) for hit in hits)
    for hit in hits:
        document = collection.corpus.document(collection.corpus.row(hit.doc_id))
        assert (hit.title, hit.text) == (document.title, document.text)
    assert sorted(os.listdir(files(built))) == ["ids.txt", "index.faiss", "manifest.json", "offsets.npy"]


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


# --- the right model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights_sha256", "f" * 64),
        ("modules", ["Other"]),
        ("dim", 8),
        ("similarity", "dot"),
        ("query_prompt", "query: "),
        ("document_prompt", "passage: "),
        ("query_max_length", 32),
        ("document_max_length", None),
    ],
)
def test_another_model_is_refused_with_both_values(built, name, value):
    known = StubEncoder().fingerprint()[name]
    with pytest.raises(InputError) as caught:
        Searcher.load(built, encoder=StubEncoder(**{name: value}))
    message = str(caught.value)
    assert message.startswith(f"{built}: the index was built with {name} {known!r}, the model stub has {value!r}")
    assert message.endswith("give the same --model, or build the index again")


@pytest.mark.parametrize("change", [{"source": "elsewhere"}, {"precision": "bf16"}, {"pooling": "mean"}])
def test_the_same_model_from_elsewhere_is_taken(built, change):
    assert Searcher.load(built, encoder=StubEncoder(**change)).search("otter", k=1)


def test_a_model_is_loaded_at_the_first_text_as_the_index_was_built(tmp_path, tiny_model, collection):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    from retrieval.encoder import Encoder

    place = Path(shutil.copytree(f"{tiny_model}-bert", tmp_path / "bert"))
    settings = {"pooling": "cls", "query_prompt": "q ", "query_max_length": 9, "document_max_length": 20}
    encoder = Encoder.load(str(place), device="cpu", precision="fp32", **settings)
    build_index(tmp_path / "i", encoder=encoder, collection=collection)
    expected = Searcher.load(tmp_path / "i", encoder=encoder).search("an otter", k=4)
    assert Searcher.load(tmp_path / "i", device="cpu").search("an otter", k=4) == expected
    place.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="no such model folder"):
        Searcher.load(tmp_path / "i", device="cpu").search("an otter", k=4)
    moved = Searcher.load(tmp_path / "i", model=str(tmp_path / "moved"), device="cpu")
    assert moved.search("an otter", k=4) == expected
    with pytest.raises(InputError, match="has its own pooling; only of a plain HF encoder 'cls' can be asked"):
        Searcher.load(tmp_path / "i", model=tiny_model, device="cpu").search("an otter", k=4)


def test_queries_of_the_encoder_are_named_where_they_are_not_finite(built):
    searcher = Searcher.load(built, encoder=StubEncoder(poison="bad text"))
    with pytest.raises(ValueError, match=r"query 1 \(q2\): component 3 is nan"):
        searcher.run({"q1": "otter", "q2": "bad text"}, k=3)


# --- given vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "vectors", "k", "expected"),
    [
        (["a"], np.zeros((2, 16), np.float32), 5, r"got 1 query ids \(1 distinct\) and 2 vectors"),
        (["a", "a"], np.zeros((2, 16), np.float32), 5, r"got 2 query ids \(1 distinct\) and 2 vectors"),
        (["a"], np.zeros((1, 8), np.float32), 5, "queries have 8 dimensions, the index 16"),
        (["a"], np.zeros((1, 16), np.float64), 5, "must be a float32 array, got float64"),
        (["a"], [[0.0] * 16], 5, "must be a float32 array, got list"),
        (["a"], np.full((1, 16), np.inf, np.float32), 5, r"query 0 \(a\): component 0 is inf"),
        (["a"], np.full((1, 16), 1e30, np.float32), 5, r"query 0 \(a\): component 0 is 1e\+30"),
        (["a"], np.zeros((1, 16), np.float32), 0, "k must be a whole number >= 1, got 0"),
        ([], np.zeros((0, 16), np.float32), -1, "k must be a whole number >= 1, got -1"),
        (["a"], np.zeros((1, 16), np.float32), 2.5, "k must be a whole number >= 1, got 2.5"),
    ],
)
def test_bad_query_vectors_are_refused(built, ids, vectors, k, expected):
    with pytest.raises(ValueError, match=expected):
        Searcher.load(built).run_vectors(ids, vectors, k)


def test_stored_queries_give_the_run_of_their_texts(built, tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "q", side="query", split="test")
    searcher = Searcher.load(built, encoder=StubEncoder())
    assert searcher.run_embeddings(tmp_path / "q", k=5) == searcher.run(collection.queries("test"), k=5)


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        ({"weights_sha256": "f" * 64}, True),
        ({"query_prompt": "query: "}, True),
        ({"query_max_length": 32}, True),
        ({"modules": ["Other"]}, True),
        ({"document_prompt": "passage: "}, False),  # queries do not depend on how documents are read
        ({"document_max_length": 32}, False),
        ({"precision": "bf16", "source": "elsewhere"}, False),
    ],
)
def test_stored_queries_of_another_model_are_refused_with_both_values(built, tmp_path, collection, change, is_refused):
    encode_collection(StubEncoder(**change), collection, tmp_path / "q", side="query", split="test")
    if not is_refused:
        assert Searcher.load(built).run_embeddings(tmp_path / "q", k=5)
        return
    ((name, value),) = change.items()
    with pytest.raises(InputError) as caught:
        Searcher.load(built).run_embeddings(tmp_path / "q", k=5)
    known = StubEncoder().fingerprint()[name]
    assert f"{tmp_path / 'q'}: made with {name} {value!r}, the index with {known!r}" in str(caught.value)


def test_stored_documents_are_no_queries(built, tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    with pytest.raises(InputError, match="holds embeddings of documents; a search takes those of queries"):
        Searcher.load(built).run_embeddings(tmp_path / "d")


TORCHLESS = """
import sys
sys.path.insert(0, {tests!r})
from blocked_imports import block_extras, EXTRAS
block_extras()
import numpy as np
from retrieval import InputError, Searcher, build_index
build_index({out!r}, embeddings={documents!r})
searcher = Searcher.load({out!r})
run = searcher.run_embeddings({queries!r}, k=3)
vectors = np.eye(16, dtype=np.float32)[:2]
print(len(run), len(searcher.run_vectors(["a", "b"], vectors, k=4)["b"]))
try:
    searcher.search("a text")
except InputError as error:
    print(error)
assert not EXTRAS & sys.modules.keys()
"""


def test_given_vectors_need_no_torch(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    encode_collection(StubEncoder(), collection, tmp_path / "q", side="query", split="test")
    places = {name: str(tmp_path / part) for name, part in (("out", "i"), ("documents", "d"), ("queries", "q"))}
    code = TORCHLESS.format(tests=str(Path(__file__).parent), **places)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["12 4", "torch is not installed; run: pip install 'rankwright[train]'"]


def test_eight_threads_find_what_one_finds(built, collection):
    random = np.random.default_rng(0)
    queries = random.standard_normal((800, 16)).astype(np.float32)
    jobs = [(f"q{row}", queries[row : row + 1]) for row in range(800)]
    alone = [Searcher.load(built).run_vectors([name], vector, k=10) for name, vector in jobs[:8]]
    shared = Searcher.load(built, encoder=StubEncoder())
    serial = [shared.run_vectors([name], vector, k=10) for name, vector in jobs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: shared.run_vectors([job[0]], job[1], k=10), jobs))
        texts = list(collection.queries().values()) * 4
        hits = list(pool.map(lambda text: shared.search(text, k=5), texts))
    assert parallel == serial
    assert serial[:8] == alone
    assert hits == [shared.search(text, k=5) for text in texts]


def test_threads_load_one_model(built, monkeypatch):
    loaded = []

    def load(place, **settings):
        loaded.append((place, settings["pooling"]))
        return StubEncoder()

    monkeypatch.setattr("retrieval.encoder.Encoder.load", load)
    searcher = Searcher.load(built)
    with ThreadPoolExecutor(8) as pool:
        assert len({tuple(hits) for hits in pool.map(lambda _: tuple(searcher.search("otter", k=3)), range(32))}) == 1
    assert loaded == [("stub", None)]


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["index.faiss", "ids.txt", "offsets.npy", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: flip(path, -3),
        lambda path: flip(path, 40),
        Path.unlink,
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["cut", "empty", "grown", "flipped at the end", "flipped", "missing", "pipe"],
)
def test_damage_is_refused_in_one_line_that_names_the_file(index, name, damage):
    damage(files(index) / name)
    with pytest.raises(StorageError) as caught:
        Searcher.load(index)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_found(index):
    """Plain faiss reads nearly all of them without a word."""
    path = files(index) / "index.faiss"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        flip(path, place)
        with pytest.raises(StorageError, match="altered"):
            Searcher.load(index)
        path.write_bytes(whole)
    Searcher.load(index)


@pytest.mark.parametrize("name", ["index.faiss", "ids.txt", "offsets.npy"])
def test_files_of_another_valid_index_are_refused(index, tmp_path, name):
    other = Collection.load(make_collection(tmp_path / "c", [*documents()[1:], documents()[0]], {}, {}))
    build_index(tmp_path / "other", encoder=StubEncoder(), collection=other)
    shutil.copy(files(tmp_path / "other") / name, files(index) / name)
    with pytest.raises(StorageError, match="it was altered; build it again"):
        Searcher.load(index)


def test_a_file_too_many_is_refused(index):
    (files(index) / "index2.faiss").write_bytes(b"more")
    with pytest.raises(StorageError, match=r"index2\.faiss: is not in the manifest"):
        Searcher.load(index)


@pytest.mark.parametrize("text", ["", "v000001", "v000009 " + "0" * 64 + "\n", "../../etc\n"])
def test_another_current_is_refused(index, text):
    (index / "CURRENT").write_text(text)
    with pytest.raises(StorageError):
        Searcher.load(index)


def test_ids_that_do_not_match_the_vectors_are_refused(tmp_path):
    """A folder whose manifest is in order, but one id is missing."""
    index = FaissIndex(2)
    index.add(np.eye(2, dtype=np.float32))
    manifest = {"kind": "index", "model": {"dim": 2}}
    with publishing(tmp_path / "i", manifest) as folder:
        manifest["index"] = index.write(folder)
        (folder / "ids.txt").write_text("only\n")
    with pytest.raises(InputError, match="1 ids for 2 vectors; build the index again"):
        Searcher.load(tmp_path / "i")


def test_size_verification_sees_only_sizes(index):
    path = files(index) / "ids.txt"
    path.write_bytes(path.read_bytes().replace(b"otter-0", b"attic-0"))
    assert "attic-0" in Searcher.load(index, verify="size").ids
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError):
        Searcher.load(index, verify="size")


def test_what_is_no_index_is_refused(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    with pytest.raises(StorageError, match="is of kind 'embeddings', wanted 'index'"):
        Searcher.load(tmp_path / "d")
    with pytest.raises(StorageError, match="no such folder"):
        Searcher.load(tmp_path / "nowhere")


# --- building: refused before the long part --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "an index is built from --model and --data, or from --embeddings"),
        ({"encoder": True}, "an index is built from --model and --data, or from --embeddings"),
        ({"collection": True}, "an index is built from --model and --data, or from --embeddings"),
        ({"encoder": True, "collection": True, "embeddings": "d"}, "an index is built from --model and --data, or"),
        ({"embeddings": "d", "store_text": True}, "--store-text needs --data"),
        ({"embeddings": "nowhere"}, "nowhere: no such folder"),
        ({"encoder": True, "collection": True, "factory": "Flatt"}, "factory 'Flatt' with 16 dimensions"),
        ({"encoder": True, "collection": True, "factory": "IDMap,Flat"}, "rows are the ids here; leave IDMap out"),
        ({"encoder": True, "collection": True, "search_parameters": {"nprobe": 3}}, "search parameter 'nprobe'"),
        ({"encoder": True, "collection": True, "factory": "IVF99,Flat"}, "training 'IVF99,Flat' on 60 vectors"),
    ],
)
def test_impossible_settings_leave_nothing_behind(tmp_path, monkeypatch, collection, settings, expected):
    monkeypatch.chdir(tmp_path)
    encoder = StubEncoder()
    given_ = {"encoder": encoder, "collection": collection}
    with pytest.raises(ValueError, match=expected):
        build_index("i", **{name: given_.get(name, value) for name, value in settings.items()})
    assert os.listdir() == []
    assert not encoder.seen or "IVF99" in expected  # too few vectors for so many centroids shows only in training


def test_an_index_is_not_replaced_by_accident(index, collection):
    with pytest.raises(StorageError, match="exists already; choose another place or ask for --overwrite"):
        build_index(index, encoder=(encoder := StubEncoder()), collection=collection)
    assert encoder.seen == []
    build_index(index, encoder=StubEncoder(dim=8), collection=collection, overwrite=True)
    assert Searcher.load(index).index.dim == 8


def test_a_vector_that_is_not_finite_names_its_document_and_leaves_the_old_index(index, collection):
    encoder = StubEncoder(poison=collection.corpus.text(37))
    with pytest.raises(ValueError, match=rf"\({collection.corpus.ids[37]}\): component 3 is nan"):
        build_index(index, encoder=encoder, collection=collection, overwrite=True)
    assert len(Searcher.load(index).ids) == N


def test_embeddings_of_another_corpus_are_refused_with_both_hashes(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    other = Collection.load(make_collection(tmp_path / "c", documents()[1:], {}, {}))
    with pytest.raises(InputError) as caught:
        build_index(tmp_path / "i", embeddings=tmp_path / "d", collection=other)
    assert collection.corpus.sha256 in str(caught.value)
    assert other.corpus.sha256 in str(caught.value)


def test_a_second_builder_is_turned_away_at_once(tmp_path, collection):
    class Nested(StubEncoder):
        def encode_blocks(self, *arguments, **settings):
            with pytest.raises(StorageError, match=rf"in use by process {os.getpid()} on .*; wait until it has ended"):
                build_index(tmp_path / "i", encoder=(second := StubEncoder()), collection=collection)
            assert second.seen == []
            return super().encode_blocks(*arguments, **settings)

    build_index(tmp_path / "i", encoder=Nested(), collection=collection)
    assert len(Searcher.load(tmp_path / "i").ids) == N


def test_what_a_killed_builder_left_is_not_in_the_way(tmp_path, collection, built):
    """A folder with a lock that nobody holds, a half-written version and no CURRENT."""
    shutil.copytree(files(built), tmp_path / "i" / "v000001")
    (tmp_path / "i" / "v000001" / "ids.txt").unlink()
    (tmp_path / "i" / ".lock").write_text("process 1 on elsewhere\n")
    (tmp_path / "i" / ".v000002.tmp-1-00000000").mkdir()
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection)
    assert len(Searcher.load(tmp_path / "i").ids) == N
    assert sorted(os.listdir(tmp_path / "i")) == ["CURRENT", "v000001"]


def test_a_folder_of_something_else_is_never_touched(tmp_path, collection):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(StorageError, match=r"notes: holds other things \(mine.txt\)"):
            build_index(
                tmp_path / "notes", encoder=(encoder := StubEncoder()), collection=collection, overwrite=overwrite
            )
        assert encoder.seen == []
    assert os.listdir(tmp_path / "notes") == ["mine.txt"]


def test_embeddings_of_queries_are_no_documents(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "q", side="query")
    with pytest.raises(InputError, match="holds query embeddings; an index takes those of documents"):
        build_index(tmp_path / "i", embeddings=tmp_path / "q")


def test_readers_see_the_old_index_or_the_new_one_and_never_a_mix(tmp_path, collection):
    few = Collection.load(make_collection(tmp_path / "few", documents()[:3], {}, {}))
    encoder, text = StubEncoder(), "the glacier is a slow river"
    for number, corpus in enumerate((collection, few)):
        build_index(tmp_path / str(number), encoder=encoder, collection=corpus, store_text=True)
    expected = [Searcher.load(tmp_path / name, encoder=encoder).search(text, k=9) for name in "01"]
    build_index(tmp_path / "i", encoder=encoder, collection=collection, store_text=True)
    done = threading.Event()

    def read() -> set[int]:
        seen = set()
        while not done.is_set() or len(seen) == 0:
            seen.add(expected.index(Searcher.load(tmp_path / "i", encoder=encoder).search(text, k=9)))
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(25):
                corpus = (few, collection)[number % 2]
                build_index(tmp_path / "i", encoder=encoder, collection=corpus, store_text=True, overwrite=True)
        finally:
            done.set()
        assert set.union(*(reader.result() for reader in readers)) == {0, 1}


def test_ids_that_no_run_can_carry_are_refused(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "corpus.jsonl").write_text(jsonl([{"_id": "a b", "text": "x"}]))
    with pytest.raises(InputError, match=r"document id of row 0 'a b' holds U\+0020"):
        build_index(tmp_path / "i", encoder=(encoder := StubEncoder()), collection=Collection.load(tmp_path / "c"))
    assert encoder.seen == []


def test_the_manifest_says_what_the_index_is(built, collection):
    manifest = Searcher.load(built).manifest
    assert manifest["kind"] == "index"
    assert manifest["documents"] == N
    assert manifest["model"] == StubEncoder().fingerprint()
    assert manifest["corpus"] == {
        "path": str(collection.corpus.path.resolve()),
        "sha256": collection.corpus.sha256,
        "stored": False,
    }
    assert manifest["index"]["rows"] == N
    assert set(manifest["files"]) == {"index.faiss", "ids.txt", "offsets.npy"}
