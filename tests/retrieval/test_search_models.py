"""An index answers to the model that made it, and to given vectors without any model."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from stub_encoder import StubEncoder

from retrieval.collection import Collection
from retrieval.embeddings import encode_collection
from retrieval.errors import InputError
from retrieval.search import Searcher, build_index


@pytest.fixture(scope="session")
def collection(tiny_collection) -> Collection:
    return Collection.load(tiny_collection)


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
def test_another_model_is_refused_with_both_values(stub_index, name, value):
    known = StubEncoder().fingerprint()[name]
    with pytest.raises(InputError) as caught:
        Searcher.load(stub_index, encoder=StubEncoder(**{name: value}))
    message = str(caught.value)
    assert message.startswith(f"{stub_index}: the index was built with {name} {known!r}, the model stub has {value!r}")
    assert message.endswith("give the same --model, or build the index again")


@pytest.mark.parametrize("change", [{"source": "elsewhere"}, {"precision": "bf16"}, {"pooling": "mean"}])
def test_the_same_model_from_elsewhere_is_taken(stub_index, change):
    assert Searcher.load(stub_index, encoder=StubEncoder(**change)).search("otter", k=1)


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


def test_queries_of_the_encoder_are_named_where_they_are_not_finite(stub_index):
    searcher = Searcher.load(stub_index, encoder=StubEncoder(poison="bad text"))
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
def test_bad_query_vectors_are_refused(stub_index, ids, vectors, k, expected):
    with pytest.raises(ValueError, match=expected):
        Searcher.load(stub_index).run_vectors(ids, vectors, k)


def test_stored_queries_give_the_run_of_their_texts(stub_index, tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "q", side="query", split="test")
    searcher = Searcher.load(stub_index, encoder=StubEncoder())
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
def test_stored_queries_of_another_model_are_refused_with_both_values(
    stub_index, tmp_path, collection, change, is_refused
):
    encode_collection(StubEncoder(**change), collection, tmp_path / "q", side="query", split="test")
    if not is_refused:
        assert Searcher.load(stub_index).run_embeddings(tmp_path / "q", k=5)
        return
    ((name, value),) = change.items()
    with pytest.raises(InputError) as caught:
        Searcher.load(stub_index).run_embeddings(tmp_path / "q", k=5)
    known = StubEncoder().fingerprint()[name]
    assert f"{tmp_path / 'q'}: made with {name} {value!r}, the index with {known!r}" in str(caught.value)


def test_stored_documents_are_no_queries(stub_index, tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    with pytest.raises(InputError, match="holds embeddings of documents; a search takes those of queries"):
        Searcher.load(stub_index).run_embeddings(tmp_path / "d")


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


def test_eight_threads_find_what_one_finds(stub_index, collection):
    random = np.random.default_rng(0)
    queries = random.standard_normal((800, 16)).astype(np.float32)
    jobs = [(f"q{row}", queries[row : row + 1]) for row in range(800)]
    alone = [Searcher.load(stub_index).run_vectors([name], vector, k=10) for name, vector in jobs[:8]]
    shared = Searcher.load(stub_index, encoder=StubEncoder())
    serial = [shared.run_vectors([name], vector, k=10) for name, vector in jobs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: shared.run_vectors([job[0]], job[1], k=10), jobs))
        texts = list(collection.queries().values()) * 4
        hits = list(pool.map(lambda text: shared.search(text, k=5), texts))
    assert parallel == serial
    assert serial[:8] == alone
    assert hits == [shared.search(text, k=5) for text in texts]


def test_threads_load_one_model(stub_index, monkeypatch):
    loaded = []

    def load(place, **settings):
        loaded.append((place, settings["pooling"]))
        return StubEncoder()

    monkeypatch.setattr("retrieval.encoder.Encoder.load", load)
    searcher = Searcher.load(stub_index)
    with ThreadPoolExecutor(8) as pool:
        assert len({tuple(hits) for hits in pool.map(lambda _: tuple(searcher.search("otter", k=3)), range(32))}) == 1
    assert loaded == [("stub", None)]
