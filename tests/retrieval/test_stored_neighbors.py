"""Kept answers of searches: those of a search, made once, replaced by deeper ones, checked, never in the way."""

import numpy as np
import pytest
from stub_encoder import StubEncoder

from indexes import FaissIndex
from indexes.storage import StorageError, locked
from retrieval import stored_neighbors as module
from retrieval.embedding_store import EmbeddingStore
from retrieval.stored_neighbors import stored_neighbors

DOCUMENTS = [f"red apple {number} {'pear' * (number % 3)}" for number in range(50)]
QUERIES = [f"apple {number}" for number in range(11)]


def embedded(store, side, texts, **fingerprint):
    return EmbeddingStore(store).embed(StubEncoder(**fingerprint), side, texts, lambda some: [texts[i] for i in some])


class Searches:
    """Makes indexes and counts how often."""

    def __init__(self, documents) -> None:
        self.documents, self.made = documents, 0

    def __call__(self) -> FaissIndex:
        self.made += 1
        index = FaissIndex(self.documents.dim)
        index.add(self.documents.rows())
        return index


@pytest.fixture
def asked(tmp_path):
    """Ask for neighbors and return (neighbors, whether something was searched)."""

    def ask(k, queries=QUERIES, documents=DOCUMENTS, **fingerprint):
        found = (
            embedded(tmp_path, "query", queries, **fingerprint),
            embedded(tmp_path, "document", documents, **fingerprint),
        )
        searches = Searches(found[1])
        return stored_neighbors(tmp_path, *found, k, searches), bool(searches.made)

    return ask


@pytest.mark.parametrize("block", [3, 4_096])
def test_the_answer_is_that_of_a_search(asked, monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    encoder = StubEncoder()
    index = FaissIndex(encoder.dim)
    index.add(encoder.encode_query(DOCUMENTS))
    expected = index.search(encoder.encode_query(QUERIES), 7)
    for is_new in (True, False):
        found, searched = asked(7)
        assert searched == is_new
        assert np.array_equal(found.rows, expected.rows)
        assert np.allclose(found.scores, expected.scores, atol=1e-6)


def test_a_deep_answer_serves_every_smaller_depth_and_replaces_what_was_there(asked):
    assert [asked(k)[1] for k in (5, 20, 5, 20, 21)] == [True, True, False, False, True]
    assert asked(9)[0].rows.shape == (len(QUERIES), 21)


def test_more_than_there_are_is_all_of_them(asked):
    assert [asked(k)[1] for k in (50, 80, 1_000)] == [True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"queries": QUERIES[::-1]},
        {"documents": DOCUMENTS[::-1]},
        {"documents": [*DOCUMENTS, "new"]},
        {"weights_sha256": "1" * 64},
    ],
)
def test_another_search_has_an_answer_of_its_own(asked, change):
    asked(5)
    assert asked(5, **change)[1]
    assert not asked(5)[1]


@pytest.mark.parametrize("name", ["rows.npy", "scores.npy"])
def test_damage_is_named_with_what_to_do(asked, tmp_path, name):
    asked(5)
    (path,) = (tmp_path / "neighbors").glob(f"*/v*/{name}")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match=rf"{name}.*delete .*neighbors.*, and the search is done again"):
        asked(5)


# --- ties ------------------------------------------------------------------------------------------------------------


def test_of_equal_documents_the_earlier_ones_are_taken_however_deep_the_answer(asked):
    texts = {"queries": ["apple", "pie"], "documents": ["plum", *["apple pie"] * 300, "pear"]}
    shallow, deep = asked(5, **texts)[0], asked(200, **texts)[0]
    assert shallow.rows.tolist() == [[1, 2, 3, 4, 5]] * 2  # no wider than was asked, however many tie
    assert np.array_equal(deep.rows[:, :5], shallow.rows)


def test_a_query_whose_vector_is_zero_has_no_documents_and_widens_no_answer(asked):
    for is_new in (True, False):
        found, searched = asked(7, queries=["apple 1", "", "apple 2"])
        assert searched == is_new
        assert found.rows.shape == (3, 7)
        assert (found.rows[1] == -1).all()
        assert (found.scores[1] == -np.inf).all()
        assert (found.rows[[0, 2]] >= 0).all()
    assert (asked(7, queries=["", ""])[0].rows == -1).all()


# --- other processes and disks that take nothing ---------------------------------------------------------------------


def test_an_answer_that_another_process_is_writing_is_returned_all_the_same(asked, tmp_path, caplog):
    expected = asked(5)[0]
    (folder,) = (tmp_path / "neighbors").iterdir()
    with locked(folder):
        deeper, searched = asked(9)
        assert searched
        assert np.array_equal(deeper.rows[:, :5], expected.rows)
        assert "neighbors are not kept in" in caplog.text
        assert "in use by process" in caplog.text
        assert not asked(5)[1]  # reading needs no lock


def test_a_disk_that_takes_nothing_is_no_hindrance(asked, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "rows.npy")

    monkeypatch.setattr(module, "writing", full)
    for _ in range(2):
        found, searched = asked(5)
        assert searched
        assert found.rows.shape == (len(QUERIES), 5)
    assert "No space left on device" in caplog.text


def test_a_deeper_answer_published_while_one_is_read_is_read_instead(asked, monkeypatch):
    """The version that a reader has looked up is removed before it opens the file."""
    asked(5)
    load, calls = module.load_array, []

    def overtaken(path, dtype, shape):
        if not calls:
            calls.append(path)
            monkeypatch.setattr(module, "load_array", load)
            asked(20)
        return load(path, dtype, shape)

    monkeypatch.setattr(module, "load_array", overtaken)
    found, searched = asked(5)
    assert calls
    assert not searched
    assert found.rows.shape == (len(QUERIES), 20)
